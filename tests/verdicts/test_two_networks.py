"""Queries over two networks: weights that were rounded, inputs that differ, and verdicts against sampling."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from verifier import Options, verify
from verifier.frontends.onnx import load
from verifier.results import Result, Status
from verifier.specs.compile import compile_query
from verifier.specs.evaluator import satisfies
from verifier.specs.load import parse_query
from verifier.transforms import prepare

pytest.importorskip("vnnlib")

Weights = list[tuple[NDArray, NDArray]]


def make(generator: np.random.Generator, *sizes: int) -> Weights:
    """Layers whose values keep about their size."""
    return [
        (generator.standard_normal((b, a)) * np.sqrt(2 / a), 0.1 * generator.standard_normal(b))
        for a, b in itertools.pairwise(sizes)
    ]


def rounded(weights: Weights, parts: float) -> Weights:
    return [(np.round(w * parts) / parts, b) for w, b in weights]


def pruned(weights: Weights, share: float) -> Weights:
    """Without the smallest weights."""
    return [(np.where(np.abs(w) < np.quantile(np.abs(w), share), 0.0, w), b) for w, b in weights]


def evaluate(weights: Weights, x: NDArray) -> NDArray:
    for k, (w, b) in enumerate(weights):
        x = x @ w.astype(np.float32).T + b.astype(np.float32)
        x = x if k + 1 == len(weights) else np.maximum(x, 0)
    return x


def model(weights: Weights, act: str = "Relu") -> bytes:
    nodes, constants, x = [], [], "x"
    for k, pair in enumerate(weights):
        constants += [
            numpy_helper.from_array(t.astype(np.float32), f"{n}{k}") for n, t in zip("wb", pair, strict=True)
        ]
        last = k + 1 == len(weights)
        nodes.append(helper.make_node("Gemm", [x, f"w{k}", f"b{k}"], ["y" if last else f"z{k}"], transB=1))
        if not last:
            nodes.append(helper.make_node(act, [f"z{k}"], [f"a{k}"]))
            x = f"a{k}"
    sizes = (("x", weights[0][0].shape[1]), ("y", len(weights[-1][1])))
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, n]) for name, n in sizes]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], constants)
    return helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9
    ).SerializeToString()


def query(kind: str, inputs: int, outputs: int, assertions: Sequence[str]) -> str:
    return f"""(vnnlib-version <2.0>)
(declare-network f (declare-input X float32 [1,{inputs}]) (declare-output Y float32 [1,{outputs}]))
(declare-network g ({kind} f) (declare-input U float32 [1,{inputs}]) (declare-output V float32 [1,{outputs}]))
""" + "\n".join(f"(assert {a})" for a in assertions)


def box(name: str, size: int, radius: float) -> list[str]:
    return [f"(and (>= {name}[0,{i}] -{radius}) (<= {name}[0,{i}] {radius}))" for i in range(size)]


def equal(size: int) -> list[str]:
    return [f"(== X[0,{i}] U[0,{i}])" for i in range(size)]


def near(size: int, distance: float) -> list[str]:
    pairs = [(f"X[0,{i}]", f"U[0,{i}]") for i in range(size)]
    return [f"(<= (- {a} {b}) {distance})" for pair in pairs for a, b in (pair, pair[::-1])]


def apart(distance: float) -> str:
    return f"(or (>= (- Y[0,0] V[0,0]) {distance}) (<= (- Y[0,0] V[0,0]) -{distance}))"


def decide(models: dict[str, bytes], text: str, folder: Path, **options: object) -> Result:
    path = folder / "query.vnnlib"
    path.write_text(text)
    return verify(models, path, timeout=60, options=Options(**options))  # type: ignore[arg-type]


def separately() -> mock._patch:
    """Without differences of the two networks' values."""
    return mock.patch.object(prepare, "carry_differences", lambda graph: graph)


@pytest.mark.parametrize("change", [lambda w: rounded(w, 64), lambda w: pruned(w, 0.1)])
def test_changed_weights_are_proved_close(change, tmp_path: Path) -> None:
    """Within one and a half times of what samples differ by; the separate search is far from that after as many
    subdomains."""
    generator = np.random.default_rng(0)
    weights = make(generator, 5, 30, 30, 3)
    other = change(weights)
    x = generator.uniform(-0.1, 0.1, (20000, 5)).astype(np.float32)
    most = np.abs(evaluate(weights, x) - evaluate(other, x))[:, 0].max()
    models = {"f": model(weights), "g": model(other)}
    text = query("isomorphic-to", 5, 3, [*box("X", 5, 0.1), *equal(5), apart(1.7 * most)])
    found = decide(models, text, tmp_path, attack=False)
    assert found.status is Status.UNSAT
    with separately():
        found = decide(models, text, tmp_path, attack=False, max_domains=2 * found.stats.domains)
    assert found.status is Status.UNKNOWN
    found = decide(
        models, query("isomorphic-to", 5, 3, [*box("X", 5, 0.1), *equal(5), apart(0.8 * most)]), tmp_path
    )
    assert found.status is Status.SAT and found.counterexample is not None
    assert np.array_equal(found.counterexample.inputs["X"], found.counterexample.inputs["U"])


@pytest.mark.parametrize("act", ["Relu", "Tanh"])
def test_one_network_on_inputs_that_are_close(act: str, tmp_path: Path) -> None:
    """A bound on the outputs' difference that separate bounds need many more subdomains for; and one too small."""
    weights = make(np.random.default_rng(0), 3, 20, 20, 2)
    models = {"f": model(weights, act)}
    common = [*box("X", 3, 0.2), *box("U", 3, 0.2), *near(3, 0.01)]
    text = query("equal-to", 3, 2, [*common, apart(0.2)])
    joint = decide(models, text, tmp_path, attack=False)
    with separately():
        alone = decide(models, text, tmp_path, attack=False)
    assert joint.status is alone.status is Status.UNSAT
    assert 4 * joint.stats.domains < alone.stats.domains
    text = query("equal-to", 3, 2, [*common, apart(0.001)])
    found = decide(models, text, tmp_path)
    assert found.status is Status.SAT and found.counterexample is not None
    values = {**found.counterexample.inputs, **found.counterexample.outputs}
    assert satisfies(parse_query(text), values, found.counterexample.tolerance)


def test_tied_inputs_have_one_place_and_equal_networks_one_copy_of_the_weights() -> None:
    weights = make(np.random.default_rng(2), 4, 6, 2)
    text = query("equal-to", 4, 2, [*box("X", 4, 1.0), *equal(4), "(>= Y[0,0] V[0,1])"])
    compiled = compile_query(parse_query(text), {"f": load(model(weights))})
    assert compiled.lower.shape == (1, 4) and compiled.ties is not None
    assert compiled.inputs(np.arange(4.0)).tolist() == [0, 1, 2, 3, 0, 1, 2, 3]
    stored = [t.data_ptr() for n in compiled.graph.nodes for t in n.op.tensors() if t.numel() == 24]
    assert len(set(stored)) == 1


@pytest.mark.parametrize("seed", range(6))
def test_verdicts_agree_with_separate_bounds_and_samples(seed: int, tmp_path: Path) -> None:
    """Small networks with a threshold near the largest difference, where both verdicts occur."""
    generator = np.random.default_rng(seed)
    weights = make(generator, 2, 6, 2)
    other = rounded(weights, 8)
    x = generator.uniform(-0.5, 0.5, (20000, 2)).astype(np.float32)
    y, z = evaluate(weights, x)[:, 0], evaluate(other, x)[:, 0]
    level = float(np.abs(y - z).max()) * (1.05 if seed % 2 else 0.95)
    models = {"f": model(weights), "g": model(other)}
    text = query("isomorphic-to", 2, 2, [*box("X", 2, 0.5), *equal(2), apart(level)])
    joint = decide(models, text, tmp_path, attack=False)
    with separately():
        alone = decide(models, text, tmp_path, attack=False)
    assert joint.status is alone.status
    assert joint.status is (Status.UNSAT if seed % 2 else Status.SAT)


def order(size: int) -> list[str]:
    """X at most U in the first element, equal in the others."""
    return ["(<= X[0,0] U[0,0])", "(<= U[0,0] 1.0)", *equal(size)[1:]]


def rising(generator: np.random.Generator, noise: float, *sizes: int) -> Weights:
    """A network that rises with its first input, but for what noise does."""
    weights = make(generator, *sizes)
    weights[0][0][:, 0] = np.abs(weights[0][0][:, 0]) + 0.1
    found = [(np.abs(w) if k else w, b - 0.3 * k) for k, (w, b) in enumerate(weights)]
    return [(w + noise * generator.standard_normal(w.shape) * np.abs(w).mean(), b) for w, b in found]


@pytest.mark.parametrize(("act", "noise"), [("Relu", 0.0), ("Tanh", 0.0), ("Tanh", 0.1)])
def test_a_network_that_rises_with_an_input_is_monotone(act: str, noise: float, tmp_path: Path) -> None:
    """Strictly above, where both sides are equal at once when the inputs are: only slopes tell."""
    weights = rising(np.random.default_rng(0), noise, 3, 12, 12, 2)
    text = query("equal-to", 3, 2, [*box("X", 3, 1.0), *order(3), "(> Y[0,0] V[0,0])"])
    found = decide({"f": model(weights, act)}, text, tmp_path, attack=False)
    assert found.status is Status.UNSAT
    with separately():
        found = decide({"f": model(weights, act)}, text, tmp_path, attack=False, max_domains=2000)
    assert found.status is Status.UNKNOWN


def test_a_network_that_falls_somewhere_is_refuted(tmp_path: Path) -> None:
    """Likewise where the second network's input is the smaller one, or either output may be."""
    weights = rising(np.random.default_rng(0), 1.0, 3, 12, 12, 2)
    for relation in ("(> Y[0,0] V[0,0])", "(or (> Y[0,0] V[0,0]) (> Y[0,1] V[0,1]))"):
        text = query("equal-to", 3, 2, [*box("X", 3, 1.0), *order(3), relation])
        found = decide({"f": model(weights)}, text, tmp_path)
        assert found.status is Status.SAT and found.counterexample is not None
        values = {**found.counterexample.inputs, **found.counterexample.outputs}
        assert satisfies(parse_query(text), values, found.counterexample.tolerance)
    swapped = query(
        "equal-to",
        3,
        2,
        [*box("U", 3, 1.0), "(<= U[0,0] X[0,0])", "(<= X[0,0] 1.0)", *equal(3)[1:], "(< Y[0,0] V[0,0])"],
    )
    good = rising(np.random.default_rng(0), 0.0, 3, 12, 12, 2)
    assert decide({"f": model(good)}, swapped, tmp_path, attack=False).status is Status.UNSAT
    weak = swapped.replace("(< Y[0,0] V[0,0])", "(<= Y[0,0] V[0,0])")
    assert decide({"f": model(good)}, weak, tmp_path).status is Status.SAT


def test_one_network_on_one_input_is_never_above_itself(tmp_path: Path) -> None:
    """Strictly; at most equal it is."""
    models = {"f": model(make(np.random.default_rng(3), 3, 8, 2), "Tanh")}
    for relation, status in ((">", Status.UNSAT), (">=", Status.SAT)):
        text = query("equal-to", 3, 2, [*box("X", 3, 1.0), *equal(3), f"({relation} Y[0,0] V[0,0])"])
        assert decide(models, text, tmp_path, attack=relation == ">=").status is status
