"""Properties in Python, their negation, and the round trip through files."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from verifier.specs.errors import SpecError
from verifier.specs.evaluator import satisfies
from verifier.specs.formula import expanded
from verifier.specs.load import load_query, parse_query
from verifier.specs.normalise import normalise
from verifier.specs.property import Constraint, Property, X, Y, robust
from verifier.specs.writer import query_text

try:
    import vnnlib  # noqa: F401

    VERSIONS = (1, 2)
except ImportError:
    VERSIONS = (1,)


@dataclass
class Corners:
    lower: Any
    upper: Any


UNIT = Corners(np.zeros((1, 2)), np.ones((1, 2)))


def test_the_query_is_the_negation() -> None:
    query = Property(UNIT, (Y[3] > Y[1]) & (Y[0] < 2)).to_query()
    assert [(v.name, v.shape) for v in query.variables] == [("X", (1, 2)), ("Y", (4,))]
    assert not satisfies(query, {"X": [0, 1], "Y": [1, 0, 0, 1]})
    assert satisfies(query, {"X": [0, 1], "Y": [1, 1, 0, 1]})
    assert satisfies(query, {"X": [0, 1], "Y": [2, 0, 0, 1]})
    assert not satisfies(query, {"X": [0, 2], "Y": [2, 0, 0, 1]})


def test_arithmetic_is_exact() -> None:
    claim = 2 * X[0] * Y[1] - Y[0] / 3 + np.float32(0.1) >= (Y[0] - 1) ** 2 - 0.1
    query = Property(UNIT, claim).to_query()
    x, y = [0.5, 0.0], [0.75, 0.25]
    exact = (
        Fraction(1, 4) - Fraction(1, 4) + Fraction(float(np.float32(0.1))) - Fraction(1, 16) + Fraction(0.1)
    )
    assert satisfies(query, {"X": x, "Y": y}) == (exact < 0)
    assert satisfies(query, {"X": x, "Y": [8.0, 0.25]})


def test_shaped_and_flat_indices_are_the_same_elements() -> None:
    box = Corners(np.zeros(2), np.ones(2))
    shaped = Property(box, Y[0, 2] >= Y[1, 0]).to_query((2, 3))
    flat = Property(box, Y[2] >= Y[3]).to_query((2, 3))
    assert expanded(shaped.formula) == expanded(flat.formula)
    assert Property(box, Y[0, 2] >= Y[1, 0]).to_query().variable("Y").shape == (2, 3)
    same = Property(box, Y[0, 2] - Y[2] < 0).to_query((2, 3))
    assert satisfies(same, {"X": [0, 0], "Y": np.arange(6.0)})
    with pytest.raises(SpecError, match="several ways"):
        Property(box, Y[0, 2] >= Y[3]).to_query()
    with pytest.raises(SpecError, match=r"Y\[9\] does not exist; its shape is \(2, 3\)"):
        Property(box, Y[9] >= 0).to_query((2, 3))


def test_what_python_cannot_express_is_refused() -> None:
    with pytest.raises(TypeError, match="has no truth value here"):
        (Y[0] > 1) and (Y[1] > 1)
    with pytest.raises(TypeError, match=r"\(a < b\) & \(b < c\)"):
        0 < Y[0] < 1  # noqa: B015
    with pytest.raises(TypeError, match="parentheses"):
        (Y[0] > 1) & True  # type: ignore[operator]
    with pytest.raises(TypeError):
        Y[0] & (Y[1] > 1)  # type: ignore[operator]
    with pytest.raises(TypeError, match="division by an expression"):
        Y[0] / Y[1] >= 1  # noqa: B015
    with pytest.raises(TypeError):
        Y[0:2]  # type: ignore[index]
    with pytest.raises(TypeError):
        list(Y)  # type: ignore[call-overload]
    with pytest.raises(IndexError):
        Y[-1]
    with pytest.raises(ValueError, match="finite"):
        Y[0] <= float("nan")  # noqa: B015
    with pytest.raises(TypeError, match="ensures must be"):
        Property(UNIT, True)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("lower", "upper"), [([0.0, 2.0], [1.0, 1.0]), ([0, np.nan], [1, 1]), ([0, 0], [1, np.inf])]
)
def test_bad_boxes_are_refused(lower: list[float], upper: list[float]) -> None:
    with pytest.raises(SpecError, match=r"the box is .* at X\[1\]"):
        Property(Corners(lower, upper), Y[0] > 0).to_query()


def test_robust_is_every_other_class() -> None:
    claim = robust(np.array([[0.5, 0.125]], dtype=np.float32), 1, 0.25, clip=(0, 1))
    with pytest.raises(SpecError, match="pass output_shape"):
        claim.to_query()
    query = claim.to_query((1, 3))
    problem = normalise(query)
    assert problem.lower.tolist() == [[0.25, 0.0]]
    assert problem.upper.tolist() == [[0.75, 0.375]]
    assert problem.dnf(0, 10) == [[0], [1]]
    assert satisfies(query, {"X": [0.5, 0], "Y": [0, 1, 1]})
    assert not satisfies(query, {"X": [0.5, 0], "Y": [0, 1, 0.5]})
    with pytest.raises(SpecError, match="label 3 of 3"):
        robust(np.zeros(2), 3, 0.1).to_query((3,))


def test_robust_eps_per_channel_and_rounding_outward() -> None:
    x = np.random.default_rng(0).random((1, 3, 2, 2)).astype(np.float32)
    eps = np.array([0.1, 0.01, 0.3])
    box = robust(x, 0, eps).inputs
    exact = [
        (Fraction(float(v)) - Fraction(e), Fraction(float(v)) + Fraction(e))
        for channel, e in zip(x[0], eps.tolist(), strict=True)
        for v in channel.reshape(-1)
    ]
    for (low, high), a, b in zip(exact, box.lower.reshape(-1), box.upper.reshape(-1), strict=True):
        assert Fraction(float(a)) <= low < Fraction(float(np.nextafter(a, 2)))
        assert Fraction(float(np.nextafter(b, -2))) < high <= Fraction(float(b))


NUMBERS = st.one_of(
    st.integers(-5, 5),
    st.floats(-10, 10, allow_nan=False),
    st.fractions(-3, 3, max_denominator=64).filter(lambda f: (f.denominator & (f.denominator - 1)) == 0),
)
ELEMENTS = st.sampled_from([X[0], X[1], Y[0], Y[1], Y[2]])
EXPRESSIONS = st.recursive(
    ELEMENTS,
    lambda e: st.one_of(
        st.builds(lambda a, b: a + b, e, e),
        st.builds(lambda a, b: a - b, e, NUMBERS),
        st.builds(lambda a, b: b * a, e, e),
    ),
    max_leaves=4,
)
COMPARISONS = st.builds(
    lambda a, b, op: [a <= b, a < b, a >= b, a > b, a == b, a != b][op],
    EXPRESSIONS,
    st.one_of(EXPRESSIONS, NUMBERS),
    st.integers(0, 5),
)
CLAIMS = st.recursive(
    COMPARISONS,
    lambda c: st.one_of(
        st.builds(lambda a, b: a & b, c, c), st.builds(lambda a, b: a | b, c, c), st.builds(lambda a: ~a, c)
    ),
    max_leaves=5,
)


@given(CLAIMS, st.lists(NUMBERS.map(float), min_size=2, max_size=2))
@settings(max_examples=80, deadline=None, suppress_health_check=list(HealthCheck))
def test_round_trip_is_exact(claim: Constraint, corner: list[float]) -> None:
    box = Corners(np.array([corner]), np.array([corner]) + 0.1)
    query = Property(box, claim).to_query((3,))
    for version in VERSIONS:
        again = parse_query(query_text(query, version))
        assert expanded(again.formula) == expanded(query.formula)
        assert [v.size for v in again.variables] == [v.size for v in query.variables]


@pytest.mark.parametrize("version", VERSIONS)
def test_thirds_survive_as_equivalent_atoms(version: int, tmp_path) -> None:
    claim = (Y[0] / 3 <= X[0]) & (Y[1] / 7 - Y[0] * X[1] / 3 > Fraction(1, 9)) & (Y[2] >= Fraction(1, 3))
    file = tmp_path / "p.vnnlib.gz"
    claim_property = Property(UNIT, claim)
    claim_property.to_vnnlib(file, (3,), version)
    again, query = load_query(file), claim_property.to_query((3,))
    rng = np.random.default_rng(0)
    verdicts = []
    for _ in range(200):
        point = {"X": rng.integers(0, 3, 2) / 2, "Y": rng.integers(-2, 3, 3) / 1.0}
        verdicts.append(satisfies(query, point))
        assert satisfies(again, point) == verdicts[-1]
    assert True in verdicts and False in verdicts


def test_tensors_are_accepted() -> None:
    torch = pytest.importorskip("torch")
    box = Corners(torch.zeros(1, 2, requires_grad=True), torch.ones(1, 2))
    problem = normalise(Property(box, Y[0] > torch.tensor(0.5)).to_query())
    assert problem.upper.tolist() == [[1.0, 1.0]]
    assert problem.constants.tolist() == [-0.5]
