"""Operators that keep the elements and their order, or keep the value altogether, and reorderings of dimensions:
Reshape, Flatten, Squeeze, Unsqueeze, Transpose, Identity, Dropout, Cast."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from verifier.graph import Builder, Value
from verifier.graph.registry import OnnxNode, Unsupported, aten_op, onnx_op
from verifier.ops.comparison import truth
from verifier.ops.integers import BITS, truncated
from verifier.ops.movement import permute, reshape

FLOAT, DOUBLE = 1, 11
"""TensorProto element types that values of the network may have."""
BOOL = 9
"""The type of truth values."""


def squeeze(builder: Builder, x: Value, axes: Sequence[int] | None = None) -> Value:
    """Without the dimensions `axes`, which must be 1 (None: without all that are 1)."""
    shape = builder.shape(x)
    if axes is None:
        dropped = {a for a, n in enumerate(shape) if n == 1}
    else:
        dropped = {a % len(shape) for a in axes}
        if any(shape[a] != 1 for a in dropped):
            raise ValueError(
                f"Axes {list(axes)} of a value of shape {shape} cannot be removed: they are not all 1."
            )
    return reshape(builder, x, [n for a, n in enumerate(shape) if a not in dropped])


def unsqueeze(builder: Builder, x: Value, axes: Sequence[int]) -> Value:
    """With new dimensions of size 1 at the positions `axes` of the result."""
    rank = len(builder.shape(x)) + len(axes)
    new = {a % rank for a in axes}
    old = iter(builder.shape(x))
    return reshape(builder, x, [1 if a in new else next(old) for a in range(rank)])


def flatten(builder: Builder, x: Value, start: int, end: int) -> Value:
    """Dimensions `start` to `end` (inclusive) merged into one."""
    shape = builder.shape(x) or (1,)
    start, end = start % len(shape), end % len(shape)
    return reshape(builder, x, [*shape[:start], math.prod(shape[start : end + 1]), *shape[end + 1 :]])


@onnx_op("Identity")
def _identity(builder: Builder, node: OnnxNode) -> Value:
    return node.required(0)


@onnx_op("Dropout", note="inference only")
def _dropout(builder: Builder, node: OnnxNode) -> Value:
    training = node.constant(builder, 2, "training_mode")
    if training is not None and bool(training.any()):
        raise Unsupported("dropout in training mode")
    if 1 in node.used:
        raise Unsupported("its mask output is used")
    return node.required(0)


@onnx_op("Cast", "CastLike", note="to float, double, bool and signed integers, except on constants")
def _cast(builder: Builder, node: OnnxNode) -> Value:
    to = node.attributes.get("to")
    if to in BITS:
        return truncated(builder, node.required(0), BITS[to])
    if to == BOOL:
        return truth(builder, node.required(0))
    if to not in (FLOAT, DOUBLE):
        raise Unsupported(f"a cast to {_type_name(to)} of a value that depends on the network's input")
    return node.required(0)


def _type_name(number: int | None) -> str:
    from onnx import TensorProto

    return "an unknown type" if number is None else TensorProto.DataType.Name(number)


@onnx_op("Reshape")
def _reshape(builder: Builder, node: OnnxNode) -> Value:
    x = node.required(0)
    shape = node.ints(builder, 1, "shape")
    if shape is None:
        raise Unsupported("the new shape is missing")
    if not node.attributes.get("allowzero", 0):
        current = builder.shape(x)
        if any(n == 0 and i >= len(current) for i, n in enumerate(shape)):
            raise ValueError(
                f"The new shape {shape} copies a dimension that a value of shape {current} lacks."
            )
        shape = [current[i] if n == 0 else n for i, n in enumerate(shape)]
    return reshape(builder, x, shape)


@onnx_op("Flatten")
def _flatten(builder: Builder, node: OnnxNode) -> Value:
    x = node.required(0)
    shape = builder.shape(x)
    axis = node.attributes.get("axis", 1)
    axis = axis + len(shape) if axis < 0 else axis
    return reshape(builder, x, [math.prod(shape[:axis]), math.prod(shape[axis:])])


@onnx_op("Squeeze")
def _squeeze(builder: Builder, node: OnnxNode) -> Value:
    return squeeze(builder, node.required(0), node.ints(builder, 1, "axes"))


@onnx_op("Unsqueeze")
def _unsqueeze(builder: Builder, node: OnnxNode) -> Value:
    return unsqueeze(builder, node.required(0), node.ints(builder, 1, "axes") or [])


@onnx_op("Transpose")
def _transpose(builder: Builder, node: OnnxNode) -> Value:
    x = node.required(0)
    axes = node.ints(builder, -1, "perm")
    return permute(builder, x, reversed(range(len(builder.shape(x)))) if axes is None else axes)


@aten_op("view.default", "reshape.default", "_unsafe_view.default")
def _aten_view(builder: Builder, x: Value, shape: Sequence[int]) -> Value:
    return reshape(builder, x, shape)


@aten_op("flatten.using_ints")
def _aten_flatten(builder: Builder, x: Value, start_dim: int = 0, end_dim: int = -1) -> Value:
    return flatten(builder, x, start_dim, end_dim)


@aten_op("squeeze.default", "squeeze.dim", "squeeze.dims")
def _aten_squeeze(builder: Builder, x: Value, dim: int | Sequence[int] | None = None) -> Value:
    if dim is None:
        return squeeze(builder, x)
    shape = builder.shape(x)
    dims = [dim] if isinstance(dim, int) else list(dim)
    return squeeze(builder, x, [d for d in dims if shape[d] == 1])


@aten_op("unsqueeze.default")
def _aten_unsqueeze(builder: Builder, x: Value, dim: int) -> Value:
    return unsqueeze(builder, x, [dim])


@aten_op("permute.default")
def _aten_permute(builder: Builder, x: Value, dims: Sequence[int]) -> Value:
    return permute(builder, x, dims)


@aten_op("transpose.int")
def _aten_transpose(builder: Builder, x: Value, dim0: int, dim1: int) -> Value:
    axes = list(range(len(builder.shape(x))))
    axes[dim0], axes[dim1] = axes[dim1], axes[dim0]
    return permute(builder, x, axes)


@aten_op("t.default", "numpy_T.default")
def _aten_t(builder: Builder, x: Value) -> Value:
    return permute(builder, x, reversed(range(len(builder.shape(x)))))


@aten_op(
    "alias.default", "clone.default", "contiguous.default", "detach.default", "detach_.default",
    "lift_fresh_copy.default",
)  # fmt: skip
def _aten_identity(builder: Builder, x: Value, **options: object) -> Value:
    return x


@aten_op("_to_copy.default", "to.dtype", "to.device", "to.dtype_layout")
def _aten_to(builder: Builder, x: Value, *arguments: object, **options: object) -> Value:
    for option in (*arguments, *options.values()):
        if isinstance(option, torch.dtype) and option not in (torch.float32, torch.float64):
            raise Unsupported(f"a cast of a value that depends on the network's input to {option}")
    return x


@aten_op("dropout.default", "feature_dropout.default", "alpha_dropout.default")
def _aten_dropout(builder: Builder, x: Value, p: float, train: bool) -> Value:
    if train and p > 0:
        raise Unsupported("dropout in training mode")
    return x
