"""Formulas over the flat vector of all declared variable elements, with exact coefficients.

A formula is a tree of `And`, `Or` and two kinds of leaves: `Atom`, a polynomial compared with zero, and
`Clauses`, many simple comparisons held in arrays (a file of 10 MB has half a million of them).
"""

from __future__ import annotations

import enum
import functools
import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

MAX_DEPTH = 200
"""Deepest tree that is accepted (after merging nested `And`s and nested `Or`s), so that recursion is safe."""


class Relation(enum.IntEnum):
    """A comparison. `Atom` uses only the first four; `GE` and `GT` occur in `RowTable`."""

    LE = 0
    LT = 1
    EQ = 2
    NE = 3
    GE = 4
    GT = 5

    @property
    def text(self) -> str:
        return ("<=", "<", "==", "!=", ">=", ">")[self]

    @property
    def mirrored(self) -> Relation:
        """The relation with its sides exchanged: ``a R b`` iff ``b R.mirrored a``."""
        return MIRRORED[self]

    @property
    def negated(self) -> Relation:
        """``not (a R b)`` iff ``a R.negated b``."""
        return NEGATED[self]


MIRRORED = (Relation.GE, Relation.GT, Relation.EQ, Relation.NE, Relation.LE, Relation.LT)
NEGATED = (Relation.GT, Relation.GE, Relation.NE, Relation.EQ, Relation.LT, Relation.LE)

_ONE = Fraction(1)

# lookups by relation, for arrays of relations
UPPER = np.array([True, True, True, False, False, False])
"""Whether ``v R b`` bounds v from above."""
LOWER = np.array([False, False, True, False, True, True])
"""Whether ``v R b`` bounds v from below."""
STRICT = np.array([False, True, False, False, False, True])
"""Whether the relation is < or >."""

Monomial = tuple[Any, ...]
"""Sorted variables, repeated for powers; ``()`` is the constant. A variable is a flat index, in `Property` a symbol."""


@dataclass(frozen=True)
class Polynomial:
    """``sum(coefficient * product of variables)``; `terms` are sorted, distinct and not zero."""

    terms: tuple[tuple[Monomial, Fraction], ...] = ()

    @classmethod
    def of(cls, terms: Mapping[Monomial, Fraction]) -> Polynomial:
        return cls(tuple(sorted((m, c) for m, c in terms.items() if c)))

    @classmethod
    def constant(cls, value: Fraction | int) -> Polynomial:
        return cls((((), Fraction(value)),)) if value else cls()

    @classmethod
    def variable(cls, index: Any) -> Polynomial:
        return cls((((index,), _ONE),))

    @property
    def degree(self) -> int:
        return max((len(monomial) for monomial, _ in self.terms), default=0)

    @property
    def offset(self) -> Fraction:
        """The constant term."""
        return self.terms[0][1] if self.terms and self.terms[0][0] == () else Fraction(0)

    @property
    def variables(self) -> set[Any]:
        return {index for monomial, _ in self.terms for index in monomial}

    def scaled(self, factor: Fraction) -> Polynomial:
        return Polynomial(tuple((m, c * factor) for m, c in self.terms)) if factor else Polynomial()

    def __neg__(self) -> Polynomial:
        return Polynomial(tuple((m, -c) for m, c in self.terms))

    def __add__(self, other: Polynomial) -> Polynomial:
        return sum_of((self, other))

    def __sub__(self, other: Polynomial) -> Polynomial:
        terms = dict(self.terms)
        for monomial, coefficient in other.terms:
            terms[monomial] = terms[monomial] - coefficient if monomial in terms else -coefficient
        return Polynomial.of(terms)

    def __mul__(self, other: Polynomial) -> Polynomial:
        small, large = sorted((self, other), key=lambda p: len(p.terms))
        if not small.degree:
            return large.scaled(small.offset)
        terms: dict[Monomial, Fraction] = {}
        for left, a in small.terms:
            for right, b in large.terms:
                monomial = tuple(sorted(left + right))
                terms[monomial] = terms[monomial] + a * b if monomial in terms else a * b
        return Polynomial.of(terms)


def sum_of(polynomials: Iterable[Polynomial]) -> Polynomial:
    """The sum of all, in time linear in the number of terms."""
    terms: dict[Monomial, Fraction] = {}
    for polynomial in polynomials:
        for monomial, coefficient in polynomial.terms:
            terms[monomial] = terms[monomial] + coefficient if monomial in terms else coefficient
    return Polynomial.of(terms)


@dataclass(frozen=True, eq=False)
class SumTable:
    """R linear sums with T terms in all, as they were read; a large file has half a million terms.

    The terms of sum r are ``offsets[r] : offsets[r + 1]`` (int64 [R + 1]). ``variables`` int32 [T] are indices,
    in order within a sum and distinct, after any constants, which have -1. ``factors`` int64 [T] is ``k + 1`` or
    ``-(k + 1)`` for plus or minus entry k of ``numbers``: a decimal's text, ``(i, j)`` for the product of two
    entries before it, or ``(i,)`` for the reciprocal of one.
    """

    offsets: NDArray[np.int64]
    variables: NDArray[np.int32]
    factors: NDArray[np.int64]
    numbers: Sequence[str | tuple[int, ...]]
    _exact: dict[int, Fraction] = field(default_factory=dict, init=False, repr=False)

    def number(self, entry: int) -> Fraction:
        """Entry `entry` of ``numbers``."""
        value = self._exact.get(entry)
        if value is None:
            given = self.numbers[entry]
            if isinstance(given, str):
                value = Fraction(given)
            elif len(given) == 1:
                value = 1 / self.number(given[0])
            else:
                value = self.number(given[0]) * self.number(given[1])
            self._exact[entry] = value
        return value

    def terms(self, row: int, sign: int) -> tuple[tuple[Monomial, Fraction], ...]:
        """The terms of `sign` times sum `row`, as a `Polynomial` has them."""
        part = slice(self.offsets[row], self.offsets[row + 1])
        terms: list[tuple[Monomial, Fraction]] = []
        constant = Fraction(0)
        for variable, factor in zip(self.variables[part].tolist(), self.factors[part].tolist(), strict=True):
            value = self.number(abs(factor) - 1)
            value = value if (factor < 0) == (sign < 0) else -value
            if variable < 0:
                constant += value
            else:
                terms.append(((variable,), value))
        return (((), constant), *terms) if constant else tuple(terms)


@dataclass(frozen=True)
class Atom:
    """``expr relation 0`` with relation one of LE, LT, EQ, NE."""

    expr: Polynomial
    relation: Relation
    depth: ClassVar[int] = 0


class StoredAtom(Atom):
    """An atom whose polynomial is a sum of a `SumTable` (or its negation), made when it is asked for."""

    table: SumTable
    row: int
    sign: int

    def __init__(self, table: SumTable, row: int, sign: int, relation: Relation) -> None:
        own = self.__dict__
        own["table"], own["row"], own["sign"], own["relation"] = table, row, sign, relation

    @functools.cached_property
    def expr(self) -> Polynomial:  # type: ignore[override]
        return Polynomial(self.table.terms(self.row, self.sign))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Atom) and (self.expr, self.relation) == (other.expr, other.relation)

    __hash__ = Atom.__hash__

    def with_relation(self, relation: Relation) -> StoredAtom:
        """The same polynomial R 0 for any R, as an atom (which has <= and < only, and so may be negated)."""
        if relation in (Relation.GE, Relation.GT):
            return StoredAtom(self.table, self.row, -self.sign, relation.mirrored)
        return StoredAtom(self.table, self.row, self.sign, relation)


@dataclass(frozen=True, eq=False)
class RowTable:
    """R simple comparisons ``v[left] relation right``.

    ``left`` int32 [R] are variable indices; ``relation`` int8 [R]; ``right`` int32 [R] is a variable index
    or, when negative, ``~right`` is an index into ``numerals``, texts of numbers (decimals, or ``p/q``).
    """

    left: NDArray[np.int32]
    relation: NDArray[np.int8]
    right: NDArray[np.int32]
    numerals: tuple[str, ...]

    def atom(self, row: int) -> Atom:
        """Row ``row`` as an `Atom`."""
        relation, right = Relation(self.relation[row]), int(self.right[row])
        if right >= 0:
            other = Polynomial.variable(right)
        else:
            other = Polynomial.constant(Fraction(self.numerals[~right]))
        expr = Polynomial.variable(int(self.left[row])) - other
        if relation in (Relation.GE, Relation.GT):
            return Atom(-expr, relation.mirrored)
        return Atom(expr, relation)


@dataclass(frozen=True, eq=False)
class Clauses:
    """A disjunction of conjunctions of rows; clause i is rows ``offsets[i] : offsets[i + 1]``, all of them.

    With one clause it is a conjunction. ``offsets`` is int64 [clauses + 1], strictly increasing.
    """

    table: RowTable
    offsets: NDArray[np.int64]
    depth: ClassVar[int] = 0

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def start(self) -> int:
        return int(self.offsets[0])

    @property
    def stop(self) -> int:
        return int(self.offsets[-1])


def _depth(children: tuple) -> int:
    return 1 + max([0 if isinstance(child, int) else child.depth for child in children], default=0)


@dataclass(frozen=True, init=False)
class And:
    """Conjunction; with no children it is true. `normalise` uses it over atom ids (ints) too."""

    children: tuple
    depth: int = field(repr=False, compare=False)

    def __init__(self, children: tuple) -> None:
        self.__dict__.update(children=children, depth=_depth(children))


@dataclass(frozen=True, init=False)
class Or:
    """Disjunction; with no children it is false. `normalise` uses it over atom ids (ints) too."""

    children: tuple
    depth: int = field(repr=False, compare=False)

    def __init__(self, children: tuple) -> None:
        self.__dict__.update(children=children, depth=_depth(children))


Formula = And | Or | Atom | Clauses
_CONNECTIVES = frozenset((And, Or))
TRUE = And(())
FALSE = Or(())


def conjunction(children: Iterable) -> And | Or | Atom | Clauses:
    """`And` with nested `And`s merged and constants folded; a single child is returned as it is."""
    return _merged(And, FALSE, children)


def disjunction(children: Iterable) -> And | Or | Atom | Clauses:
    """`Or` with nested `Or`s merged and constants folded; a single child is returned as it is."""
    return _merged(Or, TRUE, children)


def _merged(kind: type, absorbing: And | Or, children: Iterable) -> And | Or | Atom | Clauses:
    flat = tuple(children)
    if _CONNECTIVES.isdisjoint(map(type, flat)):
        return flat[0] if len(flat) == 1 else kind(flat)
    merged: list = []
    for child in flat:
        if isinstance(child, kind):
            merged.extend(child.children)  # type: ignore[attr-defined]
        elif isinstance(child, And | Or) and not child.children:
            return absorbing
        else:
            merged.append(child)
    return merged[0] if len(merged) == 1 else kind(tuple(merged))


def negation(formula: Formula) -> Formula:
    """The negation, pushed down to the atoms; exact, since every relation has an exact complement."""
    if isinstance(formula, Clauses):
        return negation(expanded(formula))
    if isinstance(formula, And):
        return disjunction(negation(child) for child in formula.children)
    if isinstance(formula, Or):
        return conjunction(negation(child) for child in formula.children)
    relation = formula.relation.negated
    if isinstance(formula, StoredAtom):
        return formula.with_relation(relation)
    if relation in (Relation.GT, Relation.GE):
        return Atom(-formula.expr, relation.mirrored)
    return Atom(formula.expr, relation)


def expanded(formula: Formula) -> And | Or | Atom:
    """The same formula with every `Clauses` written out as `And`, `Or`, `Atom` (slow for large ones)."""
    if isinstance(formula, Clauses):
        bounds = formula.offsets.tolist()
        return disjunction(  # type: ignore[return-value]
            conjunction(formula.table.atom(row) for row in range(a, b)) for a, b in itertools.pairwise(bounds)
        )
    if isinstance(formula, And):
        return conjunction(expanded(child) for child in formula.children)  # type: ignore[return-value]
    if isinstance(formula, Or):
        return disjunction(expanded(child) for child in formula.children)  # type: ignore[return-value]
    return formula
