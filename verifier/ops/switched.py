"""Derivatives of piecewise linear functions times what arrives from behind: the products of the chain rule."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from verifier.graph import Builder, Elementwise, Interval, Parameter, Relaxation, Value
from verifier.graph.op import Shape, some
from verifier.ops.product import outward

Piece = tuple[Tensor, Tensor, Tensor, Tensor]
"""A level, the ends of the part of an interval that has it, and whether there is such a part."""


@dataclass(frozen=True, eq=False)
class Switched(Elementwise):
    """level(z) * g for a function constant between `knots` [K], with `levels` [K + 1, ...] from left to right.

    The product of a step and a factor as one function of both: on every piece of z it is linear in g, so that for
    any two slopes the best intercept is attained at corners of the pieces. For a ReLU with an undecided z and slope 0
    in z it is between chords of min(g, 0) and max(g, 0) (Shi et al. 2022, section 3.2, who leave z out); at the same
    slopes no plane that is made of McCormick's and of lines of the step is tighter.

    It holds *almost everywhere*: where z's interval is wider than a point it counts as inside of its pieces, so that
    [0, u] has the level on the right of 0 alone. A network's gradient is what the chain rule gives at almost all
    inputs, whatever is chosen at knots: where a z is at a knot on more than a null set, its own derivative is 0.
    Suprema of gradients, Lipschitz constants and the signs that monotonicity needs are those over almost all inputs.
    """

    knots: Tensor
    levels: Tensor
    decided_by = 0

    def forward(self, *xs: Tensor) -> Tensor:
        z, g = xs
        level = self.levels[0].expand_as(z)
        for knot, right in zip(self.knots, self.levels[1:], strict=True):
            level = torch.where(z > knot, right, level)
        return level * g

    def restrict(self, index: Tensor, shape: Shape) -> Switched:
        return Switched(
            self.knots, some(self.levels, 1, index, shape) if self.levels.dim() > 1 else self.levels
        )

    def _pieces(self, z: Interval) -> list[Piece]:
        point = z.lower == z.upper
        found = []
        for k, level in enumerate(self.levels):
            a = z.lower if k == 0 else torch.maximum(z.lower, self.knots[k - 1])
            b = z.upper if k == len(self.knots) else torch.minimum(z.upper, self.knots[k])
            found.append((level, a, b, torch.where(point, a <= b, a < b)))
        return found

    def interval(self, *xs: Interval) -> Interval:
        low, high = self._reach(xs[0])
        corners = [a * b for a in (low, high) for b in xs[1]]
        stacked = torch.stack(corners)
        zero = ((low == 0) & (high == 0)).logical_not()  # 0 times infinity is 0 here
        product = outward(Interval(stacked.amin(0), stacked.amax(0)))
        return Interval(*[torch.where(zero, end, torch.zeros_like(end)) for end in product]).sanitise()

    def _reach(self, z: Interval) -> tuple[Tensor, Tensor]:
        """The least and the largest level in each interval."""
        low, high = torch.full_like(z.lower, torch.inf), torch.full_like(z.lower, -torch.inf)
        for level, _, _, met in self._pieces(z):
            low = torch.where(met, torch.minimum(low, level), low)
            high = torch.where(met, torch.maximum(high, level), high)
        return low, high

    def parameters(self, *xs: Interval) -> dict[str, Parameter]:
        """In g chords of the extreme of all levels' lines. What a slope off the chord leaves to the step (McCormick's
        planes have it as a multiple of the step) leans along z, by a share of the steepest line of the step."""
        z, g = xs
        low, high = self._reach(z)
        # The least of level * g is high * g left of 0 and low * g on its right: concave, and its chord lies below it.
        left, right = g.lower.clamp(max=0), g.upper.clamp(min=0)
        info = torch.finfo(left.dtype)
        share = (right / (right - left).clamp(min=info.tiny / info.eps, max=info.max)).clamp(0, 1)
        share = torch.where(g.lower >= 0, torch.ones_like(share), share)
        lower, upper = share * low + (1 - share) * high, share * high + (1 - share) * low
        zero, one = torch.zeros_like(share), torch.ones_like(share)
        more = torch.where(z.upper > -z.lower, one, zero)
        return {
            "lower_slope": Parameter(torch.minimum(torch.maximum(lower, low), high), low, high),
            "upper_slope": Parameter(torch.minimum(torch.maximum(upper, low), high), low, high),
            "rise": Parameter(more, zero, one),
            "fall": Parameter(1 - more, zero, one),
        }

    def _leans(
        self, slope: Tensor, parameters: Mapping[str, Tensor], z: Interval, g: Interval, up: bool
    ) -> Tensor:
        """The slope in z of a plane with this slope in g."""
        low, high = self._reach(z)
        info = torch.finfo(slope.dtype)
        first, last = torch.full_like(low, torch.inf), torch.full_like(low, torch.inf)
        for knot in self.knots:
            inside = (knot > z.lower) & (knot < z.upper)
            first = torch.where(inside, torch.minimum(first, knot - z.lower), first)
            last = torch.where(inside, torch.minimum(last, z.upper - knot), last)
        wide = (high - low).clamp(min=info.tiny / info.eps)
        mix = (slope - low) / wide
        ends = (g.upper, g.lower) if up else (g.lower, g.upper)
        left = (high - low) * ((1 - mix) * ends[0] + mix * ends[1])  # what multiplies the step
        runs = (first, last) if up else (last, first)
        shares = (parameters["fall"], parameters["rise"]) if up else (parameters["rise"], parameters["fall"])
        lean = left.clamp(min=0) * shares[0] / runs[0] + left.clamp(max=0) * shares[1] / runs[1]
        return torch.nan_to_num(lean, nan=0.0, posinf=0.0, neginf=0.0)

    def relax(self, parameters: Mapping[str, Tensor], *xs: Interval) -> Relaxation:
        z, g = xs
        pieces = self._pieces(z)
        slope, steep = parameters["lower_slope"], parameters["upper_slope"]
        lean, tilt = (self._leans(s, parameters, z, g, up) for s, up in ((slope, False), (steep, True)))
        floor = torch.full_like(slope, torch.inf)
        ceiling = torch.full_like(steep, -torch.inf)
        for level, a, b, met in pieces:
            low = torch.minimum(_times(level - slope, g.lower), _times(level - slope, g.upper))
            low = low + torch.minimum(_times(-lean, a), _times(-lean, b))
            floor = torch.where(met, torch.minimum(floor, low), floor)
            high = torch.maximum(_times(level - steep, g.lower), _times(level - steep, g.upper))
            high = high + torch.maximum(_times(-tilt, a), _times(-tilt, b))
            ceiling = torch.where(met, torch.maximum(ceiling, high), ceiling)
        return Relaxation((lean, slope), floor, (tilt, steep), ceiling)

    def refinable(self, index: int, *xs: Interval) -> Tensor:
        """Where more than one level is open, and what they multiply is not zero."""
        low, high = self._reach(xs[0])
        undecided = (low < high) & ((xs[1].lower != 0) | (xs[1].upper != 0))
        return undecided & (xs[1].wide if index == 1 else xs[0].lower < xs[0].upper)

    def branching_point(self, index: int, *xs: Interval) -> Tensor:
        """For z the knot nearest to the middle; for g zero, where it lies inside."""
        x = xs[index]
        middle = x.center
        if index == 1:
            return torch.where((x.lower < 0) & (x.upper > 0), torch.zeros_like(middle), middle)
        nearest = (self.knots.view(-1, *([1] * middle.dim())) - middle).abs().argmin(0)
        return self.knots[nearest].clamp(x.lower, x.upper)

    def vjp(
        self, builder: Builder, inputs: Sequence[Value], output: Value, cotangent: Value
    ) -> Sequence[Value | None]:
        """Almost everywhere the step has derivative zero."""
        return [None, builder.add(self, inputs[0], cotangent)]


def _times(slope: Tensor, x: Tensor) -> Tensor:
    """slope * x, where slope 0 makes 0 even of infinite x."""
    return torch.where(slope == 0, torch.zeros_like(slope), slope * x)
