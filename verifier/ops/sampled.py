"""Univariate functions bounded from samples of the interval and a bound on how they bend between them."""

from __future__ import annotations

import dataclasses
import math
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from verifier.graph import Builder, Curve, Graph, Interval, Value
from verifier.graph.composite import intervals
from verifier.graph.curve import known, spaced
from verifier.graph.op import Shape, some
from verifier.ops.movement import joint_shape
from verifier.ops.product import multiply

CELLS = 40
"""Parts of an interval between samples."""


class Sampled(Curve):
    """A function of which values can be enclosed at points, and its second derivative on intervals.

    On a cell of width h on which sign * f'' >= -k, the function lies below the parabola through both ends with second
    derivative -k; and below its range over the cell.
    """

    @abstractmethod
    def value(self, x: Tensor) -> Interval:
        """An enclosure of the exact value at points."""

    @abstractmethod
    def bend(self, x: Interval) -> Interval:
        """An enclosure of the second derivative on intervals, infinite where nothing is known."""

    def reach(self, x: Interval) -> Interval:
        """An enclosure of the function on intervals; infinite where nothing is known."""
        far = torch.full_like(x.lower, torch.inf)
        return Interval(-far, far)

    @cached_property
    def _recent(self) -> list[_Cells]:
        """The cells of the last interval: they do not depend on slopes, and lines of several slopes are asked for."""
        return []

    def _cells(self, x: Interval) -> _Cells:
        low, high = (end.detach() for end in x)
        if self._recent and self._recent[0].of(low, high):
            return self._recent[0]
        points = spaced(Interval(low, high), CELLS + 1).cummax(0).values  # rounding may swap neighbours
        cells = Interval(points[:-1], points[1:])
        bend, whole = self.bend(cells).sanitise(), self.reach(cells).sanitise()
        found = _Cells((low.clone(), high.clone()), points, self.value(points).sanitise(), bend, whole)
        self._recent[:] = [found]
        return found

    def extreme(self, slope: Tensor, x: Interval, sign: int) -> tuple[Tensor, Tensor]:
        ahead = (None,) * (slope.dim() - x.lower.dim())  # of several slopes
        found = self._cells(x.map(lambda end: end[ahead]))
        info, points = torch.finfo(x.lower.dtype), found.points
        values = sign * (found.inside.upper if sign > 0 else found.inside.lower)
        curve = torch.maximum(
            -found.bend.lower if sign > 0 else found.bend.upper, torch.zeros_like(values[1:])
        )
        drop = (1 + 1e-5) * curve * (points[1:] - points[:-1]).square()  # k h^2
        drop = torch.nan_to_num(
            drop, nan=torch.inf, posinf=torch.inf
        )  # an overflow is not the largest number
        most = found.whole.upper if sign > 0 else -found.whole.lower
        line = sign * slope * points
        ends = values - line + 4 * info.eps * (values.abs() + line.abs()) + info.tiny * (8 + slope.abs())
        left, right = ends[:-1], ends[1:]
        high = _parabola(left, right, drop)
        tilt = torch.maximum(-line[:-1], -line[1:])
        flat = most + tilt + 4 * info.eps * (most.abs() + tilt.abs())
        high = known(torch.where(flat < known(high), flat, high))
        best, cell = high.max(0, keepdim=True)
        nearer = torch.where(right > left, points[1:], points[:-1])
        return best.squeeze(0), nearer.expand_as(high).gather(0, cell).squeeze(0)

    def slopes(self, x: Interval) -> Interval:
        steep = self.derivative(spaced(x, CELLS + 1))
        return Interval(steep.amin(0), steep.amax(0))


class _Cells(NamedTuple):
    """Samples [CELLS + 1, ...] of intervals with the ends given, enclosures of the values there, and [CELLS, ...] of
    the second derivative and of the function in between."""

    ends: tuple[Tensor, Tensor]
    points: Tensor
    inside: Interval
    bend: Interval
    whole: Interval

    def of(self, *ends: Tensor) -> bool:
        """Whether these are the cells of intervals with these ends."""
        alike = all(
            a.dtype == b.dtype and a.device == b.device and a.shape == b.shape
            for a, b in zip(self.ends, ends, strict=True)
        )
        return alike and all(torch.equal(a, b) for a, b in zip(self.ends, ends, strict=True))


def _parabola(left: Tensor, right: Tensor, drop: Tensor) -> Tensor:
    """At least the highest point of the parabola through `left` and `right` that bends down by `drop` (k h^2)."""
    rise = (right - left).abs()
    inner = 2 * rise < drop
    tame = torch.where(inner, drop, torch.ones_like(drop))
    high = (left + right) / 2 + drop / 8 + rise * (rise / (2 * tame))  # a square would underflow
    high = high + 2 * torch.finfo(high.dtype).eps * (left.abs() + right.abs() + drop)  # terms may cancel
    return torch.where(inner, torch.maximum(high, torch.maximum(left, right)), torch.maximum(left, right))


@dataclass(frozen=True, eq=False)
class TrigPolynomial(Sampled):
    """The sum over k of cosines[k] cos(frequencies[k] x) + sines[k] sin(frequencies[k] x).

    `frequencies` [K]; `cosines` and `sines` [K, ...], each of which broadcasts to the argument.
    """

    frequencies: Tensor
    cosines: Tensor
    sines: Tensor
    units = 16
    limits = (0.0, 0.0)

    def output_shape(self, *shapes: Shape) -> Shape:
        for t in (self.cosines, self.sines):
            if joint_shape(tuple(t.shape[1:]), shapes[0]) != shapes[0] or len(t) != len(self.frequencies):
                raise ValueError(f"Coefficients {tuple(t.shape)} do not fit values {shapes[0]}.")
        return shapes[0]

    def restrict(self, index: Tensor, shape: Shape) -> TrigPolynomial:
        cosines, sines = (some(t, 1, index, shape) for t in (self.cosines, self.sines))
        return dataclasses.replace(self, cosines=cosines, sines=sines)

    def _of(self, x: Tensor, order: int) -> Tensor:
        total = torch.zeros_like(x)
        for w, a, b in zip(self.frequencies, self.cosines, self.sines, strict=True):
            for _ in range(order):
                a, b = w * b, -w * a
            total = total + a * (w * x).cos() + b * (w * x).sin()
        return total

    def _amplitude(self, order: int) -> Tensor:
        """The sum of the sizes of all waves of a derivative, rounded up: broadcasts to the argument."""
        total = torch.zeros_like(self.cosines[0])
        for w, a, b in zip(self.frequencies, self.cosines, self.sines, strict=True):
            total = total + w.abs() ** order * torch.hypot(a, b)
        return (1 + 64 * torch.finfo(total.dtype).eps) * total

    def _doubt(self, x: Tensor, order: int) -> Tensor:
        """What a computed derivative may be off by; w x is rounded before it is wound."""
        eps = torch.finfo(x.dtype).eps
        steep = self._amplitude(order + 1) * x.abs()
        return self.units * eps * self._amplitude(order) + 2 * eps * steep + 8 * torch.finfo(x.dtype).tiny

    def forward(self, *xs: Tensor) -> Tensor:
        return self._of(xs[0], 0)

    def derivative(self, x: Tensor) -> Tensor:
        return self._of(x, 1)

    def value(self, x: Tensor) -> Interval:
        y, doubt = self._of(x, 0), self._doubt(x, 0)
        return Interval(y - doubt, y + doubt)

    def bend(self, x: Interval) -> Interval:
        """From the middle of the cell, with the third derivative."""
        middle = x.center
        radius = torch.maximum(x.upper - middle, middle - x.lower) * self._amplitude(3) + self._doubt(
            middle, 2
        )
        y, most = self._of(middle, 2), self._amplitude(2)
        return Interval(torch.maximum(y - radius, -most), torch.minimum(y + radius, most))

    def reach(self, x: Interval) -> Interval:
        most = self._amplitude(0) + 0 * x.lower
        return Interval(-most, most)

    def _at_infinity(self, bound: Tensor, slope: Tensor, x: Interval, sign: int) -> Tensor:
        """Only the amplitude is known of endless intervals."""
        most = torch.finfo(bound.dtype).max / 8
        far = torch.where(slope == 0, self._amplitude(0), torch.full_like(bound, torch.inf))
        return torch.where(x.magnitude > most, far, bound)

    def vjp(
        self, builder: Builder, inputs: Sequence[Value], output: Value, cotangent: Value
    ) -> Sequence[Value | None]:
        view = (-1, *[1] * (self.cosines.dim() - 1))
        w = self.frequencies.view(view)
        steep = TrigPolynomial(self.frequencies, w * self.sines, -w * self.cosines)
        return [multiply(builder, cotangent, builder.add(steep, inputs[0]))]


@dataclass(frozen=True, eq=False)
class Fused(Sampled):
    """A chain of operators on one scalar per element, bounded as one function.

    `bodies` are graphs of one input and one output without dimensions: the function, its derivative, its second one,
    and its third one where that is known.
    """

    bodies: tuple[Graph, ...]
    no_derivative = "chains are fused after differentiation"

    def tensors(self) -> Iterator[Tensor]:
        for body in self.bodies:
            for node in body.nodes:
                yield from node.op.tensors()

    def to(self, dtype: torch.dtype | None = None, device: torch.device | str | None = None) -> Fused:
        return Fused(tuple(body.to(dtype, device) for body in self.bodies))

    def restrict(self, index: Tensor, shape: Shape) -> Fused:
        return self

    def _of(self, order: int, x: Tensor) -> Tensor:
        return self.bodies[order].evaluate([x.flatten()])[0].expand(x.numel()).view_as(x)

    def _enclosed(self, order: int, x: Interval) -> Interval:
        found = intervals(self.bodies[order], [x.map(lambda t: t.flatten())])[0]
        return found.map(lambda t: t.expand(x.lower.numel()).view_as(x.lower)).sanitise()

    def forward(self, *xs: Tensor) -> Tensor:
        return self._of(0, xs[0])

    def derivative(self, x: Tensor) -> Tensor:
        return self._of(1, x)

    def value(self, x: Tensor) -> Interval:
        return self._enclosed(0, Interval(x, x))

    def bend(self, x: Interval) -> Interval:
        """Directly, and from the middle of the cell with the third derivative."""
        whole = self._enclosed(2, x)
        if len(self.bodies) < 4:
            return whole
        middle = x.center.clamp(x.lower, x.upper)
        at, turn = self._enclosed(2, Interval(middle, middle)), self._enclosed(3, x).magnitude
        radius = torch.maximum(x.upper - middle, middle - x.lower)
        spread = torch.nan_to_num((1 + 1e-5) * radius * turn, nan=torch.inf, posinf=torch.inf)
        return Interval(
            torch.maximum(whole.lower, at.lower - spread), torch.minimum(whole.upper, at.upper + spread)
        )

    def reach(self, x: Interval) -> Interval:
        return self._enclosed(0, x)

    def interval(self, *xs: Interval) -> Interval:
        found = self._enclosed(0, xs[0])
        sampled = super().interval(*xs)
        return Interval(torch.maximum(found.lower, sampled.lower), torch.minimum(found.upper, sampled.upper))

    def usable(self, x: Interval) -> Tensor:
        """Where the chain is defined all over the interval, as far as intervals tell."""
        found = self._enclosed(0, x)
        return found.lower.isfinite() & found.upper.isfinite()

    def _at_infinity(self, bound: Tensor, slope: Tensor, x: Interval, sign: int) -> Tensor:
        most = torch.finfo(bound.dtype).max / 8
        return bound.masked_fill(x.magnitude > most, math.inf)


def trig_polynomial(builder: Builder, x: Value, frequencies: Tensor, cosines: Tensor, sines: Tensor) -> Value:
    """The sum over k of cosines[k] cos(frequencies[k] x) + sines[k] sin(frequencies[k] x), as the activations of
    quantum circuits with data re-uploading are; coefficients [K, ...] broadcast to x."""
    return builder.add(TrigPolynomial(frequencies, cosines, sines), x)
