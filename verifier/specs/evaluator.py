"""Exact decision whether an assignment satisfies a query, from the query's own formula.

It guards every `sat`, so it shares no code with the normaliser. Floats are taken as the rationals that they
are. Comparisons that floats decide beyond doubt are decided in bulk by numpy; the others by `Fraction`.
"""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction

import numpy as np
from numpy.typing import ArrayLike, NDArray

from verifier.specs.formula import And, Atom, Formula, Or, Relation, RowTable
from verifier.specs.query import Kind, Query

_HOLDS = {
    Relation.LE: lambda gap, slack: gap <= slack,
    Relation.LT: lambda gap, slack: gap < slack,
    Relation.EQ: lambda gap, slack: abs(gap) <= slack,
    Relation.NE: lambda gap, slack: gap != 0,
    Relation.GE: lambda gap, slack: -gap <= slack,
    Relation.GT: lambda gap, slack: -gap < slack,
}


def satisfies(query: Query, values: Mapping[str, ArrayLike], tolerance_inputs: float = 0.0) -> bool:
    """Whether `values` (an array per variable name, any shape) satisfy the formula exactly.

    `tolerance_inputs` is slack, in the inputs' units, for comparisons that mention only inputs (``!=`` gets
    none); those that mention a hidden or an output element get none. Infinities and NaN satisfy nothing.
    Raises `ValueError` for a missing variable or a wrong size.
    """
    vector = flat_values(query, values)
    if not np.isfinite(vector).all():
        return False
    return _Evaluator(query, vector, Fraction(tolerance_inputs)).holds(query.formula)


def flat_values(query: Query, values: Mapping[str, ArrayLike]) -> NDArray[np.float64]:
    """The values of all declared elements, float64 [size], in declaration order."""
    parts: list[NDArray[np.float64]] = []
    for variable in query.variables:
        if variable.name not in values:
            raise ValueError(f"no values for {variable.name}")
        part = np.asarray(values[variable.name]).astype(np.float64).reshape(-1)
        if part.size != variable.size:
            raise ValueError(f"{variable.name} has {variable.size} elements, not {part.size}")
        parts.append(part)
    return np.concatenate(parts) if parts else np.zeros(0)


class _Evaluator:
    def __init__(self, query: Query, vector: NDArray[np.float64], tolerance: Fraction) -> None:
        self.vector = vector
        self.tolerance = tolerance
        self.is_input = np.zeros(len(vector), dtype=bool)
        for variable in query.of_kind(Kind.INPUT):
            self.is_input[variable.offset : variable.offset + variable.size] = True
        self.numerals: NDArray[np.float64] | None = None

    def holds(self, formula: Formula) -> bool:
        if isinstance(formula, And):
            return all(self.holds(child) for child in formula.children)
        if isinstance(formula, Or):
            return any(self.holds(child) for child in formula.children)
        if isinstance(formula, Atom):
            return self._atom(formula)
        rows = self._rows(formula.table, formula.start, formula.stop)
        starts = formula.offsets[:-1] - formula.start
        return bool(np.logical_and.reduceat(rows, starts).any()) if len(rows) else len(formula) > 0

    def _slack(self, variables: set[int]) -> Fraction:
        return self.tolerance if all(self.is_input[i] for i in variables) else Fraction(0)

    def _atom(self, atom: Atom) -> bool:
        total = Fraction(0)
        for monomial, coefficient in atom.expr.terms:
            for index in monomial:
                coefficient *= Fraction(float(self.vector[index]))
            total += coefficient
        return _HOLDS[atom.relation](total, self._slack(atom.expr.variables))

    def _rows(self, table: RowTable, start: int, stop: int) -> NDArray[np.bool_]:
        """Whether each row of ``start : stop`` holds."""
        left, right = table.left[start:stop], table.right[start:stop]
        relation = table.relation[start:stop]
        if self.numerals is None:
            self.numerals = np.array([_near(text) for text in table.numerals], dtype=np.float64)
        constant = right < 0
        a = self.vector[left]
        b = np.empty_like(a)
        b[constant] = self.numerals[~right[constant]]
        b[~constant] = self.vector[right[~constant]]
        # rounding is monotone: where the floats differ, the exact numbers are in the same order
        below, above = a < b, a > b
        held = np.where(np.isin(relation, (Relation.LE, Relation.LT)), below, above)
        held[(relation == Relation.NE) & (below | above)] = True
        held[relation == Relation.EQ] = False
        unsure = ~(below | above)
        if self.tolerance:
            inputs = self.is_input[left] & (constant | self.is_input[np.maximum(right, 0)])
            with np.errstate(over="ignore", invalid="ignore"):
                far = np.abs(a - b) > 1.001 * float(self.tolerance) + 1e-15 * np.abs(b)
            unsure |= inputs & ~held & ~far
        triples = np.stack((left, relation, right), axis=1)[unsure]
        distinct, which = np.unique(triples, axis=0, return_inverse=True)
        exact = [self._row(i, code, j, table.numerals) for i, code, j in distinct.tolist()]
        held[unsure] = np.array(exact, dtype=bool)[which.reshape(-1)]
        return held

    def _row(self, left: int, relation: int, right: int, numerals: tuple[str, ...]) -> bool:
        gap = Fraction(float(self.vector[left]))
        if right < 0:
            gap -= Fraction(numerals[~right])
            return _HOLDS[Relation(relation)](gap, self._slack({left}))
        gap -= Fraction(float(self.vector[right]))
        return _HOLDS[Relation(relation)](gap, self._slack({left, right}))


def _near(text: str) -> float:
    """The float nearest to a numeral."""
    try:
        return float(Fraction(text)) if "/" in text else float(text)
    except OverflowError:
        return -np.inf if text.startswith("-") else np.inf
