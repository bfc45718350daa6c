"""Sign, with a value of choice at 0."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from verifier.graph import Interval, Parameter, Relaxation, Univariate
from verifier.graph.registry import unary_op


@unary_op("Sign", "sign.default", "sgn.default")
@dataclass(frozen=True, eq=False)
class Sign(Univariate):
    """-1 below zero, 1 above, and `at_zero` (-1, 0 or 1) at zero: binarised networks have no zeros.

    Every line above a jump from -1 to 1 passes over (0, 1), so the intercepts are the signs of the interval's
    ends, and the slopes are free from 0 to where the line reaches the other end's value: with 0 < u the lower
    line through (0, sign l) may rise until (u, sign u), and likewise above.
    """

    at_zero: float = 0.0
    jumps = True
    no_derivative = "it is constant but for a jump at 0, where there is no derivative"

    def forward(self, *xs: Tensor) -> Tensor:
        value = xs[0].sign()
        return value + self.at_zero * (value == 0) if self.at_zero else value

    def interval(self, *xs: Interval) -> Interval:
        return xs[0].map(self.forward)

    def support_max(self, slope: Tensor, x: Interval) -> Tensor:
        """The supremum: at an end, or at zero with the value of the right side."""
        low, high = self.interval(x)
        ends = torch.maximum(low - slope * x.lower, high - slope * x.upper)
        return torch.where(_around_zero(x), torch.maximum(ends, high), ends)

    def support_min(self, slope: Tensor, x: Interval) -> Tensor:
        low, high = self.interval(x)
        ends = torch.minimum(low - slope * x.lower, high - slope * x.upper)
        return torch.where(_around_zero(x), torch.minimum(ends, low), ends)

    def parameters(self, *xs: Interval) -> dict[str, Parameter]:
        """Start from the line that is best at the interval's middle."""
        lower, upper = xs[0]
        zero = torch.zeros_like(lower)
        jump = self.forward(upper) - self.forward(lower)
        below, above = _capped(jump, upper), _capped(jump, -lower)
        right = upper > -lower
        return {
            "lower_slope": Parameter(torch.where(right, below, zero), zero, below),
            "upper_slope": Parameter(torch.where(right, zero, above), zero, above),
        }

    def relax(self, parameters: Mapping[str, Tensor], *xs: Interval) -> Relaxation:
        low, high = self.interval(xs[0])
        return Relaxation((parameters["lower_slope"],), low, (parameters["upper_slope"],), high)

    def refinable(self, index: int, *xs: Interval) -> Tensor:
        low, high = self.interval(xs[0])
        return low < high

    def branching_point(self, index: int, *xs: Interval) -> Tensor:
        return torch.zeros_like(xs[0].lower).clamp(xs[0].lower, xs[0].upper)


def _around_zero(x: Interval) -> Tensor:
    return (x.lower <= 0) & (x.upper >= 0)


def _capped(jump: Tensor, reach: Tensor) -> Tensor:
    """The steepest slope, jump / reach where reach > 0, else 0; capped so that it cannot overflow, as any
    slope between 0 and the steepest is sound."""
    info = torch.finfo(reach.dtype)
    positive = (reach > 0).to(reach.dtype)
    return positive * jump / reach.clamp(min=4 * info.tiny)
