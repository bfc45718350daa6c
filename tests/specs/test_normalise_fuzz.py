"""The normaliser against the independent evaluator, on random formulas and points."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from verifier.specs.errors import SpecError
from verifier.specs.evaluator import satisfies
from verifier.specs.formula import And, Or
from verifier.specs.load import parse_query
from verifier.specs.normalise import normalise
from verifier.specs.problem import Problem, Tree
from verifier.specs.query import Query

INPUTS, OUTPUTS = 3, 2
DECLARATIONS = "".join(f"(declare-const X_{i} Real)" for i in range(INPUTS)) + "".join(
    f"(declare-const Y_{i} Real)" for i in range(OUTPUTS)
)
# floats exactly, so that nothing is rounded; and decimals between two floats
EXACT = ("-1", "-0.50", "0", "0.0", "0.25", "1", "5e-1")
ROUNDED = (*EXACT, "0.1", "0.10000000000000000001", "0.100000000000000005551", "-0.1", "1e-1", "0.3")


def atoms(numerals: tuple[str, ...]) -> st.SearchStrategy[str]:
    variable = st.sampled_from([f"X_{i}" for i in range(INPUTS)] + [f"Y_{i}" for i in range(OUTPUTS)])
    number = st.sampled_from(numerals)
    relation = st.sampled_from(["<=", ">=", "<", ">", "=", "distinct", "<=", ">="])
    expr = st.one_of(
        variable,
        variable,
        number,
        st.builds("(+ {} {})".format, variable, number),
        st.builds("(* {} {})".format, st.sampled_from(["2", "-0.5", "4"]), variable),
        st.builds("(- {} {})".format, variable, variable),
        st.builds("(* {} {})".format, variable, variable),
        st.builds("(/ {} {})".format, variable, st.sampled_from(["2", "-4"])),
    )
    return st.builds("({} {} {})".format, relation, expr, expr)


def formulas(numerals: tuple[str, ...]) -> st.SearchStrategy[str]:
    connective = st.sampled_from(["and", "or", "or"])

    def join(children: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
        several = st.lists(children, min_size=1, max_size=4).map(" ".join)
        return st.one_of(
            st.builds("({} {})".format, connective, several),
            st.builds("(not {})".format, children),
            st.builds("(=> {} {})".format, children, children),
        )

    return st.recursive(atoms(numerals), join, max_leaves=12)


def texts(numerals: tuple[str, ...]) -> st.SearchStrategy[str]:
    bound = st.builds(
        "({} X_{} {})".format,
        st.sampled_from(["<=", ">=", "<", ">", "="]),
        st.integers(0, 2),
        st.sampled_from(numerals),
    )
    box = st.lists(st.one_of(bound, bound, atoms(numerals)), min_size=1, max_size=4).map(
        lambda b: f"(and {' '.join(b)})"
    )
    boxes = st.lists(box, min_size=1, max_size=4).map(lambda b: f"(or {' '.join(b)})")
    assertion = st.one_of(bound, boxes, formulas(numerals)).map("(assert {})".format)
    hull = "".join(f"(assert (<= -2 X_{i}))(assert (>= 2.0 X_{i}))" for i in range(INPUTS))
    return st.lists(assertion, max_size=5).map(lambda parts: DECLARATIONS + hull + "".join(parts))


def tree_holds(tree: Tree, truth: list[bool]) -> bool:
    if isinstance(tree, And):
        return all(tree_holds(child, truth) for child in tree.children)
    if isinstance(tree, Or):
        return any(tree_holds(child, truth) for child in tree.children)
    return truth[tree]


def atom_values(problem: Problem, v: list[Fraction]) -> list[Fraction]:
    totals = [Fraction(float(c)) for c in problem.constants]
    for row, col, value in zip(problem.rows, problem.cols, problem.values, strict=True):
        totals[row] += Fraction(float(value)) * v[col]
    for part in problem.nonlinear:
        for monomial, coefficient in zip(part.monomials, part.coefficients, strict=True):
            term = Fraction(coefficient)
            for index in monomial:
                term *= v[index]
            totals[part.atom] += term
    return totals


def problem_holds(query: Query, problem: Problem, point: np.ndarray, loose: Fraction = Fraction(0)) -> bool:
    v = [Fraction(0)] * len(point)
    for i, place in enumerate(problem.position):
        v[place] = Fraction(float(point[i]))
    totals = atom_values(problem, v)
    truth = [t <= loose if loose or not s else t < 0 for t, s in zip(totals, problem.strict, strict=True)]
    for case in range(problem.cases):
        box = zip(problem.lower[case], v[: problem.inputs], problem.upper[case], strict=True)
        if all(Fraction(float(a)) - loose <= x <= Fraction(float(b)) + loose for a, x, b in box):
            if tree_holds(problem.formula(case), truth):
                return True
            conjunctions = problem.dnf(case, 10_000)
            assert not any(all(truth[k] for k in c) for c in conjunctions or [])
    return False


def assignment(point: np.ndarray) -> dict[str, np.ndarray]:
    return {"X": point[:INPUTS], "Y": point[INPUTS:]}


GRID = np.array(
    [-2, -1, -0.5, 0, 0.25, 0.5, 1, 2, 0.1, -0.1, 0.3, np.nextafter(0.1, 0), np.nextafter(0.1, 1)]
)
SETTINGS = settings(max_examples=80, deadline=None, suppress_health_check=list(HealthCheck))


@given(texts(EXACT), st.integers(0, 2**32))
@SETTINGS
def test_exact_numbers_agree_on_every_point(text: str, seed: int) -> None:
    query = parse_query(text)
    problem = normalise(query)
    assert (problem.cases == 0) == (problem.empty_reason is not None)
    assert (problem.lower <= problem.upper).all()
    for point in np.random.default_rng(seed).choice(GRID[:8], size=(30, INPUTS + OUTPUTS)):
        assert problem_holds(query, problem, point) == satisfies(query, assignment(point))


@given(texts(ROUNDED), st.integers(0, 2**32))
@SETTINGS
def test_rounded_numbers_only_ever_weaken(text: str, seed: int) -> None:
    query = parse_query(text)
    problem = normalise(query)
    for point in np.random.default_rng(seed).choice(GRID, size=(30, INPUTS + OUTPUTS)):
        if satisfies(query, assignment(point)):
            assert problem_holds(query, problem, point, loose=_rounding(problem))


def _rounding(problem: Problem) -> Fraction:
    """None, except for the coefficients that are rounded themselves."""
    return Fraction(1, 2**48) if problem.coefficient_error.any() else Fraction(0)


SOUP = [
    "x",
    "X_0",
    "Y_0",
    "0.5",
    "1e",
    "(",
    ")",
    "(<=",
    "and",
    "or",
    "assert",
    "(assert (<= X_0 1))",
    "-",
    "*",
    ";",
]


@given(st.lists(st.sampled_from(SOUP), max_size=14))
@SETTINGS
def test_any_token_soup_is_a_query_or_an_error(tokens: list[str]) -> None:
    error: SpecError | None = None
    try:
        parse_query("(declare-const X_0 Real)(declare-const Y_0 Real)" + " ".join(tokens))
    except SpecError as caught:
        error = caught
    assert error is None or (error.line and error.column and error.hint)
