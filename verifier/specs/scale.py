"""The exact order of the numerals in a table, so that bounds can be compared as integers.

A numeral gets a rank: equal numbers have equal ranks and larger numbers larger ones, decided exactly. A lower
bound is the key ``2 * rank + strict``, an upper bound ``2 * rank - strict``: the tightest lower bound is the
largest key, the tightest upper bound the smallest, and a variable has no value iff its lower key exceeds its
upper key.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from verifier.specs.rationals import Pool, Rationals


@dataclass(frozen=True, eq=False)
class Scale:
    """``rank`` int64 [numerals]; per rank, the floats around it: ``down`` (not above), ``up`` (not below)."""

    rank: NDArray[np.int64]
    down: NDArray[np.float64]
    up: NDArray[np.float64]

    @classmethod
    def of(cls, numerals: tuple[str, ...]) -> Scale:
        values = Rationals.read(numerals, Pool())
        near, sign = values.nearest()
        order = np.lexsort((values.den, values.num, sign, near))
        near, sign, num, den = near[order], sign[order], values.num[order], values.den[order]
        equal = (num[1:] == num[:-1]) & (den[1:] == den[:-1])
        steps = np.concatenate(([0], ~equal)).astype(np.int64)[: len(order)]
        same = (near[1:] == near[:-1]) & (sign[1:] == sign[:-1])
        for first, last in _runs(same) if (same & ~equal).any() else ():
            # between the same two floats: only exact arithmetic tells them apart
            run = order[first:last]
            exact = dict(zip(run.tolist(), values[run].exact(), strict=True))
            block = sorted(exact, key=exact.__getitem__)
            order[first:last] = block
            steps[first + 1 : last] = [exact[a] != exact[b] for a, b in itertools.pairwise(block)]
        ranks = np.cumsum(steps)
        rank = np.empty(len(order), dtype=np.int64)
        rank[order] = ranks
        firsts = np.flatnonzero(np.concatenate(([1], steps[1:]))) if len(order) else order
        near, sign = near[firsts], sign[firsts]
        down = np.where(sign < 0, np.nextafter(near, -np.inf), near)
        return cls(rank, down, np.where(sign > 0, np.nextafter(near, np.inf), near))

    @property
    def no_upper(self) -> int:
        """The key of a missing upper bound; that of a missing lower bound is -1."""
        return 2 * len(self.down) + 1

    def lower(self, keys: NDArray[np.int64]) -> NDArray[np.float64]:
        """The boxes' lower ends, rounded down; -inf where there is no bound."""
        return np.append(self.down, -np.inf)[keys >> 1]

    def upper(self, keys: NDArray[np.int64]) -> NDArray[np.float64]:
        """The boxes' upper ends, rounded up; inf where there is no bound."""
        return np.append(self.up, np.inf)[np.minimum((keys + 1) >> 1, len(self.up))]


def _runs(same: NDArray[np.bool_]) -> list[tuple[int, int]]:
    """Maximal runs of equal neighbours, as half-open ranges of elements."""
    edges = np.flatnonzero(np.diff(np.concatenate(([0], same.astype(np.int8), [0]))))
    return [(int(a), int(b) + 1) for a, b in edges.reshape(-1, 2)]
