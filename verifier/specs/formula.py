"""Formulas over the flat vector of all declared variable elements, with exact coefficients.

A formula is a tree of `And`, `Or` and two kinds of leaves: `Atom`, a polynomial compared with zero, and
`Clauses`, many simple comparisons held in arrays (a file of 10 MB has half a million of them).
"""

from __future__ import annotations

import enum
import functools
import itertools
from collections.abc import Iterable, Mapping
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


@dataclass(frozen=True)
class Atom:
    """``expr relation 0`` with relation one of LE, LT, EQ, NE."""

    expr: Polynomial
    relation: Relation
    depth: ClassVar[int] = 0

    def with_relation(self, relation: Relation) -> Atom:
        """The same polynomial R 0 for any R (with >= and >, its negation mirrored)."""
        if relation in (Relation.GE, Relation.GT):
            return Atom(-self.expr, relation.mirrored)
        return Atom(self.expr, relation)


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
        return Atom(Polynomial.variable(int(self.left[row])) - other, Relation.EQ).with_relation(relation)


NO_ROWS = RowTable(np.zeros(0, np.int32), np.zeros(0, np.int8), np.zeros(0, np.int32), ())


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


@dataclass(frozen=True, init=False, eq=False)
class _Connective:
    children: tuple
    depth: int = field(repr=False)

    def __init__(self, children: tuple) -> None:
        own = self.__dict__
        own["children"] = children
        depths = [child.depth for child in children if type(child) in _CONNECTIVES]
        own["depth"] = 1 + max(depths) if depths else 1

    def __eq__(self, other: object) -> bool:
        return self is other or (type(self) is type(other) and self.children == other.children)  # type: ignore[attr-defined]

    def __hash__(self) -> int:
        return self._hash

    @functools.cached_property
    def _hash(self) -> int:
        return hash((type(self) is And, self.children))


class And(_Connective):
    """Conjunction; with no children it is true. `normalise` uses it over atom ids (ints) too."""


class Or(_Connective):
    """Disjunction; with no children it is false. `normalise` uses it over atom ids (ints) too."""


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
    merged: list = []
    for child in children:
        if type(child) is kind:
            merged.extend(child.children)
        elif type(child) in _CONNECTIVES and not child.children:
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
    return formula.with_relation(formula.relation.negated)


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
