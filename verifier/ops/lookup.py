"""Values that depend on a few whole numbers in any way at all: looked up in a table that is filled as it is needed.

Slices, scatters and shapes computed from an input that is cast to an integer are of this kind. In one cell of the
integers they are constant.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from verifier.graph import Builder, Elementwise, Interval, Parameter, Relaxation, Value
from verifier.graph.op import Shape
from verifier.ops.integers import Truncate
from verifier.ops.movement import broadcast, reshape, take

CELLS = 1 << 16
"""Combinations of integers that are looked at, at most; beyond that nothing is known."""
_MOST_KEY = 2.0**31
"""Keys are below this in size, so that they fit into integers of 32 bits and more."""
_NUMBERS = 1 << 26
"""Entries of one step's masks, about."""


@dataclass(eq=False)
class Table:
    """A function of `count` integers to tensors of `shape`, or None where it has no value, remembered.

    It never changes what it says, so operators that share it are still values.
    """

    function: Callable[[tuple[int, ...]], Tensor | None]
    count: int
    shape: Shape
    _known: dict[tuple[int, ...], int] = field(default_factory=dict, repr=False)
    _rows: list[Tensor] = field(default_factory=list, repr=False)
    _places: dict[bytes, int] = field(default_factory=dict, repr=False)

    def places(self, cells: Tensor) -> Tensor:
        """[N]: for integers [N, count] the number of their row; -1 where there is no value."""
        return torch.tensor([self._place(tuple(cell)) for cell in cells.tolist()], dtype=torch.int64)

    def _place(self, cell: tuple[int, ...]) -> int:
        if cell not in self._known:
            value = self.function(cell)
            self._known[cell] = -1 if value is None else self._stored(value.double())
        return self._known[cell]

    def _stored(self, row: Tensor) -> int:
        if tuple(row.shape) != self.shape:
            return -1
        key = row.contiguous().numpy().tobytes()
        if key not in self._places:
            self._places[key] = len(self._rows)
            self._rows.append(row)
        return self._places[key]

    def rows(self) -> Tensor:
        """All rows found so far [U, *shape], float64, and one more, NaN, which -1 stands for."""
        return torch.stack([*self._rows, torch.full(self.shape, math.nan, dtype=torch.float64)])


@dataclass(frozen=True, eq=False)
class Lookup(Elementwise):
    """The table's entry for what is left of `table.count` arguments when their fractions are cut off.

    The arguments have the result's shape and are the same in all elements. Nothing is known of other values than their
    ranges; transforms split the integers (`transforms.cells`).
    """

    table: Table
    jumps = True
    no_derivative = "it is constant but for jumps, where there is no derivative"

    def output_shape(self, *shapes: Shape) -> Shape:
        if len(shapes) != self.table.count or any(s != self.table.shape for s in shapes):
            raise ValueError(f"A table of {self.table.shape} with {self.table.count} keys got {shapes}.")
        return self.table.shape

    def forward(self, *xs: Tensor) -> Tensor:
        """NaN where there is no value."""
        cells = torch.stack([x.reshape(len(x), -1)[:, 0].trunc() for x in torch.broadcast_tensors(*xs)], 1)
        different, which = cells.unique(dim=0, return_inverse=True)
        known = different.isfinite().all(1) & (different.abs() < _MOST_KEY).all(1)
        places = self.table.places(torch.where(known.unsqueeze(1), different, 0.0).long().cpu())
        rows = self.table.rows()[torch.where(known.cpu(), places, -1)]
        return rows.to(xs[0])[which]

    def interval(self, *xs: Interval) -> Interval:
        """The hull of all entries whose integers lie in the intervals; everything if there are too many or if one has
        no value."""
        batch, like = max(len(x.lower) for x in xs), xs[0].lower
        low, high = (_cells([x[k] for x in xs], batch) for k in (0, 1))
        first, last = low.amin(0), high.amax(0)
        fits = (first > -_MOST_KEY).all() & (last < _MOST_KEY).all()
        if not bool(fits & ((last - first + 1).prod() <= CELLS)):
            return Interval.everything(batch, like.reshape(len(like), *xs[0].lower.shape[1:]))
        if bool((low == high).all()):
            different, which = low.unique(dim=0, return_inverse=True)
            places = self.table.places(different.long().cpu())  # which adds rows
            row = self.table.rows()[places]
            return _narrowed(Interval(row, row).sanitise(), like).index(which)
        axes = [torch.arange(int(a), int(b) + 1) for a, b in zip(first, last, strict=True)]
        grid = torch.cartesian_prod(*axes).view(-1, len(axes))
        used, place = self.table.places(grid).unique(return_inverse=True)
        rows = self.table.rows()[used]
        step = max(1, _NUMBERS // max(grid.numel(), rows.numel()))
        parts = [
            _hull(rows, place, grid, a, b)
            for a, b in zip(low.cpu().split(step), high.cpu().split(step), strict=True)
        ]
        return _narrowed(Interval.cat(parts).sanitise(), like)

    def parameters(self, *xs: Interval) -> dict[str, Parameter]:
        return {}

    def relax(self, parameters: Mapping[str, Tensor], *xs: Interval) -> Relaxation:
        low, high = self.interval(*xs)
        flat = (torch.zeros_like(low),) * len(xs)
        return Relaxation(flat, low, flat, high)

    def refinable(self, index: int, *xs: Interval) -> Tensor:
        """Splitting elements of the result would split one and the same argument again and again."""
        return torch.zeros_like(xs[index].lower, dtype=torch.bool)

    def restrict(self, index: Tensor, shape: Shape) -> Lookup:
        chosen, whole = index.cpu(), self.table

        def function(cell: tuple[int, ...]) -> Tensor | None:
            value = whole.function(cell)
            return (
                value.flatten()[chosen] if value is not None and tuple(value.shape) == whole.shape else None
            )

        return Lookup(Table(function, whole.count, (len(chosen),)))


def _cells(ends: Sequence[Tensor], batch: int) -> Tensor:
    """[B, count]: ends of intervals without their fractions."""
    return torch.stack([e.detach().reshape(len(e), -1)[:, 0].expand(batch).trunc() for e in ends], 1).double()


def _hull(rows: Tensor, place: Tensor, grid: Tensor, low: Tensor, high: Tensor) -> Interval:
    """The least and the greatest of the rows that boxes [B, count] of integers meet, where cell c has row place[c]."""
    inside = ((grid >= low.unsqueeze(1)) & (grid <= high.unsqueeze(1))).all(2).double()  # [B, cells]
    met = inside.new_zeros(len(inside), len(rows)).index_add_(1, place, inside) > 0
    met = met.view(*met.shape, *[1] * (rows.dim() - 1))
    lower = torch.where(met, rows, torch.inf).amin(1)  # NaN stays
    return Interval(lower, torch.where(met, rows, -torch.inf).amax(1))


def _narrowed(x: Interval, like: Tensor) -> Interval:
    return x.narrow(like.dtype).to(like.device)


def lookup(builder: Builder, table: Table, sources: Sequence[Value]) -> Value:
    """The table's entry for all elements of `sources`, in order."""
    keys = []
    for source in sources:
        op, arguments = builder.made_by(source)
        source = arguments[0] if isinstance(op, Truncate) and 2.0 ** (op.bits - 1) >= _MOST_KEY else source
        size = math.prod(builder.shape(source))
        flat = reshape(builder, source, (size,))
        for k in range(size):
            element = take(builder, flat, lambda t, k=k: t[k])
            keys.append(broadcast(builder, element, table.shape))
    return builder.add(Lookup(table), *keys)
