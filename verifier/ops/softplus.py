"""Softplus, and LogSigmoid, which is its mirror image."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from verifier.graph import Builder, Curved, Piece, Value
from verifier.graph.curve import alternating
from verifier.graph.registry import Unsupported, aten_op, unary_op
from verifier.ops.arithmetic import negate, scale_shift
from verifier.ops.product import multiply
from verifier.ops.sigmoid import Sigmoid


@dataclass(frozen=True, eq=False)
class Softplus(Curved):
    """log(1 + e^x); beyond `threshold`, x itself, as torch has it: a jump down that the bounds count as an error."""

    threshold: float = math.inf
    bottom, limits = 0.0, (0.0, math.inf)

    @property
    def rising(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        return math.isinf(self.threshold)

    @property
    def pieces(self) -> tuple[Piece, ...]:
        return alternating([], convex=True)

    def forward(self, *xs: Tensor) -> Tensor:
        y = xs[0].clamp(min=0) + (-xs[0].abs()).exp().log1p()
        return y if math.isinf(self.threshold) else torch.where(xs[0] > self.threshold, xs[0], y)

    def derivative(self, x: Tensor) -> Tensor:
        return x.sigmoid()

    def error(self, x: Tensor, y: Tensor) -> Tensor:
        known = super().error(x, y)
        return known if math.isinf(self.threshold) else known + 1.01 * math.log1p(math.exp(-self.threshold))

    def touching(self, slope: Tensor, piece: Piece) -> Tensor:
        info = torch.finfo(slope.dtype)
        slope = slope.clamp(info.tiny, 1 - info.eps / 2)
        return slope.log() - (-slope).log1p()

    def vjp(
        self, builder: Builder, inputs: Sequence[Value], output: Value, cotangent: Value
    ) -> Sequence[Value | None]:
        """The sigmoid, in doubt by what it misses of 1 beyond the threshold."""
        steep = builder.add(Sigmoid(), inputs[0])
        if not math.isinf(self.threshold):
            doubt = torch.tensor(1 / (1 + math.exp(self.threshold)), dtype=torch.float64)
            steep = scale_shift(builder, steep, shift=0.0, doubt=doubt)
        return [multiply(builder, cotangent, steep)]


@unary_op("Softplus")
def softplus(builder: Builder, x: Value, beta: float = 1.0, threshold: float = math.inf) -> Value:
    """log(1 + e^(beta x)) / beta, and x where beta x is above the threshold."""
    if beta == 0:
        raise Unsupported("beta is zero")
    inner = builder.add(Softplus(threshold), x if beta == 1 else scale_shift(builder, x, scale=beta))
    return inner if beta == 1 else scale_shift(builder, inner, scale=1 / beta)


@unary_op("log_sigmoid.default")
def log_sigmoid(builder: Builder, x: Value) -> Value:
    return negate(builder, softplus(builder, negate(builder, x)))


@aten_op("softplus.default")
def _aten_softplus(builder: Builder, x: Value, beta: float = 1, threshold: float = 20) -> Value:
    return softplus(builder, x, float(beta), float(threshold))


@aten_op("log_sigmoid_forward.default")
def _aten_log_sigmoid_forward(builder: Builder, x: Value) -> list[Value]:
    return [log_sigmoid(builder, x), x]
