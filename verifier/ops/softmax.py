"""Softmax."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from verifier.graph import Builder, Composite, Value
from verifier.graph.op import Shape
from verifier.graph.registry import OnnxNode, Unsupported, aten_op, onnx_op
from verifier.ops.arithmetic import ScaleShift, scale_shift, subtract
from verifier.ops.exponential import Exp
from verifier.ops.extremum import maximum_over
from verifier.ops.linear import Linear
from verifier.ops.movement import Take, permute, reshape
from verifier.ops.product import multiply
from verifier.ops.reciprocal import Reciprocal
from verifier.ops.reduction import normalised, total

PAIRS = 1 << 17
"""Up to so many differences of two elements are written out."""


@dataclass(frozen=True, eq=False)
class Softmax(Composite):
    """exp(x_i) / (the sum over j of exp(x_j)) along `axis` (non-negative).

    Written out as 1 / (1 + the sum over j != i of exp(x_j - x_i)), which has no product: its bounds are those of
    Wei et al. (2023) with free slopes. Where that would be too many exponentials, as
    exp(x_i - m) * (1 / the sum over j of exp(x_j - m)) with the largest element m.

    Elements where `mask` (of the argument's shape, or broadcast to it) is 0 take no part, and become 0.
    """

    axis: int
    mask: Tensor | None = None

    def output_shape(self, *shapes: Shape) -> Shape:
        if not 0 <= self.axis < len(shapes[0]):
            raise ValueError(f"The axis {self.axis} does not exist in a value of shape {shapes[0]}.")
        return shapes[0]

    def forward(self, *xs: Tensor) -> Tensor:
        if self.mask is None:
            return xs[0].softmax(self.axis + 1)
        return xs[0].masked_fill(self.mask == 0, -torch.inf).softmax(self.axis + 1)

    def ordered(self, shape: Shape) -> Tensor | None:
        """Elements that share a sum."""
        if self.mask is not None:
            return None
        groups = [1 if a == self.axis else n for a, n in enumerate(shape)]
        return torch.arange(math.prod(groups)).view(groups).expand(shape)

    def write_out(self, builder: Builder, *xs: Value) -> Value:
        shape = builder.shape(xs[0])
        mask = None if self.mask is None else self.mask.expand(shape)
        if math.prod(shape) * shape[self.axis] > PAIRS:
            return _by_the_largest(builder, xs[0], self.axis, mask)
        order = [*[a for a in range(len(shape)) if a != self.axis], self.axis]
        mask = None if mask is None else mask.permute(order)
        y = _by_differences(builder, permute(builder, xs[0], order), mask)
        return permute(builder, y, sorted(range(len(order)), key=order.__getitem__))


def _by_the_largest(builder: Builder, x: Value, axis: int, mask: Tensor | None) -> Value:
    """The elements that a mask leaves out take the place of the first that it does not, so that no maximum is larger
    than those that count."""
    counted = x
    if mask is not None:
        places = torch.arange(mask.shape[axis]).view([-1 if a == axis else 1 for a in range(mask.dim())])
        first = mask.argmax(axis, keepdim=True)
        source = torch.where(mask > 0, places.expand(mask.shape), first)
        positions = torch.arange(mask.numel()).view(mask.shape).gather(axis, source)
        counted = builder.add(Take(positions.flatten(), tuple(mask.shape)), x)
    shifted = subtract(builder, counted, maximum_over(builder, counted, [axis], keep=True))
    powers = builder.add(Exp(), shifted)
    powers = powers if mask is None else scale_shift(builder, powers, scale=mask)
    return multiply(builder, powers, builder.add(Reciprocal(), total(builder, powers, [axis], keep=True)))


def _by_differences(builder: Builder, x: Value, mask: Tensor | None) -> Value:
    """Softmax along the last axis."""
    *others, count = builder.shape(x)
    if count == 1:
        return scale_shift(builder, x, scale=0.0, shift=1.0)
    each = torch.eye(count, dtype=torch.float64)
    pairs = (each.unsqueeze(0) - each.unsqueeze(1))[~each.bool()]  # row (i, j): x_j - x_i
    gaps = reshape(builder, builder.add(Linear(pairs), x), (*others, count, count - 1))
    if mask is None:
        powers = builder.add(Exp(), gaps)
    else:
        rest = mask.unsqueeze(-2).expand(*others, count, count)[..., ~each.bool()]
        rest = rest.view(*others, count, count - 1)
        powers = scale_shift(builder, builder.add(Exp(), scale_shift(builder, gaps, scale=rest)), scale=rest)
    sums = total(builder, powers, [-1], keep=False)
    shares = builder.add(Reciprocal(), scale_shift(builder, sums, shift=1.0))
    return shares if mask is None else scale_shift(builder, shares, scale=mask)


@onnx_op("Softmax")
def _softmax(builder: Builder, node: OnnxNode) -> Value:
    """Before opset 13 all dimensions from `axis` on are one."""
    x = node.required(0)
    shape = builder.shape(x)
    if node.opset >= 13:
        return softmax(builder, x, node.attributes.get("axis", -1))
    axis = node.attributes.get("axis", 1)
    axis += len(shape) if axis < 0 else 0
    flat = reshape(builder, x, (math.prod(shape[:axis]), math.prod(shape[axis:])))
    return reshape(builder, builder.add(Softmax(1), flat), shape)


def softmax(builder: Builder, x: Value, axis: int) -> Value:
    """Softmax along one axis; elements to which minus infinity has been added take no part. Raises Unsupported where
    none is left."""
    (axis,) = normalised([axis], builder.shape(x))
    op, arguments = builder.made_by(x)
    if isinstance(op, ScaleShift) and op.shift is not None and bool(op.shift.isneginf().any()):
        kept = ~op.shift.isneginf()
        shape = builder.shape(x)
        if not bool(kept.expand(shape).any(axis).all()):
            raise Unsupported("a softmax of which no element is left by its mask")
        scale = None if op.scale is None else op.scale.expand(shape).masked_fill(~kept.expand(shape), 0.0)
        finite = ScaleShift(scale, op.shift.masked_fill(~kept, 0.0), op.doubt)
        return builder.add(Softmax(axis, kept.double()), builder.add(finite, *arguments))
    return builder.add(Softmax(axis), x)


@aten_op("softmax.int")
def _aten_softmax(builder: Builder, x: Value, dim: int, dtype: object = None) -> Value:
    return softmax(builder, x, dim)


@aten_op("_softmax.default")
def _aten_plain_softmax(builder: Builder, x: Value, dim: int, half_to_float: bool) -> Value:
    return softmax(builder, x, dim)
