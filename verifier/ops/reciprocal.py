"""Reciprocal."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from verifier.graph import Builder, Interval, Parameter, Univariate, Value
from verifier.graph.registry import unary_op
from verifier.ops.arithmetic import negate
from verifier.ops.product import multiply, outward, square


@unary_op("Reciprocal", "reciprocal.default")
@dataclass(frozen=True, eq=False)
class Reciprocal(Univariate):
    """1 / x. On an interval of one sign it is convex or its negative is: between a tangent and the chord. An interval
    that holds zero, or comes so near that slopes overflow, gets no lines."""

    smooth = True
    domain = "x other than 0"

    def outside(self, *xs: Interval) -> Tensor:
        return (xs[0].lower <= 0) & (xs[0].upper >= 0)

    def forward(self, *xs: Tensor) -> Tensor:
        return xs[0].reciprocal()

    def interval(self, *xs: Interval) -> Interval:
        lower, upper = xs[0]
        free = (lower > 0) | (upper < 0)
        one, far = torch.ones_like(lower), torch.full_like(lower, torch.inf)
        found = outward(
            Interval(torch.where(free, upper, one).reciprocal(), torch.where(free, lower, one).reciprocal())
        )
        return Interval(torch.where(free, found.lower, -far), torch.where(free, found.upper, far))

    def support_max(self, slope: Tensor, x: Interval) -> Tensor:
        y, negative, wild = _mirrored(x)
        return torch.where(negative, -_least(slope, y), _most(slope, y)).masked_fill(wild, torch.inf)

    def support_min(self, slope: Tensor, x: Interval) -> Tensor:
        y, negative, wild = _mirrored(x)
        return torch.where(negative, -_most(slope, y), _least(slope, y)).masked_fill(wild, -torch.inf)

    def parameters(self, *xs: Interval) -> dict[str, Parameter]:
        """Start from the tangent in the middle."""
        y, negative, wild = _mirrored(xs[0])
        middle = (y.lower / 2 + y.upper / 2).clamp(y.lower, y.upper)
        steep, flat = (-_ratio(p, p).masked_fill(wild, 0.0) for p in y)
        tangent = -_ratio(middle, middle).masked_fill(wild, 0.0).clamp(-flat, -steep)
        chord = -_ratio(y.lower, y.upper).masked_fill(wild, 0.0)
        tangents = Parameter(tangent, steep, flat)
        chords = Parameter(chord, chord, chord)
        below = Parameter(*(torch.where(negative, c, t) for c, t in _pairs(chords, tangents)))
        above = Parameter(*(torch.where(negative, t, c) for c, t in _pairs(chords, tangents)))
        return {"lower_slope": below, "upper_slope": above}

    def vjp(
        self, builder: Builder, inputs: Sequence[Value], output: Value, cotangent: Value
    ) -> Sequence[Value | None]:
        return [multiply(builder, cotangent, negate(builder, square(builder, output)))]


def _pairs(a: Parameter, b: Parameter) -> Sequence[tuple[Tensor, Tensor]]:
    return ((a.value, b.value), (a.lower, b.lower), (a.upper, b.upper))


def _ratio(a: Tensor, b: Tensor) -> Tensor:
    """1 / (a b) without overflow on the way."""
    return a.reciprocal() * b.reciprocal()


def _mirrored(x: Interval) -> tuple[Interval, Tensor, Tensor]:
    """The interval made positive, whether it was negative, and where it is neither or too near to zero (1 then)."""
    info = torch.finfo(x.lower.dtype)
    negative = x.upper < 0
    low, high = torch.where(negative, -x.upper, x.lower), torch.where(negative, -x.lower, x.upper)
    wild = low.detach() < 4 / info.max**0.5
    one = torch.ones_like(low)
    return Interval(torch.where(wild, one, low), torch.where(wild, one, high)), negative, wild


def _most(slope: Tensor, y: Interval) -> Tensor:
    """An upper bound of 1/x - slope x over a positive interval: convex, attained at an end."""
    falls = torch.where(y.upper.isinf() & (slope < 0), torch.inf, 0.0).to(slope)
    ends = [y.lower, y.upper.clamp(max=torch.finfo(slope.dtype).max)]
    values = [p.reciprocal() - slope * p + _error(slope, p) for p in ends]
    return torch.maximum(*values) + falls


def _least(slope: Tensor, y: Interval) -> Tensor:
    """A lower bound: at the point with derivative `slope`, moved into the interval. A point that is off by a part d of
    itself gives a value too high by d d / point, far below the rounding that is subtracted."""
    info = torch.finfo(slope.dtype)
    steep = slope < -info.tiny
    point = torch.where(steep, -slope, torch.ones_like(slope)).rsqrt()
    point = torch.minimum(torch.maximum(point, y.lower), y.upper)
    point = torch.where(steep, point, y.upper.clamp(max=info.max))
    slope = torch.where(steep, slope, slope.clamp(min=0))  # for denormal slopes, a bound below
    rises = torch.where(y.upper.isinf() & (slope > 0), torch.inf, 0.0).to(slope)
    return point.reciprocal() - slope * point - _error(slope, point) - rises


def _error(slope: Tensor, point: Tensor) -> Tensor:
    info = torch.finfo(point.dtype)
    return (8 * info.eps * (point.reciprocal() + (slope * point).abs()) + 8 * info.tiny).detach()
