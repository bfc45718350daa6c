"""Sin, Cos, Tan, and their inverses."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from verifier.graph import Builder, Curve, Curved, Interval, Piece, Value
from verifier.graph.curve import alternating
from verifier.graph.registry import unary_op
from verifier.ops.arithmetic import scale_shift
from verifier.ops.product import multiply
from verifier.ops.sigmoid import S_SHAPE

_TURN = 2 * math.pi


@unary_op("Sin", "sin.default")
@dataclass(frozen=True, eq=False)
class Sine(Curve):
    """sin(x + quarter pi / 2): the sine, the cosine and their negatives, over any number of periods.

    sin(x) - m x has a highest point in each period, all on one line, so that only those next to the interval's ends
    count. Where arguments are so large that floats are far apart, only the range is known.
    """

    quarter: int = 0
    bottom, top, limits = -1.0, 1.0, (0.0, 0.0)

    def forward(self, *xs: Tensor) -> Tensor:
        y = xs[0].cos() if self.quarter % 2 else xs[0].sin()
        return -y if self.quarter % 4 >= 2 else y

    def derivative(self, x: Tensor) -> Tensor:
        return Sine(self.quarter + 1).forward(x)

    def size(self, x: Tensor, y: Tensor) -> Tensor:
        return torch.ones_like(y)

    def extreme(self, slope: Tensor, x: Interval, sign: int) -> tuple[Tensor, Tensor]:
        phase = (self.quarter + (0 if sign > 0 else 2)) % 4 * math.pi / 2
        top = (sign * slope).clamp(-1, 1).acos() - phase
        tops = [
            top + _TURN * ((x.lower - top) / _TURN).ceil(),
            top + _TURN * ((x.upper - top) / _TURN).floor(),
        ]
        inner = [t.clamp(x.lower, x.upper) for t in tops]
        points = torch.stack(
            torch.broadcast_tensors(x.lower, x.upper, *inner)
        )  # asked together: few operations
        best, which = self.gap(slope, points, sign).max(0, keepdim=True)
        best, point = best.squeeze(0), points.gather(0, which).squeeze(0)
        # A highest point that is missed, beyond an end say, by as much as arguments are rounded.
        missed = 8 * torch.finfo(best.dtype).eps * (x.magnitude + 8)
        best = best + missed.square()
        return best.masked_fill(missed > 0.1, torch.inf), point

    def slopes(self, x: Interval) -> Interval:
        steep, zero = Sine(self.quarter + 1), torch.zeros_like(x.lower)
        low, high = -steep.extreme(zero, x, -1)[0], steep.extreme(zero, x, 1)[0]
        return Interval(low.clamp(-1, 1), high.clamp(-1, 1))

    def vjp(
        self, builder: Builder, inputs: Sequence[Value], output: Value, cotangent: Value
    ) -> Sequence[Value | None]:
        return [multiply(builder, cotangent, builder.add(Sine((self.quarter + 1) % 4), inputs[0]))]


@dataclass(frozen=True, eq=False)
class _Branched(Curve):
    """Functions of the tangent: an interval that holds a pole has no bound."""

    domain = "x between two poles"

    def outside(self, *xs: Interval) -> Tensor:
        return ~self.usable(xs[0])

    def usable(self, x: Interval) -> Tensor:
        """Inside one branch, some way from its poles, and where floats are dense."""
        info = torch.finfo(x.lower.dtype)
        origin = _branch(x)
        margin = math.pi / 2 - 4 * info.eps**0.5
        return (x.lower > origin - margin) & (x.upper < origin + margin) & (x.magnitude < 1e-4 / info.eps)

    def slopes(self, x: Interval) -> Interval:
        """The derivative is least next to the branch's middle for the tangent; for others it increases."""
        ends = [self.derivative(t) for t in x]
        middle = self.derivative(_branch(x).clamp(x.lower, x.upper))
        low = torch.minimum(middle, torch.minimum(*ends))
        return Interval(low, torch.maximum(*ends))


def _branch(x: Interval) -> Tensor:
    """The middle of the branch of the tangent that the interval's middle lies in."""
    return math.pi * (x.lower / 2 / math.pi + x.upper / 2 / math.pi).round()


@unary_op("Tan", "tan.default", note="bounded inside a branch")
@dataclass(frozen=True, eq=False)
class Tan(_Branched):
    """The tangent inside a branch: concave on its left half and convex on the right."""

    def forward(self, *xs: Tensor) -> Tensor:
        return xs[0].tan()

    def derivative(self, x: Tensor) -> Tensor:
        return 1 + x.tan().square()

    def interval(self, *xs: Interval) -> Interval:
        ends = xs[0].map(self.forward)
        found = Interval(
            ends.lower - self.error(xs[0].lower, ends.lower), ends.upper + self.error(xs[0].upper, ends.upper)
        )
        usable, far = self.usable(xs[0]), torch.full_like(ends.lower, torch.inf)
        return Interval(torch.where(usable, found.lower, -far), torch.where(usable, found.upper, far))

    def extreme(self, slope: Tensor, x: Interval, sign: int) -> tuple[Tensor, Tensor]:
        best, other = self.gap(slope, x.lower, sign), self.gap(slope, x.upper, sign)
        zero = torch.zeros_like(best)
        point = torch.where(other > best, x.upper + zero, x.lower + zero)
        best = torch.maximum(best, other)
        origin = _branch(x)
        low, high = (x.lower, torch.minimum(x.upper, origin))
        if sign < 0:
            low, high = torch.maximum(x.lower, origin), x.upper
        beside = low >= high
        low, high = torch.where(beside, x.lower, low), torch.where(beside, x.upper, high)
        touched = origin - sign * slope.clamp(min=1).rsqrt().acos()
        bound, at = self.tangent(touched, slope, Interval(low, high), sign)
        better = ~beside & (bound > best)
        return torch.where(better, bound, best), torch.where(better, at, point)

    def vjp(
        self, builder: Builder, inputs: Sequence[Value], output: Value, cotangent: Value
    ) -> Sequence[Value | None]:
        return [multiply(builder, cotangent, builder.add(TanDerivative(), inputs[0]))]


@dataclass(frozen=True, eq=False)
class TanDerivative(_Branched):
    """1 + tan^2, convex inside a branch."""

    bottom = 1.0
    units = 24

    def forward(self, *xs: Tensor) -> Tensor:
        return 1 + xs[0].tan().square()

    def derivative(self, x: Tensor) -> Tensor:
        t = x.tan()
        return 2 * t * (1 + t * t)

    def extreme(self, slope: Tensor, x: Interval, sign: int) -> tuple[Tensor, Tensor]:
        best, other = self.gap(slope, x.lower, sign), self.gap(slope, x.upper, sign)
        zero = torch.zeros_like(best)
        point = torch.where(other > best, x.upper + zero, x.lower + zero)
        best = torch.maximum(best, other)
        if sign > 0:
            return best, point
        # 2 t^3 + 2 t = slope, by Cardano's formula for a cubic that increases.
        q = slope / 4
        root = (q.abs() + (q * q + 1 / 27).sqrt()).pow(1 / 3)
        t = q.sign() * (root - 1 / (3 * root))
        return self.tangent(_branch(x) + t.atan(), slope, x, sign)

    def slopes(self, x: Interval) -> Interval:
        return x.map(self.derivative)

    def vjp(
        self, builder: Builder, inputs: Sequence[Value], output: Value, cotangent: Value
    ) -> Sequence[Value | None]:
        steep = multiply(builder, output, builder.add(Tan(), inputs[0]))
        return [multiply(builder, cotangent, scale_shift(builder, steep, scale=2.0))]


@unary_op("Atan", "atan.default")
@dataclass(frozen=True, eq=False)
class Atan(Curved):
    """The inverse of the tangent."""

    bottom, top, limits, rising = -math.pi / 2, math.pi / 2, (-math.pi / 2, math.pi / 2), True

    @property
    def pieces(self) -> tuple[Piece, ...]:
        return S_SHAPE

    def forward(self, *xs: Tensor) -> Tensor:
        return xs[0].atan()

    def derivative(self, x: Tensor) -> Tensor:
        return (1 + x * x).reciprocal()

    def touching(self, slope: Tensor, piece: Piece) -> Tensor:
        distance = (slope.clamp(min=torch.finfo(slope.dtype).tiny).reciprocal() - 1).clamp(min=0).sqrt()
        return -distance if piece.convex else distance

    def vjp(
        self, builder: Builder, inputs: Sequence[Value], output: Value, cotangent: Value
    ) -> Sequence[Value | None]:
        return [multiply(builder, cotangent, builder.add(AtanDerivative(1), inputs[0]))]


@dataclass(frozen=True, eq=False)
class AtanDerivative(Curved):
    """The derivative of atan of an order from 1 on: P(x) / (1 + x^2)^order with a polynomial P of degree order - 1, all
    of whose zeros are real."""

    order: int
    limits = (0.0, 0.0)
    units = 24
    reach = 1e8

    @property
    def bottom(self) -> float:  # pyright: ignore[reportIncompatibleVariableOverride]
        return 0.0 if self.order == 1 else -math.inf

    @property
    def top(self) -> float:  # pyright: ignore[reportIncompatibleVariableOverride]
        return 1.0 if self.order == 1 else math.inf

    @cached_property
    def pieces(self) -> tuple[Piece, ...]:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The zeros of the derivative of order n are the cotangents of k pi / n."""
        n = self.order + 2
        knots = sorted(0.0 if 2 * k == n else 1 / math.tan(k * math.pi / n) for k in range(1, n))
        return alternating(knots, convex=True)

    def _of(self, x: Tensor, order: int, absolute: bool = False) -> Tensor:
        r = torch.hypot(x, torch.ones_like(x)).reciprocal()
        s = torch.nan_to_num(x * r, nan=1.0)
        weights = _rational(order)
        if absolute:
            s, weights = s.abs(), tuple(abs(c) for c in weights)
        value = torch.zeros_like(x)
        for j, c in enumerate(weights):
            if c:
                value = value + c * s**j * r ** (2 * order - j)
        return value

    def forward(self, *xs: Tensor) -> Tensor:
        return self._of(xs[0], self.order)

    def derivative(self, x: Tensor) -> Tensor:
        return self._of(x, self.order + 1)

    def size(self, x: Tensor, y: Tensor) -> Tensor:
        return self._of(x, self.order, absolute=True)

    def steepness(self, x: Tensor, d: Tensor) -> Tensor:
        return self._of(x, self.order + 1, absolute=True)

    def vjp(
        self, builder: Builder, inputs: Sequence[Value], output: Value, cotangent: Value
    ) -> Sequence[Value | None]:
        return [multiply(builder, cotangent, builder.add(AtanDerivative(self.order + 1), inputs[0]))]


@functools.cache
def _rational(order: int) -> tuple[float, ...]:
    """P / (1 + x^2)^n differentiates to (P' (1 + x^2) - 2 n x P) / (1 + x^2)^(n + 1)."""
    p, x = np.polynomial.Polynomial([1.0]), np.polynomial.Polynomial([0.0, 1.0])
    for n in range(1, order):
        p = p.deriv() * (1 + x * x) - 2 * n * x * p
    return tuple(float(c) for c in p.coef)


@dataclass(frozen=True, eq=False)
class Between(Curved):
    """Functions on (-1, 1) whose slopes have no limit at its ends."""

    valued = (-1.0, 1.0)
    domain = "-1 < x < 1"

    def outside(self, *xs: Interval) -> Tensor:
        return xs[0].magnitude >= 1

    def slopes(self, x: Interval) -> Interval:
        """Not those next to the ends."""
        near = 1 - 1e-3 * (1 - x.center.abs()).clamp(1e-3, 1)
        return super().slopes(x.map(lambda t: torch.minimum(torch.maximum(t, -near), near)))


@unary_op("Asin", "asin.default")
@dataclass(frozen=True, eq=False)
class Asin(Between):
    """The inverse of the sine, on [-1, 1]; an interval that leaves it has no bound."""

    bottom, top, rising = -math.pi / 2, math.pi / 2, True
    domain = "-1 <= x <= 1"

    def outside(self, *xs: Interval) -> Tensor:
        return xs[0].magnitude > 1

    @property
    def pieces(self) -> tuple[Piece, ...]:
        return Piece(-1.0, 0.0, False), Piece(0.0, 1.0, True)

    def usable(self, x: Interval) -> Tensor:
        return x.magnitude <= 1

    def forward(self, *xs: Tensor) -> Tensor:
        return xs[0].asin()

    def derivative(self, x: Tensor) -> Tensor:
        return ((1 - x) * (1 + x)).rsqrt()

    def touching(self, slope: Tensor, piece: Piece) -> Tensor:
        part = slope.clamp(min=1).reciprocal()
        distance = ((1 - part) * (1 + part)).sqrt().clamp(max=1 - torch.finfo(slope.dtype).eps)
        return distance if piece.convex else -distance

    def vjp(
        self, builder: Builder, inputs: Sequence[Value], output: Value, cotangent: Value
    ) -> Sequence[Value | None]:
        return [multiply(builder, cotangent, builder.add(AsinDerivative(1), inputs[0]))]


@dataclass(frozen=True, eq=False)
class AsinDerivative(Between):
    """The first or second derivative of asin: (1 - x^2)^(-1/2) and x (1 - x^2)^(-3/2), on (-1, 1)."""

    order: int
    units = 24

    @property
    def no_derivative(self) -> str:  # pyright: ignore[reportIncompatibleVariableOverride]
        return "it is the last derivative that is known" if self.order == 2 else ""

    @property
    def bottom(self) -> float:  # pyright: ignore[reportIncompatibleVariableOverride]
        return 1.0 if self.order == 1 else -math.inf

    @property
    def pieces(self) -> tuple[Piece, ...]:
        if self.order == 1:
            return (Piece(-1.0, 1.0, True),)
        return Piece(-1.0, 0.0, False), Piece(0.0, 1.0, True)

    def usable(self, x: Interval) -> Tensor:
        return x.magnitude <= 1 - 64 * torch.finfo(x.lower.dtype).eps

    def _of(self, x: Tensor, order: int) -> Tensor:
        root = ((1 - x) * (1 + x)).rsqrt()
        if order == 1:
            return root
        return x * root**3 if order == 2 else (1 + 2 * x * x) * root**5

    def forward(self, *xs: Tensor) -> Tensor:
        return self._of(xs[0], self.order)

    def derivative(self, x: Tensor) -> Tensor:
        return self._of(x, self.order + 1)

    def vjp(
        self, builder: Builder, inputs: Sequence[Value], output: Value, cotangent: Value
    ) -> Sequence[Value | None]:
        return [multiply(builder, cotangent, builder.add(AsinDerivative(2), inputs[0]))]


@unary_op("Cos", "cos.default")
def cosine(builder: Builder, x: Value) -> Value:
    return builder.add(Sine(1), x)


@unary_op("Acos", "acos.default")
def arc_cosine(builder: Builder, x: Value) -> Value:
    """pi / 2 - asin(x); the constant is rounded."""
    half = 0.5 * math.pi
    doubt = torch.tensor(2 * half * torch.finfo(torch.float64).eps, dtype=torch.float64)
    return scale_shift(builder, builder.add(Asin(), x), scale=-1.0, shift=half, doubt=doubt)
