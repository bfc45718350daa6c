"""Comparisons and logic: Equal, Less, Greater and their kin, Not, And, Or, Xor, casts to bool, OneHot.

Truth values are 0 and 1. Of whole numbers every comparison is a continuous piecewise linear function of their
difference; of other values it is a jump where their difference changes its sign.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from verifier.graph import Builder, Elementwise, Interval, Parameter, Relaxation, Value
from verifier.graph.registry import OnnxNode, Unsupported, aten_op, onnx_op, unary_op
from verifier.ops.arithmetic import add, as_numbers, as_value, scale_shift, subtract
from verifier.ops.integers import integral, whole
from verifier.ops.movement import broadcast, joint_shape, reshape
from verifier.ops.piecewise_linear import absolute, clip, piecewise_linear, relu
from verifier.ops.sign import Sign


@dataclass(frozen=True, eq=False)
class Equals(Elementwise):
    """1 where both arguments are the same number, else 0. No interval of positive width settles that they are.

    Above, every line through (0, 1) in the difference that stays above zero; below nothing but zero.
    """

    jumps = True
    no_derivative = "it is constant but for jumps, where there is no derivative"

    def forward(self, *xs: Tensor) -> Tensor:
        return (xs[0] == xs[1]).to(xs[0].dtype)

    def interval(self, *xs: Interval) -> Interval:
        a, b = xs
        same = (a.lower == b.upper) & (b.lower == a.upper) & (a.lower == a.upper)
        meet = (a.lower <= b.upper) & (b.lower <= a.upper)
        return Interval(same.to(a.lower.dtype), meet.to(a.lower.dtype))

    def parameters(self, *xs: Interval) -> dict[str, Parameter]:
        low, high = self.interval(*xs)
        open_ = (low < high).to(low.dtype)
        left, right = xs[1].upper - xs[0].lower, xs[0].upper - xs[1].lower
        return {"tilt": Parameter(0 * open_, -_steepest(right) * open_, _steepest(left) * open_)}

    def relax(self, parameters: Mapping[str, Tensor], *xs: Interval) -> Relaxation:
        low, high = self.interval(*xs)
        tilt, flat = parameters["tilt"], torch.zeros_like(low)
        return Relaxation((flat, flat), low, (tilt, -tilt), high)

    def refinable(self, index: int, *xs: Interval) -> Tensor:
        """Nothing that splits one argument at a time decides it."""
        return torch.zeros_like(xs[index].lower, dtype=torch.bool)


def _steepest(reach: Tensor) -> Tensor:
    """The slope that falls from 1 to 0 over `reach`, which is positive where it matters; 0 where that is infinite."""
    info = torch.finfo(reach.dtype)
    return reach.detach().clamp(min=4 * info.tiny).reciprocal()


def equal(builder: Builder, a: Value, b: Value) -> Value:
    """Where a == b, with numpy's broadcasting."""
    if integral(builder, a) and integral(builder, b):
        return _hat(builder, subtract(builder, a, b))
    shape = joint_shape(builder.shape(a), builder.shape(b))
    return whole(builder, builder.add(Equals(), broadcast(builder, a, shape), broadcast(builder, b, shape)))


def less(builder: Builder, a: Value, b: Value, strict: bool = True) -> Value:
    """Where a < b, or a <= b, with numpy's broadcasting."""
    difference = subtract(builder, b, a)
    if integral(builder, a) and integral(builder, b):
        return whole(builder, clip(builder, scale_shift(builder, difference, shift=float(not strict)), 0, 1))
    sign = builder.add(Sign(-1.0 if strict else 1.0), difference)
    return whole(builder, scale_shift(builder, sign, scale=0.5, shift=0.5))


@unary_op("Not")
def not_(builder: Builder, x: Value) -> Value:
    return whole(builder, scale_shift(builder, x, scale=-1.0, shift=1.0))


def truth(builder: Builder, x: Value) -> Value:
    """Where x is not 0."""
    if integral(builder, x):
        return whole(builder, clip(builder, absolute(builder, x), 0, 1))
    return not_(builder, equal(builder, x, builder.constant(torch.zeros((), dtype=torch.float64))))


def both(builder: Builder, a: Value, b: Value) -> Value:
    """Where two truth values hold."""
    return whole(builder, relu(builder, scale_shift(builder, add(builder, a, b), shift=-1.0)))


def either(builder: Builder, a: Value, b: Value) -> Value:
    return not_(builder, both(builder, not_(builder, a), not_(builder, b)))


def one_hot(builder: Builder, index: Value, depth: int, axis: int) -> Value:
    """Truth values along a new `axis` of size `depth`: 1 where `index` [whole, -depth to depth - 1] says."""
    shape = builder.shape(index)
    axis %= len(shape) + 1
    places = torch.arange(depth, dtype=torch.float64).view(-1, *[1] * (len(shape) - axis))
    wide = reshape(builder, index, (*shape[:axis], 1, *shape[axis:]))
    at = subtract(builder, wide, builder.constant(places))
    knots = [-depth - 1.0, -depth, 1.0 - depth, -1.0, 0.0, 1.0]
    slopes = [0.0, 1.0, -1.0, 0.0, 1.0, -1.0, 0.0]
    if depth < 3:  # both hats touch
        first, second = _hat(builder, at), _hat(builder, scale_shift(builder, at, shift=float(depth)))
        return whole(builder, add(builder, first, second))
    return whole(builder, builder.add(piecewise_linear(knots, slopes, 0.0), at))


def _hat(builder: Builder, x: Value) -> Value:
    """1 at 0, and 0 at every other whole number."""
    return whole(builder, builder.add(piecewise_linear([-1.0, 0.0, 1.0], [0.0, 1.0, -1.0, 0.0], 0.0), x))


@onnx_op("Equal")
def _equal(builder: Builder, node: OnnxNode) -> Value:
    return equal(builder, node.required(0), node.required(1))


@onnx_op("Less", "LessOrEqual")
def _less(builder: Builder, node: OnnxNode) -> Value:
    return less(builder, node.required(0), node.required(1), node.op_type == "Less")


@onnx_op("Greater", "GreaterOrEqual")
def _greater(builder: Builder, node: OnnxNode) -> Value:
    return less(builder, node.required(1), node.required(0), node.op_type == "Greater")


@onnx_op("And")
def _and(builder: Builder, node: OnnxNode) -> Value:
    return both(builder, *_truths(builder, node))


@onnx_op("Or")
def _or(builder: Builder, node: OnnxNode) -> Value:
    return either(builder, *_truths(builder, node))


@onnx_op("Xor")
def _xor(builder: Builder, node: OnnxNode) -> Value:
    return whole(builder, absolute(builder, subtract(builder, *_truths(builder, node))))


def _truths(builder: Builder, node: OnnxNode) -> Sequence[Value]:
    return [as_numbers(builder, node.required(i)) for i in (0, 1)]


@onnx_op("OneHot", note="constant depth and values; whole indices")
def _one_hot(builder: Builder, node: OnnxNode) -> Value:
    index = node.required(0)
    depth, values = node.constant(builder, 1, "depth"), node.constant(builder, 2, "values")
    if depth is None or values is None:
        raise Unsupported("depth or values are missing")
    if not integral(builder, index):
        raise Unsupported("indices that depend on the network's input and are not integers")
    hot = one_hot(builder, index, int(depth), node.attributes.get("axis", -1))
    off, on = (float(v) for v in values.double())
    result = scale_shift(builder, hot, scale=on - off, shift=off) if (off, on) != (0, 1) else hot
    return whole(builder, result) if off == round(off) and on == round(on) else result


@aten_op("eq.Scalar", "eq.Tensor")
def _aten_eq(builder: Builder, a: Value, b: Value | float) -> Value:
    return equal(builder, a, as_value(builder, b))


@aten_op("ne.Scalar", "ne.Tensor")
def _aten_ne(builder: Builder, a: Value, b: Value | float) -> Value:
    return not_(builder, equal(builder, a, as_value(builder, b)))


@aten_op("lt.Scalar", "lt.Tensor")
def _aten_lt(builder: Builder, a: Value, b: Value | float) -> Value:
    return less(builder, a, as_value(builder, b))


@aten_op("le.Scalar", "le.Tensor")
def _aten_le(builder: Builder, a: Value, b: Value | float) -> Value:
    return less(builder, a, as_value(builder, b), strict=False)


@aten_op("gt.Scalar", "gt.Tensor")
def _aten_gt(builder: Builder, a: Value, b: Value | float) -> Value:
    return less(builder, as_value(builder, b), a)


@aten_op("ge.Scalar", "ge.Tensor")
def _aten_ge(builder: Builder, a: Value, b: Value | float) -> Value:
    return less(builder, as_value(builder, b), a, strict=False)


@aten_op("logical_not.default")
def _aten_not(builder: Builder, x: Value) -> Value:
    return not_(builder, truth(builder, x))


@aten_op("logical_and.default")
def _aten_and(builder: Builder, a: Value, b: Value) -> Value:
    return both(builder, truth(builder, a), truth(builder, b))


@aten_op("logical_or.default")
def _aten_or(builder: Builder, a: Value, b: Value) -> Value:
    return either(builder, truth(builder, a), truth(builder, b))
