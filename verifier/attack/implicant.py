"""Which conjunction of a query's atoms a point is nearest to, and what that conjunction says of the inputs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from verifier.specs.formula import And, Atom, Clauses, Formula, Or, Relation, RowTable
from verifier.specs.query import Kind, Query

_LOWER = (Relation.GE, Relation.GT, Relation.EQ)
_UPPER = (Relation.LE, Relation.LT, Relation.EQ)
_STRICT = (Relation.LT, Relation.GT)


@dataclass(frozen=True, eq=False)
class Bounds:
    """Bounds of single inputs by numbers: element `index` [R] is >= (or <=, `upper`) the number `near` [R], or
    strictly so. `near` is the float64 nearest to the exact number `numerals[code]`."""

    index: NDArray[np.int64]
    near: NDArray[np.float64]
    upper: bool
    strict: NDArray[np.bool_]
    code: NDArray[np.int64]
    numerals: tuple[str, ...]

    def exact(self, row: int) -> Fraction:
        return Fraction(self.numerals[self.code[row]])


@dataclass(frozen=True, eq=False)
class InputPart:
    """What a conjunction of atoms says of the inputs alone, by flat index in the query's variables.

    `small` <= `large` ([P] each, `<` where `strict`) and `ties` [T, 2] (equal) hold between pairs of inputs;
    `atoms` are the other atoms over inputs only.
    """

    bounds: tuple[Bounds, ...]
    small: NDArray[np.int64]
    large: NDArray[np.int64]
    strict: NDArray[np.bool_]
    ties: NDArray[np.int64]
    atoms: tuple[Atom, ...]


class Inputs:
    """The input side of one query."""

    def __init__(self, query: Query) -> None:
        self.query = query
        self.is_input = np.zeros(query.size, dtype=bool)
        for variable in query.of_kind(Kind.INPUT):
            self.is_input[variable.offset : variable.offset + variable.size] = True
        self._near: dict[int, NDArray[np.float64]] = {}

    @cached_property
    def positions(self) -> NDArray[np.int64]:
        """[n_in] flat index of every input element, in declaration order."""
        return np.flatnonzero(self.is_input)

    def common(self) -> InputPart:
        """What every solution of the query says of its inputs."""
        formula = self.query.formula
        parts = formula.children if isinstance(formula, And) else (formula,)
        return self._part([leaf for part in parts for leaf in _certain(part)])

    def nearest(self, vector: NDArray[np.float64]) -> InputPart:
        """The part of the conjunction that `vector` [size] satisfies best: in each disjunction the disjunct whose
        worst atom is met by most, or missed by least."""
        return self._part(self._choose(self.query.formula, vector)[1])

    # --- choice

    def _choose(self, formula: Formula, vector: NDArray[np.float64]) -> tuple[float, list[_Leaf]]:
        """How far the best conjunction is from holding (negative: it holds), and its leaves."""
        if isinstance(formula, Atom):
            return _atom_gap(formula, vector), [formula]
        if isinstance(formula, Clauses):
            return self._choose_clause(formula, vector)
        parts = [self._choose(child, vector) for child in formula.children]
        if isinstance(formula, And):
            return max((gap for gap, _ in parts), default=-np.inf), [x for _, leaves in parts for x in leaves]
        return min(parts, key=lambda part: part[0], default=(np.inf, []))

    def _choose_clause(self, clauses: Clauses, vector: NDArray[np.float64]) -> tuple[float, list[_Leaf]]:
        table, offsets = clauses.table, clauses.offsets
        if not len(clauses):
            return np.inf, []
        if (np.diff(offsets) == 0).any():
            return -np.inf, []  # an empty clause always holds
        gaps = self._gaps(table, slice(clauses.start, clauses.stop), vector)
        worst = np.maximum.reduceat(gaps, offsets[:-1] - clauses.start)
        best = int(worst.argmin())
        return float(worst[best]), [(table, np.arange(offsets[best], offsets[best + 1]))]

    def _gaps(self, table: RowTable, rows: slice, vector: NDArray[np.float64]) -> NDArray[np.float64]:
        relation, right = table.relation[rows], table.right[rows]
        values = np.where(
            right < 0, self._numerals(table)[~np.minimum(right, -1)], vector[np.maximum(right, 0)]
        )
        with np.errstate(invalid="ignore"):
            gap = vector[table.left[rows]] - values
        gap = np.where(np.isin(relation, (Relation.GE, Relation.GT)), -gap, gap)
        gap = np.where(relation == Relation.EQ, np.abs(gap), gap)
        return np.where(relation == Relation.NE, np.where(gap == 0, 1e-300, -np.abs(gap)), gap)

    def _numerals(self, table: RowTable) -> NDArray[np.float64]:
        known = self._near.get(id(table))
        if known is None:
            known = self._near[id(table)] = np.array([_near(t) for t in table.numerals] or [0.0])
        return known

    # --- reading

    def _part(self, leaves: list[_Leaf]) -> InputPart:
        bounds: list[Bounds] = []
        pairs: list[tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int8]]] = []
        atoms: list[Atom] = []
        for leaf in leaves:
            if isinstance(leaf, Atom):
                if leaf.expr.variables and all(self.is_input[i] for i in leaf.expr.variables):
                    atoms.append(leaf)
                continue
            table, rows = leaf
            rows = rows[self.is_input[table.left[rows]]]
            left, right, relation = table.left[rows], table.right[rows].astype(np.int64), table.relation[rows]
            bounds += self._bounds(table, left, right, relation)
            both = (right >= 0) & self.is_input[np.maximum(right, 0)]
            pairs.append((left[both].astype(np.int64), right[both], relation[both]))
            atoms += [table.atom(int(r)) for r in rows[(relation == Relation.NE) & ((right < 0) | both)]]
        nothing = np.zeros(0, dtype=np.int64)
        left, right, relation = (
            np.concatenate(column) for column in zip(*pairs, (nothing, nothing, nothing), strict=True)
        )
        up, down = (
            np.isin(relation, (Relation.LE, Relation.LT)),
            np.isin(relation, (Relation.GE, Relation.GT)),
        )
        return InputPart(
            bounds=tuple(bounds),
            small=np.concatenate([left[up], right[down]]),
            large=np.concatenate([right[up], left[down]]),
            strict=np.isin(np.concatenate([relation[up], relation[down]]), _STRICT),
            ties=np.stack([left, right], 1)[relation == Relation.EQ],
            atoms=tuple(atoms),
        )

    def _bounds(self, table: RowTable, left: NDArray, right: NDArray, relation: NDArray) -> Iterator[Bounds]:
        near = self._numerals(table)
        for upper, relations in ((False, _LOWER), (True, _UPPER)):
            rows = (right < 0) & np.isin(relation, relations)
            if rows.any():
                code = ~right[rows]
                strict = np.isin(relation[rows], _STRICT)
                yield Bounds(left[rows].astype(np.int64), near[code], upper, strict, code, table.numerals)


_Leaf = Atom | tuple[RowTable, NDArray[np.int64]]
"""An atom, or some rows of a table, all of which hold."""


def _certain(formula: Formula) -> list[_Leaf]:
    """The leaves that hold whenever `formula` does, as far as they are in plain sight."""
    if isinstance(formula, And):
        return [leaf for child in formula.children for leaf in _certain(child)]
    if isinstance(formula, Atom):
        return [formula]
    if isinstance(formula, Clauses) and len(formula) == 1:
        return [(formula.table, np.arange(formula.start, formula.stop))]
    if isinstance(formula, Or) and len(formula.children) == 1:
        return _certain(formula.children[0])
    return []


def _atom_gap(atom: Atom, vector: NDArray[np.float64]) -> float:
    total = 0.0
    for monomial, coefficient in atom.expr.terms:
        total += float(coefficient) * float(np.prod(vector[list(monomial)]))
    if atom.relation is Relation.EQ:
        return abs(total)
    if atom.relation is Relation.NE:
        return -abs(total) if total else 1e-300
    return total


def _near(text: str) -> float:
    """The float nearest to an exact number."""
    try:
        return float(Fraction(text)) if "/" in text else float(text)
    except OverflowError:
        return -np.inf if text.startswith("-") else np.inf
