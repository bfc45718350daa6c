"""The normal form: cases, exact emptiness, rounding, missing bounds."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest

from verifier.specs.errors import SpecError
from verifier.specs.formula import And, Or
from verifier.specs.load import parse_query
from verifier.specs.normalise import normalise
from verifier.specs.problem import Problem

HEAD = "".join(f"(declare-const {name} Real)" for name in ("X_0", "X_1", "Y_0", "Y_1"))
BOX = "(assert (and (>= X_0 0) (<= X_0 4) (>= X_1 0) (<= X_1 4)))"


def problem(body: str, box: str = BOX) -> Problem:
    return normalise(parse_query(f"{HEAD}{box}{body}"))


def test_scattered_bounds_are_intersected() -> None:
    p = problem("(assert (<= X_0 3))(assert (<= 1 X_0))(assert (= X_1 2))(assert (<= (* 2 X_0) 5))")
    assert p.lower.tolist() == [[1, 2]]
    assert p.upper.tolist() == [[2.5, 2]]
    assert p.formula(0) == And(())
    assert p.atoms == 0


def test_independent_input_disjunctions_are_intersected_not_appended() -> None:
    p = problem("(assert (or (<= X_0 1) (>= X_0 2)))(assert (or (<= X_1 1) (>= X_1 3)))")
    boxes = sorted(zip(p.lower.tolist(), p.upper.tolist(), strict=True))
    assert boxes == [([0, 0], [1, 1]), ([0, 3], [1, 4]), ([2, 0], [4, 1]), ([2, 3], [4, 4])]


def test_boxes_do_not_leak_across_disjuncts() -> None:
    p = problem("(assert (or (and (<= X_0 1) (<= Y_0 0)) (and (>= X_1 3) (>= Y_1 1))))")
    assert p.lower.tolist() == [[0, 0], [0, 3]]
    assert p.upper.tolist() == [[1, 4], [4, 4]]
    first, second = p.formula(0), p.formula(1)
    assert isinstance(first, int) and isinstance(second, int)
    entries = {int(r): (int(c), float(v)) for r, c, v in zip(p.rows, p.cols, p.values, strict=True)}
    assert entries == {first: (2, 1.0), second: (3, -1.0)}
    assert p.constants[[first, second]].tolist() == [0.0, 1.0]


def test_large_products_stay_in_the_formula_over_the_hull() -> None:
    big = "".join(f"(<= {k}.{tenth} X_0 {k}.5)" for k in range(4) for tenth in range(1, 5))
    small = "".join(f"(<= {k}.1 X_1 {k}.{tenth})" for k in range(3) for tenth in (6, 7))
    p = problem(f"(assert (or {big}))(assert (or {small}))")
    assert p.cases == 16
    assert (p.upper[:, 1] == 2.7).all()
    assert isinstance(p.formula(0), Or)
    assert p.input_only.all()


def test_thousands_of_boxes_share_their_tables() -> None:
    clauses = "".join(f"(and (>= X_0 {i / 1000}) (<= X_0 {i / 1000}) (>= Y_0 {i % 3}))" for i in range(4000))
    p = problem(f"(assert (or {clauses}))(assert (<= Y_1 7))")
    assert p.cases == 4000
    assert p.atoms == 4
    assert len(p.formulas) == 3


def test_output_disjunctions_are_not_cases_nor_multiplied_out() -> None:
    body = "".join(f"(assert (or (<= Y_0 {i}.5) (>= Y_1 {i})))" for i in range(40))
    p = problem(body)
    assert p.cases == 1
    assert p.dnf(0, 10_000) is None
    assert len(p.formula(0).children) == 40  # type: ignore[union-attr]


def test_dnf_of_a_small_formula() -> None:
    p = problem("(assert (or (<= Y_0 1) (and (>= Y_0 2) (or (<= Y_1 0) (>= Y_1 1)))))(assert (<= Y_0 9))")
    conjunctions = p.dnf(0, 3)
    assert conjunctions is not None
    assert sorted(map(len, conjunctions)) == [2, 3, 3]
    assert p.dnf(0, 2) is None


@pytest.mark.parametrize(
    ("body", "empty"),
    [
        ("(assert (<= X_0 0))", False),
        ("(assert (< X_0 0))", True),
        ("(assert (<= X_0 0.1))(assert (>= X_0 0.1))", False),
        ("(assert (<= X_0 0.1))(assert (>= X_0 0.10))", False),
        ("(assert (<= X_0 0.1))(assert (> X_0 1e-1))", True),
        ("(assert (<= X_0 0.1))(assert (>= X_0 0.10000000000000000000001))", True),
        ("(assert (< X_0 0.10000000000000000000001))(assert (> X_0 0.1))", False),
        ("(assert (>= X_0 0.30000000000000004))(assert (<= X_0 0.3))", True),
        ("(assert (or (< X_0 0) (> X_0 4)))", True),
        ("(assert (<= 1 0))", True),
        ("(assert (or (and (<= 1 0) (<= X_0 1))))", True),
        ("(assert (and (<= X_0 1) (or)))", True),
        ("(assert (< Y_0 Y_0))", True),
        ("(assert (= X_0 X_1))(assert (<= X_0 1))(assert (>= X_1 2))", True),
        ("(assert (<= Y_0 0))(assert (>= Y_0 1))", False),
    ],
)
def test_emptiness_is_exact(body: str, empty: bool) -> None:
    p = problem(body)
    assert (p.cases == 0) == empty
    assert (p.empty_reason is not None) == empty


def test_the_reason_names_the_variable() -> None:
    assert problem("(assert (>= X_1 5))").empty_reason == (
        "the input set is empty: X_1 must be at least 5.0 and at most 4.0"
    )


@pytest.mark.parametrize(
    "text", ["0.1", "0.3", "1e-5", "0.5", "0.10000000000000000001", "1e-320", "3e-400", "123456789.123456789"]
)
@pytest.mark.parametrize("sign", ["", "-"])
def test_boxes_are_the_tightest_floats_around_the_decimals(text: str, sign: str) -> None:
    value = Fraction(sign + text)
    p = problem(f"(assert (= X_0 {sign}{text}))", box="(assert (and (>= X_1 0) (<= X_1 4)))")
    low, high = float(p.lower[0, 0]), float(p.upper[0, 0])
    assert Fraction(low) <= value <= Fraction(high)
    assert high in (low, np.nextafter(low, np.inf))


def test_strict_bounds_become_atoms_beside_the_closed_box() -> None:
    p = problem("(assert (< X_0 3))(assert (> X_0 -1))")
    assert p.upper[0, 0] == 3
    assert p.formula(0) == 0
    assert p.strict.tolist() == [True]
    assert p.constants.tolist() == [-3.0]


def test_equality_and_inequality_of_outputs() -> None:
    p = problem("(assert (= Y_0 0.1))(assert (distinct Y_1 2))")
    pair, other = p.formula(0).children[:2], p.formula(0).children[2]  # type: ignore[union-attr]
    assert not p.strict[list(pair)].any()
    assert isinstance(other, Or)
    assert p.strict[list(other.children)].all()
    assert sorted(p.constants[list(pair)]) == [-0.1, np.nextafter(0.1, 0)]  # each side rounded down
    assert (p.coefficient_error == 0).all()


def test_inexact_coefficients_are_flagged() -> None:
    p = problem("(assert (<= (+ (* 0.1 Y_0) (* 0.5 Y_1)) 1))(assert (<= (+ (* 0.25 Y_0) Y_1) 0.3))")
    assert p.coefficient_error.tolist() == [2.0**-53, 0.0]
    assert p.constants[1] == -np.nextafter(0.3, 1)  # 0.3 as a float is below the decimal


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("", "inputs without a finite lower and upper bound: X_0, X_1;"),
        ("(assert (<= 0 X_0 1))(assert (<= X_1 3))", "bound: X_1;"),
        (
            "(assert (or (<= 0 X_0 1) (<= 2 X_0 3)))(assert (<= 0 X_1 3))(assert (or (<= X_1 1) (<= Y_0 1)))",
            None,
        ),
        ("(assert (or (<= 0 X_0 1) (<= 2 X_0)))(assert (<= 0 X_1 3))", "bound: X_0;"),
        ("(assert (<= 0 X_0 1e400))(assert (<= 0 X_1 3))", "bound: X_0;"),
    ],
)
def test_missing_bounds_are_listed(body: str, message: str | None) -> None:
    if message is None:
        assert problem(body, box="").cases == 2
        return
    with pytest.raises(SpecError) as caught:
        problem(body, box="")
    assert message in str(caught.value)


@pytest.mark.parametrize(
    "text", ["(<= (+ (* 1e-320 Y_0) Y_1) 0)", "(<= (+ (* 1e400 Y_0) Y_1) 0)", "(<= Y_0 1e400)"]
)
def test_coefficients_beyond_float64_are_refused(text: str) -> None:
    with pytest.raises(SpecError, match="beyond the range of float64"):
        problem(f"(assert {text})")


def test_equality_and_inequality_of_sums() -> None:
    p = problem("(assert (distinct (+ Y_0 Y_1) 1))(assert (= (- Y_0 (* 2 Y_1)) 3))")
    other, *pair = p.formula(0).children  # type: ignore[union-attr]
    assert isinstance(other, Or)
    assert p.strict[list(other.children)].all()
    assert len(pair) == 2 and not p.strict[pair].any()
    assert p.constants[list(other.children)].tolist() == [-1.0, 1.0]
    assert p.constants[pair].tolist() == [-3.0, 3.0]
