"""Sigmoid and Tanh, and all derivatives of them."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from verifier.graph import Builder, Curved, Piece, Value
from verifier.graph.curve import alternating
from verifier.graph.registry import unary_op
from verifier.ops.arithmetic import scale_shift
from verifier.ops.product import multiply

S_SHAPE = alternating([0.0], convex=True)


@dataclass(frozen=True, eq=False)
class Sigmoid(Curved):
    """1 / (1 + e^-x)."""

    bottom, top, limits, rising = 0.0, 1.0, (0.0, 1.0), True

    @property
    def pieces(self) -> tuple[Piece, ...]:
        return S_SHAPE

    def forward(self, *xs: Tensor) -> Tensor:
        return xs[0].sigmoid()

    def derivative(self, x: Tensor) -> Tensor:
        return x.sigmoid() * (-x).sigmoid()

    def touching(self, slope: Tensor, piece: Piece) -> Tensor:
        slope = slope.clamp(min=torch.finfo(slope.dtype).tiny)
        point = 2 * (1 - 4 * slope).clamp(min=0).sqrt().log1p() - (4 * slope).log()
        return -point if piece.convex else point

    def vjp(
        self, builder: Builder, inputs: Sequence[Value], output: Value, cotangent: Value
    ) -> Sequence[Value | None]:
        return [multiply(builder, cotangent, builder.add(SigmoidDerivative(1), inputs[0]))]


@dataclass(frozen=True, eq=False)
class Tanh(Curved):
    """The hyperbolic tangent."""

    bottom, top, limits, rising = -1.0, 1.0, (-1.0, 1.0), True

    @property
    def pieces(self) -> tuple[Piece, ...]:
        return S_SHAPE

    def forward(self, *xs: Tensor) -> Tensor:
        return xs[0].tanh()

    def derivative(self, x: Tensor) -> Tensor:
        return 4 * (2 * x).sigmoid() * (-2 * x).sigmoid()

    def touching(self, slope: Tensor, piece: Piece) -> Tensor:
        slope = slope.clamp(min=torch.finfo(slope.dtype).tiny)
        point = (1 - slope).clamp(min=0).sqrt().log1p() - slope.log() / 2
        return -point if piece.convex else point

    def vjp(
        self, builder: Builder, inputs: Sequence[Value], output: Value, cotangent: Value
    ) -> Sequence[Value | None]:
        """tanh'(x) = 4 sigmoid'(2 x)."""
        double = scale_shift(builder, inputs[0], scale=2.0)
        steep = scale_shift(builder, builder.add(SigmoidDerivative(1), double), scale=4.0)
        return [multiply(builder, cotangent, steep)]


@dataclass(frozen=True, eq=False)
class SigmoidDerivative(Curved):
    """The derivative of the sigmoid of an order from 1 on: (1 - t t) R(t), t = tanh(x / 2), R a polynomial."""

    order: int
    limits = (0.0, 0.0)
    units = 24
    reach = 750.0

    @cached_property
    def bottom(self) -> float:  # pyright: ignore[reportIncompatibleVariableOverride]
        return 0.0 if self.order == 1 else -math.inf

    @cached_property
    def top(self) -> float:  # pyright: ignore[reportIncompatibleVariableOverride]
        return 0.25 if self.order == 1 else math.inf

    @cached_property
    def pieces(self) -> tuple[Piece, ...]:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Between the zeros of the derivative two orders on."""
        roots = np.sort(np.roots(_polynomial(self.order + 2)[::-1]).real)
        knots = [0.0 if abs(t) < 1e-9 else 2 * math.atanh(t) for t in roots]
        return alternating(knots, convex=True)

    def forward(self, *xs: Tensor) -> Tensor:
        return _evaluate(xs[0], _polynomial(self.order))

    def derivative(self, x: Tensor) -> Tensor:
        return _evaluate(x, _polynomial(self.order + 1))

    def size(self, x: Tensor, y: Tensor) -> Tensor:
        return _evaluate(x, _polynomial(self.order), absolute=True)

    def steepness(self, x: Tensor, d: Tensor) -> Tensor:
        return _evaluate(x, _polynomial(self.order + 1), absolute=True)

    def vjp(
        self, builder: Builder, inputs: Sequence[Value], output: Value, cotangent: Value
    ) -> Sequence[Value | None]:
        return [multiply(builder, cotangent, builder.add(SigmoidDerivative(self.order + 1), inputs[0]))]


@functools.cache
def _polynomial(order: int) -> tuple[float, ...]:
    """Coefficients of R, lowest first: (1 - t t) R differentiates to (1 - t t) ((1 - t t) R' - 2 t R) / 2."""
    r = np.polynomial.Polynomial([0.25])
    t = np.polynomial.Polynomial([0.0, 1.0])
    for _ in range(order - 1):
        r = ((1 - t * t) * r.deriv() - 2 * t * r) / 2
    return tuple(float(c) for c in r.coef)


def _evaluate(x: Tensor, polynomial: Sequence[float], absolute: bool = False) -> Tensor:
    t = (x / 2).tanh()
    if absolute:
        t, polynomial = t.abs(), tuple(abs(c) for c in polynomial)
    value = torch.full_like(x, polynomial[-1])
    for c in polynomial[-2::-1]:
        value = value * t + c
    return 4 * x.sigmoid() * (-x).sigmoid() * value


@unary_op("Sigmoid", "sigmoid.default")
def sigmoid(builder: Builder, x: Value) -> Value:
    return builder.add(Sigmoid(), x)


@unary_op("Tanh", "tanh.default")
def tanh(builder: Builder, x: Value) -> Value:
    return builder.add(Tanh(), x)
