"""Products over dimensions, and running products: ReduceProd, CumProd."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from verifier.graph import Builder, Value
from verifier.graph.registry import OnnxNode, Unsupported, aten_op, onnx_op
from verifier.ops.extremum import tree
from verifier.ops.movement import Take, reshape
from verifier.ops.product import multiply
from verifier.ops.reduction import normalised, reduction_axes, running
from verifier.ops.select import concat, slice_axis

MOST = 256
"""Products of more factors are not tried: their bounds say nothing."""


def product_over(builder: Builder, x: Value, axes: Sequence[int], keep: bool) -> Value:
    """The product over `axes`; pairs first, so that there are few levels."""
    shape = builder.shape(x)
    axes = normalised(axes, shape)
    others = [a for a in range(len(shape)) if a not in axes]
    count = math.prod(shape[a] for a in axes)
    _check(count)
    index = torch.arange(math.prod(shape)).view(shape).permute(*others, *axes).reshape(-1, count)
    left = tuple(n for a, n in enumerate(shape) if a not in axes)
    y = tree(builder, [builder.add(Take(index[:, k], left), x) for k in range(count)], multiply)
    return reshape(builder, y, [1 if a in axes else n for a, n in enumerate(shape)]) if keep else y


def running_product(
    builder: Builder, x: Value, axis: int, exclusive: bool = False, reverse: bool = False
) -> Value:
    """Products of all elements up to each along one axis; `exclusive` without itself, `reverse` from the end."""
    (axis,) = normalised([axis], builder.shape(x))
    count = builder.shape(x)[axis]
    _check(count)
    order = range(count - 1, -1, -1) if reverse else range(count)
    parts = [slice_axis(builder, x, axis, k, k + 1, 1) for k in order]
    found = [builder.constant(torch.ones(builder.shape(parts[0]), dtype=torch.float64))] if exclusive else []
    found.append(parts[0])
    while len(found) < count:
        found.append(multiply(builder, found[-1], parts[len(found) - exclusive]))
    found = found[:count]
    return concat(builder, found[::-1] if reverse else found, axis)


def _check(count: int) -> None:
    if count > MOST:
        raise Unsupported(f"a product of {count} values, which are more than {MOST}")


@onnx_op("ReduceProd", note=f"of at most {MOST} values")
def _reduce_product(builder: Builder, node: OnnxNode) -> Value:
    keep = bool(node.attributes.get("keepdims", 1))
    return product_over(builder, node.required(0), reduction_axes(builder, node), keep)


@onnx_op("CumProd", note=f"constant axis, of at most {MOST} values")
def _cumulative_product(builder: Builder, node: OnnxNode) -> Value:
    return running_product(builder, node.required(0), *running(builder, node))


@aten_op("prod.dim_int", "prod.default")
def _aten_product(
    builder: Builder, x: Value, dim: int | None = None, keepdim: bool = False, dtype: object = None
) -> Value:
    return product_over(builder, x, range(len(builder.shape(x))) if dim is None else [dim], keepdim)


@aten_op("cumprod.default")
def _aten_cumulative_product(builder: Builder, x: Value, dim: int, dtype: object = None) -> Value:
    return running_product(builder, x, dim)
