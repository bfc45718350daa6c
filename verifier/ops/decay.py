"""Decays as gated recurrences have them, of one number each: sigmoid(x)^c, e^(c sigmoid(x)) and exp(-e^x).

`transforms/fuse.py` finds them in chains of operators, such as exp(-c softplus(-x)).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from torch import Tensor

from verifier.graph import Builder, Curved, Piece, Value
from verifier.graph.curve import alternating
from verifier.ops.arithmetic import add, negate, scale_shift
from verifier.ops.exponential import Exp
from verifier.ops.product import multiply
from verifier.ops.sigmoid import Sigmoid
from verifier.ops.softplus import Softplus

_FAR = 1e4
"""An exponent of which the exponential is zero."""


@dataclass(frozen=True, eq=False)
class SigmoidPower(Curved):
    """sigmoid(x)^exponent, for an exponent above zero."""

    exponent: float
    bottom, top, limits, rising, units = 0.0, 1.0, (0.0, 1.0), True, 16

    @property
    def reach(self) -> float:  # pyright: ignore[reportIncompatibleVariableOverride]
        return 40.0 * max(1.0, 1 / self.exponent)

    @cached_property
    def pieces(self) -> tuple[Piece, ...]:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The second derivative is zero where sigmoid(x) = exponent / (1 + exponent)."""
        return alternating([math.log(self.exponent)], convex=True)

    def _decay(self, x: Tensor) -> Tensor:
        """Minus the logarithm."""
        return self.exponent * Softplus().forward(-x)

    def forward(self, *xs: Tensor) -> Tensor:
        return (-self._decay(xs[0])).exp()

    def derivative(self, x: Tensor) -> Tensor:
        return self.exponent * self.forward(x) * (-x).sigmoid()

    def size(self, x: Tensor, y: Tensor) -> Tensor:
        return y * (1 + self._decay(x).clamp(max=_FAR))

    def steepness(self, x: Tensor, d: Tensor) -> Tensor:
        return self.size(x, d.abs())

    def vjp(
        self, builder: Builder, inputs: Sequence[Value], output: Value, cotangent: Value
    ) -> Sequence[Value | None]:
        rest = builder.add(Sigmoid(), negate(builder, inputs[0]))
        return [multiply(builder, cotangent, _scaled(builder, output, rest, self.exponent))]


@dataclass(frozen=True, eq=False)
class ExpSigmoid(Curved):
    """e^(rate sigmoid(x)), for a rate that is not zero."""

    rate: float
    units = 16

    @property
    def rising(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.rate > 0

    @property
    def bottom(self) -> float:  # pyright: ignore[reportIncompatibleVariableOverride]
        return min(1.0, self._end)

    @property
    def top(self) -> float:  # pyright: ignore[reportIncompatibleVariableOverride]
        return max(1.0, self._end)

    @property
    def limits(self) -> tuple[float, float]:  # pyright: ignore[reportIncompatibleVariableOverride]
        return (1.0, self._end)

    @property
    def _end(self) -> float:
        """Just beyond e^rate, which no value reaches."""
        return math.exp(self.rate) * (1 + math.copysign(1e-6, self.rate))

    @cached_property
    def pieces(self) -> tuple[Piece, ...]:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The second derivative is zero where rate s (1 - s) + 1 - 2 s = 0 for s = sigmoid(x)."""
        s = 1 / (math.hypot(self.rate / 2, 1) - self.rate / 2 + 1)
        return alternating([math.log(s) - math.log1p(-s)], convex=self.rate > 0)

    def forward(self, *xs: Tensor) -> Tensor:
        return (self.rate * xs[0].sigmoid()).exp()

    def derivative(self, x: Tensor) -> Tensor:
        return self.rate * x.sigmoid() * (-x).sigmoid() * self.forward(x)

    def size(self, x: Tensor, y: Tensor) -> Tensor:
        return y * (1 + abs(self.rate) * x.sigmoid())

    def steepness(self, x: Tensor, d: Tensor) -> Tensor:
        return self.size(x, d.abs())

    def vjp(
        self, builder: Builder, inputs: Sequence[Value], output: Value, cotangent: Value
    ) -> Sequence[Value | None]:
        x = inputs[0]
        s, rest = (builder.add(Sigmoid(), t) for t in (x, negate(builder, x)))
        steep = _scaled(builder, output, multiply(builder, s, rest), self.rate)
        return [multiply(builder, cotangent, steep)]


@dataclass(frozen=True, eq=False)
class Gompertz(Curved):
    """exp(-e^x)."""

    bottom, top, limits, units = 0.0, 1.0, (1.0, 0.0), 16

    @property
    def pieces(self) -> tuple[Piece, ...]:
        return alternating([0.0], convex=False)

    def forward(self, *xs: Tensor) -> Tensor:
        return (-xs[0].exp()).exp()

    def derivative(self, x: Tensor) -> Tensor:
        return -(x - x.exp()).exp()

    def size(self, x: Tensor, y: Tensor) -> Tensor:
        return y * (1 + x.exp().clamp(max=_FAR))

    def steepness(self, x: Tensor, d: Tensor) -> Tensor:
        return d.abs() * (1 + x.abs().clamp(max=_FAR) + x.exp().clamp(max=_FAR))

    def vjp(
        self, builder: Builder, inputs: Sequence[Value], output: Value, cotangent: Value
    ) -> Sequence[Value | None]:
        """-exp(x - e^x) lies between -1/e and 0."""
        x = inputs[0]
        steep = builder.add(Exp(), add(builder, x, negate(builder, builder.add(Exp(), x))))
        return [multiply(builder, cotangent, negate(builder, steep))]


def _scaled(builder: Builder, a: Value, b: Value, scale: float) -> Value:
    return scale_shift(builder, multiply(builder, a, b), scale=scale)
