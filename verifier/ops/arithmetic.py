"""Sums, and scaling or shifting by constants."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from verifier.graph import Affine, Builder, Interval, Value
from verifier.graph.coefficients import Coefficients
from verifier.graph.op import Shape
from verifier.graph.registry import OnnxNode, Unsupported, aten_op, onnx_op, unary_op
from verifier.ops.movement import broadcast, joint_shape


@dataclass(frozen=True, eq=False)
class Add(Affine):
    """x_1 + x_2, of one shape."""

    increasing = True

    def output_shape(self, *shapes: Shape) -> Shape:
        if shapes[0] != shapes[1]:
            raise ValueError(f"Add takes two values of one shape, got {shapes[0]} and {shapes[1]}.")
        return shapes[0]

    def fan_in(self, *shapes: Shape) -> int:
        return 2

    def fan_out(self, *shapes: Shape) -> int:
        return 1

    def forward(self, *xs: Tensor) -> Tensor:
        return xs[0] + xs[1]

    def transpose(self, coefficients: Tensor, index: int, *shapes: Shape) -> Tensor:
        return coefficients

    def backward(self, coefficients: Coefficients, index: int, *shapes: Shape) -> Coefficients:
        return coefficients

    def vjp(
        self, builder: Builder, inputs: Sequence[Value], output: Value, cotangent: Value
    ) -> Sequence[Value | None]:
        return [cotangent, cotangent]


@dataclass(frozen=True, eq=False)
class ScaleShift(Affine):
    """y = scale * x + shift elementwise; both tensors broadcast to x's shape (never x to theirs), or are None, as does
    `doubt`, by which the shift may be off."""

    scale: Tensor | None = None
    shift: Tensor | None = None
    doubt: Tensor | None = None
    elementwise = True

    def output_shape(self, *shapes: Shape) -> Shape:
        for tensor in (self.scale, self.shift, self.doubt):
            if tensor is not None and joint_shape(tensor.shape, shapes[0]) != shapes[0]:
                raise ValueError(
                    f"A constant of shape {tuple(tensor.shape)} does not broadcast to {shapes[0]}."
                )
        return shapes[0]

    def forward(self, *xs: Tensor) -> Tensor:
        y = xs[0] if self.scale is None else xs[0] * self.scale
        return y if self.shift is None else y + self.shift

    def absolute(self, *xs: Tensor) -> Tensor:
        return xs[0] if self.scale is None else xs[0] * self.scale.abs()

    def offset(self, *shapes: Shape) -> Tensor | None:
        return None if self.shift is None else self.shift.expand(shapes[0])

    def uncertainty(self, *shapes: Shape) -> Tensor | None:
        return None if self.doubt is None else self.doubt.expand(shapes[0])

    def interval(self, *xs: Interval) -> Interval:
        lower, upper = xs[0]
        if self.scale is None:
            return self.between(xs, [lower], [upper])
        falls = self.scale < 0
        return self.between(xs, [torch.where(falls, upper, lower)], [torch.where(falls, lower, upper)])

    def transpose(self, coefficients: Tensor, index: int, *shapes: Shape) -> Tensor:
        return coefficients if self.scale is None else coefficients * self.scale

    def backward(self, coefficients: Coefficients, index: int, *shapes: Shape) -> Coefficients:
        if self.scale is None:
            return coefficients
        return coefficients.multiply(self.scale.expand(shapes[0]).unsqueeze(0))

    def vjp(
        self, builder: Builder, inputs: Sequence[Value], output: Value, cotangent: Value
    ) -> Sequence[Value | None]:
        return [cotangent if self.scale is None else builder.add(ScaleShift(self.scale), cotangent)]


def scale_shift(
    builder: Builder,
    x: Value,
    scale: Tensor | float | None = None,
    shift: Tensor | float | None = None,
    doubt: Tensor | None = None,
) -> Value:
    """scale * x + shift with numpy's broadcasting in both directions; scale and shift are constants, and the shift may
    be off by `doubt`."""
    tensors = [t if t is None else _number(t) for t in (scale, shift, doubt)]
    shape = joint_shape(builder.shape(x), *[t.shape for t in tensors if t is not None])
    return builder.add(ScaleShift(*tensors), broadcast(builder, x, shape))


def _number(x: Tensor | float) -> Tensor:
    """Integers become floats: values of the graph are real numbers whatever their type in the model."""
    if isinstance(x, Tensor) and x.is_floating_point():
        return x
    return torch.as_tensor(x, dtype=torch.float64)


def add(builder: Builder, a: Value, b: Value) -> Value:
    """a + b with numpy's broadcasting."""
    if (constant := builder.tensor(b)) is not None:
        return scale_shift(builder, a, shift=constant)
    if (constant := builder.tensor(a)) is not None:
        return scale_shift(builder, b, shift=constant)
    shape = joint_shape(builder.shape(a), builder.shape(b))
    return builder.add(Add(), broadcast(builder, a, shape), broadcast(builder, b, shape))


@unary_op("Neg")
def negate(builder: Builder, x: Value) -> Value:
    return scale_shift(builder, x, scale=-1.0)


def subtract(builder: Builder, a: Value, b: Value) -> Value:
    """a - b with numpy's broadcasting."""
    if (constant := builder.tensor(b)) is not None:
        return scale_shift(builder, a, shift=-constant)
    if (constant := builder.tensor(a)) is not None:
        return scale_shift(builder, b, scale=-1.0, shift=constant)
    return add(builder, a, negate(builder, b))


def divide(builder: Builder, a: Value, b: Value) -> Value:
    """a / b with numpy's broadcasting, b constant and not zero (`ops/quotient.py` has other divisors)."""
    constant = builder.tensor(b)
    if constant is None:
        raise Unsupported("division by a value that depends on the network's input")
    if bool((constant == 0).any()):
        raise Unsupported("division by a constant that is zero")
    if not constant.is_floating_point():
        raise Unsupported("division of integers that depend on the network's input")
    return scale_shift(builder, a, scale=1.0 / constant)


@onnx_op("Add")
def _add(builder: Builder, node: OnnxNode) -> Value:
    return add(builder, node.required(0), node.required(1))


@onnx_op("Sum")
def _sum(builder: Builder, node: OnnxNode) -> Value:
    total = node.required(0)
    for i in range(1, len(node.inputs)):
        total = add(builder, total, node.required(i))
    return total


@onnx_op("Sub")
def _sub(builder: Builder, node: OnnxNode) -> Value:
    return subtract(builder, node.required(0), node.required(1))


def as_value(builder: Builder, x: Value | float) -> Value:
    """An ATen argument that may be a plain number."""
    return x if isinstance(x, Value) else builder.constant(torch.as_tensor(float(x), dtype=torch.float64))


def as_numbers(builder: Builder, x: Value) -> Value:
    """x; a constant of integers or truth values as floating numbers, for nodes that compute with it."""
    tensor = builder.tensor(x)
    return x if tensor is None or tensor.is_floating_point() else builder.constant(tensor.double())


@aten_op("add.Tensor", "add.Scalar")
def _aten_add(builder: Builder, a: Value, b: Value | float, alpha: float = 1) -> Value:
    other = as_value(builder, b)
    return add(builder, a, other if alpha == 1 else scale_shift(builder, other, scale=float(alpha)))


@aten_op("sub.Tensor", "sub.Scalar")
def _aten_sub(builder: Builder, a: Value, b: Value | float, alpha: float = 1) -> Value:
    other = as_value(builder, b)
    return subtract(builder, a, other if alpha == 1 else scale_shift(builder, other, scale=float(alpha)))


@aten_op("rsub.Scalar", "rsub.Tensor")
def _aten_rsub(builder: Builder, a: Value, b: Value | float, alpha: float = 1) -> Value:
    return subtract(
        builder, as_value(builder, b), a if alpha == 1 else scale_shift(builder, a, scale=float(alpha))
    )


@aten_op("neg.default")
def _aten_neg(builder: Builder, a: Value) -> Value:
    return negate(builder, a)
