"""Logarithms of sums and of softmax: LogSoftmax, ReduceLogSumExp, ReduceLogSum."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from verifier.graph import Builder, Composite, Value
from verifier.graph.op import Shape
from verifier.graph.registry import OnnxNode, aten_op, onnx_op
from verifier.ops.arithmetic import add, negate, scale_shift, subtract
from verifier.ops.exponential import Exp
from verifier.ops.movement import permute, reshape
from verifier.ops.power import log
from verifier.ops.reduction import normalised, reduction_axes, total
from verifier.ops.softmax import PAIRS, differences, mean_of_some
from verifier.ops.within import within


@dataclass(frozen=True, eq=False)
class LogSumExp(Composite):
    """The logarithm of the sum over j of exp(x_j) over `axes` (non-negative), which stay as dimensions of size 1.

    Written out as m + log(the sum over j of exp(x_j - m)) with a mean m.
    """

    axes: tuple[int, ...]

    def output_shape(self, *shapes: Shape) -> Shape:
        normalised(self.axes, shapes[0])
        return tuple(1 if a in self.axes else n for a, n in enumerate(shapes[0]))

    def forward(self, *xs: Tensor) -> Tensor:
        return xs[0].logsumexp([a + 1 for a in self.axes], keepdim=True)

    def write_out(self, builder: Builder, *xs: Value) -> Value:
        mean, least = mean_of_some(builder, xs[0], self.axes)
        powers = builder.add(Exp(), subtract(builder, xs[0], mean))
        sums = within(builder, total(builder, powers, self.axes, keep=True), least, math.inf)
        return add(builder, log(builder, sums), mean)


@dataclass(frozen=True, eq=False)
class LogSoftmax(Composite):
    """The logarithm of softmax along `axis` (non-negative): minus log(1 + the sum over j != i of exp(x_j - x_i)), or
    x_i less the logarithm of the sum of exponentials where that would be too many."""

    axis: int

    def output_shape(self, *shapes: Shape) -> Shape:
        normalised([self.axis], shapes[0])
        return shapes[0]

    def forward(self, *xs: Tensor) -> Tensor:
        return xs[0].log_softmax(self.axis + 1)

    def ordered(self, shape: Shape) -> Tensor:
        """Elements that share a sum."""
        groups = [1 if a == self.axis else n for a, n in enumerate(shape)]
        return torch.arange(math.prod(groups)).view(groups).expand(shape)

    def write_out(self, builder: Builder, *xs: Value) -> Value:
        shape = builder.shape(xs[0])
        count = shape[self.axis]
        if math.prod(shape) * count > PAIRS:
            return subtract(builder, xs[0], LogSumExp((self.axis,)).write_out(builder, xs[0]))
        if count == 1:
            return scale_shift(builder, xs[0], scale=0.0)
        order = [*[a for a in range(len(shape)) if a != self.axis], self.axis]
        x = permute(builder, xs[0], order)
        powers = builder.add(Exp(), differences(builder, x))
        powers = reshape(builder, powers, (*builder.shape(x)[:-1], count, count - 1))
        sums = scale_shift(builder, total(builder, powers, [-1], keep=False), shift=1.0)
        y = negate(builder, log(builder, within(builder, sums, 1.0, math.inf)))
        return permute(builder, y, sorted(range(len(order)), key=order.__getitem__))


def log_sum_exp(builder: Builder, x: Value, axes: Sequence[int], keep: bool) -> Value:
    shape = builder.shape(x)
    axes = normalised(axes, shape)
    y = builder.add(LogSumExp(axes), x)
    return y if keep else reshape(builder, y, [n for a, n in enumerate(shape) if a not in axes])


@onnx_op("LogSoftmax")
def _log_softmax(builder: Builder, node: OnnxNode) -> Value:
    """Before opset 13 all dimensions from `axis` on are one."""
    x = node.required(0)
    shape = builder.shape(x)
    if node.opset >= 13:
        return builder.add(LogSoftmax(*normalised([node.attributes.get("axis", -1)], shape)), x)
    axis = node.attributes.get("axis", 1)
    axis += len(shape) if axis < 0 else 0
    flat = reshape(builder, x, (math.prod(shape[:axis]), math.prod(shape[axis:])))
    return reshape(builder, builder.add(LogSoftmax(1), flat), shape)


@onnx_op("ReduceLogSumExp", "ReduceLogSum")
def _reduce(builder: Builder, node: OnnxNode) -> Value:
    x, keep = node.required(0), bool(node.attributes.get("keepdims", 1))
    axes = reduction_axes(builder, node)
    if node.op_type == "ReduceLogSumExp":
        return log_sum_exp(builder, x, axes, keep)
    return log(builder, total(builder, x, axes, keep))


@aten_op("log_softmax.int")
def _aten_log_softmax(builder: Builder, x: Value, dim: int, dtype: object = None) -> Value:
    return builder.add(LogSoftmax(*normalised([dim], builder.shape(x))), x)


@aten_op("_log_softmax.default")
def _aten_plain_log_softmax(builder: Builder, x: Value, dim: int, half_to_float: bool) -> Value:
    return _aten_log_softmax(builder, x, dim)


@aten_op("logsumexp.default")
def _aten_log_sum_exp(builder: Builder, x: Value, dim: Sequence[int], keepdim: bool = False) -> Value:
    return log_sum_exp(builder, x, list(dim), keepdim)
