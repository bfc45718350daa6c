"""Damaged models and specs: bad input is named as such, or the verdict is right; nothing else ever escapes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import verifier
from tests.fuzz.mutate import damaged_bytes, damaged_model, damaged_text
from tests.verdicts.networks import random_case, random_net, to_onnx
from verifier.errors import VerifierError
from verifier.options import Options
from verifier.results import Result, Status
from verifier.specs.evaluator import satisfies
from verifier.specs.load import parse_query
from verifier.specs.normalise import normalise
from verifier.specs.query import Kind, Query

QUICK = Options(timeout=2, max_domains=8, batch_size=8, attack=False, threads=1)
ATTACKING = Options(timeout=2, max_domains=8, batch_size=8, threads=1)


def corpus(random: np.random.Generator, data: Path) -> tuple[bytes, str]:
    """A sound pair: a tiny random network, or a network trained on digits."""
    if random.random() < 0.05:
        name = str(random.choice(["digits_mlp", "digits_cnn"]))
        spec = data / f"{name}_{random.choice(['sat', 'unsat'])}.vnnlib"
        return (data / f"{name}.onnx").read_bytes(), spec.read_text()
    case = random_case(random, random_net(random, int(random.integers(2, 10))))
    return to_onnx(case.net), case.text()


def damaged(random: np.random.Generator, model: bytes, text: str) -> tuple[bytes, str]:
    match int(random.integers(0, 5)):
        case 0:
            return damaged_bytes(random, model), text
        case 1 | 2:
            return damaged_model(random, model), text
        case 3:
            return model, damaged_text(random, text)
        case _:
            return model, damaged_bytes(random, text.encode()).decode(errors="replace")


def contradicted(model: bytes, query: Query, result: Result, random: np.random.Generator) -> str | None:
    """What speaks against a verdict: the counterexample itself, or a random point that is one."""
    inputs, outputs = query.of_kind(Kind.INPUT), query.of_kind(Kind.OUTPUT)
    if result.status is Status.SAT:
        assert result.counterexample is not None
        found = result.counterexample
        values = {**found.inputs, **_run(model, found.inputs, outputs)}
        return None if satisfies(query, values, found.tolerance) else f"the counterexample is none: {values}"
    if result.status is Status.UNSAT and len(inputs) == 1:
        problem = normalise(query)
        for case in range(min(problem.cases, 4)):
            for _ in range(8):
                part = random.random(problem.inputs)
                x = problem.lower[case] + part * (problem.upper[case] - problem.lower[case])
                values = {inputs[0].name: x.astype(np.float32)}
                values |= _run(model, values, outputs)
                if satisfies(query, values) and all(
                    satisfies(query, v) for v in _rounded(values, outputs, random)
                ):
                    return f"a counterexample: {values}"
    return None


def _rounded(values, outputs, random: np.random.Generator) -> Iterator[dict[str, np.ndarray]]:
    """The same with outputs as other arithmetic might give them: `unsat` speaks of real numbers."""
    for _ in range(16):
        near = {v.name: np.asarray(values[v.name], float) for v in outputs}
        moved = {n: y + 1e-5 * (1 + abs(y)) * random.choice([-1, 1], y.shape) for n, y in near.items()}
        yield {**values, **moved}


def _run(model: bytes, values, outputs) -> dict[str, np.ndarray]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    runtime = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    feed = {}
    for info, value in zip(runtime.get_inputs(), values.values(), strict=True):
        shape = [n if isinstance(n, int) and n > 0 else 1 for n in info.shape]
        kind = np.float64 if info.type == "tensor(double)" else np.float32
        feed[info.name] = np.asarray(value).astype(kind).reshape(shape)
    found = [np.asarray(y) for y in runtime.run(None, feed)]
    return dict(zip([v.name for v in outputs], found, strict=False))


def attempt(seed: int, data: Path) -> str:
    """One damaged pair; returns the verdict, or the error's kind. Fails on everything that must not happen."""
    random = np.random.default_rng(seed)
    model, text = damaged(random, *corpus(random, data))
    options = ATTACKING if seed % 5 == 0 else QUICK
    try:
        query = parse_query(text)
        result = verifier.verify(model, query, options=options)
    except VerifierError as error:
        return type(error).__name__ if str(error).strip() else "no message"
    against = contradicted(model, query, result, random)
    assert against is None, f"seed {seed}: {result.status.value}, but there is {against}\n{text}"
    return result.status.value


@pytest.fixture(scope="session")
def data(root: Path) -> Path:
    return root / "tests" / "data"


def test_some_damage(data: Path) -> None:
    found = Counter(attempt(seed, data) for seed in range(200))
    assert not found["no message"]
    assert found["ModelError"] >= 10 and found["SpecError"] >= 10 and found["sat"] + found["unsat"] >= 10


@pytest.mark.full
@pytest.mark.parametrize("block", range(20))
def test_much_damage(block: int, data: Path) -> None:
    for seed in range(1000 + 500 * block, 1500 + 500 * block):
        assert attempt(seed, data) != "no message"
