"""A value that is known to lie between two numbers, for a reason that bounds do not see."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from verifier.graph import Builder, Interval, Parameter, Univariate, Value
from verifier.graph.op import Shape


@dataclass(frozen=True, eq=False)
class Within(Univariate):
    """x, of which low <= x <= high is known (either may be infinite).

    As x never leaves that range, any line holds that holds on what the range leaves of x's interval: y = x itself, or
    one between it and the range's end.
    """

    low: float
    high: float

    def forward(self, *xs: Tensor) -> Tensor:
        return xs[0]

    def interval(self, *xs: Interval) -> Interval:
        eps = torch.finfo(xs[0].lower.dtype).eps
        low, high = self.low - eps * abs(self.low), self.high + eps * abs(self.high)
        lower, upper = xs[0].lower.clamp(min=low), xs[0].upper.clamp(max=high)
        return Interval(torch.minimum(lower, upper), torch.maximum(lower, upper))

    def support_max(self, slope: Tensor, x: Interval) -> Tensor:
        return -self._least(slope - 1, x)

    def support_min(self, slope: Tensor, x: Interval) -> Tensor:
        return self._least(1 - slope, x)

    def _least(self, steep: Tensor, x: Interval) -> Tensor:
        """The smallest of steep * x, at an end."""
        ends = self.interval(x)
        reached = torch.where(steep > 0, ends.lower, ends.upper)
        endless = reached.isinf()
        least = steep * torch.where(endless, torch.zeros_like(reached), reached)
        return least.masked_fill(endless & (steep != 0), -torch.inf)

    def parameters(self, *xs: Interval) -> dict[str, Parameter]:
        """The slope is 1 where the interval does not leave the range; else it starts as that of a chord."""
        x, met = xs[0], self.interval(xs[0])
        width = (x.upper - x.lower).clamp(min=torch.finfo(x.lower.dtype).tiny)
        share = torch.nan_to_num((met.upper - met.lower) / width, nan=0.0).clamp(0, 1)
        one, found = torch.ones_like(share), {}
        for name, beyond in (("lower_slope", x.lower < met.lower), ("upper_slope", x.upper > met.upper)):
            low = torch.where(beyond, torch.zeros_like(one), one)
            found[name] = Parameter(torch.where(beyond, share, one), low, one)
        return found

    def refinable(self, index: int, *xs: Interval) -> Tensor:
        lower, upper = xs[0]
        return ((lower < self.low) | (upper > self.high)) & (upper > lower)

    def ordered(self, shape: Shape) -> Tensor:
        return torch.zeros(shape, dtype=torch.int64)

    def vjp(
        self, builder: Builder, inputs: Sequence[Value], output: Value, cotangent: Value
    ) -> Sequence[Value | None]:
        return [cotangent]


def within(builder: Builder, x: Value, low: float, high: float) -> Value:
    """x, known to lie between two numbers."""
    return builder.add(Within(low, high), x) if builder.is_variable(x) else x
