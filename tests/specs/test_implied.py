"""Bounds that follow from those of other inputs: they hold, and they are found."""

from __future__ import annotations

import numpy as np
import pytest

from verifier.specs.errors import SpecError
from verifier.specs.load import parse_query
from verifier.specs.normalise import normalise

HEAD = "(vnnlib-version <2.0>) (declare-network f (declare-input X real [3]) (declare-output Y real [1]))"


def boxes(*asserts: str) -> tuple[np.ndarray, np.ndarray]:
    problem = normalise(parse_query(" ".join([HEAD, *(f"(assert {a})" for a in asserts)])))
    return problem.lower, problem.upper


def between(i: int, low: float, high: float) -> str:
    return f"(and (>= X[{i}] {low}) (<= X[{i}] {high}))"


def test_distances_chains_and_sums_bound_what_they_leave_open() -> None:
    lower, upper = boxes(
        between(0, 0.0, 1.0),
        "(and (<= (- X[1] X[0]) 0.25) (<= (- X[0] X[1]) 0.5))",
        "(== (+ (* 2.0 X[2]) X[1]) 1.0)",
    )
    assert np.allclose(lower, [[0.0, -0.5, -0.125]], atol=1e-12)
    assert np.allclose(upper, [[1.0, 1.25, 0.75]], atol=1e-12)
    assert (lower[0, 1:] < [-0.5, -0.125]).all() and (upper[0, 1:] > [1.25, 0.75]).all()  # rounded outwards


def test_cases_have_bounds_of_their_own() -> None:
    cases = f"(or (and {between(0, 0.0, 1.0)} (<= Y[0] 0.0)) (and {between(0, 5.0, 6.0)} (>= Y[0] 1.0)))"
    lower, upper = boxes(cases, "(and (<= (- X[1] X[0]) 0.5) (>= (- X[1] X[0]) -0.5))", between(2, 0.0, 0.0))
    assert np.allclose(lower[:, 1], [-0.5, 4.5]) and np.allclose(upper[:, 1], [1.5, 6.5])


def test_what_only_one_disjunct_says_bounds_nothing() -> None:
    with pytest.raises(SpecError, match=r"finite lower and upper bound: X\[1\]"):
        boxes(
            between(0, 0.0, 1.0),
            between(2, 0.0, 1.0),
            "(>= X[1] 0.0)",
            "(or (<= (- X[1] X[0]) 0.5) (<= Y[0] 1.0))",
        )
    with pytest.raises(SpecError, match=r"X\[1\], X\[2\]"):
        boxes(between(0, 0.0, 1.0), "(<= (- X[1] X[2]) 0.5)", "(!= X[1] X[0])", "(>= (* X[1] X[0]) 0.5)")


@pytest.mark.parametrize("seed", range(40))
def test_no_solution_is_lost(seed: int) -> None:
    dice = np.random.default_rng(seed)
    rows = np.round(dice.normal(size=(5, 3)) * (dice.random((5, 3)) < 0.7), 2)
    rows[0] = [1, -1, 0]
    limits = np.round(dice.random(5), 2)
    text = [
        f"(<= (+ 0.0 {' '.join(f'(* {c:.2f} X[{i}])' for i, c in enumerate(row))}) {limit:.2f})"
        for row, limit in zip(rows, limits, strict=True)
    ]
    try:
        lower, upper = boxes(between(0, -1.0, 1.0), "(>= X[1] -3.0)", "(<= X[2] 3.0)", *text)
    except SpecError:
        return
    points = dice.uniform([-1, -3, -20], [1, 20, 3], size=(200000, 3))
    inside = points[(points @ rows.T <= limits).all(1)]
    assert ((inside >= lower[0]) & (inside <= upper[0])).all()
