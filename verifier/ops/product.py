"""Products of two values, and squares."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from verifier.graph import Builder, Elementwise, Interval, Parameter, Relaxation, Univariate, Value
from verifier.graph.curve import LEAN
from verifier.graph.op import Op
from verifier.graph.registry import OnnxNode, aten_op, onnx_op, unary_op
from verifier.ops.arithmetic import as_value, scale_shift
from verifier.ops.movement import Permute, Reshape, Take, broadcast, joint_shape


@dataclass(frozen=True, eq=False)
class Product(Elementwise):
    """x * y between the planes of McCormick (1976), the tightest there are on a box.

    Two planes lie below, (x - lx)(y - ly) >= 0 and (ux - x)(uy - y) >= 0 written out, and two above. Each side takes
    a mixture with a free weight per element. All mixtures leave the same volume, so they start from the flattest: the
    slopes multiply what relaxations of the arguments leave open. A box that multiplies beyond the floating range gets
    no planes.
    """

    def forward(self, *xs: Tensor) -> Tensor:
        return xs[0] * xs[1]

    def interval(self, *xs: Interval) -> Interval:
        """Extrema at corners, rounded outward but never beyond zero where signs forbid it."""
        corners = [a * b for a in xs[0] for b in xs[1]]
        low = torch.minimum(torch.minimum(corners[0], corners[1]), torch.minimum(corners[2], corners[3]))
        high = torch.maximum(torch.maximum(corners[0], corners[1]), torch.maximum(corners[2], corners[3]))
        (a, b), (c, d) = xs
        zero = ((a == 0) & (b == 0)) | ((c == 0) & (d == 0))
        alike, opposite = (
            ((a >= 0) & (c >= 0)) | ((b <= 0) & (d <= 0)),
            ((a >= 0) & (d <= 0)) | ((b <= 0) & (c >= 0)),
        )
        return outward(Interval(low, high), alike | zero, opposite | zero)

    def parameters(self, *xs: Interval) -> dict[str, Parameter]:
        flat = ((xs[0].upper > xs[0].lower) & (xs[1].upper > xs[1].lower)).logical_not()
        zero = 0.5 * flat.to(xs[0].lower.dtype)
        one = 1 - zero
        (x, y), _ = _tamed(*xs)
        sides = [_flattest(x, y), _flattest(x, Interval(y.upper, y.lower))]
        below, above = (torch.minimum(torch.maximum(t, zero), one) for t in sides)
        return {"lower_mix": Parameter(below, zero, one), "upper_mix": Parameter(above, zero, one)}

    def relax(self, parameters: Mapping[str, Tensor], *xs: Interval) -> Relaxation:
        """The slopes mix numbers that may cancel, so the intercepts take the rounding of everything on them."""
        (x, y), wild = _tamed(*xs)
        error = 8 * torch.finfo(x.lower.dtype).eps * x.magnitude * y.magnitude
        low, high = parameters["lower_mix"], parameters["upper_mix"]
        below = (mix(low, y.lower, y.upper), mix(low, x.lower, x.upper))
        above = (mix(high, y.upper, y.lower), mix(high, x.lower, x.upper))
        floor = -mix(low, x.lower * y.lower, x.upper * y.upper) - error
        ceiling = -mix(high, x.lower * y.upper, x.upper * y.lower) + error
        if wild is not None:
            floor, ceiling = floor.masked_fill(wild, -torch.inf), ceiling.masked_fill(wild, torch.inf)
        return Relaxation(below, floor, above, ceiling)

    def refinable(self, index: int, *xs: Interval) -> Tensor:
        """With a constant factor the planes are exact."""
        return xs[0].wide & xs[1].wide

    def vjp(
        self, builder: Builder, inputs: Sequence[Value], output: Value, cotangent: Value
    ) -> Sequence[Value | None]:
        return [multiply(builder, cotangent, inputs[1]), multiply(builder, cotangent, inputs[0])]


@dataclass(frozen=True, eq=False)
class Square(Univariate):
    """x * x: below any tangent inside the interval, above the chord. f(x) - m x is computed as x (x - m)."""

    smooth = True

    def forward(self, *xs: Tensor) -> Tensor:
        return xs[0] * xs[0]

    def interval(self, *xs: Interval) -> Interval:
        lower, upper = xs[0]
        nearest = torch.zeros_like(lower).clamp(lower, upper)
        high = torch.maximum(lower * lower, upper * upper)
        return outward(Interval(nearest * nearest, high), high >= 0, xs[0].magnitude == 0)

    def support_max(self, slope: Tensor, x: Interval) -> Tensor:
        """Convex: attained at an end."""
        (x,), wild = _tamed(x)
        high = torch.maximum(x.lower * (x.lower - slope), x.upper * (x.upper - slope))
        return high if wild is None else high.masked_fill(wild, torch.inf)

    def support_min(self, slope: Tensor, x: Interval) -> Tensor:
        """At the point with derivative `slope`, moved into the interval."""
        (x,), wild = _tamed(x)
        point = torch.minimum(torch.maximum(slope / 2, x.lower), x.upper)
        low = point * (point - slope)
        return low if wild is None else low.masked_fill(wild, -torch.inf)

    def parameters(self, *xs: Interval) -> dict[str, Parameter]:
        """Start from the tangent near the middle, on the side of zero (see `LEAN`)."""
        most = torch.finfo(xs[0].lower.dtype).max
        low, high = (2 * t.clamp(-most / 2, most / 2) for t in xs[0])
        middle = torch.minimum(torch.maximum(low / 2 + high / 2, low), high)
        spare = LEAN * (high / 2 - low / 2)
        start = torch.where(middle > 0, (middle - spare).clamp(min=0), (middle + spare).clamp(max=0))
        return {"lower_slope": Parameter(start, low, high), "upper_slope": Parameter(middle, middle, middle)}

    def vjp(
        self, builder: Builder, inputs: Sequence[Value], output: Value, cotangent: Value
    ) -> Sequence[Value | None]:
        return [multiply(builder, cotangent, scale_shift(builder, inputs[0], scale=2.0))]


def _tamed(*xs: Interval) -> tuple[tuple[Interval, ...], Tensor | None]:
    """The intervals with those replaced by zero whose products overflow, and where that is; None where nowhere is.

    Infinities would give NaN, in gradients even where the value is discarded.
    """
    first, last = xs[0].magnitude.detach(), xs[-1].magnitude.detach()
    wild = (8 * first * last).isfinite().logical_not()
    if not bool(wild.any()):
        return xs, None
    return tuple(x.map(lambda t: torch.where(wild, torch.zeros_like(t), t)) for x in xs), wild


def _flattest(x: Interval, y: Interval) -> Tensor:
    """The weight for which the slopes, each times the width of its argument, have the least sum of squares (or of any
    power above 1): half way between those for which one is zero, within [0, 1]."""
    weight = (x.lower / (x.lower - x.upper) + y.lower / (y.lower - y.upper)) / 2
    return torch.where(weight.isnan(), torch.full_like(weight, 0.5), weight.clamp(0, 1))


def mix(weight: Tensor | float, a: Tensor, b: Tensor) -> Tensor:
    """(1 - weight) a + weight b, which cannot overflow where a and b are finite."""
    return (1 - weight) * a + weight * b


def outward(x: Interval, positive: Tensor | None = None, negative: Tensor | None = None) -> Interval:
    """An interval of products, each rounded once, that encloses the exact products; it does not reach below zero where
    these are known not to be negative, nor above it where they are not positive. Without knowledge of signs none of
    the products may underflow, and zero ends stay where they are."""
    info = torch.finfo(x.lower.dtype)
    low, high = x.sanitise()
    most = torch.full_like(low, info.max)
    low = torch.minimum(low, most)  # what overflowed is at least as large as the largest number
    high = torch.maximum(high, -most)
    down, up = low - (info.eps * low.abs() + info.tiny), high + (info.eps * high.abs() + info.tiny)
    # Of 0 times infinity nothing is known.
    positive = low >= 0 if positive is None else positive & low.isfinite()
    negative = high <= 0 if negative is None else negative & high.isfinite()
    return Interval(
        torch.where(positive, down.clamp(min=0), down), torch.where(negative, up.clamp(max=0), up)
    )


def multiply(builder: Builder, a: Value, b: Value) -> Value:
    """a * b with numpy's broadcasting; a value times itself, however it came there, is a Square."""
    if (constant := builder.tensor(b)) is not None:
        return scale_shift(builder, a, scale=constant)
    if (constant := builder.tensor(a)) is not None:
        return scale_shift(builder, b, scale=constant)
    shape = joint_shape(builder.shape(a), builder.shape(b))
    a, b = broadcast(builder, a, shape), broadcast(builder, b, shape)
    return square(builder, a) if _same(builder, a, b) else builder.add(Product(), a, b)


def _same(builder: Builder, a: Value, b: Value) -> bool:
    """Whether two values are the same elements of one value, moved in the same way or left where they are."""
    if a == b:
        return True
    (source, steps), (other, others) = _moved(builder, a), _moved(builder, b)
    if source != other:
        return False
    shape = builder.shape(source)
    places = torch.arange(math.prod(shape), dtype=torch.float64).view(1, *shape)
    return torch.equal(
        *[functools.reduce(lambda t, op: op.forward(t), way, places) for way in (steps, others)]
    )


def _moved(builder: Builder, x: Value) -> tuple[Value, list[Op]]:
    """Where the elements come from, and the operators that moved them, first to last."""
    steps: list[Op] = []
    op, arguments = builder.made_by(x)
    while isinstance(op, Take | Reshape | Permute):
        steps.insert(0, op)
        x = arguments[0]
        op, arguments = builder.made_by(x)
    return x, steps


@unary_op("square.default")
def square(builder: Builder, x: Value) -> Value:
    return builder.add(Square(), x)


@onnx_op("Mul")
def _mul(builder: Builder, node: OnnxNode) -> Value:
    return multiply(builder, node.required(0), node.required(1))


@aten_op("mul.Tensor", "mul.Scalar")
def _aten_mul(builder: Builder, a: Value, b: Value | float) -> Value:
    return multiply(builder, a, as_value(builder, b))
