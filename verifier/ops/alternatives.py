"""Several ways to compute one value."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import reduce

import torch
from torch import Tensor

from verifier.graph import Builder, Elementwise, Interval, Parameter, Relaxation, Value


@dataclass(frozen=True, eq=False)
class Alternatives(Elementwise):
    """Arguments that are equal in exact arithmetic for every input; whoever builds the node vouches for it.

    Evaluation takes the first, intervals intersect, and a coefficient is split among the arguments with free
    weights per element: optimised, the result is at least as tight as bounding each argument and
    intersecting. The weights are w_1 = t_1, w_2 = (1 - t_1) t_2, ... with every t in [0, 1], for either line.
    """

    def forward(self, *xs: Tensor) -> Tensor:
        return xs[0]

    def interval(self, *xs: Interval) -> Interval:
        return reduce(Interval.intersect, xs)

    def parameters(self, *xs: Interval) -> dict[str, Parameter]:
        """Start with all the weight on the argument that has the narrowest interval."""
        widths = torch.stack(torch.broadcast_tensors(*[x.upper - x.lower for x in xs]))
        narrowest = widths.nan_to_num(torch.inf).argmin(0)
        zero = torch.zeros_like(widths[0])
        one = torch.ones_like(zero)
        found: dict[str, Parameter] = {}
        for k in range(len(xs) - 1):
            chosen = (narrowest == k).to(zero.dtype)
            found[f"lower_{k}"] = found[f"upper_{k}"] = Parameter(chosen, zero, one)
        return found

    def relax(self, parameters: Mapping[str, Tensor], *xs: Interval) -> Relaxation:
        lower = _weights([parameters[f"lower_{k}"] for k in range(len(xs) - 1)], xs[0].lower)
        upper = _weights([parameters[f"upper_{k}"] for k in range(len(xs) - 1)], xs[0].lower)
        return Relaxation(lower, None, upper, None)

    def refinable(self, index: int, *xs: Interval) -> Tensor:
        """The lines are exact whatever the intervals are."""
        return torch.zeros_like(xs[index].lower, dtype=torch.bool)

    def vjp(
        self, builder: Builder, inputs: Sequence[Value], output: Value, cotangent: Value
    ) -> Sequence[Value | None]:
        return [cotangent, *[None] * (len(inputs) - 1)]


def _weights(parts: Sequence[Tensor], like: Tensor) -> tuple[Tensor, ...]:
    """Weights that sum to one: each takes its part of what the ones before it left."""
    left = torch.ones_like(like)
    weights: list[Tensor] = []
    for part in parts:
        weights.append(left * part)
        left = left * (1 - part)
    return (*weights, left)


def alternatives(builder: Builder, *values: Value) -> Value:
    """A value that is known in several ways; they must be equal in exact arithmetic."""
    return values[0] if len(values) == 1 else builder.add(Alternatives(), *values)
