"""Exp."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from verifier.graph import Builder, Interval, Parameter, Univariate, Value
from verifier.graph.curve import LEAN, leant
from verifier.graph.op import Shape
from verifier.graph.registry import unary_op
from verifier.ops.product import multiply

_ROUNDING = 4
"""Units by which libraries' exp may be off, twice what they state."""
_ROOM = 2.0**-20
"""Lower ends stop at this part of the largest number, so that sums of them are finite, hence bounds, too."""


@unary_op("Exp", "exp.default")
@dataclass(frozen=True, eq=False)
class Exp(Univariate):
    """e^x: below any tangent, above the chord. Where it overflows there is no line above."""

    smooth = True

    def forward(self, *xs: Tensor) -> Tensor:
        return xs[0].exp()

    def interval(self, *xs: Interval) -> Interval:
        info = torch.finfo(xs[0].lower.dtype)
        low, high = xs[0].lower.exp().clamp(max=info.max * _ROOM), xs[0].upper.exp()
        low = low - (_ROUNDING * info.eps * low + info.tiny)
        return Interval(low.clamp(min=0), high + (_ROUNDING * info.eps * high + info.tiny))

    def support_max(self, slope: Tensor, x: Interval) -> Tensor:
        """Convex: attained at an end."""
        most, info = _most(x.lower.dtype), torch.finfo(x.lower.dtype)
        wild = (x.upper > most) | (x.lower.isinf() & (slope > 0))
        ends = [x.lower.clamp(-info.max, most), x.upper.clamp(-info.max, most)]
        values = [p.exp() - slope * p + _error(slope, p) for p in ends]
        return torch.maximum(*values).masked_fill(wild, torch.inf)

    def support_min(self, slope: Tensor, x: Interval) -> Tensor:
        """At the logarithm of the slope, moved into the interval; a wider interval is as sound. A logarithm that is off
        by d gives a value too high by slope d d / 2, which is far below the rounding that is subtracted."""
        most, tiny = _most(x.lower.dtype), torch.finfo(x.lower.dtype).tiny
        low, high = x.lower.clamp(max=most), x.upper.clamp(-1e4, most)
        point = torch.minimum(torch.maximum(slope.clamp(min=tiny).log(), low), high)
        point = torch.where(slope < 0, low, point)
        return point.exp() - slope * point - _error(slope, point)

    def parameters(self, *xs: Interval) -> dict[str, Parameter]:
        """Start from the tangent a little below the middle (see `LEAN`), or nearer to the lower end where that one
        would fall below zero."""
        most, least = _most(xs[0].lower.dtype), torch.finfo(xs[0].lower.dtype).tiny
        lower, upper = xs[0].lower.clamp(-1e4, most), xs[0].upper.clamp(-1e4, most)
        low, high = lower.exp(), upper.exp()
        start = torch.minimum(leant(Interval(lower, upper), -LEAN), lower + 1).exp()
        start = torch.minimum(torch.maximum(start, low), high)
        chord = (high - low) / (upper - lower).clamp(min=least)
        chord = torch.minimum(torch.maximum(chord, low), high)
        fits = (4 * chord * xs[0].lower).isfinite() & (xs[0].upper <= most)
        chord = chord.masked_fill(~fits, 0.0)
        return {"lower_slope": Parameter(start, low, high), "upper_slope": Parameter(chord, chord, chord)}

    def ordered(self, shape: Shape) -> Tensor:
        return torch.zeros(shape, dtype=torch.int64)

    def vjp(
        self, builder: Builder, inputs: Sequence[Value], output: Value, cotangent: Value
    ) -> Sequence[Value | None]:
        return [multiply(builder, cotangent, output)]


def _most(dtype: torch.dtype) -> float:
    """Up to here nothing overflows, intercepts of tangents included."""
    most = math.log(torch.finfo(dtype).max)
    return most - math.log(most) - 2


def _error(slope: Tensor, point: Tensor) -> Tensor:
    """A bound on the rounding of e^point - slope * point, and on what a denormal slope or exponential loses."""
    info = torch.finfo(point.dtype)
    size = point.exp() + (slope * point).abs() + slope.abs()
    return (2 * _ROUNDING * info.eps * size + 256 * info.tiny).detach()
