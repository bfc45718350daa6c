"""Subdomains as a struct of arrays, and the store of those that are still open."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from verifier.graph import Interval


@dataclass(frozen=True, eq=False)
class Domains:
    """M subdomains.

    `lower`, `upper` float64 [M, n_in] are their input boxes, `case` int64 [M] the case each belongs to, `open`
    bool [M, D] the disjuncts of its clause that are not refuted yet, `bound` float64 [M] a proved lower bound of
    the score (negative infinity before the first). `known` encloses inner nodes on the subdomain (a parent's
    bounds, true but perhaps loose).
    """

    lower: Tensor
    upper: Tensor
    case: Tensor
    open: Tensor
    bound: Tensor
    known: Mapping[int, Interval] = field(default_factory=dict)

    def __len__(self) -> int:
        return self.lower.shape[0]

    def index(self, rows: Tensor | slice) -> Domains:
        """Some of the subdomains, in the order of `rows` (positions, a slice, or a mask)."""
        known = {i: Interval(b.lower[rows], b.upper[rows]) for i, b in self.known.items()}
        return Domains(
            self.lower[rows], self.upper[rows], self.case[rows], self.open[rows], self.bound[rows], known
        )

    def forget(self) -> Domains:
        """Without inner enclosures, which can be recomputed."""
        return replace(self, known={})

    @property
    def bytes(self) -> int:
        tensors = [self.lower, self.upper, self.open, *[t for b in self.known.values() for t in b]]
        return sum(t.numel() * t.element_size() for t in tensors)

    @staticmethod
    def cat(parts: Sequence[Domains]) -> Domains:
        """All parts one after another; inner enclosures are kept where every part has them."""
        if len(parts) == 1:
            return parts[0]
        keys = set(parts[0].known).intersection(*[set(p.known) for p in parts[1:]])
        known = {
            i: Interval(
                torch.cat([p.known[i].lower for p in parts]), torch.cat([p.known[i].upper for p in parts])
            )
            for i in sorted(keys)
        }
        return Domains(
            torch.cat([p.lower for p in parts]),
            torch.cat([p.upper for p in parts]),
            torch.cat([p.case for p in parts]),
            torch.cat([p.open for p in parts]),
            torch.cat([p.bound for p in parts]),
            known,
        )


class Store:
    """Open subdomains, worst bound first.

    They are kept in blocks, so that pushing and taking copy no more than the subdomains concerned; blocks are
    ordered by their worst bound. Above `budget` bytes new blocks leave their inner enclosures behind.
    """

    def __init__(self, budget: int = 2 << 30) -> None:
        self._blocks: list[tuple[float, int, Domains]] = []
        self._counter = itertools.count()
        self._budget = budget
        self._bytes = 0
        self._count = 0

    def __len__(self) -> int:
        return self._count

    @property
    def worst(self) -> float:
        """The least bound of an open subdomain; infinite when there is none."""
        return self._blocks[0][0] if self._blocks else torch.inf

    def push(self, domains: Domains) -> None:
        """Add subdomains; they are sorted by bound and stored in two halves."""
        if not len(domains):
            return
        if self._bytes + domains.bytes > self._budget:
            domains = domains.forget()
        order = domains.bound.argsort(stable=True)
        cut = (len(order) + 1) // 2
        for rows in (order[:cut], order[cut:]):
            if len(rows):
                self._add(domains.index(rows))

    def take(self, count: int) -> Domains:
        """Remove and return up to `count` of the worst subdomains (at least one must be stored)."""
        parts: list[Domains] = []
        got = 0
        while self._blocks and got < count:
            _, _, block = heapq.heappop(self._blocks)
            self._count -= len(block)
            self._bytes -= block.bytes
            if got + len(block) > count:
                self._add(block.index(slice(count - got, None)))
                block = block.index(slice(0, count - got))
            parts.append(block)
            got += len(block)
        return Domains.cat(parts)

    def _add(self, block: Domains) -> None:
        heapq.heappush(self._blocks, (float(block.bound.min()), next(self._counter), block))
        self._count += len(block)
        self._bytes += block.bytes
