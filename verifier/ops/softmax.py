"""Softmax."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from verifier.graph import Builder, Composite, Value
from verifier.graph.op import Shape
from verifier.graph.registry import OnnxNode, aten_op, onnx_op
from verifier.ops.arithmetic import scale_shift, subtract
from verifier.ops.exponential import Exp
from verifier.ops.extremum import maximum_over
from verifier.ops.linear import Linear
from verifier.ops.movement import permute, reshape
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
    """

    axis: int

    def output_shape(self, *shapes: Shape) -> Shape:
        if not 0 <= self.axis < len(shapes[0]):
            raise ValueError(f"The axis {self.axis} does not exist in a value of shape {shapes[0]}.")
        return shapes[0]

    def forward(self, *xs: Tensor) -> Tensor:
        return xs[0].softmax(self.axis + 1)

    def ordered(self, shape: Shape) -> Tensor:
        """Elements that share a sum."""
        groups = [1 if a == self.axis else n for a, n in enumerate(shape)]
        return torch.arange(math.prod(groups)).view(groups).expand(shape)

    def write_out(self, builder: Builder, *xs: Value) -> Value:
        shape = builder.shape(xs[0])
        if math.prod(shape) * shape[self.axis] > PAIRS:
            shifted = subtract(builder, xs[0], maximum_over(builder, xs[0], [self.axis], keep=True))
            powers = builder.add(Exp(), shifted)
            return multiply(
                builder, powers, builder.add(Reciprocal(), total(builder, powers, [self.axis], keep=True))
            )
        order = [*[a for a in range(len(shape)) if a != self.axis], self.axis]
        y = _by_differences(builder, permute(builder, xs[0], order))
        return permute(builder, y, sorted(range(len(order)), key=order.__getitem__))


def _by_differences(builder: Builder, x: Value) -> Value:
    """Softmax along the last axis."""
    *others, count = builder.shape(x)
    if count == 1:
        return scale_shift(builder, x, scale=0.0, shift=1.0)
    each = torch.eye(count, dtype=torch.float64)
    pairs = (each.unsqueeze(0) - each.unsqueeze(1))[~each.bool()]  # row (i, j): x_j - x_i
    powers = builder.add(Exp(), builder.add(Linear(pairs), x))
    sums = total(builder, reshape(builder, powers, (*others, count, count - 1)), [-1], keep=False)
    return builder.add(Reciprocal(), scale_shift(builder, sums, shift=1.0))


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
    return builder.add(Softmax(*normalised([axis], builder.shape(x))), x)


@aten_op("softmax.int")
def _aten_softmax(builder: Builder, x: Value, dim: int, dtype: object = None) -> Value:
    return softmax(builder, x, dim)


@aten_op("_softmax.default")
def _aten_plain_softmax(builder: Builder, x: Value, dim: int, half_to_float: bool) -> Value:
    return softmax(builder, x, dim)
