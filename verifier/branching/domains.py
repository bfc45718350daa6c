"""Subdomains as a struct of arrays, and the store of those that are still open."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from verifier.bounds.ascent import Leaves
from verifier.graph import Interval


@dataclass(frozen=True, eq=False)
class Domains:
    """M subdomains: half-spaces on nodes, the input included.

    `lower`, `upper` float64 [M, n_in] are their input boxes, `case` int64 [M] the case each belongs to, `open`
    bool [M, D] the disjuncts of its clause that are not refuted yet, `bound` float64 [M] a proved lower bound of
    the score (negative infinity before the first). `splits` holds the constraints that splits put on inner nodes,
    [M, *shape] with infinite ends where there is none. `known` encloses inner nodes on the subdomain (a parent's
    bounds, true but perhaps loose), `warm` are the parent's optimised parameters [M, 1, R, *shape].
    """

    lower: Tensor
    upper: Tensor
    case: Tensor
    open: Tensor
    bound: Tensor
    known: Mapping[int, Interval] = field(default_factory=dict)
    splits: Mapping[int, Interval] = field(default_factory=dict)
    warm: Leaves = field(default_factory=dict)

    def __len__(self) -> int:
        return self.lower.shape[0]

    def map(self, f: Callable[[Tensor], Tensor]) -> Domains:
        """f applied to every tensor."""
        return Domains(
            f(self.lower),
            f(self.upper),
            f(self.case),
            f(self.open),
            f(self.bound),
            {i: b.map(f) for i, b in self.known.items()},
            {i: b.map(f) for i, b in self.splits.items()},
            {key: {n: f(t) for n, t in own.items()} for key, own in self.warm.items()},
        )

    def index(self, rows: Tensor | slice) -> Domains:
        """Some of the subdomains, in the order of `rows` (positions, a slice, or a mask)."""
        return self.map(lambda t: t[rows])

    def forget(self) -> Domains:
        """Without what can be recomputed: inner enclosures and parameters."""
        return replace(self, known={}, warm={})

    @property
    def bytes(self) -> int:
        ends = [t for part in (self.known, self.splits) for b in part.values() for t in b]
        leaves = [t for own in self.warm.values() for t in own.values()]
        tensors = [self.lower, self.upper, self.open, *ends, *leaves]
        return sum(t.numel() * t.element_size() for t in tensors)

    @staticmethod
    def cat(parts: Sequence[Domains]) -> Domains:
        """All parts one after another; enclosures and parameters are kept where every part has them."""
        if len(parts) == 1:
            return parts[0]
        names = ("lower", "upper", "case", "open", "bound")
        tensors = {name: torch.cat([getattr(p, name) for p in parts]) for name in names}
        shared = set.intersection(*[set(p.known) for p in parts])
        known = {i: Interval.cat([p.known[i] for p in parts]) for i in sorted(shared)}
        split = sorted(set.union(*[set(p.splits) for p in parts]))
        like = {i: next(p.splits[i].lower for p in parts if i in p.splits) for i in split}
        splits = {
            i: Interval.cat([p.splits.get(i) or Interval.everything(len(p), like[i]) for p in parts])
            for i in split
        }
        warm = _joined_leaves([p.warm for p in parts], [len(p) for p in parts])
        return Domains(**tensors, known=known, splits=splits, warm=warm)


def _joined_leaves(parts: Sequence[Leaves], sizes: Sequence[int]) -> Leaves:
    """Where a part has no parameter of its own it gets NaN, which means the usual start."""
    joined: Leaves = {}
    names = {(key, name): own[name] for p in parts for key, own in p.items() for name in own}
    for (key, name), like in names.items():
        tensors = [p.get(key, {}).get(name) for p in parts]
        if len({t.shape[1:] for t in tensors if t is not None}) == 1:
            filled = [
                like.new_full((size, *like.shape[1:]), torch.nan) if t is None else t
                for t, size in zip(tensors, sizes, strict=True)
            ]
            joined.setdefault(key, {})[name] = torch.cat(filled)
    return joined


@dataclass(frozen=True, eq=False)
class _Block:
    """`away` where the tensors are in host memory though the search's are not."""

    domains: Domains
    away: bool = False

    @property
    def lean(self) -> bool:
        return not (self.domains.known or self.domains.warm)


class Store:
    """Open subdomains, worst bound first.

    They are kept in blocks, so that pushing and taking copy no more than the subdomains concerned; blocks are
    ordered by their worst bound. Above `budget` bytes the blocks that are wanted last move to host memory; where
    that holds `host` bytes, the last of these leave behind what can be recomputed. Without `host` all stay where they
    are, and those wanted last leave it behind at once.
    """

    def __init__(self, budget: int = 2 << 30, host: int = 0) -> None:
        self._blocks: list[tuple[float, int, _Block]] = []
        self._counter = itertools.count()
        self._budget, self._host = budget, host
        self._limit, self._device = budget, torch.device("cpu")
        self._count = 0
        self.near = self.away = 0
        """Bytes where the search is, and in host memory."""

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
        self._device = domains.lower.device
        order = domains.bound.argsort(stable=True)
        cut = (len(order) + 1) // 2
        for rows in (order[:cut], order[cut:]):
            if len(rows):
                self._add(_Block(domains.index(rows)))
        if self.near > self._limit:
            self._spill()
            # What cannot be spilled is not looked at again for every block that comes.
            self._limit = max(self._budget, self.near + self._budget // 8)

    def take(self, count: int) -> Domains:
        """Remove and return up to `count` of the worst subdomains (at least one must be stored)."""
        parts: list[_Block] = []
        got = 0
        while self._blocks and got < count:
            _, _, block = heapq.heappop(self._blocks)
            self._account(block, -1)
            if got + len(block.domains) > count:
                self._add(replace(block, domains=block.domains.index(slice(count - got, None))))
                block = replace(block, domains=block.domains.index(slice(0, count - got)))
            parts.append(block)
            got += len(block.domains)
        found = [block.domains.map(lambda t: t.to(self._device)) for block in parts]
        return Domains.cat(found)

    def parts(self) -> Iterator[Domains]:
        """All that is stored, a block at a time, where the search is; without what can be recomputed."""
        for _, _, block in self._blocks:
            yield block.domains.forget().map(lambda t: t.to(self._device))

    def _add(self, block: _Block) -> None:
        heapq.heappush(self._blocks, (float(block.domains.bound.min()), next(self._counter), block))
        self._account(block, 1)

    def _account(self, block: _Block, sign: int) -> None:
        self._count += sign * len(block.domains)
        if block.away:
            self.away += sign * block.domains.bytes
        else:
            self.near += sign * block.domains.bytes

    def _spill(self) -> None:
        """Frees a quarter of the budget, or as much as there is, beginning with the best bounds."""
        order = sorted(range(len(self._blocks)), key=self._blocks.__getitem__, reverse=True)
        for k in order if self._host else ():
            if 4 * self.near > 3 * self._budget and not self._blocks[k][2].away:
                self._replace(k, lambda d: d.map(Tensor.cpu), away=True)
        for k in order:
            away, lean = self._blocks[k][2].away, self._blocks[k][2].lean
            full = self.away > self._host if away else 4 * self.near > 3 * self._budget
            if full and not lean:
                self._replace(k, Domains.forget, away)

    def _replace(self, k: int, f: Callable[[Domains], Domains], away: bool) -> None:
        """Bound and number of the block stay, and with them its place in the heap."""
        bound, number, block = self._blocks[k]
        self._account(block, -1)
        self._blocks[k] = (bound, number, _Block(f(block.domains), away))
        self._account(self._blocks[k][2], 1)
