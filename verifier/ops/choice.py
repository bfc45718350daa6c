"""One of two values by a truth value that depends on the network's input: Where."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from verifier.graph import Builder, Elementwise, Interval, Parameter, Relaxation, Value
from verifier.ops.arithmetic import as_numbers
from verifier.ops.movement import broadcast, joint_shape


@dataclass(frozen=True, eq=False)
class Choice(Elementwise):
    """a where c is 1, b where c is 0; c is one of the two.

    Above lie a + (1 - c) max(ub - la, 0), b + c max(ua - lb, 0), and c ua + (1 - c) ub, and what is mixed of them with
    free shares; below their mirror images.
    """

    def forward(self, *xs: Tensor) -> Tensor:
        return torch.where(xs[0] > 0.5, xs[1], xs[2])

    def interval(self, *xs: Interval) -> Interval:
        (first, second), (_, a, b) = _decided(xs[0]), xs
        low, high = torch.minimum(a.lower, b.lower), torch.maximum(a.upper, b.upper)
        low = torch.where(first, a.lower, torch.where(second, b.lower, low))
        return Interval(low, torch.where(first, a.upper, torch.where(second, b.upper, high)))

    def parameters(self, *xs: Interval) -> dict[str, Parameter]:
        first, second = _decided(xs[0])
        like = torch.zeros_like(xs[0].lower + xs[1].lower + xs[2].lower)
        found = {}
        for side in ("lower", "upper"):
            for name, sure, other in (("first", first, second), ("second", second, first)):
                low = torch.where(sure, 1.0, like)
                high = torch.where(other, 0.0, torch.ones_like(like))
                start = torch.where(sure, 1.0, torch.where(other, 0.0, 0.25 + like))
                low, high, start = (torch.nan_to_num(t) for t in torch.broadcast_tensors(low, high, start))
                found[f"{side}_{name}"] = Parameter(start, low, high)
        return found

    def relax(self, parameters: Mapping[str, Tensor], *xs: Interval) -> Relaxation:
        _, a, b = xs
        first, second = _decided(xs[0])
        open_ = (first | second).logical_not().to(a.lower.dtype)
        wild = (4 * (a.magnitude + b.magnitude)).detach().isfinite().logical_not()
        a, b = (t.map(lambda end: torch.where(wild, torch.zeros_like(end), end)) for t in (a, b))
        lines = []
        for sign, side in ((-1.0, "lower"), (1.0, "upper")):
            (la, ua), (lb, ub) = (t if sign > 0 else Interval(-t.upper, -t.lower) for t in (a, b))
            shares = [parameters[f"{side}_{name}"] for name in ("first", "second")]
            whole = (shares[0] + shares[1]).clamp(min=1)
            p, q = shares[0] / whole, shares[1] / whole
            rest = 1 - p - q
            over, under = open_ * (ub - la).clamp(min=0), open_ * (ua - lb).clamp(min=0)
            steep = q * under + rest * (ua - ub) - p * over
            constant = p * over + rest * ub
            size = (a.magnitude + b.magnitude).detach()
            lifted = constant + 16 * torch.finfo(size.dtype).eps * size
            lines.append(((sign * steep, p, q), (sign * lifted).masked_fill(wild, sign * torch.inf)))
        return Relaxation(*lines[0], *lines[1])

    def refinable(self, index: int, *xs: Interval) -> Tensor:
        first, second = _decided(xs[0])
        return ~first & ~second & (xs[index].upper > xs[index].lower)

    def vjp(
        self, builder: Builder, inputs: Sequence[Value], output: Value, cotangent: Value
    ) -> Sequence[Value | None]:
        """Of the values; where the truth value changes there is a jump, and no derivative elsewhere."""
        zero = builder.constant(torch.zeros(builder.shape(output), dtype=torch.float64))
        parts = ((cotangent, zero), (zero, cotangent))
        return [None, *[builder.add(Choice(), inputs[0], *pair) for pair in parts]]


def _decided(c: Interval) -> tuple[Tensor, Tensor]:
    """Where c is 1 for certain, and where it is 0."""
    return c.lower > 0, (c.upper < 1) & ~(c.lower > 0)


def choice(builder: Builder, condition: Value, a: Value, b: Value) -> Value:
    """a where the condition (0 or 1) holds, else b, with numpy's broadcasting."""
    shape = joint_shape(*[builder.shape(x) for x in (condition, a, b)])
    numbers = [as_numbers(builder, x) for x in (condition, a, b)]
    return builder.add(Choice(), *[broadcast(builder, x, shape) for x in numbers])
