"""Coefficients that vanish outside a window of a map, a window that moves with the row: what convolutions make."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

from verifier.graph.coefficients import Coefficients, Dense, Rows, roundings, summed

WIDE = 0.5
"""From this part of a map on, a window costs more than the map does dense."""
SHIFTS = 64
"""Sums of windows that lie apart by more different distances than this are dense."""


class Grid(NamedTuple):
    """Where windows may lie: that of cell (i, j) has its top left corner at `start` + (i, j) * `step`.

    There are `counts` cells along the two dimensions; windows may stick out of the map.
    """

    counts: tuple[int, int]
    step: tuple[int, int]
    start: tuple[int, int]


@dataclass(frozen=True, eq=False)
class Patches(Coefficients):
    """Row r of subdomain b is `values[b, r]` [C, kh, kw], laid over the map where its cell's window lies.

    `cell` int64 [B or 1, R] are flat cells of `grid`, `map` is (C, H, W), `shape` the node's own shape, the same
    elements in the same order. Values that lie outside the map mean nothing and are ignored.
    """

    values: Tensor
    cell: Tensor
    grid: Grid
    map: tuple[int, int, int]
    shape: tuple[int, ...]

    @property
    def kernel(self) -> tuple[int, int]:
        return (self.values.shape[3], self.values.shape[4])

    @property
    def natural(self) -> bool:
        """Whether the node is an image [1, C, H, W] or [1, C, W], and `map` its own dimensions."""
        return image_of(self.shape) == self.map

    @property
    def wide(self) -> bool:
        """Whether the windows are so large that dense coefficients are the cheaper ones."""
        return wide(self.kernel, self.map)

    def narrowed(self) -> Coefficients:
        """Itself, or dense coefficients where those are cheaper."""
        return self if not self.wide else Dense(self.dense())

    def dense(self) -> Tensor:
        at, inside = self._flat_places()
        flat = self.values.flatten(3) * inside.to(self.values.dtype).unsqueeze(2)
        result = flat.new_zeros(*flat.shape[:3], self.map[1] * self.map[2])
        # Places outside carry zeros to the map's rim, hence the addition.
        result = result.scatter_add(3, at.unsqueeze(2).expand(flat.shape), flat)
        return result.view(*flat.shape[:2], *self.shape)

    def inside(self) -> Tensor:
        """`values`, with zeros outside the map."""
        _, inside = self._flat_places()
        mask = inside.to(self.values.dtype).unflatten(2, self.kernel)
        return self.values * mask.unsqueeze(2)

    def _flat_places(self) -> tuple[Tensor, Tensor]:
        """Flat places in the map under each row's window, int64 [B or 1, R, kh * kw], and whether they are in the
        map (those outside are moved to its rim)."""
        at = inside = None
        for d, index in enumerate((self.cell // self.grid.counts[1], self.cell % self.grid.counts[1])):
            first, size = index * self.grid.step[d] + self.grid.start[d], self.map[d + 1]
            along = first.unsqueeze(-1) + torch.arange(self.kernel[d], device=first.device)
            valid, along = (along >= 0) & (along < size), along.clamp(0, size - 1)
            at = along if at is None else (at.unsqueeze(-1) * size + along.unsqueeze(-2)).flatten(2)
            inside = valid if inside is None else (inside.unsqueeze(-1) & valid.unsqueeze(-2)).flatten(2)
        if at is None or inside is None:
            raise ValueError("A map has two dimensions.")
        return at, inside

    def pick(self, x: Tensor) -> Tensor:
        """The part of x that lies under each row's window: [B or 1, R, C * kh * kw], zeros outside the map.

        `x` is [B or 1, *shape] or, with groups of consecutive rows that have values of their own, [B or 1, G,
        *shape] with G dividing R.
        """
        groups = x.shape[1] if x.dim() > len(self.shape) + 1 else 1
        flat = x.reshape(x.shape[0], groups, *self.map)
        rows = self.cell.shape[1]
        if groups == rows and rows > 1:
            return self._pick_own(flat)
        batch = max(x.shape[0], self.cell.shape[0])
        lead = torch.arange(rows, device=x.device) // (rows // groups)
        if x.shape[0] > 1:
            lead = lead + torch.arange(batch, device=x.device).unsqueeze(1) * groups
        cells = self.grid.counts[0] * self.grid.counts[1]
        at = (lead * cells + self.cell).view(-1, rows)
        return _Pick.apply(flat.flatten(0, 1), at, self.grid, self.kernel)  # pyright: ignore[reportReturnType]

    def _pick_own(self, x: Tensor) -> Tensor:
        """`pick` where each row has values of its own: x is [B or 1, R, C, H, W]."""
        at, inside = self._flat_places()
        batch = max(x.shape[0], at.shape[0])
        shape = (batch, *x.shape[1:3], at.shape[2])
        picked = x.flatten(3).expand(batch, -1, -1, -1).gather(3, at.unsqueeze(2).expand(shape))
        return (picked * inside.to(x.dtype).unsqueeze(2)).flatten(2)

    def with_values(self, flat: Tensor) -> Patches:
        """The same windows with other values [B, R, C * kh * kw]."""
        return replace(self, values=flat.reshape(*flat.shape[:2], *self.values.shape[2:]))

    def multiply(self, factor: Tensor) -> Coefficients:
        return self.with_values(self.values.flatten(2) * self.pick(factor))

    def among(self, channels: Tensor, count: int) -> Patches:
        """The windows over a map of `count` channels of which this one has `channels` [C]."""
        if len(channels) == count and bool((channels[1:] > channels[:-1]).all()):
            return self
        values = self.values.new_zeros(*self.values.shape[:2], count, *self.kernel)
        values = values.index_copy(2, channels, self.values)
        return replace(self, values=values, map=(count, *self.map[1:]))

    def spread(
        self, map: tuple[int, int, int], step: tuple[int, int], start: tuple[int, int], shape: tuple[int, ...]
    ) -> Patches:
        """The windows over a larger `map` of which this one has the places `start` + `step` (i, j)."""
        size = [(k - 1) * s + 1 for k, s in zip(self.kernel, step, strict=True)]
        values = self.values.new_zeros(*self.values.shape[:3], *size)
        values[..., :: step[0], :: step[1]] = self.inside()
        grid = Grid(
            self.grid.counts,
            (self.grid.step[0] * step[0], self.grid.step[1] * step[1]),
            (self.grid.start[0] * step[0] + start[0], self.grid.start[1] * step[1] + start[1]),
        )
        return Patches(values, self.cell, grid, map, shape)

    def gathered(
        self,
        taps: Taps,
        map: tuple[int, int, int],
        shape: tuple[int, ...],
        contract: Callable[[Tensor], Tensor],
    ) -> Patches:
        """The windows over a smaller `map` whose places each spread to several of this one, as transposed convolutions
        and upsampling do. `contract` takes [N, C, *size] to [N, *, *counts], the sums over the taps of consecutive
        places, of which the first has its first tap at the first element."""
        corner, front, counts = [], [], []
        for d, first in enumerate(self.corners()):
            # The first place with a tap in the window or after its corner.
            reach = first + taps.before[d] - taps.extent[d] + taps.step[d]
            place = torch.div(reach, taps.step[d], rounding_mode="floor")
            corner.append(place)
            front.append(first + taps.before[d] - place * taps.step[d])
            # At least one, also where all windows lie between the taps.
            counts.append(max(int(front[d].amax() + self.kernel[d] - 1) // taps.step[d], 0) + 1)
        size = [(n - 1) * s + e for n, s, e in zip(counts, taps.step, taps.extent, strict=True)]
        values = _shifted(self.values, (front[0], front[1]), (size[0], size[1]))
        values = contract(values.flatten(0, 1)).unflatten(0, values.shape[:2])
        return _placed(values, (corner[0], corner[1]), map, shape)

    def corners(self) -> tuple[Tensor, Tensor]:
        """Where every row's window begins, int64 [B or 1, R] along both dimensions."""
        index = (self.cell // self.grid.counts[1], self.cell % self.grid.counts[1])
        down, across = (i * n + s for i, n, s in zip(index, self.grid.step, self.grid.start, strict=True))
        return down, across

    @property
    def roundings(self) -> int:
        return roundings(self.map[0] * self.kernel[0] * self.kernel[1])

    def contract(self, x: Tensor, absolute: bool = False) -> Tensor:
        values = self.values.flatten(2)
        return summed((values.abs() if absolute else values) * self.pick(x))

    def add(self, other: Coefficients) -> Coefficients:
        if isinstance(other, Rows):
            other = single(other, self.map)
        if not isinstance(other, Patches) or self.map != other.map:
            return super().add(other)
        if not self._aligned(other):
            return self._add_apart(other)
        first, second = self.grid.start, other.grid.start
        start = (min(first[0], second[0]), min(first[1], second[1]))
        ends = [max(first[d] + self.kernel[d], second[d] + other.kernel[d]) for d in (0, 1)]

        def padded(p: Patches) -> Tensor:
            pads = []
            for d in (1, 0):
                before = p.grid.start[d] - start[d]
                pads += [before, ends[d] - start[d] - before - p.kernel[d]]
            return functional.pad(p.inside(), pads)

        total = padded(self) + padded(other)
        return replace(self, values=total, grid=self.grid._replace(start=start)).narrowed()

    def _add_apart(self, other: Patches) -> Coefficients:
        """The sum in windows that hold both, where those are small and lie apart by few different distances."""
        pairs = list(zip(self.corners(), other.corners(), strict=True))
        corner = [torch.minimum(a, b) for a, b in pairs]
        fronts = [[p[k] - c for p, c in zip(pairs, corner, strict=True)] for k in (0, 1)]
        windows = (self, other)
        size = [
            max(int(f[d].amax()) + w.kernel[d] for f, w in zip(fronts, windows, strict=True)) for d in (0, 1)
        ]
        apart = len(torch.unique(fronts[0][0] * self.map[2] + fronts[0][1]))
        if apart > SHIFTS or wide((size[0], size[1]), self.map):
            return super().add(other)
        first, second = (
            _shifted(w.inside(), (f[0], f[1]), (size[0], size[1]))
            for f, w in zip(fronts, windows, strict=True)
        )
        return _placed(first + second, (corner[0], corner[1]), self.map, self.shape)

    def _aligned(self, other: Patches) -> bool:
        """Whether the windows of both differ by the same shift in every row."""
        same = self.map == other.map and self.grid[:2] == other.grid[:2]
        return same and (self.cell is other.cell or torch.equal(self.cell, other.cell))


class Taps(NamedTuple):
    """Place i of a small map spreads to `extent` places of a large one, the first of them i * `step` - `before`."""

    step: tuple[int, int]
    extent: tuple[int, int]
    before: tuple[int, int]


def _shifted(values: Tensor, front: tuple[Tensor, Tensor], size: tuple[int, int]) -> Tensor:
    """Windows [B, R, C, kh, kw] in larger ones of `size`, behind `front` [B or 1, R] zeros (cut where negative) along
    each dimension; rows that have as many are treated together."""
    kernel = (values.shape[3], values.shape[4])
    own = front[0].shape[0] > 1  # then rows of different instances differ
    batch = values.shape[0] if values.shape[0] > 1 else front[0].shape[0]
    flat = values.expand(batch, *values.shape[1:]).flatten(0, 1).unsqueeze(0) if own else values
    # What lies outside altogether has no numbers, however far outside.
    pairs = torch.stack([f.flatten().clamp(-k, n) for f, k, n in zip(front, kernel, size, strict=True)], 1)
    kinds, which = torch.unique(pairs, dim=0, return_inverse=True)
    parts, order = [], []
    for k, (down, across) in enumerate(kinds.tolist()):
        rows = (which == k).nonzero()[:, 0]
        part = flat if len(kinds) == 1 else flat.index_select(1, rows)
        pads = [across, size[1] - across - kernel[1], down, size[0] - down - kernel[0]]
        parts.append(functional.pad(part, pads))
        order.append(rows)
    result = parts[0] if len(parts) == 1 else torch.cat(parts, 1).index_select(1, torch.cat(order).argsort())
    return result.view(batch, -1, *result.shape[2:]) if own else result


def _placed(
    values: Tensor, corner: tuple[Tensor, Tensor], map: tuple[int, int, int], shape: tuple[int, ...]
) -> Patches:
    """Windows [B, R, C, kh, kw] that begin anywhere: at `corner` [B or 1, R]."""
    start = (int(corner[0].amin()), int(corner[1].amin()))
    counts = (int(corner[0].amax()) - start[0] + 1, int(corner[1].amax()) - start[1] + 1)
    cell = (corner[0] - start[0]) * counts[1] + corner[1] - start[1]
    return Patches(values, cell, Grid(counts, (1, 1), start), map, shape)


class _Pick(torch.autograd.Function):
    """(x [L, C, H, W], at int64 [B, R], grid, kernel) to [B, R, C * kh * kw]: the windows at places `at` of the L
    maps' grids, one after the other. torch's own gradient of `unfold` takes longer than all the rest."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, at: Tensor, grid: Grid, kernel: tuple[int, int]) -> Tensor:
        ctx.save_for_backward(at)
        ctx.saved = (x.shape, grid, kernel)
        padded = functional.pad(x, _pads(grid, kernel, (x.shape[2], x.shape[3])))
        table = padded.permute(0, 2, 3, 1).contiguous()  # channels last: long runs to copy
        for d in (0, 1):
            table = table.unfold(1 + d, kernel[d], grid.step[d])
        table = table.permute(0, 1, 2, 4, 5, 3)
        across, cells = grid.counts[1], grid.counts[0] * grid.counts[1]
        if x.shape[0] * cells > 2 * at.numel():  # then most of a table would be written for nothing
            picked = table[at // cells, at % cells // across, at % across]
        else:
            picked = table.reshape(x.shape[0] * cells, -1).index_select(0, at.flatten())
            picked = picked.view(*at.shape, *table.shape[3:])
        return picked.movedim(-1, 2).flatten(2)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        (at,) = ctx.saved_tensors
        (maps, _, height, width), grid, kernel = ctx.saved
        cells = grid.counts[0] * grid.counts[1]
        table = grad.new_zeros(maps * cells, grad.shape[2]).index_add_(0, at.flatten(), grad.flatten(0, 1))
        columns = table.view(maps, cells, -1).mT
        pads = _pads(grid, kernel, (height, width))
        size = (height + pads[2] + pads[3], width + pads[0] + pads[1])
        folded = functional.fold(columns, size, kernel, stride=grid.step)
        return functional.pad(folded, [-n for n in pads]), None, None, None


def _pads(grid: Grid, kernel: tuple[int, int], size: tuple[int, int]) -> list[int]:
    """What must be added around a map (negative: cut off) so that the grid's windows cover it exactly."""
    pads = []
    for d in (1, 0):
        reach = grid.start[d] + (grid.counts[d] - 1) * grid.step[d] + kernel[d]
        pads += [-grid.start[d], reach - size[d]]
    return pads


def image_of(shape: tuple[int, ...]) -> tuple[int, int, int] | None:
    """(C, H, W) of a node of shape [1, C, H, W] or [1, C, W]; None for others."""
    if len(shape) not in (3, 4) or shape[0] != 1:
        return None
    return (shape[1], shape[2] if len(shape) == 4 else 1, shape[-1])


def wide(kernel: tuple[int, int], map: tuple[int, int, int]) -> bool:
    """Whether windows of this size are so large that dense coefficients are the cheaper ones."""
    return kernel[0] * kernel[1] > WIDE * map[1] * map[2]


def single(rows: Rows, map: tuple[int, int, int]) -> Patches:
    """Rows of a node with the elements of `map`, as windows of one place."""
    channels, height, width = map
    cells = height * width
    batch, count = rows.index.shape
    scale = rows.scale.expand(max(batch, rows.scale.shape[0]), count)
    channel = (rows.index // cells).expand(scale.shape)
    values = scale.new_zeros(*scale.shape, channels).scatter(2, channel.unsqueeze(2), scale.unsqueeze(2))
    grid = Grid((height, width), (1, 1), (0, 0))
    return Patches(values.view(*scale.shape, channels, 1, 1), rows.index % cells, grid, map, rows.shape)
