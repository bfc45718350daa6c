"""The exact point evaluator: exactness at the last digit, tolerance, and what it refuses."""

from __future__ import annotations

import math
import random
import time

import numpy as np
import pytest

from verifier.specs.evaluator import satisfies
from verifier.specs.load import parse_query

HEAD = "".join(f"(declare-const {name} Real)" for name in ("X_0", "X_1", "Y_0", "Y_1"))


def holds(body: str, x: object, y: object, tolerance: float = 0.0) -> bool:
    return satisfies(
        parse_query(f"{HEAD}(assert {body})"), {"X": np.asarray(x), "Y": np.asarray(y)}, tolerance
    )


@pytest.mark.parametrize("style", ["{}", "(+ {} (* 0 X_0))", "(* {} 1.0)"])
def test_decimals_are_compared_exactly(style: str) -> None:
    below, above = np.nextafter(0.1, 0), 0.1  # the float 0.1 is larger than the decimal
    y = style.format("Y_0")
    assert holds(f"(<= {y} 0.1)", [0, 0], [below, 0])
    assert not holds(f"(<= {y} 0.1)", [0, 0], [above, 0])
    assert holds(f"(> {y} 0.1)", [0, 0], [above, 0])
    assert not holds(f"(= {y} 0.1)", [0, 0], [above, 0])
    assert holds(f"(= {y} 0.1000000000000000055511151231257827021181583404541015625)", [0, 0], [above, 0])
    assert holds(f"(distinct {y} 0.1)", [0, 0], [above, 0])
    assert not holds(f"(< {y} 0.5)", [0, 0], [0.5, 0])


def test_sums_do_not_round() -> None:
    assert not holds("(<= (+ Y_0 Y_1) 1e16)", [0, 0], [1e16, 1.0])
    assert not holds("(= (* Y_0 Y_1) 1)", [0, 0], [3.0, 1 / 3])


def test_tolerance_is_for_constraints_of_inputs_only() -> None:
    assert not holds("(<= X_0 0.5)", [0.50005, 0], [0, 0])
    assert holds("(<= X_0 0.5)", [0.50005, 0], [0, 0], 1e-4)
    assert not holds("(<= X_0 0.5)", [0.5002, 0], [0, 0], 1e-4)
    assert holds("(> X_0 0.5)", [0.49995, 0], [0, 0], 1e-4)
    assert holds("(= X_0 0.5)", [0.49995, 0], [0, 0], 1e-4)
    assert holds("(<= (+ X_0 X_1) 0.5)", [0.25, 0.25005], [0, 0], 1e-4)
    assert holds("(<= X_0 X_1)", [0.25005, 0.25], [0, 0], 1e-4)
    assert not holds("(distinct X_0 0.5)", [0.5, 0], [0, 0], 1e-4)
    assert not holds("(<= Y_0 0.5)", [0, 0], [0.50005, 0], 1e-4)
    assert not holds("(<= X_0 Y_0)", [0.50005, 0], [0.5, 0], 1e-4)
    assert not holds("(<= (- X_0 Y_0) 0)", [0.50005, 0], [0.5, 0], 1e-4)


def test_tolerance_ends_exactly() -> None:
    assert holds("(<= X_0 0.5)", [0.5625, 0], [0, 0], 0.0625)
    assert not holds("(<= X_0 0.5)", [np.nextafter(0.5625, 1), 0], [0, 0], 0.0625)
    assert not holds("(< X_0 0.5)", [0.5625, 0], [0, 0], 0.0625)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_non_finite_values_satisfy_nothing(value: float) -> None:
    assert not holds("(or (<= Y_0 0) (> Y_0 0) (distinct Y_1 Y_0))", [0, 0], [value, 0])


def test_float32_values_are_taken_as_they_are() -> None:
    assert not holds("(<= X_0 0.1)", np.array([0.1, 0], dtype=np.float32), [0, 0])
    assert holds("(>= X_0 0.1)", np.array([0.1, 0], dtype=np.float32), [0, 0])


def test_wrong_assignments_are_errors() -> None:
    with pytest.raises(ValueError, match="no values for Y"):
        satisfies(parse_query(HEAD), {"X": [0, 0]})
    with pytest.raises(ValueError, match="X has 2 elements, not 3"):
        satisfies(parse_query(HEAD), {"X": [0, 0, 0], "Y": [0, 0]})


def test_twelve_thousand_inputs_on_their_bounds_take_a_moment() -> None:
    n = 12_000
    rng = random.Random(1)
    values = [float(f"{rng.random():.8f}") for _ in range(n)]
    head = "".join(f"(declare-const X_{i} Real)" for i in range(n)) + "(declare-const Y_0 Real)"
    rows = "".join(
        f"(assert (<= X_{i} {v:.8f}))(assert (>= X_{i} {v - 0.5:.8f}))" for i, v in enumerate(values)
    )
    query = parse_query(head + rows)
    inside = np.nextafter(values, -1)
    start = time.process_time()
    assert satisfies(query, {"X": inside, "Y": [0]})
    assert satisfies(query, {"X": np.array(values) + 1e-5, "Y": [0]}, 1e-4)
    assert not satisfies(query, {"X": np.array(values) + 1e-5, "Y": [0]})
    assert time.process_time() - start < 10
