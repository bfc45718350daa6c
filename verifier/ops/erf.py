"""Erf, and polynomials times a Gaussian, which its derivatives are."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from verifier.graph import Builder, Curved, Piece, Value
from verifier.graph.curve import alternating
from verifier.graph.registry import aten_op, unary_op
from verifier.ops.arithmetic import scale_shift
from verifier.ops.product import multiply
from verifier.ops.sigmoid import S_SHAPE

_PEAK = 2 / math.sqrt(math.pi)


@unary_op("Erf", "erf.default")
@dataclass(frozen=True, eq=False)
class Erf(Curved):
    """The error function."""

    bottom, top, limits, rising = -1.0, 1.0, (-1.0, 1.0), True

    @property
    def pieces(self) -> tuple[Piece, ...]:
        return S_SHAPE

    def forward(self, *xs: Tensor) -> Tensor:
        return xs[0].erf()

    def derivative(self, x: Tensor) -> Tensor:
        return _PEAK * (-x * x).exp()

    def steepness(self, x: Tensor, d: Tensor) -> Tensor:
        """The exponent is rounded before it is raised."""
        return d * (1 + (x * x).clamp(max=1e3))

    def touching(self, slope: Tensor, piece: Piece) -> Tensor:
        slope = slope.clamp(min=torch.finfo(slope.dtype).tiny)
        distance = (-(slope / _PEAK).log()).clamp(min=0).sqrt()
        return -distance if piece.convex else distance

    def vjp(
        self, builder: Builder, inputs: Sequence[Value], output: Value, cotangent: Value
    ) -> Sequence[Value | None]:
        return [multiply(builder, cotangent, builder.add(Bell((_PEAK,)), inputs[0]))]


@dataclass(frozen=True, eq=False)
class Bell(Curved):
    """P(x) e^(-x x) for a polynomial P, `coefficients` lowest first, all of whose derivatives have real zeros only."""

    coefficients: tuple[float, ...]
    limits = (0.0, 0.0)
    units = 16
    reach = 28.0

    @cached_property
    def pieces(self) -> tuple[Piece, ...]:  # pyright: ignore[reportIncompatibleVariableOverride]
        p = np.polynomial.Polynomial(self._differentiated(2))
        knots = sorted(float(r) for r in p.roots().real)
        leading = p.coef[-1] * (-1) ** (len(p.coef) - 1)
        return alternating(knots, convex=bool(leading > 0))

    def _differentiated(self, times: int) -> tuple[float, ...]:
        p, x = np.polynomial.Polynomial(self.coefficients), np.polynomial.Polynomial([0.0, 1.0])
        for _ in range(times):
            p = p.deriv() - 2 * x * p
        return tuple(float(c) for c in p.coef)

    @cached_property
    def _steep(self) -> tuple[float, ...]:
        return self._differentiated(1)

    def forward(self, *xs: Tensor) -> Tensor:
        return _bell(xs[0], self.coefficients)

    def derivative(self, x: Tensor) -> Tensor:
        return _bell(x, self._steep)

    def size(self, x: Tensor, y: Tensor) -> Tensor:
        return _bell(x.abs(), [abs(c) for c in self.coefficients]) * (1 + (x * x).clamp(max=1e3))

    def steepness(self, x: Tensor, d: Tensor) -> Tensor:
        return _bell(x.abs(), [abs(c) for c in self._steep]) * (1 + (x * x).clamp(max=1e3))

    def vjp(
        self, builder: Builder, inputs: Sequence[Value], output: Value, cotangent: Value
    ) -> Sequence[Value | None]:
        return [multiply(builder, cotangent, builder.add(Bell(self._steep), inputs[0]))]


def _bell(x: Tensor, coefficients: Sequence[float]) -> Tensor:
    """Nothing is left of it beyond 50."""
    x = x.clamp(-50, 50)
    value = torch.full_like(x, coefficients[-1])
    for c in coefficients[-2::-1]:
        value = value * x + c
    return value * (-x * x).exp()


@aten_op("erfc.default")
def _aten_erfc(builder: Builder, x: Value) -> Value:
    return scale_shift(builder, builder.add(Erf(), x), scale=-1.0, shift=1.0)
