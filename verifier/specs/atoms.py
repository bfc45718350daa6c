"""The table of distinct atoms: simple comparisons by integer key, others by polynomial."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import NDArray

from verifier.specs.errors import SpecError
from verifier.specs.formula import (
    FALSE,
    LOWER,
    STRICT,
    TRUE,
    And,
    Atom,
    Or,
    Polynomial,
    Relation,
    RowTable,
    conjunction,
    disjunction,
)
from verifier.specs.problem import NonlinearPart, Tree
from verifier.specs.scale import Scale, nearest_float

_TINY = 2.0**-1022
_RANGE_HINT = "scale the constraint: coefficients must lie between 1e-307 and 1e308 in magnitude"


class AtomTable:
    """Gives ids to atoms over v.

    The key of a simple atom is an integer, (v index, is lower bound, strict, other v index or rank) encoded.
    """

    def __init__(self, variables: int, scale: Scale) -> None:
        self.variables = variables
        self.scale = scale
        self.base = variables + len(scale.down)
        self.ids: dict[Any, int] = {}

    def bounds(
        self, index: NDArray, is_lower: NDArray | bool, strict: NDArray | bool, other: NDArray
    ) -> list[int]:
        """Ids of ``v[index] <= other`` (or ``>=``), where `other` is a v index, or ``variables + rank``."""
        shape = np.broadcast_shapes(np.shape(index), np.shape(is_lower), np.shape(strict))
        low, open_ = np.broadcast_to(is_lower, shape), np.broadcast_to(strict, shape)
        swap = low & (other < self.variables)
        index, other = np.where(swap, other, index), np.where(swap, index, other)
        keys = ((index.astype(np.int64) * 2 + (low & ~swap)) * 2 + open_) * self.base + other
        unique, inverse = np.unique(keys, return_inverse=True)
        ids = self.ids
        codes = np.array([ids.setdefault(key, len(ids)) for key in unique.tolist()], dtype=np.int64)
        return codes[inverse].tolist()

    def leaves(self, table: RowTable, rows: NDArray[np.int64], position: NDArray[np.int64]) -> list[Tree]:
        """One tree per row: an id, for ``==`` both of two ids, for ``!=`` one of two strict ones."""
        left, right = position[table.left[rows]], table.right[rows]
        other = np.where(right >= 0, position[np.maximum(right, 0)], 0)
        numeral = right < 0
        other[numeral] = self.variables + self.scale.rank[~right[numeral]]
        relation = table.relation[rows]
        double_mask = (relation == Relation.EQ) | (relation == Relation.NE)
        strict = STRICT[relation] | (relation == Relation.NE)
        first = self.bounds(left, LOWER[relation] & ~double_mask, strict, other)
        double = np.flatnonzero(double_mask)
        leaves: list[Tree] = list(first)
        if len(double):
            second = self.bounds(left[double], True, strict[double], other[double])
            for i, row in enumerate(double.tolist()):
                pair = (first[row], second[i])
                leaves[row] = And(pair) if relation[row] == Relation.EQ else Or(pair)
        return leaves

    def general(self, atom: Atom, position: NDArray[np.int64]) -> Tree:
        """The tree of a polynomial atom."""
        moved = Polynomial.of({tuple(sorted(int(position[i]) for i in m)): c for m, c in atom.expr.terms})
        if atom.relation in (Relation.LE, Relation.LT):
            return self._polynomial(moved, atom.relation is Relation.LT)
        strict = atom.relation is Relation.NE
        pair = (self._polynomial(moved, strict), self._polynomial(-moved, strict))
        return disjunction(pair) if strict else conjunction(pair)  # type: ignore[return-value]

    def _polynomial(self, expr: Polynomial, strict: bool) -> Tree:
        if not expr.degree:
            return TRUE if expr.offset < 0 or (expr.offset == 0 and not strict) else FALSE
        return self.ids.setdefault((expr, strict), len(self.ids))

    def arrays(self) -> dict[str, Any]:
        """The fields of `Problem` that describe atoms."""
        keys = list(self.ids)
        simple = np.array([i for i, key in enumerate(keys) if isinstance(key, int)], dtype=np.int64)
        codes = np.array([key for key in keys if isinstance(key, int)], dtype=np.int64)
        head, other = np.divmod(codes, self.base)
        head, strict_codes = np.divmod(head, 2)
        index, low = np.divmod(head, 2)
        constants, strict = np.zeros(len(keys)), np.zeros(len(keys), dtype=bool)
        strict[simple] = strict_codes == 1
        number = other >= self.variables
        rank = other[number] - self.variables
        constants[simple[number]] = np.where(low[number] == 1, self.scale.down[rank], -self.scale.up[rank])
        rows = [simple, simple[~number]]
        cols = [index, other[~number]]
        values = [np.where(low == 1, -1.0, 1.0), np.full(int((~number).sum()), -1.0)]
        error = np.zeros(len(keys))
        nonlinear: list[NonlinearPart] = []
        for i, key in enumerate(keys):
            if isinstance(key, int):
                continue
            expr, strict[i] = key
            constants[i] = _rounded_down(expr.offset)
            floats = {m: _coefficient(c) for m, c in expr.terms if m}
            if any(Fraction(floats[m]) != c for m, c in expr.terms if m):
                error[i] = 2.0**-53
            linear = {m[0]: c for m, c in floats.items() if len(m) == 1}
            high = {m: c for m, c in floats.items() if len(m) > 1}
            rows.append(np.full(len(linear), i))
            cols.append(np.array(list(linear), dtype=np.int64))
            values.append(np.array(list(linear.values()), dtype=np.float64))
            if high:
                nonlinear.append(NonlinearPart(i, tuple(high), tuple(high.values())))
        if not np.isfinite(constants).all():
            raise SpecError("a constant is beyond the range of float64", hint=_RANGE_HINT)
        flat = [np.concatenate(part) for part in (rows, cols, values)]
        order = np.lexsort((flat[1], flat[0]))
        return {
            "rows": flat[0][order],
            "cols": flat[1][order],
            "values": flat[2][order],
            "constants": constants + 0.0,
            "strict": strict,
            "coefficient_error": error,
            "nonlinear": tuple(nonlinear),
        }


def _coefficient(value: Fraction) -> float:
    near = nearest_float(value)
    if not _TINY <= abs(near) < np.inf:
        raise SpecError("a coefficient is beyond the range of float64", hint=_RANGE_HINT)
    return near


def _rounded_down(value: Fraction) -> float:
    near = nearest_float(value)
    if np.isinf(near):
        return near if near < 0 else float(np.finfo(np.float64).max)
    return near if Fraction(near) <= value else float(np.nextafter(near, -np.inf))
