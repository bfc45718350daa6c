"""Verdicts on random tiny networks against exact optimisation."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import onnxruntime
import pytest

import verifier
from tests.verdicts.milp import Milp
from tests.verdicts.networks import Case, larger_case, random_case, random_net, score, to_onnx
from verifier.options import Options
from verifier.results import Result, Status
from verifier.specs.evaluator import satisfies
from verifier.specs.load import parse_query

NEAR = 1e-4
"""Scores closer to zero than this may be decided either way by float32 and by the solver's tolerances."""
CLEAR = 1e-2
"""Below minus this, where exactly the least score is does not matter."""
OPTIONS = Options(timeout=60, max_domains=4000, batch_size=1024)
PROOF_ONLY = Options(timeout=60, max_domains=4000, batch_size=1024, attack=False)


ACTIVATION = Options(timeout=20, max_domains=1000, batch_size=256, attack=False, branching="activation")


def check(case: Case, result: Result, least: float, complete: bool = True) -> str:
    """The verdict is right, and if `complete` there is one; returns its name."""
    where = f"the least score is {least}\n{case.text()}"
    if result.status is Status.SAT:
        assert result.counterexample is not None
        x = np.concatenate([v.reshape(-1) for v in result.counterexample.inputs.values()])
        runtime = onnxruntime.InferenceSession(to_onnx(case.net), providers=["CPUExecutionProvider"])
        y = np.asarray(runtime.run(None, {"v0": x.reshape(1, -1).astype(np.float32)})[0])
        assert result.counterexample.tolerance == 0.0, where
        assert satisfies(parse_query(case.text()), {"X": x, "Y": y}), where
        assert least <= NEAR, where
    elif result.status is Status.UNSAT:
        assert least >= -1e-6 or at_jumps(case) >= -1e-6, where
    elif complete:
        assert abs(least) < NEAR or (least < 0 < at_jumps(case)), where
    return result.status.value


def at_jumps(case: Case) -> float:
    """The least score if signs are what they are at zero; NaN without signs. Where it is not what it is otherwise, some
    sign's argument is zero on a whole region: rounding decides, and so may the verifier not be able to."""
    signs = any(layer.kind == "sign" for layer in case.net.layers)
    return Milp(case, gap=1e-4).minimum(-CLEAR) if signs else np.nan


def small_case(seed: int) -> Case:
    random = np.random.default_rng(seed)
    return random_case(random, random_net(random))


def run(
    seeds: range, options: Options, complete: bool = True, make: Callable[[int], Case] = small_case
) -> Counter[str]:
    found: Counter[str] = Counter()
    for seed in seeds:
        case = make(seed)
        result = verifier.verify(to_onnx(case.net), parse_query(case.text()), options=options)
        found[check(case, result, Milp(case).minimum(-CLEAR), complete)] += 1
    return found


@pytest.mark.parametrize("first", [0, 1000])
def test_verdicts(first: int) -> None:
    found = run(range(first, first + 10), OPTIONS)
    assert found["sat"] >= 2 and found["unsat"] >= 2


def test_verdicts_without_attack() -> None:
    found = run(range(100, 112), PROOF_ONLY)
    assert found["sat"] >= 2 and found["unsat"] >= 2


@pytest.mark.full
@pytest.mark.parametrize("first", range(1000, 1600, 50))
def test_many_verdicts(first: int) -> None:
    found = run(range(first, first + 50), OPTIONS)
    assert found["sat"] >= 10 and found["unsat"] >= 10


@pytest.mark.full
@pytest.mark.parametrize("first", range(2000, 2200, 50))
def test_many_verdicts_without_attack(first: int) -> None:
    found = run(range(first, first + 50), PROOF_ONLY)
    assert found["sat"] >= 10 and found["unsat"] >= 10


@pytest.mark.parametrize("dtype", ["auto", "float64"])
def test_splitting_activations(dtype) -> None:
    found = run(range(3100, 3106), replace(ACTIVATION, dtype=dtype), complete=False)
    assert found["sat"] and found["unsat"]


@pytest.mark.full
@pytest.mark.parametrize("first", range(3200, 3400, 50))
def test_splitting_activations_often(first: int) -> None:
    run(range(first, first + 50), ACTIVATION, complete=False)


def test_up_to_sixty_neurons() -> None:
    found = run(range(11, 19), Options(timeout=60), make=larger_case)
    assert found["sat"] >= 2 and found["unsat"] >= 2


@pytest.mark.full
@pytest.mark.parametrize("attack", [True, False])
@pytest.mark.parametrize("first", range(0, 300, 20))
def test_up_to_sixty_neurons_often(first: int, attack: bool) -> None:
    """Residual connections, average and max pools, and signs, with up to 12 inputs."""
    found = run(range(first, first + 20), Options(timeout=60, attack=attack), make=larger_case)
    assert found["sat"] >= 3 and found["unsat"] >= 3


@pytest.mark.full
@pytest.mark.parametrize("first", range(0, 300, 20))
def test_up_to_sixty_neurons_split_by_activation(first: int) -> None:
    run(range(first, first + 20), ACTIVATION, complete=False, make=larger_case)


def test_oracle_finds_what_presolve_loses() -> None:
    """HiGHS with presolve calls 0.039 the optimum here, although the network reaches -0.188."""
    random = np.random.default_rng(3388)
    case = random_case(random, random_net(random))
    point = np.array([[0.361136, 1.103765]])
    (reached,) = score(case.formula, np.concatenate([point, case.net.evaluate(point)], 1))
    assert Milp(case).minimum() <= reached + 1e-6 < -0.18


def test_oracle_bounds_samples_from_below() -> None:
    """No sampled point is below the oracle's minimum, and in small boxes some come close."""
    for seed in range(12):
        random = np.random.default_rng(seed)
        case = random_case(random, random_net(random, 12))
        least = Milp(case).minimum()
        points = case.lower + (case.upper - case.lower) * random.random((20000, case.net.inputs))
        values = score(case.formula, np.concatenate([points, case.net.evaluate(points)], 1))
        assert values.min() >= least - 1e-5
        assert values.min() <= least + 0.35 * (np.ptp(values) + 1e-3)
