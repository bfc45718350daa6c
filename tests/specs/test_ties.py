"""Inputs that a query ties to one another."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("vnnlib")

from verifier.specs.formula import And
from verifier.specs.load import parse_query
from verifier.specs.normalise import normalise
from verifier.specs.problem import Problem
from verifier.specs.ties import connected, untie

HEAD = """(vnnlib-version <2.0>)
(declare-network f (declare-input X real [3]) (declare-output Y real [1]))
(declare-network g (equal-to f) (declare-input U real [3]) (declare-output V real [1]))
"""
OWNER = np.array([0, 0, 0, 1, 1, 1])


def problem(*assertions: str, boxes: str = "XU", ends: tuple[float, float] = (0.0, 1.0)) -> Problem:
    box = "".join(
        f"(assert (and (>= {v}[{i}] {ends[0]}) (<= {v}[{i}] {ends[1]})))" for v in boxes for i in range(3)
    )
    return normalise(parse_query(HEAD + box + "".join(f"(assert {a})" for a in assertions)))


def holds(p: Problem, values: np.ndarray) -> np.ndarray:
    """[B, K] which atoms hold of vectors [B, size]."""
    margins = np.tile(p.constants, (len(values), 1))
    for row, col, value in zip(p.rows, p.cols, p.values, strict=True):
        margins[:, row] += value * values[:, col]
    return np.where(p.strict, margins < 0, margins <= 0)


def satisfied(p: Problem, values: np.ndarray) -> np.ndarray:
    """[B] whether the one formula, a conjunction, holds."""
    (tree,) = p.formulas
    parts = list(tree.children) if isinstance(tree, And) else [tree]
    return holds(p, values)[:, parts].all(1)


def test_equal_inputs_are_one() -> None:
    p = problem(*[f"(== X[{i}] U[{2 - i}])" for i in range(3)], "(<= Y[0] V[0])", boxes="X")
    found = untie(p, OWNER)
    assert found is not None and found.ties.free == 3
    assert found.ties.base.tolist() == [0, 1, 2, 2, 1, 0] and (found.ties.deviation == -1).all()
    assert found.lower.tolist() == [[0, 0, 0]] and found.upper.tolist() == [[1, 1, 1]]
    assert len(np.unique(found.problem.formulas)) == 1  # the comparison of outputs alone
    assert found.ties.inputs(np.array([[0.1, 0.2, 0.3]])).tolist() == [[0.1, 0.2, 0.3, 0.3, 0.2, 0.1]]


def test_inputs_within_a_distance_and_in_order() -> None:
    """The first pair within 0.25 below and 0.5 above, the second in order, the third equal."""
    p = problem("(<= (- U[0] X[0]) 0.5)", "(>= U[0] (- X[0] 0.25))", "(<= X[1] U[1])", "(== U[2] X[2])")
    found = untie(p, OWNER)
    assert found is not None and found.ties.free == 5
    ties, place = found.ties, found.ties.deviation
    assert ties.base.tolist() == [0, 1, 2, 0, 1, 2] and place.tolist()[:3] == [-1] * 3 and place[5] == -1
    ends = found.lower[0], found.upper[0]
    assert (ends[0][place[3]], ends[1][place[3]]) == (-0.25, 0.5)
    assert ends[0][place[4]] == 0 and ends[1][place[4]] == pytest.approx(1)
    values = np.random.default_rng(0).random((4000, 8))
    values[:, 5] = values[:, 2]
    kept = values[satisfied(p, values)]
    assert len(kept) > 100
    free = np.zeros((len(kept), 5))
    for i, (base, own) in enumerate(zip(ties.base, place, strict=True)):
        if own < 0:
            free[:, base] = kept[:, i]
    for i, (base, own) in enumerate(zip(ties.base, place, strict=True)):
        if own >= 0:
            free[:, own] = kept[:, i] - free[:, base]
    assert ((free >= ends[0]) & (free <= ends[1])).all()
    assert np.abs(ties.inputs(free) - kept[:, :6]).max() < 1e-15
    assert satisfied(found.problem, kept).all()


def test_what_free_inputs_allow_is_what_the_query_allows() -> None:
    """Bounds of sums stay as atoms, so that random free inputs that satisfy these satisfy the query."""
    p = problem("(<= (- U[0] X[0]) 0.5)", "(>= U[0] (- X[0] 0.5))", "(< X[1] U[1])")
    found = untie(p, OWNER)
    assert found is not None
    random = np.random.default_rng(1).random((4000, found.ties.free))
    free = found.lower + random * (found.upper - found.lower)
    inputs = found.ties.inputs(free)
    values = np.concatenate([inputs, np.zeros((len(free), 2))], 1)
    inside = satisfied(found.problem, values)
    assert 0 < inside.sum() < len(free)
    assert satisfied(p, values[inside]).all()
    assert ((inputs[inside] >= -1e-15) & (inputs[inside] <= 1 + 1e-15)).all()


def test_nothing_is_tied_without_need() -> None:
    """Orders within one network, what boxes say already, what holds in one disjunct only, other coefficients."""
    assert untie(problem("(<= X[0] X[1])"), OWNER) is None
    assert untie(problem("(<= (- X[0] U[0]) 2.0)"), OWNER) is None
    assert untie(problem("(or (and (== X[0] U[0]) (<= Y[0] 0.0)) (>= V[0] 0.0))"), OWNER) is None
    assert untie(problem("(== (* 2.0 X[0]) U[0])"), OWNER) is None


def test_a_chain_of_equal_inputs_and_a_scaled_difference() -> None:
    p = problem("(== X[0] X[1])", "(== X[1] U[2])", "(<= (* 4.0 (- X[2] U[1])) 1.0)")
    found = untie(p, OWNER)
    assert found is not None
    assert found.ties.base[0] == found.ties.base[1] == found.ties.base[5]
    place = int(found.ties.deviation[4])
    assert place >= 0 and found.lower[0, place] == pytest.approx(-0.25, abs=1e-15)


def test_contradicting_ties_leave_no_case() -> None:
    far = "(and (>= U[0] 3.0) (<= U[0] 4.0))"
    rest = [f"(and (>= U[{i}] 0.0) (<= U[{i}] 1.0))" for i in (1, 2)]
    p = problem(far, *rest, "(<= (- U[0] X[0]) 0.5)", boxes="X")
    found = untie(p, OWNER)
    assert found is not None and not len(found.lower) and found.problem.empty_reason is not None


def test_connected_components() -> None:
    assert connected(6, np.array([[4, 1], [5, 4], [2, 3]])).tolist() == [0, 1, 2, 2, 1, 1]
    assert connected(3, np.zeros((0, 2), dtype=np.int64)).tolist() == [0, 1, 2]
