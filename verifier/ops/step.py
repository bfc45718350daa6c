"""Piecewise constant functions: the derivatives of piecewise linear ones."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from verifier.graph import Interval, Parameter, Relaxation, Univariate


@dataclass(frozen=True, eq=False)
class Step(Univariate):
    """Constant between `knots` [K], increasing, with `levels` [K + 1, ...] from left to right, each of which
    broadcasts to the argument.

    At a knot the value is that of the left side, but intervals and lines hold both sides, as closed sets of
    generalised derivatives do. With `chosen` it is one side's or the other's, nothing in between, and of x and -x at
    0 not the right one's of both: a choice among equal ones.
    """

    knots: Tensor
    levels: Tensor
    chosen: bool = False
    jumps = True
    no_derivative = "it is constant but for jumps, where there is no derivative"

    def forward(self, *xs: Tensor) -> Tensor:
        y = self.levels[0].expand_as(xs[0])
        for knot, level in zip(self.knots, self.levels[1:], strict=True):
            y = torch.where(xs[0] > knot, level, y)
        return y

    def interval(self, *xs: Interval) -> Interval:
        """The hull of all levels that the closed interval meets; at a point that is a knot, of two."""
        lower, upper = xs[0]
        low, high = torch.full_like(lower, torch.inf), torch.full_like(lower, -torch.inf)
        for k, level in enumerate(self.levels):
            met = torch.ones_like(lower, dtype=torch.bool)
            if k > 0:
                met = met & (upper >= self.knots[k - 1])
            if k < len(self.knots):
                met = met & (lower <= self.knots[k])
            low = torch.where(met, torch.minimum(low, level), low)
            high = torch.where(met, torch.maximum(high, level), high)
        return Interval(low, high)

    def _candidates(self, x: Interval) -> tuple[Tensor, Interval]:
        """Where extrema of f(x) - m x lie, [2 + K, B, *shape]: the ends, and the knots moved into the interval; and
        the values on their sides."""
        points = torch.stack([x.lower, x.upper, *[torch.clamp(k, x.lower, x.upper) for k in self.knots]])
        return points, self.interval(Interval(points, points))

    def support_max(self, slope: Tensor, x: Interval) -> Tensor:
        points, values = self._candidates(x)
        return (values.upper - _times(slope, points)).amax(0)

    def support_min(self, slope: Tensor, x: Interval) -> Tensor:
        points, values = self._candidates(x)
        return (values.lower - _times(slope, points)).amin(0)

    def relax(self, parameters: Mapping[str, Tensor], *xs: Interval) -> Relaxation:
        lower, upper = parameters["lower_slope"], parameters["upper_slope"]
        points, values = self._candidates(xs[0])
        below = (values.lower - _times(lower, points)).amin(0)
        above = (values.upper - _times(upper, points)).amax(0)
        return Relaxation((lower,), below, (upper,), above)

    def parameters(self, *xs: Interval) -> dict[str, Parameter]:
        """From the leftmost to the rightmost slope of the convex hull, starting with the edge at the middle."""
        points, values = self._candidates(xs[0])
        low = _edges(points, values.lower, xs[0].center)
        high = _edges(points, -values.upper, xs[0].center)
        return {"lower_slope": low, "upper_slope": Parameter(-high.value, -high.upper, -high.lower)}

    def refinable(self, index: int, *xs: Interval) -> Tensor:
        lower, upper = xs[0]
        ends = self.interval(xs[0])
        return (ends.lower < ends.upper) & (lower < upper)

    def branching_point(self, index: int, *xs: Interval) -> Tensor:
        """The knot nearest to the interval's middle, moved into the interval."""
        middle = xs[0].center
        view = (-1, *([1] * middle.dim()))
        nearest = (self.knots.view(view) - middle).abs().argmin(0)
        return self.knots[nearest].clamp(xs[0].lower, xs[0].upper)


def _times(slope: Tensor, points: Tensor) -> Tensor:
    """slope * points, where slope 0 makes 0 even of infinite points; these take no part in gradients."""
    finite = points.isfinite()
    if bool(finite.all()):
        return slope * points
    tame = slope * torch.where(finite, points, torch.zeros_like(points))
    wild = torch.nan_to_num((slope * points).detach(), nan=0.0, posinf=torch.inf, neginf=-torch.inf)
    return torch.where(finite, tame, wild)


def _edges(points: Tensor, values: Tensor, middle: Tensor) -> Parameter:
    """Slopes of the lower convex hull of the points [P, ...], the first of them leftmost, the second rightmost; the
    starting value is the slope whose line is highest at `middle`."""
    first, second = torch.triu_indices(len(points), len(points), 1)
    run = points[second] - points[first]
    some = run.abs() > 4 * torch.finfo(run.dtype).tiny
    slopes = (values[second] - values[first]) / torch.where(some, run, torch.ones_like(run))
    slopes = torch.where(some & slopes.isfinite(), slopes, torch.zeros_like(slopes))
    heights = (values.unsqueeze(0) - _times(slopes.unsqueeze(1), points.unsqueeze(0))).amin(1)
    heights = torch.nan_to_num(heights + _times(slopes, middle), nan=-torch.inf, neginf=-torch.inf)
    best = slopes.gather(0, heights.argmax(0, keepdim=True)).squeeze(0)
    huge = torch.finfo(run.dtype).max
    left = torch.where(some, slopes, huge)[first == 0].amin(0)
    right = torch.where(some, slopes, -huge)[(first == 1) | (second == 1)].amax(0)
    return Parameter(best, torch.minimum(left.clamp(max=0), best), torch.maximum(right.clamp(min=0), best))
