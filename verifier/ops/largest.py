"""Which elements are the largest, and the front ends' names for order: Hardmax, TopK, sort."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from verifier.graph import Builder, Value
from verifier.graph.registry import OnnxNode, Unsupported, aten_op, onnx_op
from verifier.ops.arithmetic import scale_shift, subtract
from verifier.ops.extremum import maximum_of
from verifier.ops.movement import permute, reshape
from verifier.ops.reduction import normalised, total
from verifier.ops.softmax import differences
from verifier.ops.sorting import MOST, in_order
from verifier.ops.step import Step


def largest_mask(builder: Builder, x: Value, axis: int, count: int) -> Value:
    """1 where an element is among the `count` largest along `axis`, 0 elsewhere. Of equal ones bounds hold any choice.

    One is, if it is above the largest other element; in general, if fewer than `count` others are above it.
    """
    shape = builder.shape(x)
    (axis,) = normalised([axis], shape)
    size = shape[axis]
    _check(size)
    if count >= size:
        return scale_shift(builder, x, scale=0.0, shift=1.0)
    order = [*[a for a in range(len(shape)) if a != axis], axis]
    y = permute(builder, x, order)
    if count == 1:
        positions = torch.arange(_numel(builder.shape(y))).view(builder.shape(y))
        others = torch.arange(size).repeat(size, 1)[~torch.eye(size, dtype=torch.bool)].view(size, size - 1)
        found = _step(builder, subtract(builder, y, maximum_of(builder, y, positions[..., others])), 0.0)
    else:
        above = reshape(builder, differences(builder, y), (*builder.shape(y), size - 1))
        rivals = total(builder, _step(builder, above, 0.0), [-1], keep=False)
        found = _step(builder, scale_shift(builder, rivals, scale=-1.0, shift=float(count)), 0.5)
    return permute(builder, found, sorted(range(len(order)), key=order.__getitem__))


def _step(builder: Builder, x: Value, knot: float) -> Value:
    """1 above the knot, 0 up to it."""
    levels = torch.tensor([0.0, 1.0], dtype=torch.float64)
    return builder.add(Step(torch.tensor([knot], dtype=torch.float64), levels, chosen=True), x)


def _check(size: int) -> None:
    if size > MOST:
        raise Unsupported(f"the order of {size} values, which are more than {MOST}")


def _numel(shape: Sequence[int]) -> int:
    return int(torch.Size(shape).numel())


@onnx_op("Hardmax", note=f"of at most {MOST} values")
def _hardmax(builder: Builder, node: OnnxNode) -> Value:
    """Before opset 13 all dimensions from `axis` on are one."""
    x = node.required(0)
    shape = builder.shape(x)
    if node.opset >= 13:
        return largest_mask(builder, x, node.attributes.get("axis", -1), 1)
    axis = node.attributes.get("axis", 1) % len(shape)
    flat = reshape(builder, x, (_numel(shape[:axis]), _numel(shape[axis:])))
    return reshape(builder, largest_mask(builder, flat, 1, 1), shape)


@onnx_op("TopK", note=f"the values, of at most {MOST}; constant k")
def _top(builder: Builder, node: OnnxNode) -> list[Value]:
    if 1 in node.used:
        raise Unsupported("its Indices output is used")
    count = node.constant(builder, 1, "K") if node.opset >= 10 else torch.tensor(node.attributes["k"])
    if count is None:
        raise Unsupported("k is missing")
    largest = bool(node.attributes.get("largest", 1))
    axis = node.attributes.get("axis", -1)
    values = in_order(builder, node.required(0), axis, int(count), largest)
    return [values]


@aten_op("topk.default")
def _aten_top(
    builder: Builder, x: Value, k: int, dim: int = -1, largest: bool = True, sorted: bool = True
) -> tuple[Value]:
    return (in_order(builder, x, dim, k, largest),)


@aten_op("sort.default")
def _aten_sort(builder: Builder, x: Value, dim: int = -1, descending: bool = False) -> tuple[Value]:
    (axis,) = normalised([dim], builder.shape(x))
    return (in_order(builder, x, axis, builder.shape(x)[axis], descending),)
