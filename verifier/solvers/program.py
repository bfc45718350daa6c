"""Linear programs, and lower bounds of their minima that need no trust in whoever solved them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

Vector = NDArray[np.float64]
Index = NDArray[np.int64]

_EPS = float(np.finfo(np.float64).eps)
_TINY = float(np.finfo(np.float64).tiny)


@dataclass(frozen=True, eq=False)
class Pattern:
    """Where a sparse matrix of `shape` (rows, columns) has entries: `row` ascending and `column`, int64 [E]."""

    shape: tuple[int, int]
    row: Index
    column: Index

    @cached_property
    def start(self) -> NDArray[np.int32]:
        """Where each row begins among the entries, and the end: [rows + 1]."""
        return np.searchsorted(self.row, np.arange(self.shape[0] + 1)).astype(np.int32)

    @cached_property
    def column32(self) -> NDArray[np.int32]:
        return self.column.astype(np.int32)

    @cached_property
    def deepest(self) -> int:
        """The most entries in one column."""
        return int(np.bincount(self.column, minlength=1).max(initial=0))

    def pull(self, multipliers: Vector, values: Vector) -> Vector:
        """The transposed matrix with entries `values` [E] times `multipliers` [rows]: [columns]."""
        weights = values * multipliers[self.row]
        return np.asarray(np.bincount(self.column, weights, minlength=self.shape[1]), dtype=np.float64)


@dataclass(frozen=True, eq=False)
class Program:
    """Minimise cost . v over lower <= v <= upper, row_lower <= A v <= row_upper.

    A has the entries `values` [E] at `pattern`; ends of columns [C] are finite, those of rows [R] may be infinite.
    All numbers mean exactly what they are: what was rounded on the way to them is part of the rows' ends already.
    """

    pattern: Pattern
    values: Vector
    cost: Vector
    lower: Vector
    upper: Vector
    row_lower: Vector
    row_upper: Vector


def lagrangian(program: Program, multipliers: Vector) -> float:
    """A lower bound of the program's minimum, for any multipliers [R] whatsoever.

    sum of multiplier * row end + minimum over the columns' box of (cost - A^T multipliers) . v, less a bound on all
    rounding. Negative infinity where it overflows.
    """
    with np.errstate(all="ignore"):
        value = _bound(program, multipliers, program.cost)
    return value if np.isfinite(value) else -np.inf


def refutes(program: Program, ray: Vector) -> bool:
    """Whether the multipliers `ray` [R], of either sign, prove that no v satisfies the constraints (Farkas): without an
    objective, a minimum above zero is a contradiction."""
    with np.errstate(all="ignore"):
        values = [_bound(program, y, np.zeros_like(program.cost)) for y in (ray, -ray)]
    return any(bool(np.isfinite(v) and v > 0.0) for v in values)


def _bound(program: Program, multipliers: Vector, cost: Vector) -> float:
    p = program
    ends = np.where(multipliers > 0, p.row_lower, p.row_upper)
    used = np.isfinite(multipliers) & np.isfinite(ends) & (multipliers != 0)
    y = np.where(used, multipliers, 0.0)
    fixed = y * np.where(used, ends, 0.0)
    reduced = cost - p.pattern.pull(y, p.values)
    size = np.abs(cost) + p.pattern.pull(np.abs(y), np.abs(p.values))
    # Each reduced cost is a sum of `deepest` products and the cost; products that underflow lose _TINY at most.
    error = 2 * (p.pattern.deepest + 4) * (_EPS * size + _TINY)
    reach = np.maximum(np.abs(p.lower), np.abs(p.upper))
    least = np.minimum(reduced * p.lower, reduced * p.upper)
    total = float(fixed.sum() + least.sum())
    magnitude = float(np.abs(fixed).sum() + (np.abs(reduced) * reach).sum())
    terms = 2 * (len(fixed) + len(least) + 8)
    lost = float((error * reach).sum()) * (1 + terms * _EPS) + terms * (_EPS * magnitude + _TINY)
    return (total - lost) - 4 * _EPS * (abs(total) + lost)
