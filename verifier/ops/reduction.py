"""Sums and means over dimensions, and running sums: ReduceSum, ReduceMean, GlobalAveragePool, CumSum."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from verifier.graph import Affine, Builder, Value
from verifier.graph.coefficients import SPARSE, Coefficients, Dense, Factored, Rows, Scattered
from verifier.graph.op import Shape
from verifier.graph.patches import Patches
from verifier.graph.registry import OnnxNode, Unsupported, aten_op, onnx_op
from verifier.ops.arithmetic import add, scale_shift
from verifier.ops.linear import Linear
from verifier.ops.movement import broadcast, permute, reshape

FEW_ROWS = 8
"""Fewer rows than these gain nothing from coefficients kept as factors."""


@dataclass(frozen=True, eq=False)
class Sum(Affine):
    """The sum over `axes` (non-negative, sorted), which stay as dimensions of size 1."""

    axes: tuple[int, ...]
    increasing = True

    def output_shape(self, *shapes: Shape) -> Shape:
        if any(not 0 <= a < len(shapes[0]) for a in self.axes):
            raise ValueError(f"Axes {self.axes} do not exist in a value of shape {shapes[0]}.")
        return tuple(1 if a in self.axes else n for a, n in enumerate(shapes[0]))

    def fan_in(self, *shapes: Shape) -> int:
        return math.prod(shapes[0][a] for a in self.axes)

    def fan_out(self, *shapes: Shape) -> int:
        return 1

    def forward(self, *xs: Tensor) -> Tensor:
        return xs[0].sum(dim=[a + 1 for a in self.axes], keepdim=True)

    def transpose(self, coefficients: Tensor, index: int, *shapes: Shape) -> Tensor:
        return coefficients.expand(*coefficients.shape[:2], *shapes[0])

    def backward(self, coefficients: Coefficients, index: int, *shapes: Shape) -> Coefficients:
        if isinstance(coefficients, Patches):
            return super().backward(coefficients, index, *shapes)
        few = coefficients if isinstance(coefficients, Scattered) else None
        if isinstance(coefficients, Rows) and coefficients.shared and coefficients.index.shape[1] >= FEW_ROWS:
            few = coefficients.scattered()
        if few is not None and self.fan_in(*shapes) * SPARSE <= math.prod(shapes[0]):
            return few.moved(self._table(shapes[0], few.index.device), shapes[0])
        dense = coefficients.dense()
        if dense.shape[1] < FEW_ROWS:
            return Dense(self.transpose(dense, index, *shapes))
        return Factored(((dense, None),), shapes[0])

    def _table(self, shape: Shape, device: torch.device) -> Tensor:
        """What is added up, per element of the result: flat positions [numel, K]."""
        places = torch.arange(math.prod(shape), device=device).view(shape)
        last = tuple(range(-len(self.axes), 0))
        return places.movedim(self.axes, last).reshape(-1, self.fan_in(shape))

    def vjp(
        self, builder: Builder, inputs: Sequence[Value], output: Value, cotangent: Value
    ) -> Sequence[Value | None]:
        return [broadcast(builder, cotangent, builder.shape(inputs[0]))]


def total(builder: Builder, x: Value, axes: Sequence[int], keep: bool, mean: bool = False) -> Value:
    """Sum (or mean) over `axes`; `keep` leaves them as dimensions of size 1."""
    shape = builder.shape(x)
    axes = normalised(axes, shape)
    y = builder.add(Sum(axes), x) if axes else x
    if mean and (count := math.prod(shape[a] for a in axes)) != 1:
        y = scale_shift(builder, y, scale=1.0 / count)
    return y if keep else reshape(builder, y, [n for a, n in enumerate(shape) if a not in axes])


def normalised(axes: Sequence[int], shape: Shape) -> tuple[int, ...]:
    """Axes counted from the front, sorted; raises ValueError for those that do not exist."""
    if any(not -len(shape) <= a < len(shape) for a in axes):
        raise ValueError(f"Axes {list(axes)} do not exist in a value of shape {shape}.")
    return tuple(sorted({a % len(shape) for a in axes}))


def reduction_axes(builder: Builder, node: OnnxNode) -> tuple[int, ...]:
    """The axes that a Reduce* node reduces over: all when none are given, unless it says that none means none."""
    axes = node.ints(builder, 1, "axes")
    if not axes:
        if node.attributes.get("noop_with_empty_axes", 0):
            return ()
        axes = range(len(builder.shape(node.required(0))))
    return normalised(list(axes), builder.shape(node.required(0)))


@onnx_op("ReduceSum", "ReduceMean")
def _reduce(builder: Builder, node: OnnxNode) -> Value:
    keep = bool(node.attributes.get("keepdims", 1))
    axes = reduction_axes(builder, node)
    return total(builder, node.required(0), axes, keep, mean=node.op_type == "ReduceMean")


@onnx_op("GlobalAveragePool")
def _global_average_pool(builder: Builder, node: OnnxNode) -> Value:
    x = node.required(0)
    return total(builder, x, range(2, len(builder.shape(x))), keep=True, mean=True)


@onnx_op("Mean")
def _mean(builder: Builder, node: OnnxNode) -> Value:
    y = node.required(0)
    for i in range(1, len(node.inputs)):
        y = add(builder, y, node.required(i))
    return scale_shift(builder, y, scale=1.0 / len(node.inputs))


@onnx_op("CumSum", note="constant axis")
def _cumsum(builder: Builder, node: OnnxNode) -> Value:
    return cumulative(builder, node.required(0), *running(builder, node))


def running(builder: Builder, node: OnnxNode) -> tuple[int, bool, bool]:
    """The axis of a CumSum or CumProd node, and whether it is exclusive and in reverse."""
    axis = node.constant(builder, 1, "axis")
    if axis is None:
        raise Unsupported("the axis is missing")
    return int(axis), bool(node.attributes.get("exclusive", 0)), bool(node.attributes.get("reverse", 0))


def cumulative(
    builder: Builder, x: Value, axis: int, exclusive: bool = False, reverse: bool = False
) -> Value:
    """Running sum along one axis, as a triangular matrix."""
    shape = builder.shape(x)
    (axis,) = normalised([axis], shape)
    weight = torch.ones(shape[axis], shape[axis], dtype=torch.float64).tril(-1 if exclusive else 0)
    return along(builder, x, axis, weight.flip(0, 1) if reverse else weight)


def along(builder: Builder, x: Value, axis: int, weight: Tensor) -> Value:
    """The matrix `weight` [out, in] applied along one axis."""
    order = [a for a in range(len(builder.shape(x))) if a != axis]
    order.append(axis)
    y = builder.add(Linear(weight), permute(builder, x, order))
    return permute(builder, y, sorted(range(len(order)), key=order.__getitem__))


@aten_op("sum.dim_IntList", "sum.default")
def _aten_sum(
    builder: Builder, x: Value, dim: Sequence[int] | None = None, keepdim: bool = False, dtype: object = None
) -> Value:
    return total(builder, x, list(dim) if dim else range(len(builder.shape(x))), keepdim)


@aten_op("mean.dim", "mean.default")
def _aten_mean(
    builder: Builder, x: Value, dim: Sequence[int] | None = None, keepdim: bool = False, dtype: object = None
) -> Value:
    return total(builder, x, list(dim) if dim else range(len(builder.shape(x))), keepdim, mean=True)


@aten_op("adaptive_avg_pool1d.default", "adaptive_avg_pool2d.default", "_adaptive_avg_pool2d.default")
def _aten_adaptive_average_pool(builder: Builder, x: Value, output_size: Sequence[int]) -> Value:
    rank = len(builder.shape(x))
    axes = range(rank - len(output_size), rank)
    if all(n == 1 for n in output_size):
        return total(builder, x, axes, keep=True, mean=True)
    for axis, count in zip(axes, output_size, strict=True):
        x = along(builder, x, axis, _adaptive_means(builder.shape(x)[axis], count))
    return x


def _adaptive_means(size: int, count: int) -> Tensor:
    """[count, size]: row i averages the elements from floor(i size / count) to ceil((i + 1) size / count)."""
    weight = torch.zeros(count, size, dtype=torch.float64)
    for i in range(count):
        start, end = i * size // count, -(-(i + 1) * size // count)
        weight[i, start:end] = 1.0 / (end - start)
    return weight


@aten_op("cumsum.default")
def _aten_cumsum(builder: Builder, x: Value, dim: int, dtype: object = None) -> Value:
    return cumulative(builder, x, dim)
