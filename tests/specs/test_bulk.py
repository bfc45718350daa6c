"""Comparisons read in bulk are what the parser's stack makes of them, word by word."""

from __future__ import annotations

import random
from collections.abc import Callable
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from verifier.specs.bulk import MAX_FACTORS, read
from verifier.specs.errors import SpecError
from verifier.specs.formula import And, Atom, Or, Polynomial, Relation, expanded, negation
from verifier.specs.load import parse_query
from verifier.specs.normalise import normalise
from verifier.specs.sums import StoredAtom
from verifier.specs.vnnlib1 import parse

SIZES = (2, 12)
NAMES = [f"X_{i}" for i in range(SIZES[0])] + [f"Y_{i}" for i in range(SIZES[1])]
HEAD = "".join(f"(declare-const {name} Real)\n" for name in NAMES)


def plain(text: str) -> And | Or | Atom:
    """The formula by the stack alone."""
    return expanded(parse(text, bulk=False).formula)


def sum_(constant: str = "0", **terms: str) -> Polynomial:
    parts = {(NAMES.index(name),): Fraction(text) for name, text in terms.items()}
    return Polynomial.of({**parts, (): Fraction(constant)})


@pytest.mark.parametrize(
    ("text", "expected", "relation"),
    [
        ("(<= (+ X_0 Y_0) 0)", sum_(X_0="1", Y_0="1"), Relation.LE),
        ("(>= (+ (* 1.5 Y_0) (* -2 Y_1)) 3)", sum_("3", Y_0="-1.5", Y_1="2"), Relation.LE),
        ("(> 1 (- X_0 X_1 Y_0))", sum_("-1", X_0="1", X_1="-1", Y_0="-1"), Relation.LT),
        ("(=(- X_0)(/ Y_11 3))", sum_(X_0="-1", Y_11="-1/3"), Relation.EQ),
        ("( < ( * 2 3 ( - Y_1 ( + Y_2 0.5 ) ) )\n 1e-2 )", sum_("-3.01", Y_1="6", Y_2="-6"), Relation.LT),
        ("(<= (* (+ Y_0 (* Y_1 .5)) 4) (+ 1 (* 2 3) 1))", sum_("-8", Y_0="4", Y_1="2"), Relation.LE),
        ("(<= (+ Y_0 (* 1e-999 Y_2) (* 0.0 Y_3)) (/ 1 3))", sum_("-1/3", Y_0="1", Y_2="1e-999"), Relation.LE),
        ("(<= (* -1 (* -1.0 (+ Y_3 (* 0.1 0.1 Y_2)))) 0)", sum_(Y_2="0.01", Y_3="1"), Relation.LE),
        ("(<= (/ (/ (+ Y_0 Y_1) 3) -7) 0)", sum_(Y_0="-1/21", Y_1="-1/21"), Relation.LE),
        ("(<= (* 2 Y_0) 1)", sum_("-1/2", Y_0="1"), Relation.LE),
        ("(<= (* -2 Y_0) (+ 0.5 0.5))", sum_("-1/2", Y_0="-1"), Relation.LE),
        ("(> (* 3 Y_0) (* Y_1 3.0))", sum_(Y_0="-1", Y_1="1"), Relation.LT),
        ("(<= (+ X_0 Y_0 (* 2 X_0)) 1)", sum_("-1", X_0="3", Y_0="1"), Relation.LE),
        ("(<= (/ (+ X_0 Y_0) (- 3 X_0 (- X_0) 1)) 1)", sum_("-1", X_0="1/2", Y_0="1/2"), Relation.LE),
        ("(distinct (+ X_0 Y_0) (* 0.12345678901234567 10))",
         sum_("-1.2345678901234567", X_0="1", Y_0="1"), Relation.NE),
        ("(not (<= (- X_0 Y_0 Y_1) 1))", sum_("1", X_0="-1", Y_0="1", Y_1="1"), Relation.LT),
    ],
)  # fmt: skip
def test_one_comparison(text: str, expected: Polynomial, relation: Relation) -> None:
    atom = bulk(text)
    assert atom == Atom(expected, relation)
    if len(expected.variables) > 2:
        assert isinstance(atom, StoredAtom)
        assert hash(atom) == hash(Atom(expected, relation)) and Atom(expected, relation) == atom
        assert negation(atom) == negation(Atom(expected, relation)) != atom


def test_products() -> None:
    x, y, z = (Polynomial.variable(NAMES.index(name)) for name in ("X_0", "Y_0", "Y_1"))
    one = Polynomial.constant(1)
    assert bulk("(<= (* X_0 Y_0) 1)") == Atom(x * y - one, Relation.LE)
    assert bulk("(< (* (+ X_0 Y_0 1) (- Y_0 Y_1) X_0) (* Y_0 X_0 Y_0))") == Atom(
        (x + y + one) * (y - z) * x - x * y * y, Relation.LT
    )
    assert bulk("(>= (- (* (+ X_0 1) (- X_0 1)) (* X_0 X_0)) Y_0)") == Atom(y + one, Relation.LE)
    text = f"(<= (* {' '.join(['(+ X_0 1)'] * MAX_FACTORS)}) 0)"
    power = bulk(text)
    assert isinstance(power, StoredAtom) and power.expr.degree == MAX_FACTORS
    assert power.expr.offset == 1 and power.expr.terms[1] == ((0,), MAX_FACTORS)


def bulk(text: str) -> And | Or | Atom:
    """The formula of one assertion, all of it read in bulk."""
    found = read(f"(assert {text})", SIZES)
    assert not found.left
    return expanded(found.builder.finish(found.assertions))


@pytest.mark.parametrize(
    "text",
    [
        "(<= (+ X_0 Y_12) 1)",
        "(<= (+ X_0 Y_01) 1)",
        "(<= (+ X_0 Y_) 1)",
        "(<= (+ X_0 Y_1234567890123) 1)",
        "(<= (+ X_0 Y_0 1.2.3) 1)",
        "(<= (+ X_0 Y_0 1e1000) 1)",
        "(<= (assert X_0 Y_0) 1)",
        "(assert (<= X_0 1))",
        "(<= (+ X_0 Y_0 () ) 1)",
        "(<= (+ X_0 + Y_0) 1)",
        "(<= (X_0 + Y_0) 1)",
        "(<= (+ X_0 (<= Y_0 1)) 1)",
        "(<= (/ (+ X_0 Y_0) 0.0) 1)",
        "(<= (/ 1 (+ X_0 Y_0)) 1)",
        "(<= (/ 1 (* X_0 Y_0)) 1)",
        "(<= (/ 1 (- Y_0 (+ Y_0 0))) 1)",
        "(<= (+ X_0 (*)) 1)",
        "(<= (+ X_0 ((Y_0))) 1)",
        "(<= (+ X_0 Y_0))",
        "(<= (+ X_0 Y_0 é) 1)",
        "(<= true 1)",
        "(not)",
        "(not (<= X_0 1) (<= X_0 1))",
        "(=> (<= X_0 1))",
        "(+ X_0 1)",
        "(and X_0)",
        "(and Real)",
        "(declare-const X_0 Real)",
        "((<= X_0 1))",
        "()",
        "X_0",
        "",
        "(<= X_0 1) (<= X_0 1)",
        f"(<= (* {'X_0 ' * (MAX_FACTORS + 1)}) 0)",
        "(distinct X_0 X_1 Y_0)",
    ],
)
def test_what_is_left_to_the_stack_does_not_disturb_its_neighbours(text: str) -> None:
    good = "(assert (<= (+ (* 2 X_0) Y_0 Y_1) 1))"
    found = read(f"{good} (assert {text}){good}", SIZES)
    assert found.left == [(1, len(good) + 1, len(good) + len(f" (assert {text})"))]
    before, after = found.assertions
    assert before == after == Atom(sum_("-1", X_0="2", Y_0="1", Y_1="1"), Relation.LE)


@pytest.mark.parametrize("depth", [1, 10, 300])
def test_deep_sums(depth: int) -> None:
    text = f"{HEAD}(assert (<= {'(+ 1 (* 2 ' * depth}(+ X_0 Y_0 Y_1){'))' * depth} 1))"
    assert expanded(parse_query(text).formula) == plain(text)


class Writer:
    """Random assertions, mostly linear; `flaws` breaks about one word of a text."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)

    def number(self) -> str:
        value = self.rng.choice(("0", "1", "-1.0", "0.5", "2", ".25", "1e-3", "-3.25", "7e2", "0.1"))
        return f"(- {value})" if value[0] != "-" and self.rng.random() < 0.1 else value

    def expression(self, depth: int) -> str:
        kind = self.rng.random()
        if depth == 0 or kind < 0.3:
            return self.rng.choice(NAMES) if self.rng.random() < 0.7 else self.number()
        if kind < 0.55:
            op, count = "+", self.rng.randint(1, 4)
        elif kind < 0.7:
            op, count = "-", self.rng.randint(1, 3)
        elif kind < 0.93:
            parts = [self.number() for _ in range(self.rng.randint(1, 2))] + [self.expression(depth - 1)]
            self.rng.shuffle(parts)
            return f"(* {' '.join(parts)})"
        elif kind < 0.98:
            return f"(/ {self.expression(depth - 1)} {self.number()})"
        else:
            op, count = "*", 2
        return f"({op} {' '.join(self.expression(depth - 1) for _ in range(count))})"

    def formula(self, depth: int) -> str:
        if self.rng.random() < 0.03:
            return self.rng.choice(("true", "false", "(and)", "(or)"))
        if depth and self.rng.random() < 0.5:
            op = self.rng.choice(("and", "or", "or", "not", "=>"))
            count = {"not": 1, "=>": 2}.get(op) or self.rng.randint(1, 4)
            return f"({op} {' '.join(self.formula(depth - 1) for _ in range(count))})"
        relation = self.rng.choice(("<=", ">=", "<", ">", "=", "==", "distinct"))
        sides = [self.expression(self.rng.randint(0, 3)) for _ in range(3 if self.rng.random() < 0.05 else 2)]
        return f"({relation} {' '.join(sides)})"

    def text(self, assertions: int) -> str:
        body = [f"(assert {self.formula(3)})" for _ in range(assertions)]
        if self.rng.random() < 0.2:
            body.insert(
                self.rng.randrange(assertions),
                "(set-info :x (y 1))(declare-fun Y_12 () Real) ; ( comment )\n",
            )
        return HEAD + self.rng.choice(("\n", " ", "")).join(body)


@given(st.integers(0, 2**32))
@settings(max_examples=1500, deadline=None)
def test_bulk_and_stack_agree(seed: int) -> None:
    text = Writer(seed).text(4)
    try:
        expected = plain(text)
    except SpecError:
        with pytest.raises(SpecError):
            parse_query(text)
    else:
        assert expanded(parse_query(text).formula) == expected


@given(st.integers(0, 2**32))
@settings(max_examples=1500, deadline=None)
def test_an_error_inside_arithmetic_is_worded_and_placed_as_by_the_stack(seed: int) -> None:
    rng = random.Random(seed)
    words = ["(+ X_0", "(* 2", "Y_0", ")", "(- Y_1", "0.5", "))"]
    words[rng.randrange(len(words))] = rng.choice(
        ("Y_99", "(^ 2", "1.2.3", "", ")", "(", "(/ X_0", "(and", "nan", "(* X_1", "(/ 1 0)", "(<= Y_0 1)")
    )
    good = "(assert (<= (+ X_0 Y_0) 1)) (assert (<= X_0 1))\n"
    text = f"{HEAD}{good}(assert (or (<= X_1 2)\n  (<= {' '.join(words)} 1)))\n{good}"
    assert outcome(lambda: expanded(parse_query(text).formula)) == outcome(lambda: plain(text))


@given(st.integers(0, 2**32))
@settings(max_examples=1500, deadline=None)
def test_texts_with_a_flaw_are_read_or_refused_as_by_the_stack(seed: int) -> None:
    writer = Writer(seed)
    text, rng = writer.text(3), writer.rng
    for _ in range(rng.randint(1, 2)):
        place = rng.randrange(len(HEAD), len(text))
        pieces = (
            "",
            "",
            "(",
            ")",
            " ",
            "é",
            "\u00a0",
            ";",
            "\n",
            "X_1",
            "and ",
            "9",
            "-",
            ".",
            "e",
            "(not",
            "/ ",
        )
        piece = rng.choice(pieces)
        text = text[:place] + piece + text[place + rng.randint(0, 2) :]
    assert outcome(lambda: expanded(parse_query(text).formula)) == outcome(lambda: plain(text))


def outcome(read: Callable[[], object]) -> object:
    """What `read` gives, or the text of its error."""
    try:
        return read()
    except SpecError as error:
        return str(error)


def test_numbers_in_brackets_leave_errors_where_they_are() -> None:
    text = f"{HEAD}(assert (<= X_0 (- 0.5)))(assert (<= X_1(- 3)))(assert (<= Y_99 (- 1)))"
    with pytest.raises(SpecError, match=r"^15:60: Y_99 is not declared"):
        parse_query(text)
    with pytest.raises(SpecError, match=r"^15:1: - outside an assertion"):
        parse_query(f"{HEAD}(- 3)")


@given(st.integers(0, 2**32))
@settings(max_examples=60, deadline=None)
def test_normal_forms_agree(seed: int) -> None:
    """Sums as they are stored and the same as polynomials give the same atoms."""
    bounds = "".join(f"(assert (<= {name} 1))(assert (>= {name} -1))" for name in NAMES[: SIZES[0]])
    text = Writer(seed).text(3).replace(HEAD, HEAD + bounds)
    try:
        slow = parse(text, bulk=False)
    except SpecError:
        return
    one, two = normalise(parse_query(text)), normalise(slow)
    assert one.empty_reason == two.empty_reason and one.cases == two.cases
    for field in ("lower", "upper", "formula_index"):
        assert getattr(one, field).tolist() == getattr(two, field).tolist()
    for case in range(one.cases):
        found = [_written(problem, problem.formula(case)) for problem in (one, two)]
        assert found[0] == found[1]


def _written(problem, tree):
    """A tree with each atom in full in place of its number."""
    if isinstance(tree, And | Or):
        return type(tree).__name__, [_written(problem, child) for child in tree.children]
    mine = problem.rows == tree
    parts = [part for part in problem.nonlinear if part.atom == tree]
    nonlinear = [sorted(zip(part.monomials, part.coefficients, strict=True)) for part in parts]
    row = (problem.constants[tree], problem.strict[tree], problem.coefficient_error[tree])
    return problem.cols[mine].tolist(), problem.values[mine].tolist(), row, nonlinear
