"""Normalisation by statistics of the value itself (layer, RMS, group and instance norms, L1 and L2), and norms."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from verifier.graph import Builder, Composite, Value
from verifier.graph.op import Shape
from verifier.graph.registry import OnnxNode, Unsupported, aten_op, onnx_op
from verifier.ops.arithmetic import add, scale_shift, subtract
from verifier.ops.extremum import maximum_over
from verifier.ops.movement import broadcast, reshape
from verifier.ops.piecewise_linear import absolute
from verifier.ops.power import power
from verifier.ops.product import multiply, square
from verifier.ops.reciprocal import Reciprocal
from verifier.ops.reduction import normalised, reduction_axes, total
from verifier.ops.within import within


@dataclass(frozen=True, eq=False)
class Standardised(Composite):
    """x divided by the root of the mean of its squares plus `epsilon` over `axes` (non-negative); where `centered`, the
    mean has been taken from x before.

    Of n numbers none is larger than the root of n (n - 1 where centered) then, whatever their bounds say.
    """

    axes: tuple[int, ...]
    epsilon: float
    centered: bool

    def output_shape(self, *shapes: Shape) -> Shape:
        normalised(self.axes, shapes[0])
        return shapes[0]

    def forward(self, *xs: Tensor) -> Tensor:
        axes = [a + 1 for a in self.axes]
        x = xs[0] - xs[0].mean(axes, keepdim=True) if self.centered else xs[0]
        return x * ((x * x).mean(axes, keepdim=True) + self.epsilon).rsqrt()

    def ordered(self, shape: Shape) -> Tensor:
        groups = [1 if a in self.axes else n for a, n in enumerate(shape)]
        return torch.arange(math.prod(groups)).view(groups).expand(shape)

    def write_out(self, builder: Builder, *xs: Value) -> Value:
        count = math.prod(builder.shape(xs[0])[a] for a in self.axes)
        x = self.numerator(builder, xs[0])
        most = math.sqrt(count - 1 if self.centered else count)
        return within(builder, multiply(builder, x, self._root(builder, x, self.axes, -0.5)), -most, most)

    def numerator(self, builder: Builder, x: Value) -> Value:
        """What is divided: x, less its mean where that is taken."""
        if not self.centered:
            return x
        return subtract(builder, x, total(builder, x, self.axes, keep=True, mean=True))

    def deviation(self, builder: Builder, numerator: Value, axes: Sequence[int]) -> Value:
        """What (a part of) the numerator is divided by, with 1 in place of each of the axes."""
        return self._root(builder, numerator, axes, 0.5)

    def _root(self, builder: Builder, x: Value, axes: Sequence[int], exponent: float) -> Value:
        mean = within(builder, total(builder, square(builder, x), axes, keep=True, mean=True), 0.0, math.inf)
        return power(builder, scale_shift(builder, mean, shift=self.epsilon), exponent)


def standardised(
    builder: Builder, x: Value, axes: Sequence[int], epsilon: float, centered: bool = True
) -> Value:
    return builder.add(Standardised(normalised(axes, builder.shape(x)), float(epsilon), centered), x)


def scaled(builder: Builder, x: Value, scale: Value | None, shift: Value | None) -> Value:
    """scale * x + shift with broadcasting; both may be missing."""
    y = x if scale is None else multiply(builder, x, scale)
    return y if shift is None else add(builder, y, shift)


def norm(builder: Builder, x: Value, axes: Sequence[int], order: float, keep: bool) -> Value:
    """The norm of the given order, 1, 2 or infinity, over some axes. Raises Unsupported for others."""
    if order == math.inf:
        return maximum_over(builder, absolute(builder, x), axes, keep)
    if order == 1:
        return total(builder, absolute(builder, x), axes, keep)
    if order != 2:
        raise Unsupported(f"a norm of order {order}")
    squares = total(builder, square(builder, x), axes, keep)
    return power(builder, within(builder, squares, 0.0, math.inf), 0.5)


def group_norm(
    builder: Builder, x: Value, groups: int, scale: Value | None, shift: Value | None, epsilon: float
) -> Value:
    """[N, C, ...] standardised over each of `groups` groups of channels, then scaled and shifted per channel."""
    shape = builder.shape(x)
    if len(shape) < 2 or shape[1] % groups:
        raise ValueError(f"A value of shape {shape} has no {groups} groups of channels.")
    parts = reshape(builder, x, (shape[0], groups, math.prod(shape[1:]) // groups))
    y = reshape(builder, standardised(builder, parts, [2], epsilon), shape)
    return scaled(builder, y, *[_per_channel(builder, t, len(shape)) for t in (scale, shift)])


def _per_channel(builder: Builder, x: Value | None, rank: int) -> Value | None:
    return None if x is None else reshape(builder, x, (-1, *[1] * (rank - 2)))


@onnx_op("LayerNormalization", "RMSNormalization", note="the first output")
def _layer_normalization(builder: Builder, node: OnnxNode) -> Value:
    if node.used - {0}:
        raise Unsupported("its mean or standard deviation is used")
    x, rank = node.required(0), len(builder.shape(node.required(0)))
    axes = range(node.attributes.get("axis", -1) % rank, rank)
    centered = node.op_type == "LayerNormalization"
    y = standardised(builder, x, list(axes), node.attributes.get("epsilon", 1e-5), centered)
    return scaled(builder, y, node.required(1), node.input(2))


@onnx_op("InstanceNormalization")
def _instance_normalization(builder: Builder, node: OnnxNode) -> Value:
    x = node.required(0)
    groups = builder.shape(x)[1]
    epsilon = node.attributes.get("epsilon", 1e-5)
    return group_norm(builder, x, groups, node.required(1), node.required(2), epsilon)


@onnx_op("GroupNormalization")
def _group_normalization(builder: Builder, node: OnnxNode) -> Value:
    """Before opset 21 scale and shift belong to groups instead of channels."""
    x, groups = node.required(0), node.attributes["num_groups"]
    scale, shift = node.required(1), node.required(2)
    each = builder.shape(x)[1] // groups
    if node.opset < 21:
        scale, shift = (
            reshape(builder, broadcast(builder, reshape(builder, t, (groups, 1)), (groups, each)), (-1,))
            for t in (scale, shift)
        )
    return group_norm(builder, x, groups, scale, shift, node.attributes.get("epsilon", 1e-5))


@onnx_op("MeanVarianceNormalization")
def _mean_variance_normalization(builder: Builder, node: OnnxNode) -> Value:
    """The standard deviation is kept from zero by 1e-9."""
    x = node.required(0)
    axes = normalised(node.attributes.get("axes", [0, 2, 3]), builder.shape(x))
    x = subtract(builder, x, total(builder, x, axes, keep=True, mean=True))
    mean = total(builder, square(builder, x), axes, keep=True, mean=True)
    deviation = power(builder, within(builder, mean, 0.0, math.inf), 0.5)
    scale = builder.add(Reciprocal(), scale_shift(builder, deviation, shift=1e-9))
    most = math.sqrt(math.prod(builder.shape(x)[a] for a in axes) - 1)
    return within(builder, multiply(builder, x, scale), -most, most)


@onnx_op("LpNormalization")
def _lp_normalization(builder: Builder, node: OnnxNode) -> Value:
    x = node.required(0)
    size = norm(builder, x, [node.attributes.get("axis", -1)], node.attributes.get("p", 2), keep=True)
    return within(builder, multiply(builder, x, builder.add(Reciprocal(), size)), -1.0, 1.0)


@onnx_op("ReduceL1", "ReduceL2", "ReduceSumSquare")
def _reduce(builder: Builder, node: OnnxNode) -> Value:
    x, keep = node.required(0), bool(node.attributes.get("keepdims", 1))
    axes = reduction_axes(builder, node)
    if node.op_type == "ReduceSumSquare":
        return total(builder, square(builder, x), axes, keep)
    return norm(builder, x, axes, 1 if node.op_type == "ReduceL1" else 2, keep)


@aten_op("layer_norm.default")
def _aten_layer_norm(
    builder: Builder,
    x: Value,
    normalized_shape: Sequence[int],
    weight: Value | None = None,
    bias: Value | None = None,
    eps: float = 1e-5,
    cudnn_enable: bool = True,
) -> Value:
    rank = len(builder.shape(x))
    axes = list(range(rank - len(normalized_shape), rank))
    return scaled(builder, standardised(builder, x, axes, eps), weight, bias)


@aten_op("native_layer_norm.default")
def _aten_native_layer_norm(
    builder: Builder, x: Value, shape: Sequence[int], weight: Value | None, bias: Value | None, eps: float
) -> tuple[Value]:
    return (_aten_layer_norm(builder, x, shape, weight, bias, eps),)


@aten_op("rms_norm.default")
def _aten_rms_norm(
    builder: Builder,
    x: Value,
    normalized_shape: Sequence[int],
    weight: Value | None = None,
    eps: float | None = None,
) -> Value:
    """Without an epsilon torch takes that of the argument's type, float32."""
    rank = len(builder.shape(x))
    axes = list(range(rank - len(normalized_shape), rank))
    epsilon = torch.finfo(torch.float32).eps if eps is None else eps
    return scaled(builder, standardised(builder, x, axes, epsilon, centered=False), weight, None)


@aten_op("group_norm.default")
def _aten_group_norm(
    builder: Builder,
    x: Value,
    num_groups: int,
    weight: Value | None = None,
    bias: Value | None = None,
    eps: float = 1e-5,
    cudnn_enabled: bool = True,
) -> Value:
    return group_norm(builder, x, num_groups, weight, bias, eps)


@aten_op("instance_norm.default")
def _aten_instance_norm(
    builder: Builder,
    x: Value,
    weight: Value | None,
    bias: Value | None,
    running_mean: Value | None,
    running_var: Value | None,
    use_input_stats: bool,
    momentum: float,
    eps: float,
    cudnn_enabled: bool = True,
) -> Value:
    if not use_input_stats:
        raise Unsupported("running statistics of an instance norm")
    return group_norm(builder, x, builder.shape(x)[1], weight, bias, eps)


@aten_op("linalg_vector_norm.default")
def _aten_vector_norm(
    builder: Builder,
    x: Value,
    ord: float = 2,
    dim: Sequence[int] | None = None,
    keepdim: bool = False,
    dtype: object = None,
) -> Value:
    return norm(builder, x, list(dim or range(len(builder.shape(x)))), ord, keepdim)


@aten_op("norm.ScalarOpt_dim")
def _aten_norm(
    builder: Builder, x: Value, p: float | None, dim: Sequence[int], keepdim: bool = False
) -> Value:
    return norm(builder, x, list(dim), 2 if p is None else p, keepdim)


@aten_op("var.correction")
def _aten_variance(
    builder: Builder,
    x: Value,
    dim: Sequence[int] | None = None,
    *,
    correction: float | None = None,
    keepdim: bool = False,
) -> Value:
    axes = normalised(list(dim or range(len(builder.shape(x)))), builder.shape(x))
    count = math.prod(builder.shape(x)[a] for a in axes) - (1 if correction is None else correction)
    if count <= 0:
        raise Unsupported("a variance of too few numbers")
    gaps = subtract(builder, x, total(builder, x, axes, keep=True, mean=True))
    squares = total(builder, square(builder, gaps), axes, keepdim)
    return within(builder, scale_shift(builder, squares, scale=1.0 / count), 0.0, math.inf)
