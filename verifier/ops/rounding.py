"""Floor, Ceil and Round, which jump from one whole number to the next, and Heaviside."""

from __future__ import annotations

import enum
from dataclasses import dataclass

import torch
from torch import Tensor

from verifier.graph import Builder, Curve, Interval, Value
from verifier.graph.curve import known
from verifier.graph.registry import Unsupported, aten_op, unary_op
from verifier.ops.arithmetic import scale_shift
from verifier.ops.sign import Sign

_STEEP = 64.0
"""Slopes tried are at most this many times one over the interval's width: next to a jump they have no limit."""


class Rounding(enum.Enum):
    DOWN = "floor"
    UP = "ceil"
    NEAREST = "round"


@dataclass(frozen=True, eq=False)
class Staircase(Curve):
    """A whole number near x; halves are rounded to even numbers. All jumps lie on lines of slope 1, so that extrema of
    f(x) - m x are at the ends or beside the first or the last jump."""

    kind: Rounding
    units = 0
    rising = True
    jumps = True
    no_derivative = "it is constant but for jumps, where there is no derivative"

    def forward(self, *xs: Tensor) -> Tensor:
        return {Rounding.DOWN: torch.floor, Rounding.UP: torch.ceil, Rounding.NEAREST: torch.round}[
            self.kind
        ](xs[0])

    def error(self, x: Tensor, y: Tensor) -> Tensor:
        return torch.zeros_like(y)

    def derivative(self, x: Tensor) -> Tensor:
        return torch.zeros_like(x)

    def _jumps(self, x: Interval) -> Interval:
        """The first and the last jump in the interval; crossed where there is none."""
        half = 0.5 if self.kind is Rounding.NEAREST else 0.0
        return Interval((x.lower - half).ceil() + half, (x.upper - half).floor() + half)

    def _side(self, jump: Tensor, sign: int) -> Tensor:
        """The value on the right of a jump, or with sign -1 on its left."""
        if self.kind is Rounding.NEAREST:
            return jump + sign * 0.5
        right = jump if self.kind is Rounding.DOWN else jump + 1
        return right if sign > 0 else right - 1

    def extreme(self, slope: Tensor, x: Interval, sign: int) -> tuple[Tensor, Tensor]:
        best, other = self.gap(slope, x.lower, sign), self.gap(slope, x.upper, sign)
        zero, eps = torch.zeros_like(best), torch.finfo(best.dtype).eps
        point = torch.where(other > best, x.upper + zero, x.lower + zero)
        best = torch.maximum(best, other)
        for jump, inward in zip(self._jumps(x), (1.0, -1.0), strict=True):
            inside = (jump < x.upper) if sign > 0 else (jump > x.lower)
            reached = inside | (self.forward(jump) == self._side(jump, sign))
            jump = torch.where(reached, jump, jump + inward)
            value, line = self._side(jump, sign), slope * jump
            high = known(sign * (value - line) + 2 * eps * (value.abs() + line.abs()))
            better = (jump >= x.lower) & (jump <= x.upper) & (high > best)
            best, point = torch.where(better, high, best), torch.where(better, jump, point)
        return best, point

    def samples(self, x: Interval) -> Tensor:
        """The ends, and beside the first two jumps and the last two: the outer ones may be the ends."""
        step, (first, last) = 2 * torch.finfo(x.lower.dtype).eps, self._jumps(x)
        jumps = (first, first + 1, last - 1, last)
        beside = [j + side * step * (1 + j.abs()) for j in jumps for side in (-1, 0, 1)]
        inner = torch.minimum(torch.maximum(torch.stack(beside), x.lower), x.upper)
        return torch.cat([x.lower.unsqueeze(0), inner.sort(0).values, x.upper.unsqueeze(0)])

    def slopes(self, x: Interval) -> Interval:
        width = (x.upper - x.lower).clamp(min=1e4 * torch.finfo(x.lower.dtype).tiny)
        moving = self.forward(x.upper) > self.forward(x.lower)
        return Interval(torch.zeros_like(width), torch.where(moving, _STEEP / width, torch.zeros_like(width)))

    def refinable(self, index: int, *xs: Interval) -> Tensor:
        low, high = self.interval(xs[0])
        return low < high

    def branching_point(self, index: int, *xs: Interval) -> Tensor:
        """The jump nearest to the middle."""
        first, last = self._jumps(xs[0])
        half = 0.5 if self.kind is Rounding.NEAREST else 0.0
        nearest = (xs[0].center - half).round() + half
        nearest = torch.where(first <= last, torch.minimum(torch.maximum(nearest, first), last), nearest)
        return nearest.clamp(xs[0].lower, xs[0].upper)


@unary_op("Floor", "floor.default")
def floor(builder: Builder, x: Value) -> Value:
    return builder.add(Staircase(Rounding.DOWN), x)


def heaviside(builder: Builder, x: Value, at_zero: Value) -> Value:
    """0 below zero, 1 above, and 0, 1/2 or 1 at zero. Raises Unsupported for another value there."""
    values = builder.tensor(at_zero)
    known = [] if values is None else values.flatten().unique().tolist()
    if known not in ([0.0], [0.5], [1.0]):
        raise Unsupported("a value at zero other than 0, 1/2 or 1, the same for all elements")
    return scale_shift(builder, builder.add(Sign(2 * known[0] - 1), x), scale=0.5, shift=0.5)


@unary_op("Ceil", "ceil.default")
def _ceil(builder: Builder, x: Value) -> Value:
    return builder.add(Staircase(Rounding.UP), x)


@unary_op("Round", "round.default")
def _round(builder: Builder, x: Value) -> Value:
    return builder.add(Staircase(Rounding.NEAREST), x)


@aten_op("heaviside.default")
def _aten_heaviside(builder: Builder, x: Value, values: Value) -> Value:
    return heaviside(builder, x, values)
