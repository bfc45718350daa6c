"""Sinh and Cosh, and the inverses of hyperbolic functions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from verifier.graph import Builder, Curved, Interval, Piece, Value
from verifier.graph.curve import alternating
from verifier.graph.registry import unary_op
from verifier.ops.arithmetic import scale_shift
from verifier.ops.power import power
from verifier.ops.product import multiply, square
from verifier.ops.reciprocal import Reciprocal
from verifier.ops.sigmoid import S_SHAPE
from verifier.ops.trigonometric import Between


@dataclass(frozen=True, eq=False)
class _Hyperbolic(Curved):
    """Where it overflows there are no lines."""

    def usable(self, x: Interval) -> Tensor:
        return x.magnitude < math.log(torch.finfo(x.lower.dtype).max) * 0.9


@unary_op("Sinh", "sinh.default")
@dataclass(frozen=True, eq=False)
class Sinh(_Hyperbolic):
    """The hyperbolic sine: concave, then convex."""

    rising = True

    @property
    def pieces(self) -> tuple[Piece, ...]:
        return alternating([0.0], convex=False)

    def forward(self, *xs: Tensor) -> Tensor:
        return xs[0].sinh()

    def derivative(self, x: Tensor) -> Tensor:
        return x.cosh()

    def touching(self, slope: Tensor, piece: Piece) -> Tensor:
        distance = slope.clamp(1, 1e300 if slope.dtype == torch.float64 else 1e37).acosh()
        return distance if piece.convex else -distance

    def vjp(
        self, builder: Builder, inputs: Sequence[Value], output: Value, cotangent: Value
    ) -> Sequence[Value | None]:
        return [multiply(builder, cotangent, builder.add(Cosh(), inputs[0]))]


@unary_op("Cosh", "cosh.default")
@dataclass(frozen=True, eq=False)
class Cosh(_Hyperbolic):
    """The hyperbolic cosine."""

    bottom, limits = 1.0, (math.inf, math.inf)

    @property
    def pieces(self) -> tuple[Piece, ...]:
        return alternating([], convex=True)

    def forward(self, *xs: Tensor) -> Tensor:
        return xs[0].cosh()

    def derivative(self, x: Tensor) -> Tensor:
        return x.sinh()

    def touching(self, slope: Tensor, piece: Piece) -> Tensor:
        return slope.asinh()

    def vjp(
        self, builder: Builder, inputs: Sequence[Value], output: Value, cotangent: Value
    ) -> Sequence[Value | None]:
        return [multiply(builder, cotangent, builder.add(Sinh(), inputs[0]))]


@unary_op("Asinh", "asinh.default")
@dataclass(frozen=True, eq=False)
class Asinh(Curved):
    """The inverse of the hyperbolic sine."""

    rising = True

    @property
    def pieces(self) -> tuple[Piece, ...]:
        return S_SHAPE

    def forward(self, *xs: Tensor) -> Tensor:
        return xs[0].asinh()

    def derivative(self, x: Tensor) -> Tensor:
        return torch.hypot(x, torch.ones_like(x)).reciprocal()

    def touching(self, slope: Tensor, piece: Piece) -> Tensor:
        slope = slope.clamp(1e-18, 1)
        distance = ((1 - slope) * (1 + slope)).sqrt() / slope
        return -distance if piece.convex else distance

    def vjp(
        self, builder: Builder, inputs: Sequence[Value], output: Value, cotangent: Value
    ) -> Sequence[Value | None]:
        inner = scale_shift(builder, square(builder, inputs[0]), shift=1.0)
        return [multiply(builder, cotangent, power(builder, inner, -0.5))]


@unary_op("Atanh", "atanh.default")
@dataclass(frozen=True, eq=False)
class Atanh(Between):
    """The inverse of the hyperbolic tangent, on (-1, 1)."""

    rising = True

    @property
    def pieces(self) -> tuple[Piece, ...]:
        return Piece(-1.0, 0.0, False), Piece(0.0, 1.0, True)

    def usable(self, x: Interval) -> Tensor:
        return x.magnitude < 1

    def forward(self, *xs: Tensor) -> Tensor:
        return xs[0].atanh()

    def derivative(self, x: Tensor) -> Tensor:
        return ((1 - x) * (1 + x)).reciprocal()

    def touching(self, slope: Tensor, piece: Piece) -> Tensor:
        distance = (1 - slope.clamp(min=1).reciprocal()).sqrt().clamp(max=1 - torch.finfo(slope.dtype).eps)
        return distance if piece.convex else -distance

    def vjp(
        self, builder: Builder, inputs: Sequence[Value], output: Value, cotangent: Value
    ) -> Sequence[Value | None]:
        inner = scale_shift(builder, square(builder, inputs[0]), scale=-1.0, shift=1.0)
        return [multiply(builder, cotangent, builder.add(Reciprocal(), inner))]


@unary_op("Acosh", "acosh.default")
@dataclass(frozen=True, eq=False)
class Acosh(Curved):
    """The inverse of the hyperbolic cosine, from 1 on."""

    bottom, rising, home, units = 0.0, True, 2.0, 16
    valued = (1.0, math.inf)
    domain = "x >= 1"

    def outside(self, *xs: Interval) -> Tensor:
        return xs[0].lower < 1

    @property
    def pieces(self) -> tuple[Piece, ...]:
        return (Piece(1.0, math.inf, False),)

    def usable(self, x: Interval) -> Tensor:
        return x.lower >= 1

    def forward(self, *xs: Tensor) -> Tensor:
        return xs[0].acosh()

    def derivative(self, x: Tensor) -> Tensor:
        return (x - 1).rsqrt() * (x + 1).rsqrt()

    def size(self, x: Tensor, y: Tensor) -> Tensor:
        return y.abs().clamp(max=1e30)

    def slopes(self, x: Interval) -> Interval:
        """Not those next to 1, which have no limit."""
        near = 1 + 1e-3 * (x.upper - 1).clamp(min=1e-3)
        return super().slopes(x.map(lambda t: torch.maximum(t, near)))

    def touching(self, slope: Tensor, piece: Piece) -> Tensor:
        steepest = torch.finfo(slope.dtype).eps ** -0.5
        return torch.hypot(slope.clamp(1e-18, steepest).reciprocal(), torch.ones_like(slope)).clamp(
            min=1 + 2 * torch.finfo(slope.dtype).eps
        )

    def vjp(
        self, builder: Builder, inputs: Sequence[Value], output: Value, cotangent: Value
    ) -> Sequence[Value | None]:
        inner = scale_shift(builder, square(builder, inputs[0]), shift=-1.0)
        return [multiply(builder, cotangent, power(builder, inner, -0.5))]
