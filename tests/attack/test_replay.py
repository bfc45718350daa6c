"""Candidates become counterexamples only where the real network and the exact formula agree."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest

from verifier.attack.falsify import falsify
from verifier.attack.gradient import AttackOptions
from verifier.attack.implicant import Bounds, Inputs
from verifier.attack.repair import Settler, _ends
from verifier.attack.replay import Judge, confirm
from verifier.errors import ModelError
from verifier.frontends.replay import run
from verifier.results import Counterexample
from verifier.specs.compile import compile_query
from verifier.specs.evaluator import satisfies

ONE = np.eye(1)
ZERO = np.zeros(1)


@pytest.fixture(scope="module")
def identity(onnx_mlp):
    """y = x with one element."""
    return onnx_mlp((ONE, ZERO))


def check(query, counterexample: Counterexample | None) -> dict[str, np.ndarray]:
    """What every confirmed point promises."""
    assert counterexample is not None
    values = {**counterexample.inputs, **counterexample.outputs}
    assert satisfies(query, values, counterexample.tolerance)
    assert counterexample.tolerance == 0 or not satisfies(query, values)
    assert counterexample.assignment
    return values


@pytest.mark.parametrize("grid", [np.dtype(np.float32), np.dtype(np.float64)])
def test_ends_are_the_last_values_inside(grid):
    """Against exact arithmetic, for 10^4 decimals on, beside and between floats, both sides, strict and not."""
    random = np.random.default_rng(0)
    values = random.standard_normal(5000) * 10.0 ** random.integers(-6, 7, 5000)
    texts = [f"{v:.{d}f}" for v, d in zip(values, random.integers(0, 12, 5000), strict=True)]
    exact32 = values[:2500].astype(np.float32).astype(np.float64)
    texts += [str(Fraction(v)) for v in exact32]
    texts += [
        str(Fraction(v) + Fraction(int(s), 10**30))
        for v, s in zip(exact32, random.integers(-1, 2, 2500), strict=True)
    ]
    near = np.array([float(Fraction(t)) for t in texts])
    code = np.arange(len(texts))
    for upper in (False, True):
        strict = random.random(len(texts)) < 0.5
        ends = _ends(Bounds(code, near, upper, strict, code, tuple(texts)), grid)
        beyond = np.nextafter(ends.astype(grid), grid.type(np.inf if upper else -np.inf)).astype(np.float64)
        for text, end, out, hard in zip(texts, ends.tolist(), beyond.tolist(), strict.tolist(), strict=True):
            number = Fraction(text)
            gap, past = (Fraction(v) - number if upper else number - Fraction(v) for v in (end, out))
            assert gap < 0 if hard else gap <= 0
            assert past >= 0 if hard else past > 0


def test_moved_into_the_real_box(identity, spec):
    """float32(0.1) is above 0.1 and float32(0.7) below 0.7: a cast may leave the box, the replay may not."""
    for low, high in (("0.1", "0.7"), ("0.3", "0.9"), ("-0.7", "-0.1")):
        query = spec(1, 1, f"(>= X_0 {low})", f"(<= X_0 {high})", "(<= Y_0 100)")
        for point in (float(low), float(high), -5.0, 5.0):
            values = check(query, confirm(query, {"f": identity}, [point]))
            x = Fraction(float(values["X"].reshape(-1)[0]))
            assert Fraction(low) <= x <= Fraction(high) and values["X"].dtype == np.float32


def test_strict_input_bounds(identity, spec):
    query = spec(1, 1, "(> X_0 0.5)", "(< X_0 0.75)", "(<= Y_0 100)")
    for point in (0.5, 0.75):
        x = float(check(query, confirm(query, {"f": identity}, [point]))["X"].reshape(-1)[0])
        assert 0.5 < x < 0.75


def test_interval_without_a_float(identity, spec):
    """The nearest float32 counts, marked, up to 1e-4; an empty interval never does."""

    def at(low: str, high: str, tolerance: float = 1e-4) -> Counterexample | None:
        query = spec(1, 1, f"(>= X_0 {low})", f"(<= X_0 {high})", "(<= Y_0 1e9)")
        return confirm(query, {"f": identity}, [float(low)], tolerance)

    found = at("0.1", "0.1")
    assert found is not None
    distance = abs(Fraction(float(np.float32(0.1))) - Fraction(1, 10))
    assert distance <= Fraction(found.tolerance) <= distance * Fraction(1000001, 1000000)
    assert at("0.30000001", "0.300000011") is not None
    assert at("16777217", "16777217") is None  # the nearest float32 is 1 away
    assert at("0.1", "0.1", tolerance=1e-10) is None
    assert at("0.1", "0.0999999999") is None
    query = spec(1, 1, "(>= X_0 0.1)", "(< X_0 0.1)", "(<= Y_0 9)")
    assert confirm(query, {"f": identity}, [0.1]) is None


def test_tolerance_is_for_inputs_only(identity, spec):
    """float32(0.1) > 0.1, so y <= 0.1 fails by rounding: no counterexample, although the input is marked."""
    query = spec(1, 1, "(>= X_0 0.1)", "(<= X_0 0.1)", "(<= Y_0 0.1)")
    assert confirm(query, {"f": identity}, [0.1]) is None
    query = spec(1, 1, "(>= X_0 0.1)", "(<= X_0 0.1)", "(>= Y_0 0.1)")
    assert check(query, confirm(query, {"f": identity}, [0.1]))


def test_boxes_in_a_disjunction(identity, spec):
    """The point goes to the box of the disjunct that it is nearest to, not into the hull."""
    query = spec(
        1, 1, "(or (and (>= X_0 0) (<= X_0 0.1) (>= Y_0 -9)) (and (>= X_0 0.9) (<= X_0 1) (>= Y_0 -9)))"
    )
    for point, low, high in ((0.1000001, "0", "0.1"), (0.8999999, "0.9", "1")):
        x = Fraction(float(check(query, confirm(query, {"f": identity}, [point]))["X"].reshape(-1)[0]))
        assert Fraction(low) <= x <= Fraction(high)


def test_only_in_float64(onnx_mlp, spec):
    """x + 2^24 - 2^24 is x in exact arithmetic, and an even integer in float32."""
    model = onnx_mlp((np.array([[1.0]]), np.array([2.0**24])), (np.array([[1.0]]), np.array([-(2.0**24)])))
    query = spec(1, 1, "(>= X_0 0.25)", "(<= X_0 0.75)", "(>= Y_0 0.25)", "(<= Y_0 0.75)")
    assert confirm(query, {"f": model}, [0.5]) is None
    outcome = falsify(compile_query(query, {"f": model}), query, {"f": model}, rounds=2)
    assert outcome.counterexample is None and outcome.unconfirmed and outcome.margin <= 0


def test_near_miss_is_moved_beyond_the_boundary(onnx_mlp, spec):
    """Points exactly on the boundary fail for a strict inequality; the search goes on to those beyond."""
    random = np.random.default_rng(0)
    layers = [
        (random.standard_normal((16, 4)), random.standard_normal(16)),
        (random.standard_normal((1, 16)), ZERO),
    ]
    model = onnx_mlp(*layers)
    low = float(run(model, [random.random((2000, 1, 4))])[0].min())
    query = spec(
        4, 1, *[f"(>= X_{i} 0)" for i in range(4)], *[f"(<= X_{i} 1)" for i in range(4)], f"(< Y_0 {low!r})"
    )
    outcome = falsify(compile_query(query, {"f": model}), query, {"f": model}, rounds=6)
    assert float(check(query, outcome.counterexample)["Y"].reshape(-1)[0]) < low


def test_random_queries_against_sampling(onnx_mlp, spec):
    """Whatever a thousand samples violate, the attack finds; whatever it finds, the evaluator confirms."""
    random = np.random.default_rng(1)
    for _ in range(10):
        model = onnx_mlp(
            (random.standard_normal((12, 3)), random.standard_normal(12)),
            (random.standard_normal((3, 12)), random.standard_normal(3)),
        )
        a, b = (round(float(v), 3) for v in random.standard_normal(2) * 3)
        box = [f"(and (>= X_{i} -0.3) (<= X_{i} 0.7))" for i in range(3)]
        query = spec(3, 3, *box, f"(or (and (<= Y_0 {a}) (>= Y_1 Y_2)) (and (<= Y_2 {b}) (> Y_0 Y_1)))")
        points = (random.random((1000, 1, 3)) - 0.3).astype(np.float32)
        outputs = run(model, [points])[0]
        sampled = any(satisfies(query, {"X": x, "Y": y}) for x, y in zip(points, outputs, strict=True))
        outcome = falsify(compile_query(query, {"f": model}), query, {"f": model}, rounds=4)
        if sampled or outcome.counterexample is not None:
            check(query, outcome.counterexample)


def test_order_between_inputs(onnx_mlp, spec):
    """x0 <= x1 and x0 < x1 hold exactly after the move, also at the edge of the box."""
    model = onnx_mlp((np.array([[1.0, 1.0]]), ZERO))
    box = ["(and (>= X_0 0) (<= X_0 1))", "(and (>= X_1 0) (<= X_1 1))"]
    for relation, point in (
        ("<=", [0.5 + 1e-9, 0.5]),
        ("<=", [1.0, 0.25]),
        ("<", [0.5, 0.5]),
        ("<", [0.0, 0.0]),
    ):
        query = spec(2, 1, *box, f"({relation} X_0 X_1)", "(<= Y_0 9)")
        x = check(query, confirm(query, {"f": model}, point))["X"].reshape(-1)
        assert x[0] <= x[1] and (relation == "<=" or x[0] < x[1])


def test_linear_constraint_on_inputs(onnx_mlp, spec):
    """A half-space across the box is met exactly, though no box can say it."""
    model = onnx_mlp((np.ones((1, 3)), ZERO))
    box = [f"(and (>= X_{i} 0) (<= X_{i} 1))" for i in range(3)]
    query = spec(3, 1, *box, "(<= (+ X_0 (* 0.3 X_1) (* -0.7 X_2)) 0.1)", "(<= Y_0 9)")
    random = np.random.default_rng(3)
    for point in random.random((50, 3)):
        x = [Fraction(float(v)) for v in check(query, confirm(query, {"f": model}, point))["X"].reshape(-1)]
        assert x[0] + Fraction(3, 10) * x[1] - Fraction(7, 10) * x[2] <= Fraction(1, 10)


TWO = """(vnnlib-version <2.0>)
(declare-network f (declare-input X_f real [3]) (declare-output Y_f real [2]))
(declare-network g (isomorphic-to f) (declare-input X_g real [3]) (declare-output Y_g real [2]))
(assert (and (<= X_f[0] 0.7) (>= X_f[0] 0.1)))
(assert (and (<= X_f[1] 0.5) (>= X_f[1] -0.5)))
(assert (and (<= X_f[2] 0.3) (>= X_f[2] 0.3)))
(assert (== X_f[0] X_g[0]))
(assert (== X_f[1] X_g[1]))
(assert (== X_g[2] X_f[2]))
(assert (>= (- Y_f[0] Y_g[0]) 0.1))
"""


def test_two_networks_on_one_input(onnx_mlp):
    """Equal inputs of two networks stay equal in the search, and after the rounding to float32."""
    pytest.importorskip("vnnlib")
    from verifier.specs.vnnlib2 import parse

    query = parse(TWO, "two")
    random = np.random.default_rng(4)
    first = random.standard_normal((8, 3)), random.standard_normal(8)
    last = random.standard_normal((2, 8))
    models = {
        "f": onnx_mlp(first, (last, np.zeros(2))),
        "g": onnx_mlp(first, (last * 0.8, np.array([-0.4, 1.0]))),
    }
    compiled = compile_query(query, models)
    assert compiled.lower.shape == (1, 3)
    outcome = falsify(compiled, query, models, rounds=5)
    values = check(query, outcome.counterexample)
    assert (values["X_f"] == values["X_g"]).all()
    assert 0 < outcome.counterexample.tolerance < 1e-7  # 0.3 is not a float32


def test_conflicting_ties_are_empty(spec):
    query = spec(2, 1, "(<= X_0 0.4)", "(>= X_1 0.5)", "(= X_0 X_1)", "(<= Y_0 1)")
    settler = Settler(Inputs(query).common(), query.size, np.dtype(np.float32))
    assert settler.settle(np.full(3, 0.45), np.array([True, True, False])) is None


def test_any_runnable_network(spec):
    """Not only ONNX: whatever runs and names its inputs."""

    class Module:
        inputs, outputs = ("x",), ("y",)
        input_shapes, input_dtypes = ((2,),), (np.dtype(np.float64),)

        def run(self, inputs):
            return [inputs[0].sum(-1, keepdims=True)]

    query = spec(2, 1, "(and (>= X_0 0) (<= X_0 1))", "(and (>= X_1 0.1) (<= X_1 0.1))", "(>= Y_0 1)")
    values = check(query, confirm(query, {"f": Module()}, [1.0, 0.1]))
    assert values["X"].dtype == np.float64


def test_missing_network_and_wrong_points(identity, spec):
    query = spec(1, 1, "(>= X_0 0)", "(<= X_0 1)", "(>= Y_0 0)")
    with pytest.raises(ModelError):
        Judge(query, {"g": identity})
    assert confirm(query, {"f": identity}, [float("nan")]) is None
    with pytest.raises(ModelError):
        confirm(spec(1, 2, "(>= X_0 0)", "(<= X_0 1)", "(>= Y_1 0)"), {}, [0.0])


def test_infinite_outputs_are_no_counterexample(onnx_mlp, spec):
    model = onnx_mlp((np.array([[3e38]]), ZERO))
    query = spec(1, 1, "(>= X_0 0)", "(<= X_0 100)", "(>= Y_0 0)")
    assert confirm(query, {"f": model}, [50.0]) is None


def test_falsify_repeats(onnx_mlp, spec):
    random = np.random.default_rng(5)
    model = onnx_mlp(
        (random.standard_normal((6, 4)), random.standard_normal(6)),
        (random.standard_normal((2, 6)), np.zeros(2)),
    )
    query = spec(4, 2, *[f"(and (>= X_{i} -1) (<= X_{i} 1))" for i in range(4)], "(>= Y_0 Y_1)")
    found = [
        falsify(compile_query(query, {"f": model}), query, {"f": model}, options=AttackOptions(seed=3))
        for _ in range(2)
    ]
    assert found[0].margin == found[1].margin
    assert found[0].counterexample is not None and found[1].counterexample is not None
    assert (found[0].counterexample.inputs["X"] == found[1].counterexample.inputs["X"]).all()
