"""Moving a point onto a float grid inside the exact input set, as far as that is possible."""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from verifier.attack.implicant import Bounds, InputPart
from verifier.specs.formula import Atom, Relation
from verifier.specs.ties import connected

_SWEEPS = 50


@dataclass(frozen=True, eq=False)
class Settled:
    """A point [size] on the grid. `tolerance` is 0.0 when it satisfies all bounds of single inputs, else how far
    some element lies outside an interval that holds no grid value (rounded up)."""

    vector: NDArray[np.float64]
    tolerance: float


class Settler:
    """Settles points of one `InputPart` on the grid of float32 or float64 values.

    `size` is the length of the query's flat vector; elements that the part does not mention are only rounded.
    """

    def __init__(self, part: InputPart, size: int, grid: np.dtype) -> None:
        self.part = part
        self.grid = grid
        self.labels = connected(size, part.ties)
        self.lower = np.full(size, -np.inf)
        self.upper = np.full(size, np.inf)
        for bounds in part.bounds:
            ends = _ends(bounds, grid)
            owner = self.labels[bounds.index]
            if bounds.upper:
                np.minimum.at(self.upper, owner, ends)
            else:
                np.maximum.at(self.lower, owner, ends)
        self.gaps = np.flatnonzero(self.lower > self.upper)
        self.empty = False
        self.tolerance = 0.0
        self._close_gaps()

    def settle(self, vector: NDArray[np.float64], mask: NDArray[np.bool_]) -> Settled | None:
        """The grid point nearest to `vector` [size] that satisfies the part; only elements in `mask` move.

        None where the part is empty, or where its inequalities between inputs could not be met on the grid.
        """
        if self.empty:
            return None
        with np.errstate(over="ignore"):
            moved = np.clip(vector, self.lower, self.upper)[self.labels]
            moved = self._project(moved)
            moved = np.clip(moved.astype(self.grid).astype(np.float64), self.lower, self.upper)
        moved = self._order(moved)
        moved = np.where(mask, moved[self.labels], vector)
        if not all(_holds(atom, moved) for atom in self.part.atoms) or not self._ordered(moved):
            return None
        return Settled(moved, self.tolerance)

    def _close_gaps(self) -> None:
        """Where no grid value lies inside an interval, both ends become the nearest one."""
        exact: dict[int, tuple[list[Fraction], list[Fraction], bool]] = {
            int(i): ([], [], False) for i in self.gaps
        }
        for bounds in self.part.bounds:
            owner = self.labels[bounds.index]
            for row in np.flatnonzero(np.isin(owner, self.gaps)):
                low, high, strict = exact[int(owner[row])]
                (high if bounds.upper else low).append(bounds.exact(int(row)))
                exact[int(owner[row])] = (low, high, strict or bool(bounds.strict[row]))
        for i, (lows, highs, strict) in exact.items():
            low, high = max(lows), min(highs)
            if low > high or (low == high and strict):
                self.empty = True
                return
            below, above = float(self.upper[i]), float(self.lower[i])
            distances = {
                v: low - Fraction(v) if v == below else Fraction(v) - high
                for v in (below, above)
                if math.isfinite(v)
            }
            nearest = min(distances, key=distances.__getitem__)
            self.lower[i] = self.upper[i] = nearest
            distance = float(distances[nearest])
            self.tolerance = max(self.tolerance, math.nextafter(distance, math.inf))

    def _project(self, x: NDArray[np.float64]) -> NDArray[np.float64]:
        """Move to the half-spaces of the linear atoms in turn, a little beyond, within the box."""
        linear = [
            (a, *_row(a)) for a in self.part.atoms if a.expr.degree == 1 and a.relation is not Relation.NE
        ]
        for _ in range(_SWEEPS if linear else 0):
            moved = False
            for atom, index, weights, offset in linear:
                gap = float(weights @ x[index]) + offset
                size = float(np.abs(weights * x[index]).sum()) + abs(offset)
                slack = 4 * float(np.finfo(self.grid).eps) * size
                if atom.relation is Relation.EQ:
                    slack = 0.0
                elif gap <= -slack / 2:
                    continue
                toward = -np.sign(gap + slack) * np.sign(weights)
                room = np.where(toward > 0, x[index] < self.upper[index], x[index] > self.lower[index])
                norm = float(np.square(weights[room]).sum())
                if norm > 0 and gap + slack != 0:
                    step = np.where(room, weights * (gap + slack) / norm, 0.0)
                    x[index] = np.clip(x[index] - step, self.lower[index], self.upper[index])
                    moved = True
            if not moved:
                break
        return x

    def _order(self, x: NDArray[np.float64]) -> NDArray[np.float64]:
        """Meet `small <= large` pairs by lowering the small one, or raising the large one where that has no room."""
        small, large = self.labels[self.part.small], self.labels[self.part.large]
        for _ in range(_SWEEPS if len(small) else 0):
            wrong = np.where(self.part.strict, x[small] >= x[large], x[small] > x[large])
            if not wrong.any():
                break
            a, b, strict = small[wrong], large[wrong], self.part.strict[wrong]
            down = np.where(strict, self._next(x[b], -np.inf), x[b])
            fits = down >= self.lower[a]
            up = np.where(strict, self._next(x[a], np.inf), x[a])
            np.minimum.at(x, a[fits], down[fits])
            np.maximum.at(x, b[~fits], up[~fits])
            x = np.clip(x, self.lower, self.upper)
        return x

    def _ordered(self, x: NDArray[np.float64]) -> bool:
        a, b = x[self.part.small], x[self.part.large]
        return bool(np.where(self.part.strict, a < b, a <= b).all())

    def _next(self, x: NDArray[np.float64], toward: float) -> NDArray[np.float64]:
        return np.nextafter(x.astype(self.grid), self.grid.type(toward)).astype(np.float64)


def _ends(bounds: Bounds, grid: np.dtype) -> NDArray[np.float64]:
    """For each bound the last grid value that satisfies it."""
    with np.errstate(over="ignore"):
        value = bounds.near.astype(grid)
    inward = grid.type(-np.inf if bounds.upper else np.inf)
    distinct, which = np.unique(bounds.code, return_inverse=True)
    first = np.zeros(len(distinct), dtype=np.int64)
    first[which] = np.arange(len(which))
    signs = [_sign(Fraction(float(bounds.near[i])) - bounds.exact(int(i))) for i in first]
    near_sign = np.array(signs, dtype=np.int64)[which.reshape(-1)]
    for _ in range(2):  # rounding to nearest is at most one value short; strict bounds may need one more
        exact = value.astype(np.float64)
        # a float other than the nearest one is on the same side of the number as of its nearest float
        side = np.where(exact == bounds.near, near_sign, np.sign(exact - bounds.near))
        side = -side if bounds.upper else side
        outside = np.where(bounds.strict, side <= 0, side < 0)
        value = np.where(outside, np.nextafter(value, inward), value).astype(grid)
    return value.astype(np.float64)


def _sign(value: Fraction) -> int:
    return (value > 0) - (value < 0)


def _row(atom: Atom) -> tuple[NDArray[np.int64], NDArray[np.float64], float]:
    linear = [(monomial[0], float(c)) for monomial, c in atom.expr.terms if monomial]
    index, weights = zip(*linear, strict=True)
    return np.array(index), np.array(weights), float(atom.expr.offset)


def _holds(atom: Atom, vector: NDArray[np.float64]) -> bool:
    """Exactly, with floats taken as the rationals that they are."""
    total = Fraction(0)
    for monomial, coefficient in atom.expr.terms:
        for index in monomial:
            coefficient *= Fraction(float(vector[index]))
        total += coefficient
    return {
        Relation.LE: total <= 0,
        Relation.LT: total < 0,
        Relation.EQ: total == 0,
        Relation.NE: total != 0,
    }[atom.relation]
