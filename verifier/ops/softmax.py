"""Softmax."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from verifier.graph import Builder, Composite, Value
from verifier.graph.op import Shape
from verifier.graph.registry import OnnxNode, Unsupported, aten_op, onnx_op
from verifier.ops.arithmetic import ScaleShift, scale_shift, subtract
from verifier.ops.exponential import Exp
from verifier.ops.linear import Linear
from verifier.ops.movement import permute, reshape, take
from verifier.ops.power import log
from verifier.ops.reciprocal import Reciprocal
from verifier.ops.reduction import normalised, total
from verifier.ops.within import within

PAIRS = 1 << 12
"""Up to so many differences of two elements are written out. Three layers of 3 heads and 17 tokens took 174 s of CROWN
with them and 34 s without, for bounds off by 0.2 %; two layers of 5 tokens lose a sixth without."""


@dataclass(frozen=True, eq=False)
class Softmax(Composite):
    """exp(x_i) / (the sum over j of exp(x_j)) along `axis` (non-negative).

    Written out as 1 / (1 + the sum over j != i of exp(x_j - x_i)), which has no product: its bounds are those of
    Wei et al. (2023) with free slopes. Where that would be too many differences to bound, as
    exp(x_i - m - log(the sum over j of exp(x_j - m))) with a mean m, which has none either.

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
            return _by_logarithms(builder, xs[0], self.axis, mask)
        order = [*[a for a in range(len(shape)) if a != self.axis], self.axis]
        mask = None if mask is None else mask.permute(order)
        y = _by_differences(builder, permute(builder, xs[0], order), mask)
        return permute(builder, y, sorted(range(len(order)), key=order.__getitem__))


def _by_logarithms(builder: Builder, x: Value, axis: int, mask: Tensor | None) -> Value:
    """What a mask leaves out counts as the mean, until it becomes 0."""
    mean, least = mean_of_some(builder, x, [axis], mask)
    gaps = subtract(builder, x, mean)
    gaps = gaps if mask is None else scale_shift(builder, gaps, scale=mask)
    powers = builder.add(Exp(), gaps)
    powers = powers if mask is None else scale_shift(builder, powers, scale=mask)
    sums = within(builder, total(builder, powers, [axis], keep=True), least, math.inf)
    shares = builder.add(Exp(), within(builder, subtract(builder, gaps, log(builder, sums)), -math.inf, 0.0))
    return shares if mask is None else scale_shift(builder, shares, scale=mask)


def mean_of_some(
    builder: Builder, x: Value, axes: Sequence[int], mask: Tensor | None = None
) -> tuple[Value, float]:
    """The mean m of as many elements over `axes` as are a power of two, and that number (the least, where a mask leaves
    different ones): by convexity the sum of exp(x_j - m) is at least that, and in any precision, as weights are exact.
    """
    shape = builder.shape(x)
    allowed = torch.ones(shape, dtype=torch.float64) if mask is None else (mask.expand(shape) > 0).double()
    order = [*[a for a in range(len(shape)) if a not in axes], *axes]
    rows = allowed.permute(order).flatten(len(shape) - len(axes))
    place = rows.cumsum(-1)
    count = 2.0 ** place[..., -1:].log2().floor()
    weight = (rows * (place <= count) / count).view([shape[a] for a in order])
    weight = weight.permute(sorted(range(len(order)), key=order.__getitem__))
    mean = total(builder, scale_shift(builder, x, scale=weight.contiguous()), axes, keep=True)
    return mean, float(count.min())


def differences(builder: Builder, x: Value) -> Value:
    """x_j - x_i for all i and all j other than i, along the last axis: n (n - 1) in place of n.

    Those with i < j are computed and the others are copies, turned around, so that engines bound each of them once.
    """
    count = builder.shape(x)[-1]
    first, second = torch.triu_indices(count, count, 1)
    each = torch.eye(count, dtype=torch.float64)
    half = builder.add(Linear(each[second] - each[first]), x)
    place, sign = torch.zeros(2, count, count, dtype=torch.int64)
    place[first, second] = place[second, first] = torch.arange(len(first))
    sign[first, second], sign[second, first] = 1, -1
    apart = ~each.bool()
    full = take(builder, half, lambda t: t.index_select(-1, place[apart]))
    return scale_shift(builder, full, scale=sign[apart].double())


def _by_differences(builder: Builder, x: Value, mask: Tensor | None) -> Value:
    """Softmax along the last axis."""
    *others, count = builder.shape(x)
    if count == 1:
        return scale_shift(builder, x, scale=0.0, shift=1.0)
    each = torch.eye(count, dtype=torch.float64)
    gaps = reshape(builder, differences(builder, x), (*others, count, count - 1))
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
