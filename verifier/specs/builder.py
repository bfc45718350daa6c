"""Collects comparisons and connectives into a `Formula`; simple comparisons go into one `RowTable`."""

from __future__ import annotations

import functools
import itertools
import re
from collections.abc import Iterable, Iterator, Sequence
from decimal import Decimal
from fractions import Fraction

import numpy as np

from verifier.specs.errors import SpecError
from verifier.specs.formula import (
    FALSE,
    MAX_DEPTH,
    TRUE,
    And,
    Atom,
    Clauses,
    Formula,
    Or,
    Polynomial,
    Relation,
    RowTable,
    conjunction,
    disjunction,
    negation,
)

# longer exponents would exhaust memory in exact arithmetic
_NUMERAL = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d{1,3})?"
NUMERAL = re.compile(_NUMERAL, re.ASCII)
NUMERALS = re.compile(rf"(?:(?:{_NUMERAL}) )*+", re.ASCII)
"""Many numerals, a space after each."""

Rows = tuple[int, int]
"""Rows ``start : stop`` of the table under construction, a conjunction."""

Expr = int | str | Polynomial
"""An arithmetic expression: a variable's index, a numeral's text, or a polynomial."""

Item = Rows | And | Or | Atom | Clauses | tuple[str, list]
"""A Boolean expression under construction; ``(op, items)`` with op ``and`` / ``or`` is a connective."""

_COMPARE = {
    Relation.LE: lambda a: a <= 0,
    Relation.LT: lambda a: a < 0,
    Relation.EQ: lambda a: a == 0,
    Relation.NE: lambda a: a != 0,
    Relation.GE: lambda a: a >= 0,
    Relation.GT: lambda a: a > 0,
}


def is_numeral(text: str) -> bool:
    """Whether `text` is a decimal number, with at most three digits of exponent."""
    return NUMERAL.fullmatch(text) is not None


def exact_text(value: Fraction | float | int) -> str:
    """A decimal that equals `value` exactly, or ``p/q`` when there is none."""
    if isinstance(value, float):
        short = repr(value)
        return short if Decimal(short) == Decimal(value) else format(Decimal(value), "f")
    top, bottom = value.as_integer_ratio()
    if pow(10, bottom.bit_length(), bottom):  # a prime other than 2 and 5
        return f"{top}/{bottom}"
    digits = next(n for n in itertools.count() if 10**n % bottom == 0)
    body = str(abs(top) * 10**digits // bottom).rjust(digits + 1, "0")
    sign = "-" if top < 0 else ""
    return sign + (f"{body[:-digits]}.{body[-digits:]}" if digits else f"{body}.0")


@functools.lru_cache(maxsize=4096)
def _constant(text: str) -> Polynomial:
    return Polynomial.constant(Fraction(text))


def polynomial(expr: Expr) -> Polynomial:
    """`expr` as a polynomial with exact coefficients."""
    if isinstance(expr, int):
        return Polynomial.variable(expr)
    if isinstance(expr, str):
        return _constant(expr)
    return expr


class FormulaBuilder:
    """Grows a table of rows; `finish` freezes it and turns items into a `Formula`."""

    def __init__(
        self,
        left: list | None = None,
        relation: list | None = None,
        right: list | None = None,
        numerals: dict[str, int] | None = None,
    ) -> None:
        """Start with the given columns, which it takes over; `numerals` numbers the texts from 0."""
        self.left: list[int] = left or []
        self.relation: list[int] = relation or []
        self.right: list[int] = right or []
        self.numerals: dict[str, int] = numerals or {}

    def numeral(self, text: str) -> int:
        """The negative code of a numeral's text in the column `right`."""
        return ~self.numerals.setdefault(text, len(self.numerals))

    def row(self, left: int, relation: Relation, right: int) -> Rows:
        """Append one row; `right` is a variable or a code of `numeral`."""
        self.left.append(left)
        self.relation.append(relation)
        self.right.append(right)
        return len(self.left) - 1, len(self.left)

    def compare(self, relation: Relation, left: Expr, right: Expr) -> Item:
        """The comparison ``left relation right``, as a row wherever it is one."""
        if isinstance(left, int) and isinstance(right, int) and left != right:
            return self.row(left, relation, right)
        if isinstance(left, int) and isinstance(right, str):
            return self.row(left, relation, self.numeral(right))
        if isinstance(left, str) and isinstance(right, int):
            return self.row(right, relation.mirrored, self.numeral(left))
        expr = polynomial(left) - polynomial(right)
        if not expr.degree:
            return TRUE if _COMPARE[relation](expr.offset) else FALSE
        monomial, factor = expr.terms[-1]
        if expr.degree == 1 and len(expr.terms) == 1 + (expr.offset != 0):
            if factor < 0:
                relation = relation.mirrored
            return self.row(monomial[0], relation, self.numeral(exact_text(-expr.offset / factor)))
        if expr.degree == 1 and len(expr.terms) == 2 and not sum(c for _, c in expr.terms):
            (low, first), (high, _) = expr.terms
            return self.row(low[0], relation if first > 0 else relation.mirrored, high[0])
        return Atom(expr, Relation.EQ).with_relation(relation)

    def chain(self, relation: Relation, operands: Sequence[Expr]) -> Item:
        """``a R b R c``: adjacent pairs are compared, for NE every pair."""
        if relation is Relation.NE:
            pairs = [(a, b) for i, a in enumerate(operands) for b in operands[i + 1 :]]
        else:
            pairs = list(itertools.pairwise(operands))
        items = [self.compare(relation, a, b) for a, b in pairs]
        return items[0] if len(items) == 1 else ("and", items)

    def negated(self, item: Item) -> Item:
        """The negation of `item`, with new rows for those it negates."""
        if not isinstance(item, tuple):
            return negation(item)
        if isinstance(item[0], str):
            children = [self.negated(child) for child in item[1]]  # type: ignore[union-attr]
            return ("or" if item[0] == "and" else "and", children)
        rows = range(*item)  # type: ignore[arg-type]
        flipped = [Relation(self.relation[i]).negated for i in rows]
        pairs = zip(rows, flipped, strict=True)
        return ("or", [self.row(self.left[i], relation, self.right[i]) for i, relation in pairs])

    def finish(self, items: Iterable[Item]) -> Formula:
        """The conjunction of `items`; raises `SpecError` when it is nested too deeply."""
        table = RowTable(
            np.array(self.left, dtype=np.int32),
            np.array(self.relation, dtype=np.int8),
            np.array(self.right, dtype=np.int32),
            tuple(self.numerals),
        )
        formula = _connective("and", list(items), table)
        if formula.depth > MAX_DEPTH:
            raise SpecError(f"the formula alternates and/or more than {MAX_DEPTH} deep", hint="flatten it")
        return formula


def _connective(op: str, items: list, table: RowTable) -> Formula:
    """Turn a tree of items into a formula without recursion, since a parser's nesting is unlimited. What is nested in a
    connective of its own kind is part of that."""
    stack: list[tuple[str, Iterator, list]] = [(op, iter(items), [])]
    while True:
        kind, pending, done = stack[-1]
        for item in pending:
            if type(item) is tuple and type(item[0]) is str:
                stack.append((item[0], iter(item[1]), done if item[0] == kind else []))
                break
            done.append(item)
        else:
            stack.pop()
            if not stack:
                return _joined(kind, done, table)
            if stack[-1][2] is not done:
                stack[-1][2].append(_joined(kind, done, table))


def _joined(op: str, items: list, table: RowTable) -> Formula:
    """One connective whose items are rows and formulas; neighbouring rows become one `Clauses`."""
    join = conjunction if op == "and" else disjunction
    if tuple not in map(type, items):
        return join(items)
    children: list[Formula] = []
    bounds: list[int] = []
    for item in items:
        if not isinstance(item, tuple):
            children += _clauses(bounds, table)
            bounds = []
            children.append(item)
            continue
        start, stop = item
        if bounds and bounds[-1] != start:
            children += _clauses(bounds, table)
            bounds = []
        if not bounds:
            bounds = [start, stop]
        elif op == "and":
            bounds[-1] = stop
        else:
            bounds.append(stop)
    children += _clauses(bounds, table)
    return join(children)


def _clauses(bounds: list[int], table: RowTable) -> list[Formula]:
    return [Clauses(table, np.array(bounds, dtype=np.int64))] if bounds else []
