"""Sinh and Cosh."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from verifier.graph import Builder, Curved, Interval, Piece, Value
from verifier.graph.curve import alternating
from verifier.graph.registry import OnnxNode, aten_op, onnx_op
from verifier.ops.product import multiply


@dataclass(frozen=True, eq=False)
class _Hyperbolic(Curved):
    """Where it overflows there are no lines."""

    def usable(self, x: Interval) -> Tensor:
        return x.magnitude < math.log(torch.finfo(x.lower.dtype).max) * 0.9


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


@onnx_op("Sinh")
def _sinh(builder: Builder, node: OnnxNode) -> Value:
    return builder.add(Sinh(), node.required(0))


@onnx_op("Cosh")
def _cosh(builder: Builder, node: OnnxNode) -> Value:
    return builder.add(Cosh(), node.required(0))


@aten_op("sinh.default")
def _aten_sinh(builder: Builder, x: Value) -> Value:
    return builder.add(Sinh(), x)


@aten_op("cosh.default")
def _aten_cosh(builder: Builder, x: Value) -> Value:
    return builder.add(Cosh(), x)
