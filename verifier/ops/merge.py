"""Putting together elements of several values at constant places: Where, ScatterND, ScatterElements."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from verifier.graph import Builder, Value
from verifier.graph.registry import OnnxNode, Unsupported, aten_op, onnx_op
from verifier.ops.arithmetic import add, scale_shift
from verifier.ops.choice import choice
from verifier.ops.movement import Concat, Take, broadcast, joint_shape, reshape


def overwrite(builder: Builder, data: Value, updates: Value, where: Tensor) -> Value:
    """`data` with element `where[j]` (flat position, int64, in the shape of `updates`) replaced by element j of
    `updates`; a later j wins."""
    shape, count = builder.shape(data), math.prod(builder.shape(data))
    source = torch.arange(count)
    # Written one after the other where a place is written twice: scatter does not say which of two wins.
    flat = where.flatten()
    order = torch.arange(flat.numel())
    if flat.unique().numel() == flat.numel():
        source[flat] = count + order
    else:
        source = source.scatter_reduce(0, flat, count + order, "amax")
    constant = builder.tensor(data)
    if constant is not None:
        written = source >= count
        index = torch.where(written, source - count, torch.zeros_like(source))
        if bool(written.all()):
            return builder.add(Take(index, shape), updates)
        mask = written.view(shape)
        picked = builder.add(Take(index, shape), updates)
        return scale_shift(
            builder, picked, scale=mask.double(), shift=constant.double().masked_fill(mask, 0.0)
        )
    both = [reshape(builder, data, (count,)), reshape(builder, updates, (flat.numel(),))]
    return builder.add(Take(source, shape), builder.add(Concat(0), *both))


def choose(builder: Builder, condition: Tensor, a: Value, b: Value) -> Value:
    """a where the constant condition holds, b elsewhere, with numpy's broadcasting."""
    shape = joint_shape(condition.shape, builder.shape(a), builder.shape(b))
    condition = condition.bool().expand(shape)
    first, second = broadcast(builder, a, shape), broadcast(builder, b, shape)
    if bool(condition.all()):
        return first
    if not bool(condition.any()):
        return second
    for chosen, other, mask in ((first, second, condition), (second, first, ~condition)):
        constant = builder.tensor(other)
        if constant is not None:
            return scale_shift(builder, chosen, scale=mask.double(), shift=constant.masked_fill(mask, 0.0))
    return add(
        builder,
        scale_shift(builder, first, scale=condition.double()),
        scale_shift(builder, second, scale=(~condition).double()),
    )


def where(builder: Builder, condition: Value, a: Value, b: Value) -> Value:
    """a where the condition, constant or not, holds, b elsewhere."""
    known = builder.tensor(condition)
    return choice(builder, condition, a, b) if known is None else choose(builder, known, a, b)


@onnx_op("Where")
def _where(builder: Builder, node: OnnxNode) -> Value:
    return where(builder, *[node.required(i) for i in range(3)])


@onnx_op("ScatterND", note="constant indices")
def _scatter_nd(builder: Builder, node: OnnxNode) -> Value:
    data, updates, indices = node.required(0), node.required(2), node.constant(builder, 1, "indices")
    if indices is None:
        raise Unsupported("the indices are missing")
    shape, depth = builder.shape(data), indices.shape[-1]
    positions = torch.arange(math.prod(shape)).view(shape)
    where = positions[tuple(_wrapped(indices[..., k], shape[k]) for k in range(depth))]
    return _scatter(builder, node, data, updates, where)


@onnx_op("ScatterElements", "Scatter", note="constant indices")
def _scatter_elements(builder: Builder, node: OnnxNode) -> Value:
    data, updates, indices = node.required(0), node.required(2), node.constant(builder, 1, "indices")
    if indices is None:
        raise Unsupported("the indices are missing")
    shape = builder.shape(data)
    axis = node.attributes.get("axis", 0) % len(shape)
    grid = list(torch.meshgrid(*[torch.arange(n) for n in indices.shape], indexing="ij"))
    grid[axis] = _wrapped(indices, shape[axis])
    return _scatter(builder, node, data, updates, torch.arange(math.prod(shape)).view(shape)[tuple(grid)])


def _scatter(builder: Builder, node: OnnxNode, data: Value, updates: Value, where: Tensor) -> Value:
    if tuple(where.shape) != builder.shape(updates):
        raise ValueError(
            f"Updates of shape {builder.shape(updates)} do not fit indices for {tuple(where.shape)}."
        )
    reduction = node.attributes.get("reduction", "none")
    if reduction == "none":
        return overwrite(builder, data, updates, where)
    if reduction == "add" and where.unique().numel() == where.numel():
        zeros = builder.constant(torch.zeros(builder.shape(data), dtype=torch.float64))
        return add(builder, data, overwrite(builder, zeros, updates, where))
    raise Unsupported(f"the reduction {reduction!r}, or one with repeated indices")


def _wrapped(indices: Tensor, size: int) -> Tensor:
    wrapped = torch.where(indices < 0, indices + size, indices)
    if bool(((wrapped < 0) | (wrapped >= size)).any()):
        raise ValueError(f"An index lies outside of a dimension of size {size}.")
    return wrapped


@aten_op("where.self")
def _aten_where(builder: Builder, condition: Value, a: Value, b: Value) -> Value:
    return where(builder, condition, a, b)


@aten_op("masked_fill.Scalar", "masked_fill.Tensor")
def _aten_masked_fill(builder: Builder, x: Value, mask: Value, value: Value | float) -> Value:
    if not isinstance(value, Value):
        value = builder.constant(torch.tensor(float(value), dtype=torch.float64))
    return _aten_where(builder, mask, value, x)
