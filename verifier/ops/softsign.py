"""Softsign."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from verifier.graph import Builder, Curved, Piece, Value
from verifier.graph.registry import unary_op
from verifier.ops.product import multiply
from verifier.ops.sigmoid import S_SHAPE


@unary_op("Softsign", "softsign.default")
@dataclass(frozen=True, eq=False)
class Softsign(Curved):
    """x / (1 + |x|)."""

    bottom, top, limits, rising = -1.0, 1.0, (-1.0, 1.0), True

    @property
    def pieces(self) -> tuple[Piece, ...]:
        return S_SHAPE

    def forward(self, *xs: Tensor) -> Tensor:
        return xs[0].clamp(-1e30, 1e30) / (1 + xs[0].clamp(-1e30, 1e30).abs())

    def derivative(self, x: Tensor) -> Tensor:
        return (1 + x.abs()).reciprocal().square()

    def touching(self, slope: Tensor, piece: Piece) -> Tensor:
        distance = slope.clamp(min=torch.finfo(slope.dtype).tiny).rsqrt() - 1
        return -distance if piece.convex else distance

    def vjp(
        self, builder: Builder, inputs: Sequence[Value], output: Value, cotangent: Value
    ) -> Sequence[Value | None]:
        return [multiply(builder, cotangent, builder.add(SoftsignDerivative(1), inputs[0]))]


@dataclass(frozen=True, eq=False)
class SoftsignDerivative(Curved):
    """The first derivative, 1 / (1 + |x|)^2, and the second, which jumps at 0 from 2 to -2."""

    order: int
    limits = (0.0, 0.0)
    units = 24

    @property
    def jumps(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.order == 2

    @property
    def no_derivative(self) -> str:  # pyright: ignore[reportIncompatibleVariableOverride]
        return "it jumps at 0, where there is no derivative" if self.jumps else ""

    @property
    def top(self) -> float:  # pyright: ignore[reportIncompatibleVariableOverride]
        return float(self.order)

    @property
    def bottom(self) -> float:  # pyright: ignore[reportIncompatibleVariableOverride]
        return 0.0 if self.order == 1 else -2.0

    @property
    def pieces(self) -> tuple[Piece, ...]:
        """The derivative of a concave piece is that of its side, also at 0."""
        return Piece(-math.inf, 0.0, True), Piece(0.0, math.inf, self.order == 1)

    def _of(self, x: Tensor, order: int) -> Tensor:
        size = math.factorial(order) * (1 + x.abs()).pow(-(order + 1))
        if order % 2:
            return size
        return torch.where(x >= 0, -size, size)

    def forward(self, *xs: Tensor) -> Tensor:
        return self._of(xs[0], self.order)

    def derivative(self, x: Tensor) -> Tensor:
        return self._of(x, self.order + 1)

    def touching(self, slope: Tensor, piece: Piece) -> Tensor:
        """Beyond the end where the slope has a sign that the piece has not."""
        rises = self.order == 2 or piece.start != 0.0
        size = (slope if rises else -slope).clamp(min=torch.finfo(slope.dtype).tiny)
        distance = (math.factorial(self.order + 1) / size).pow(1 / (self.order + 2)) - 1
        return distance if piece.start == 0.0 else -distance

    def vjp(
        self, builder: Builder, inputs: Sequence[Value], output: Value, cotangent: Value
    ) -> Sequence[Value | None]:
        return [multiply(builder, cotangent, builder.add(SoftsignDerivative(self.order + 1), inputs[0]))]
