"""Operators that only move elements: Reshape, Permute, Take (any gather), Concat, Pad."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from verifier.graph import Affine, Builder, Value
from verifier.graph.coefficients import Coefficients, Dense, Diagonal, Factored, Rows, Scattered
from verifier.graph.op import Shape
from verifier.graph.patches import Patches, Taps, image_of


@dataclass(frozen=True, eq=False)
class Reshape(Affine):
    """The same elements in row-major order under another shape (without -1 or 0 entries)."""

    shape: Shape
    exact = True
    elementwise = True

    def output_shape(self, *shapes: Shape) -> Shape:
        if math.prod(self.shape) != math.prod(shapes[0]):
            raise ValueError(f"A value of shape {shapes[0]} cannot be reshaped to {self.shape}.")
        return self.shape

    def forward(self, *xs: Tensor) -> Tensor:
        return xs[0].reshape(xs[0].shape[0], *self.shape)

    def transpose(self, coefficients: Tensor, index: int, *shapes: Shape) -> Tensor:
        return coefficients.reshape(*coefficients.shape[:2], *shapes[0])

    def vjp(
        self, builder: Builder, inputs: Sequence[Value], output: Value, cotangent: Value
    ) -> Sequence[Value | None]:
        return [reshape(builder, cotangent, builder.shape(inputs[0]))]

    def backward(self, coefficients: Coefficients, index: int, *shapes: Shape) -> Coefficients:
        if isinstance(coefficients, Rows):
            return Rows(coefficients.index, coefficients.scale, shapes[0])
        if isinstance(coefficients, Scattered):
            return replace(coefficients, shape=shapes[0])
        if isinstance(coefficients, Diagonal):
            return Diagonal(coefficients.values.reshape(-1, *shapes[0]))
        if isinstance(coefficients, Patches):
            return replace(coefficients, shape=shapes[0])
        return super().backward(coefficients, index, *shapes)


@dataclass(frozen=True, eq=False)
class Permute(Affine):
    """Dimensions in another order, `axes` as in numpy.transpose (without the batch dimension)."""

    axes: tuple[int, ...]
    exact = True
    elementwise = True

    def output_shape(self, *shapes: Shape) -> Shape:
        if sorted(self.axes) != list(range(len(shapes[0]))):
            raise ValueError(f"Axes {self.axes} do not permute a value of shape {shapes[0]}.")
        return tuple(shapes[0][a] for a in self.axes)

    def forward(self, *xs: Tensor) -> Tensor:
        return xs[0].permute(0, *[a + 1 for a in self.axes])

    def transpose(self, coefficients: Tensor, index: int, *shapes: Shape) -> Tensor:
        inverse = sorted(range(len(self.axes)), key=self.axes.__getitem__)
        return coefficients.permute(0, 1, *[a + 2 for a in inverse])

    def vjp(
        self, builder: Builder, inputs: Sequence[Value], output: Value, cotangent: Value
    ) -> Sequence[Value | None]:
        return [permute(builder, cotangent, sorted(range(len(self.axes)), key=self.axes.__getitem__))]

    def backward(self, coefficients: Coefficients, index: int, *shapes: Shape) -> Coefficients:
        if isinstance(coefficients, Rows | Scattered):
            places = torch.arange(math.prod(shapes[0]), device=coefficients.index.device).view(shapes[0])
            places = places.permute(self.axes).flatten()
            return replace(coefficients, index=places[coefficients.index], shape=shapes[0])
        return super().backward(coefficients, index, *shapes)


@dataclass(frozen=True, eq=False)
class Take(Affine):
    """Element j of the result (row-major, of `shape`) is element `index[j]` of x; any gather, slice or tiling.

    `index` is int64 [prod(shape)] with values in [0, numel of x).
    """

    index: Tensor
    shape: Shape
    exact = True

    def output_shape(self, *shapes: Shape) -> Shape:
        return self.shape

    @cached_property
    def _copies(self) -> int:
        return int(torch.bincount(self.index).amax()) if len(self.index) else 0

    def fan_out(self, *shapes: Shape) -> int:
        return self._copies

    def forward(self, *xs: Tensor) -> Tensor:
        flat = xs[0].reshape(xs[0].shape[0], -1)
        return flat.index_select(1, self.index).view(xs[0].shape[0], *self.shape)

    @cached_property
    def _repeats(self) -> tuple[int, ...]:
        """The dimensions of the result along which all elements are the same."""
        places = self.index.view(self.shape)
        wide = [k for k, n in enumerate(self.shape) if n > 1]
        return tuple(k for k in wide if bool((places == places.narrow(k, 0, 1)).all()))

    @cached_property
    def _first(self) -> Tensor:
        """The index without repetitions."""
        places = self.index.view(self.shape)
        for k in self._repeats:
            places = places.narrow(k, 0, 1)
        return places.flatten()

    @cached_property
    def _inverse(self) -> Tensor | None:
        """Where each element of x goes, if `_first` takes all of them once."""
        order = self._first.argsort()
        every = torch.arange(len(order), device=order.device)
        return order if torch.equal(self._first[order], every) else None

    def transpose(self, coefficients: Tensor, index: int, *shapes: Shape) -> Tensor:
        repeats = [k + 2 for k in self._repeats]
        return self._scattered(coefficients.sum(repeats) if repeats else coefficients, shapes[0])

    def _scattered(self, coefficients: Tensor, shape: Shape) -> Tensor:
        """What is summed over the repetitions already, to where it comes from."""
        flat = coefficients.reshape(*coefficients.shape[:2], -1)
        size = math.prod(shape)
        if self._inverse is not None and len(self._inverse) == size:
            return flat.index_select(2, self._inverse).view(*flat.shape[:2], *shape)
        result = flat.new_zeros(*flat.shape[:2], size)
        return result.index_add(2, self._first, flat).view(*flat.shape[:2], *shape)

    def backward(self, coefficients: Coefficients, index: int, *shapes: Shape) -> Coefficients:
        if isinstance(coefficients, Rows):
            return Rows(self.index[coefficients.index], coefficients.scale, shapes[0])
        if isinstance(coefficients, Scattered):
            return coefficients.moved(self.index, shapes[0])
        if isinstance(coefficients, Diagonal):
            scale = coefficients.values.reshape(coefficients.values.shape[0], -1)
            return Rows(self.index.expand(scale.shape[0], -1), scale, shapes[0])
        if isinstance(coefficients, Factored) and self._repeats:
            return Dense(self._scattered(coefficients.summed(self._repeats), shapes[0]))
        if isinstance(coefficients, Patches) and coefficients.natural:
            lattice = _lattice(self.index, coefficients.map, shapes[0])
            if lattice is not None:
                channels, image, step, start = lattice
                whole = coefficients.among(channels, image[0])
                return whole.spread(image, step, start, shapes[0]).narrowed()
            factor = _upsampling(self.index, coefficients.map, shapes[0])
            if factor is not None:
                taps, image = Taps(factor, factor, (0, 0)), image_of(shapes[0]) or coefficients.map
                small = coefficients.gathered(taps, image, shapes[0], lambda t: sum_pool(t, factor))
                return small.narrowed()
        return super().backward(coefficients, index, *shapes)


def sum_pool(x: Tensor, factor: tuple[int, int]) -> Tensor:
    """The sums over blocks of `factor` elements of x [N, C, H, W]."""
    return torch.nn.functional.avg_pool2d(x, factor, divisor_override=1)


def _upsampling(index: Tensor, map: tuple[int, int, int], shape: Shape) -> tuple[int, int] | None:
    """By which factors `map` (C, H, W) is an image of `shape` with every element repeated, as nearest upsampling does;
    None where it is not."""
    image = image_of(shape)
    if image is None or image[0] != map[0] or map[1] % image[1] or map[2] % image[2]:
        return None
    factor = (map[1] // image[1], map[2] // image[2])
    places = torch.arange(math.prod(image), device=index.device).view(image)
    wanted = places.repeat_interleave(factor[0], 1).repeat_interleave(factor[1], 2)
    return factor if torch.equal(index, wanted.flatten()) else None


def _lattice(
    index: Tensor, map: tuple[int, int, int], shape: Shape
) -> tuple[Tensor, tuple[int, int, int], tuple[int, int], tuple[int, int]] | None:
    """(channels, size of the larger map, step, start) where `index` takes the elements of `map` (C, h, w) from places
    start + step (i, j) of some channels of an image of `shape`, each at most once, as pooling and slices do; None where
    it takes others."""
    image = image_of(shape)
    if image is None:
        return None
    _, height, width = image
    places = index.view(map)
    channels = places[:, 0, 0] // (height * width)
    first = int(places[0, 0, 0]) % (height * width)
    start = (first // width, first % width)
    down = (int(places[0, 1, 0]) - int(places[0, 0, 0])) // width if map[1] > 1 else 1
    right = int(places[0, 0, 1]) - int(places[0, 0, 0]) if map[2] > 1 else 1
    if down < 1 or right < 1 or len(channels.unique()) < len(channels):
        return None
    rows, columns = (
        torch.arange(n, device=index.device) * step + first
        for n, step, first in zip(map[1:], (down, right), start, strict=True)
    )
    wanted = rows.unsqueeze(1) * width + columns
    wanted = channels.view(-1, 1, 1) * (height * width) + wanted
    if int(rows[-1]) >= height or int(columns[-1]) >= width or not torch.equal(places, wanted):
        return None
    return channels, image, (down, right), start


@dataclass(frozen=True, eq=False)
class Concat(Affine):
    """Arguments joined along `axis` (non-negative)."""

    axis: int
    exact = True

    def output_shape(self, *shapes: Shape) -> Shape:
        first = shapes[0]
        for s in shapes[1:]:
            if len(s) != len(first) or any(s[i] != n for i, n in enumerate(first) if i != self.axis):
                raise ValueError(f"Values of shapes {shapes} do not join along axis {self.axis}.")
        return (*first[: self.axis], sum(s[self.axis] for s in shapes), *first[self.axis + 1 :])

    def forward(self, *xs: Tensor) -> Tensor:
        batch = max(x.shape[0] for x in xs)
        return torch.cat([x.expand(batch, *x.shape[1:]) for x in xs], dim=self.axis + 1)

    def fan_out(self, *shapes: Shape) -> int:
        return 1

    def transpose(self, coefficients: Tensor, index: int, *shapes: Shape) -> Tensor:
        start = sum(s[self.axis] for s in shapes[:index])
        return coefficients.narrow(self.axis + 2, start, shapes[index][self.axis])

    def backward(self, coefficients: Coefficients, index: int, *shapes: Shape) -> Coefficients:
        if isinstance(coefficients, Patches) and coefficients.natural and self.axis == 1:
            start, own = sum(s[1] for s in shapes[:index]), shapes[index]
            values = coefficients.values.narrow(2, start, own[1])
            return replace(coefficients, values=values, map=(own[1], *coefficients.map[1:]), shape=own)
        return super().backward(coefficients, index, *shapes)

    def vjp(
        self, builder: Builder, inputs: Sequence[Value], output: Value, cotangent: Value
    ) -> Sequence[Value | None]:
        sizes = [builder.shape(x)[self.axis] for x in inputs]
        return [
            take(builder, cotangent, lambda t, k=k: t.split(sizes, dim=self.axis)[k])
            for k in range(len(inputs))
        ]


@dataclass(frozen=True, eq=False)
class Pad(Affine):
    """`before[d]` and `after[d]` zeros around each dimension d; a negative count removes elements."""

    before: tuple[int, ...]
    after: tuple[int, ...]
    exact = True

    def output_shape(self, *shapes: Shape) -> Shape:
        shape = tuple(n + b + a for n, b, a in zip(shapes[0], self.before, self.after, strict=True))
        if min(shape, default=0) < 0:
            raise ValueError(
                f"Padding a value of shape {shapes[0]} by {self.before} and {self.after} leaves nothing."
            )
        return shape

    def forward(self, *xs: Tensor) -> Tensor:
        pads = [n for b, a in zip(reversed(self.before), reversed(self.after), strict=True) for n in (b, a)]
        return torch.nn.functional.pad(xs[0], pads)

    def fan_out(self, *shapes: Shape) -> int:
        return 1

    def backward(self, coefficients: Coefficients, index: int, *shapes: Shape) -> Coefficients:
        """Windows over an image that is padded are windows over the image."""
        if (
            isinstance(coefficients, Patches)
            and coefficients.natural
            and not any(self.before[:2] + self.after[:2])
        ):
            grid, image = coefficients.grid, image_of(shapes[0])
            before = self.before[2:] if len(shapes[0]) == 4 else (0, *self.before[2:])
            if image is not None:
                start = (grid.start[0] - before[0], grid.start[1] - before[1])
                whole = replace(
                    coefficients,
                    values=coefficients.inside(),
                    grid=grid._replace(start=start),
                    map=image,
                    shape=shapes[0],
                )
                return whole.narrowed()
        return super().backward(coefficients, index, *shapes)

    def transpose(self, coefficients: Tensor, index: int, *shapes: Shape) -> Tensor:
        pads = [-n for b, a in zip(reversed(self.before), reversed(self.after), strict=True) for n in (b, a)]
        return torch.nn.functional.pad(coefficients, pads)

    def vjp(
        self, builder: Builder, inputs: Sequence[Value], output: Value, cotangent: Value
    ) -> Sequence[Value | None]:
        return [builder.add(Pad(tuple(-b for b in self.before), tuple(-a for a in self.after)), cotangent)]


def reshape(builder: Builder, x: Value, shape: Sequence[int]) -> Value:
    """`x` under `shape`, which may hold one -1; nothing is added where the shape is already right."""
    current = builder.shape(x)
    shape = list(shape)
    if -1 in shape:
        rest = math.prod(n for n in shape if n != -1)
        shape[shape.index(-1)] = math.prod(current) // max(rest, 1)
    return x if tuple(shape) == current else builder.add(Reshape(tuple(shape)), x)


def permute(builder: Builder, x: Value, axes: Iterable[int]) -> Value:
    axes = tuple(a % len(builder.shape(x)) for a in axes)
    return x if axes == tuple(range(len(axes))) else builder.add(Permute(axes), x)


def take(builder: Builder, x: Value, select: Callable[[Tensor], Tensor]) -> Value:
    """`x` rearranged the way `select` (a function of tensors such as `lambda t: t[::2]`) rearranges elements."""
    shape = builder.shape(x)
    positions = torch.arange(math.prod(shape)).view(shape)
    chosen = select(positions)
    if chosen.shape == positions.shape and bool((chosen == positions).all()):
        return x
    return builder.add(Take(chosen.flatten(), tuple(chosen.shape)), x)


def broadcast(builder: Builder, x: Value, shape: Shape) -> Value:
    """`x` expanded to `shape` by numpy's rules."""
    return x if builder.shape(x) == tuple(shape) else take(builder, x, lambda t: t.expand(shape))


def joint_shape(*shapes: Sequence[int]) -> Shape:
    """The shape that numpy's rules broadcast all of `shapes` to (torch's function for it imports sympy)."""
    try:
        return tuple(np.broadcast_shapes(*[tuple(s) for s in shapes]))
    except ValueError:
        raise ValueError(f"Shapes {', '.join(str(tuple(s)) for s in shapes)} do not broadcast.") from None
