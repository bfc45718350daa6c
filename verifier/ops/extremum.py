"""Largest and smallest values: Max, Min, ReduceMax, ReduceMin, MaxPool, GlobalMaxPool.

Of two values it is max(a, b) = b + relu(a - b); of more of one tensor's elements a `Maximum`.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from verifier.graph import Builder, Value
from verifier.graph.op import Shape
from verifier.graph.registry import OnnxNode, Unsupported, aten_op, onnx_op
from verifier.ops.arithmetic import add, negate, subtract
from verifier.ops.convolution import Window, window_of
from verifier.ops.maximum import Maximum
from verifier.ops.movement import Take
from verifier.ops.piecewise_linear import relu
from verifier.ops.reduction import normalised, reduction_axes

TOGETHER = 32
"""As many values are compared by one operator, at most."""


def maximum(builder: Builder, a: Value, b: Value) -> Value:
    """max(a, b) with numpy's broadcasting."""
    if builder.tensor(a) is not None:
        a, b = b, a
    return add(builder, relu(builder, subtract(builder, a, b)), b)


def minimum(builder: Builder, a: Value, b: Value) -> Value:
    """min(a, b) = b - relu(b - a) for a constant b, else a - relu(a - b), which the maximum takes, too, with numpy's
    broadcasting."""
    if builder.tensor(a) is not None:
        a, b = b, a
    if builder.tensor(b) is None:
        a, b = b, a
    return subtract(builder, b, relu(builder, subtract(builder, b, a)))


def tree(builder: Builder, values: Sequence[Value], join: Callable[[Builder, Value, Value], Value]) -> Value:
    """All values joined two by two, in as few levels as possible."""
    level = list(values)
    while len(level) > 1:
        pairs = [join(builder, a, b) for a, b in zip(level[::2], level[1::2], strict=False)]
        level = [*pairs, *level[2 * len(pairs) :]]
    return level[0]


def maximum_of(builder: Builder, x: Value, index: Tensor) -> Value:
    """The largest of the elements `index[..., k]` (flat positions in x) over k; the result has `index.shape[:-1]`."""
    shape, count = tuple(index.shape[:-1]), index.shape[-1]
    if count == 0:
        raise ValueError("The largest of no elements is not defined.")
    chosen = [builder.add(Take(index[..., k].flatten(), shape), x) for k in range(count)]
    while len(chosen) > 1:
        chosen = [_largest(builder, chosen[k : k + TOGETHER]) for k in range(0, len(chosen), TOGETHER)]
    return chosen[0]


def _largest(builder: Builder, values: Sequence[Value]) -> Value:
    if len(values) == 1:
        return values[0]
    return maximum(builder, *values) if len(values) == 2 else builder.add(Maximum(len(values)), *values)


def maximum_over(builder: Builder, x: Value, axes: Sequence[int], keep: bool) -> Value:
    shape = builder.shape(x)
    axes = normalised(axes, shape)
    others = [a for a in range(len(shape)) if a not in axes]
    positions = torch.arange(math.prod(shape)).view(shape).permute(*others, *axes)
    index = positions.reshape(*[shape[a] for a in others], -1)
    if keep:
        index = index.view(*[1 if a in axes else n for a, n in enumerate(shape)], -1)
    return maximum_of(builder, x, index)


def windows(shape: Shape, window: Window, counts: Sequence[int]) -> Tensor:
    """Flat positions of the elements under each window: int64 [N, C, *counts, prod(kernel)].

    Positions in the padding are replaced by another element of the same window, which no maximum notices.
    Raises ValueError when a window lies in the padding altogether.
    """
    rank = len(counts)
    positions = torch.arange(math.prod(shape)).view(shape)
    for d in range(rank):
        start = torch.arange(counts[d]).unsqueeze(1) * window.stride[d] - window.before[d]
        along = start + torch.arange(window.kernel[d]) * window.dilation[d]
        inside = (along >= 0) & (along < shape[2 + d])
        if not bool(inside.any(1).all()):
            raise ValueError("A pooling window lies in the padding altogether.")
        first = along.gather(1, inside.int().argmax(1, keepdim=True))
        along = torch.where(inside, along, first)
        positions = positions.index_select(2 + d, along.flatten()).unflatten(
            2 + d, (counts[d], window.kernel[d])
        )
        positions = positions.movedim(3 + d, -1)
    return positions.flatten(2 + rank)


def pooled_size(size: Sequence[int], window: Window, ceil: bool) -> tuple[int, ...]:
    """How many windows there are; with `ceil` a last one may reach beyond the padding, but must start before it."""
    counts = []
    for d, n in enumerate(size):
        room = n + window.before[d] + window.after[d] - window.extent[d]
        count = (-(-room // window.stride[d]) if ceil else room // window.stride[d]) + 1
        if ceil and (count - 1) * window.stride[d] >= n + window.before[d]:
            count -= 1
        if count < 1:
            raise ValueError(
                f"A pooling window of size {window.kernel} does not fit into a value of size {tuple(size)}."
            )
        counts.append(count)
    return tuple(counts)


def max_pool(builder: Builder, x: Value, window: Window, ceil: bool) -> Value:
    shape = builder.shape(x)
    return maximum_of(builder, x, windows(shape, window, pooled_size(shape[2:], window, ceil)))


@onnx_op("Max", "Min")
def _extremum(builder: Builder, node: OnnxNode) -> Value:
    values = [node.required(i) for i in range(len(node.inputs))]
    return tree(builder, values, maximum if node.op_type == "Max" else minimum)


@onnx_op("ReduceMax")
def _reduce_max(builder: Builder, node: OnnxNode) -> Value:
    keep = bool(node.attributes.get("keepdims", 1))
    return maximum_over(builder, node.required(0), reduction_axes(builder, node), keep)


@onnx_op("ReduceMin")
def _reduce_min(builder: Builder, node: OnnxNode) -> Value:
    keep = bool(node.attributes.get("keepdims", 1))
    largest = maximum_over(builder, negate(builder, node.required(0)), reduction_axes(builder, node), keep)
    return negate(builder, largest)


@onnx_op("MaxPool", note="without the Indices output")
def _max_pool(builder: Builder, node: OnnxNode) -> Value:
    if 1 in node.used:
        raise Unsupported("its Indices output is used")
    x = node.required(0)
    window = window_of(node, node.attributes["kernel_shape"], builder.shape(x)[2:])
    return max_pool(builder, x, window, bool(node.attributes.get("ceil_mode", 0)))


@onnx_op("GlobalMaxPool")
def _global_max_pool(builder: Builder, node: OnnxNode) -> Value:
    x = node.required(0)
    return maximum_over(builder, x, range(2, len(builder.shape(x))), keep=True)


@aten_op("maximum.default", "max.other")
def _aten_maximum(builder: Builder, a: Value, b: Value) -> Value:
    return maximum(builder, a, b)


@aten_op("minimum.default", "min.other")
def _aten_minimum(builder: Builder, a: Value, b: Value) -> Value:
    return minimum(builder, a, b)


@aten_op("amax.default")
def _aten_amax(builder: Builder, x: Value, dim: Sequence[int] = (), keepdim: bool = False) -> Value:
    return maximum_over(builder, x, list(dim) or range(len(builder.shape(x))), keepdim)


@aten_op("amin.default")
def _aten_amin(builder: Builder, x: Value, dim: Sequence[int] = (), keepdim: bool = False) -> Value:
    return negate(builder, _aten_amax(builder, negate(builder, x), dim, keepdim))


@aten_op("max_pool1d.default", "max_pool2d.default", "max_pool3d.default")
def _aten_max_pool(
    builder: Builder,
    x: Value,
    kernel_size: Sequence[int],
    stride: Sequence[int] = (),
    padding: int | Sequence[int] = 0,
    dilation: int | Sequence[int] = 1,
    ceil_mode: bool = False,
) -> Value:
    return max_pool(
        builder, x, aten_window(kernel_size, stride, padding, dilation, len(builder.shape(x)) - 2), ceil_mode
    )


@aten_op("max_pool2d_with_indices.default", "max_pool3d_with_indices.default")
def _aten_max_pool_with_indices(builder: Builder, x: Value, *args: object, **kwargs: object) -> tuple[Value]:
    return (_aten_max_pool(builder, x, *args, **kwargs),)  # pyright: ignore[reportArgumentType]


def aten_window(
    kernel: int | Sequence[int],
    stride: int | Sequence[int],
    padding: int | Sequence[int],
    dilation: int | Sequence[int],
    rank: int,
) -> Window:
    """torch's pooling arguments, where one number stands for all dimensions and no stride for the kernel's size."""

    def spread(value: int | Sequence[int]) -> tuple[int, ...]:
        values = [value] if isinstance(value, int) else list(value)
        return tuple(itertools.islice(itertools.cycle(values), rank))

    sizes, pads = spread(kernel), spread(padding)
    return Window(
        sizes,
        sizes if isinstance(stride, Sequence) and not stride else spread(stride),
        spread(dilation),
        pads,
        pads,
    )
