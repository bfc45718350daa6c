"""A value that is known to be near a constant, for a reason that bounds do not see."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from verifier.graph import Builder, Elementwise, Interval, Parameter, Relaxation, Value
from verifier.graph.op import Shape


@dataclass(frozen=True, eq=False)
class Near(Elementwise):
    """x, of which |x - center| <= r is known; arguments x and r, of one shape, which `center` [*shape] has too.

    r is only asked for its interval, which makes the value's narrower. The lines are x itself, as a box around the
    center would lose what elements have in common, and constants where x's interval is not finite.
    """

    center: Tensor
    silent = 1
    copies = True

    def restrict(self, index: Tensor, shape: Shape) -> Near:
        return dataclasses.replace(self, center=self.center.flatten()[index.to(self.center.device)])

    def forward(self, *xs: Tensor) -> Tensor:
        return xs[0]

    def interval(self, *xs: Interval) -> Interval:
        return xs[0].intersect(self._ball(xs[1]))

    def _ball(self, r: Interval) -> Interval:
        eps = torch.finfo(r.upper.dtype).eps
        reach = r.upper.clamp(min=0) * (1 + 2 * eps) + eps * self.center.abs()
        return Interval(self.center - reach, self.center + reach).sanitise()

    def parameters(self, *xs: Interval) -> dict[str, Parameter]:
        return {}

    def relax(self, parameters: Mapping[str, Tensor], *xs: Interval) -> Relaxation:
        x, ball = xs[0], self._ball(xs[1])
        own = (x.lower.isfinite() & x.upper.isfinite()) | ball.lower.isinf() | ball.upper.isinf()
        slope, zero = own.to(x.lower.dtype), torch.zeros_like(x.lower)
        if bool(own.all()):
            return Relaxation((slope, zero), None, (slope, zero), None)
        met = x.intersect(ball)
        low, high = (torch.where(own, torch.zeros_like(end), end) for end in met)
        return Relaxation((slope, zero), low, (slope, zero), high)

    def refinable(self, index: int, *xs: Interval) -> Tensor:
        return xs[index].wide

    def vjp(
        self, builder: Builder, inputs: Sequence[Value], output: Value, cotangent: Value
    ) -> Sequence[Value | None]:
        return [cotangent, None]


def near(builder: Builder, x: Value, center: Tensor, radius: Value) -> Value:
    """x, known to be at most `radius` (of its shape) from `center`."""
    return builder.add(Near(center), x, radius) if builder.is_variable(x) else x
