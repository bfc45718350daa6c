"""VNN-LIB 2.0 through the vnnlib package, with the cases that its own transformation gets wrong."""

from __future__ import annotations

import sys

import pytest

from verifier.specs.errors import SpecError
from verifier.specs.evaluator import satisfies
from verifier.specs.formula import expanded
from verifier.specs.load import parse_query
from verifier.specs.normalise import normalise
from verifier.specs.query import Kind

pytest.importorskip("vnnlib", reason="VNN-LIB 2.0 needs the vnnlib package")

HEAD = """(vnnlib-version <2.0>)
(declare-network f
  (declare-input X real [1,2])
  (declare-hidden H real [3] "conv;1 (a)")
  (declare-output Y real [2,1]))
"""
BOX = "(assert (and (<= X[0,0] 1.0) (>= X[0,0] 0.0) (<= X[0,1] 1.0) (>= X[0,1] 0.0)))\n"


def test_declarations_keep_shape_kind_and_order() -> None:
    query = parse_query(HEAD + BOX)
    assert [(v.name, v.kind, v.shape, v.offset, v.dtype, v.onnx_name) for v in query.variables] == [
        ("X", Kind.INPUT, (1, 2), 0, "real", None),
        ("H", Kind.HIDDEN, (3,), 2, "real", "conv;1 (a)"),
        ("Y", Kind.OUTPUT, (2, 1), 5, "real", None),
    ]
    assert query.version == 2
    assert [query.element_name(i) for i in (1, 4, 6)] == ["X[0,1]", "H[2]", "Y[1,0]"]


def test_input_disjunctions_are_intersected_with_other_assertions() -> None:
    body = "(assert (or (and (<= X[0,0] 1.0) (>= X[0,0] 0.0)) (and (<= X[0,0] 3.0) (>= X[0,0] 2.0))))"
    problem = normalise(parse_query(f"{HEAD}{body}(assert (and (<= X[0,1] 1.0) (>= X[0,1] 0.0)))"))
    assert problem.lower.tolist() == [[0, 0], [2, 0]]
    assert problem.upper.tolist() == [[1, 1], [3, 1]]


def test_two_networks_polynomials_and_all_relations() -> None:
    text = (
        HEAD
        + """(declare-network g (isomorphic-to f)
      (declare-input A real [1,2]) (declare-output B real [2,1]))
    (assert (and (== X[0,0] A[0,0]) (!= H[1] 0.5)))
    (assert (or (< (* X[0,0] X[0,1] 2.0) (- Y[0,0] B[1,0] 1.0)) (> (- H[0]) (+ A[0,1] 0.25 1.0))))
    """
    )
    query = parse_query(text + BOX)
    assert [(n.name, n.equal_to, n.isomorphic_to) for n in query.networks] == [
        ("f", None, None),
        ("g", None, "f"),
    ]
    point = {"X": [0.5, 0.5], "H": [0, 0, 0], "Y": [2, 0], "A": [0.5, 0], "B": [0, 0.25]}
    assert satisfies(query, point)
    assert not satisfies(query, {**point, "H": [0, 0.5, 0]})
    assert not satisfies(query, {**point, "A": [0.25, 0]})
    assert not satisfies(query, {**point, "Y": [1.75, 0]})
    assert satisfies(query, {**point, "Y": [1.75, 0], "H": [-1.5, 0, 0]})
    with pytest.raises(SpecError, match=r"A\[0,1\]$|A\[0,1\];"):
        normalise(query)


def test_bounds_pass_through_equalities_and_orders_of_inputs() -> None:
    text = (
        HEAD
        + """(declare-network g (equal-to f)
      (declare-input A real [1,2]) (declare-output B real [2,1]))
    (assert (and (<= X[0,0] A[0,0]) (<= A[0,0] 5.0) (== X[0,1] A[0,1]) (<= X[0,1] 0.5)))"""
    )
    problem = normalise(parse_query(text + BOX))
    assert problem.lower.tolist() == [[0, 0, 0, 0]]
    assert problem.upper.tolist() == [[1, 0.5, 5, 0.5]]
    assert problem.atoms == 3


def test_spellings_that_the_package_rejects() -> None:
    lenient = HEAD.replace("real", "Real").replace("[1,2]", "[ 1 , 2 ]")
    body = "(assert (and (<= X[0,0] 1e-1) (>= X[0,0] -1) (<= X[ 0 , 1 ] +.5) (>= X[0,1] 0)))"
    strict = "(assert (and (<= X[0,0] 0.1) (>= X[0,0] -1.0) (<= X[0,1] 0.5) (>= X[0,1] 0.0)))"
    assert expanded(parse_query(lenient + body).formula) == expanded(parse_query(HEAD + strict).formula)
    problem = normalise(parse_query(lenient + body))
    assert problem.upper.tolist() == [[0.1, 0.5]]
    assert problem.lower.tolist() == [[-1.0, 0.0]]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            HEAD.replace("<2.0>", "2.0"),
            "1:17: the version 2.0 is not in angle brackets; write (vnnlib-version <2.0>)",
        ),
        (
            HEAD + "(assert (Y[0,0] < X[0, 1]))",
            "6:17: < stands between what it compares; write the comparison first: (< Y[0,0] X[0, 1])",
        ),
    ],
)
def test_mistakes_of_files_in_the_wild(text: str, message: str) -> None:
    with pytest.raises(SpecError) as caught:
        parse_query(text, "q.vnnlib")
    assert str(caught.value) == f"q.vnnlib:{message}"
    named = HEAD.replace("conv;1 (a)", "(a < b) (vnnlib-version 2.0)")
    assert (
        parse_query(named + "(assert (<= X[0,0] 1.0))").variables[1].onnx_name
        == "(a < b) (vnnlib-version 2.0)"
    )


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("(assert (<= Z[0,0] 1.0))", "6:13: Undeclared variable: Z; Variable must be declared before use"),
        (
            "(assert (<= X[0,2] 1.0))",
            "6:13: Index out of bounds for variable: X[0,2]; Index 2 is out of bounds for dimension 1 with size 2",
        ),
        (
            "(assert (<= X[0] 1.0))",
            "6:13: Not enough indices for variable: X[0]; Expected 2 indices but encountered 1",
        ),
        (
            "\n (assert (/ X[0,0] 2.0))",
            "7:10: syntax error: unexpected '/'; see the VNN-LIB 2.0 grammar; is a ) missing?",
        ),
        (
            "(declare-network g (equal-to h) (declare-input A real [1]) (declare-output B real [1]))\n"
            "(assert (<= A[0] 1.0))",
            None,
        ),
        (
            f"(assert {'(and ' * 9999}",
            "6:1004: parentheses are nested more than 200 deep; flatten the formula",
        ),
    ],
)
def test_error(body: str, message: str | None) -> None:
    with pytest.raises(SpecError) as caught:
        parse_query(HEAD + body, "q.vnnlib")
    assert caught.value.line is not None
    if message is not None:
        assert str(caught.value) == f"q.vnnlib:{message}"


def test_a_missing_package_is_an_error_with_a_hint(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "vnnlib", None)
    with pytest.raises(SpecError, match="need the vnnlib package; pip install vnnlib"):
        parse_query(HEAD + BOX)


def test_nonlinear_atoms_keep_their_products() -> None:
    problem = normalise(parse_query(HEAD + BOX + "(assert (<= (* X[0,1] Y[1,0] 3.0) (+ X[0,0] 0.1)))"))
    (part,) = problem.nonlinear
    assert part.monomials == ((1, 6),)
    assert part.coefficients == (3.0,)
    assert problem.constants[part.atom] == -0.1  # the float below the decimal
    assert list(zip(problem.cols, problem.values, strict=True)) == [(0, -1.0)]
