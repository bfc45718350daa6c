"""The largest of several values, element by element, as one operator: what max-pooling is made of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from verifier.graph import Builder, Elementwise, Interval, Parameter, Relaxation, Value
from verifier.graph.op import Shape
from verifier.ops.arithmetic import subtract
from verifier.ops.product import multiply
from verifier.ops.step import Step


@dataclass(frozen=True, eq=False)
class Maximum(Elementwise):
    """max(x_1, ..., x_count).

    Below lies every mixture of the arguments and of the largest of their lower ends, with free weights. Above lies
    M + the sum over k of the chord of max(x_k - M, 0), for any level M from that largest lower end on; at the second
    largest upper end, where it starts, only one argument is left in the sum. Where one argument is never below another
    both are that argument.
    """

    count: int

    def output_shape(self, *shapes: Shape) -> Shape:
        if len(shapes) != self.count:
            raise ValueError(f"A Maximum of {self.count} values got {len(shapes)}.")
        return super().output_shape(*shapes)

    def forward(self, *xs: Tensor) -> Tensor:
        return torch.stack(torch.broadcast_tensors(*xs)).amax(0)

    def interval(self, *xs: Interval) -> Interval:
        return Interval(_largest([x.lower for x in xs]), _largest([x.upper for x in xs]))

    def parameters(self, *xs: Interval) -> dict[str, Parameter]:
        """`weight0`, ...: shares of the arguments in the lower plane, together scaled down to 1 where they are more;
        at the start all of it belongs to the largest center. `level`: M."""
        xs, _ = _tamed(xs)
        floor, second, open_ = _ends(xs)
        best = torch.stack([x.lower / 2 + x.upper / 2 for x in xs]).argmax(0)
        winner = torch.stack([x.lower for x in xs]).argmax(0)
        best = torch.where(open_, best, winner)
        found = {}
        for k, x in enumerate(xs):
            chosen = (best == k).to(floor.dtype)
            free = open_ & (x.upper > floor)
            low = torch.where(open_, torch.zeros_like(chosen), chosen)
            high = torch.where(open_, free.to(floor.dtype), chosen)
            found[f"weight{k}"] = Parameter(torch.minimum(chosen, high), low, high)
        top = torch.where(open_, _largest([x.upper for x in xs]), floor)
        found["level"] = Parameter(torch.where(open_, torch.maximum(second, floor), floor), floor, top)
        return found

    def relax(self, parameters: Mapping[str, Tensor], *xs: Interval) -> Relaxation:
        """Both intercepts take the rounding of everything on them. Ends beyond the floating range get no planes."""
        xs, wild = _tamed(xs)
        floor, _, open_ = _ends(xs)
        info = torch.finfo(floor.dtype)
        shares = [parameters[f"weight{k}"] for k in range(self.count)]
        total = torch.stack(torch.broadcast_tensors(*shares)).sum(0).clamp(min=1)
        below = tuple(share / total for share in shares)
        rest = 1 - torch.stack(below).sum(0)
        level = parameters["level"]
        above, ceiling, size = [], level, level.abs()
        for x, share in zip(xs, below, strict=True):
            # At least the smallest number, so that only 0 / 0 changes: then the argument is M and adds nothing.
            width = (x.upper - x.lower).clamp(min=info.tiny * info.eps)
            slope = ((x.upper - level).clamp(min=0) / width).clamp(max=1)
            ceiling = ceiling - slope * x.lower
            size = size + (slope * x.lower).abs()
            above.append(torch.where(open_, slope, share))
        slack = (4 * self.count + 16) * info.eps * open_.to(floor.dtype)
        zero = torch.zeros_like(floor)
        low = torch.where(open_, rest * floor - slack * floor.abs(), zero)
        high = torch.where(open_, ceiling + slack * size, zero)
        if wild is not None:
            low, high = low.masked_fill(wild, -torch.inf), high.masked_fill(wild, torch.inf)
        return Relaxation(below, low, tuple(above), high)

    def refinable(self, index: int, *xs: Interval) -> Tensor:
        floor, _, open_ = _ends(xs)
        return open_ & (xs[index].upper > floor) & (xs[index].upper > xs[index].lower)

    def branching_point(self, index: int, *xs: Interval) -> Tensor:
        """Where the argument begins to be the largest for certain, or to be able to; else the middle."""
        x = xs[index]
        others = [y for k, y in enumerate(xs) if k != index] or [x]
        point = x.center
        for ends in ([y.lower for y in others], [y.upper for y in others]):
            at = _largest(ends)
            point = torch.where((at > x.lower) & (at < x.upper), at, point)
        return point

    def vjp(
        self, builder: Builder, inputs: Sequence[Value], output: Value, cotangent: Value
    ) -> Sequence[Value | None]:
        """Of arguments that are equal the first takes all; enclosures hold every share between where two meet."""
        knots, levels = torch.zeros(1, dtype=torch.float64), torch.tensor([0.0, 1.0], dtype=torch.float64)
        so_far = [inputs[0]]
        for x in inputs[1:-1]:
            so_far.append(builder.add(Maximum(2), so_far[-1], x))
        found: list[Value] = []
        for x, before in zip(reversed(inputs[1:]), reversed(so_far), strict=True):
            wins = builder.add(Step(knots, levels), subtract(builder, x, before))
            found.append(multiply(builder, cotangent, wins))
            cotangent = subtract(builder, cotangent, found[-1])
        return [cotangent, *reversed(found)]


def _largest(xs: Sequence[Tensor]) -> Tensor:
    return torch.stack(torch.broadcast_tensors(*xs)).amax(0)


def _ends(xs: Sequence[Interval]) -> tuple[Tensor, Tensor, Tensor]:
    """The largest lower end, the second largest upper end, and whether it is open which argument is the largest."""
    lower = torch.stack(torch.broadcast_tensors(*[x.lower for x in xs]))
    upper = torch.stack(torch.broadcast_tensors(*[x.upper for x in xs]))
    floor, winner = lower.max(0)
    rivals = upper.scatter(0, winner.unsqueeze(0), -torch.inf).amax(0)
    second = upper.topk(min(2, len(xs)), dim=0).values[-1]
    return floor, second, rivals > floor


def _tamed(xs: tuple[Interval, ...]) -> tuple[tuple[Interval, ...], Tensor | None]:
    """The intervals, of one batch, with those replaced by zero whose sums might overflow, and where that is; None where
    nowhere is."""
    batch = max(len(x.lower) for x in xs)
    xs = tuple(x.expand(batch) for x in xs)
    size = _largest([x.magnitude.detach() for x in xs])
    wild = (8 * (len(xs) + 1) * size).isfinite().logical_not()
    if not bool(wild.any()):
        return xs, None
    return tuple(x.map(lambda t: torch.where(wild, torch.zeros_like(t), t)) for x in xs), wild
