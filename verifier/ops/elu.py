"""Elu, with Selu and Celu as scaled forms of it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from verifier.graph import Builder, Curved, Piece, Value
from verifier.graph.registry import OnnxNode, Unsupported, aten_op, onnx_op
from verifier.ops.arithmetic import scale_shift, subtract
from verifier.ops.piecewise_linear import relu
from verifier.ops.product import multiply
from verifier.ops.step import Step


@dataclass(frozen=True, eq=False)
class Elu(Curved):
    """x above zero, alpha (e^x - 1) below."""

    alpha: float = 1.0

    @property
    def bottom(self) -> float:  # pyright: ignore[reportIncompatibleVariableOverride]
        return min(-self.alpha, 0.0)

    @property
    def limits(self) -> tuple[float, float]:  # pyright: ignore[reportIncompatibleVariableOverride]
        return -self.alpha, math.inf

    @property
    def rising(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.alpha >= 0

    @property
    def pieces(self) -> tuple[Piece, ...]:
        return Piece(-math.inf, 0.0, self.alpha >= 0), Piece(0.0, math.inf, True, straight=True)

    def forward(self, *xs: Tensor) -> Tensor:
        return torch.where(xs[0] > 0, xs[0], self.alpha * xs[0].clamp(max=0).expm1())

    def derivative(self, x: Tensor) -> Tensor:
        return torch.where(x > 0, torch.ones_like(x), self.alpha * x.clamp(max=0).exp())

    def touching(self, slope: Tensor, piece: Piece) -> Tensor:
        """On the curved side."""
        return (slope / (self.alpha or 1.0)).clamp(min=torch.finfo(slope.dtype).tiny).log()

    def vjp(
        self, builder: Builder, inputs: Sequence[Value], output: Value, cotangent: Value
    ) -> Sequence[Value | None]:
        return [multiply(builder, cotangent, builder.add(EluDerivative(self.alpha), inputs[0]))]


@dataclass(frozen=True, eq=False)
class EluDerivative(Curved):
    """1 above zero, alpha e^x below; at zero, where it jumps unless alpha is 1, bounds hold both sides."""

    alpha: float = 1.0

    @property
    def jumps(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.alpha != 1

    @property
    def no_derivative(self) -> str:  # pyright: ignore[reportIncompatibleVariableOverride]
        return "it jumps at 0, where there is no derivative" if self.jumps else ""

    @property
    def limits(self) -> tuple[float, float]:  # pyright: ignore[reportIncompatibleVariableOverride]
        return 0.0, 1.0

    @property
    def bottom(self) -> float:  # pyright: ignore[reportIncompatibleVariableOverride]
        return min(self.alpha, 0.0)

    @property
    def top(self) -> float:  # pyright: ignore[reportIncompatibleVariableOverride]
        return max(self.alpha, 1.0)

    @property
    def pieces(self) -> tuple[Piece, ...]:
        return Piece(-math.inf, 0.0, self.alpha >= 0), Piece(0.0, math.inf, True, straight=True)

    def forward(self, *xs: Tensor) -> Tensor:
        return torch.where(xs[0] > 0, torch.ones_like(xs[0]), self.alpha * xs[0].clamp(max=0).exp())

    def derivative(self, x: Tensor) -> Tensor:
        return torch.where(x > 0, torch.zeros_like(x), self.alpha * x.clamp(max=0).exp())

    def touching(self, slope: Tensor, piece: Piece) -> Tensor:
        return (slope / (self.alpha or 1.0)).clamp(min=torch.finfo(slope.dtype).tiny).log()

    def vjp(
        self, builder: Builder, inputs: Sequence[Value], output: Value, cotangent: Value
    ) -> Sequence[Value | None]:
        """e^x below zero and 0 above: the derivative itself, less the step."""
        levels = torch.tensor([0.0, 1.0], dtype=torch.float64)
        step = builder.add(Step(torch.zeros(1, dtype=torch.float64), levels), inputs[0])
        return [multiply(builder, cotangent, subtract(builder, output, step))]


def elu(builder: Builder, x: Value, alpha: float = 1.0, rate: float = 1.0, scale: float = 1.0) -> Value:
    """scale * x above zero, scale * alpha (e^(rate x) - 1) below; rate > 0."""
    if rate <= 0:
        raise Unsupported(f"an input scale of {rate:g}, which must be positive")
    if alpha == 0:
        y = relu(builder, x)
    else:
        inner = x if rate == 1 else scale_shift(builder, x, scale=rate)
        y = builder.add(Elu(alpha * rate), inner)
        scale = scale / rate
    return y if scale == 1 else scale_shift(builder, y, scale=scale)


@onnx_op("Elu")
def _elu(builder: Builder, node: OnnxNode) -> Value:
    return elu(builder, node.required(0), float(node.attributes.get("alpha", 1.0)))


@onnx_op("Selu")
def _selu(builder: Builder, node: OnnxNode) -> Value:
    alpha = float(node.attributes.get("alpha", 1.67326319217681884765625))
    gamma = float(node.attributes.get("gamma", 1.05070102214813232421875))
    return elu(builder, node.required(0), alpha, scale=gamma)


@onnx_op("Celu")
def _celu(builder: Builder, node: OnnxNode) -> Value:
    return celu(builder, node.required(0), float(node.attributes.get("alpha", 1.0)))


def celu(builder: Builder, x: Value, alpha: float) -> Value:
    if alpha <= 0:
        raise Unsupported(f"alpha = {alpha:g}, which must be positive")
    return elu(builder, x, alpha, rate=1 / alpha)


@aten_op("elu.default", "elu_.default")
def _aten_elu(
    builder: Builder, x: Value, alpha: float = 1, scale: float = 1, input_scale: float = 1
) -> Value:
    return elu(builder, x, float(alpha), float(input_scale), float(scale))


@aten_op("selu.default", "selu_.default")
def _aten_selu(builder: Builder, x: Value) -> Value:
    return elu(builder, x, 1.6732632423543772848170429916717, scale=1.0507009873554804934193349852946)


@aten_op("celu.default", "celu_.default")
def _aten_celu(builder: Builder, x: Value, alpha: float = 1) -> Value:
    return celu(builder, x, float(alpha))
