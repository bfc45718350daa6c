"""Matrix products: MatMul, Gemm and torch's, with constants on either side or none."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from verifier.graph import Builder, Composite, Value
from verifier.graph.op import Shape
from verifier.graph.registry import OnnxNode, Unsupported, aten_op, onnx_op
from verifier.ops.arithmetic import add, scale_shift
from verifier.ops.linear import Linear, matmul_constant
from verifier.ops.movement import Permute, Reshape, joint_shape, permute, reshape, take
from verifier.ops.product import multiply
from verifier.ops.reduction import total
from verifier.ops.softmax import Softmax

MAX_PRODUCTS = 1 << 24
"""Most products of two variables in one matrix product: each takes about a hundred bytes in every bound."""


def matmul(builder: Builder, a: Value, b: Value) -> Value:
    """a times b by numpy's rules for vectors and leading dimensions. Raises ValueError where they do not fit."""
    if (right := builder.tensor(b)) is not None:
        return matmul_constant(builder, a, right, left=False)
    if (left := builder.tensor(a)) is not None:
        return matmul_constant(builder, b, left, left=True)
    if len(builder.shape(b)) > 1 and _rows_are_shares(builder, a):
        return builder.add(WeightedMean(), a, b)
    return _matmul_variables(builder, a, b)


@dataclass(frozen=True, eq=False)
class WeightedMean(Composite):
    """A matrix product whose left rows are shares, which are positive and sum up to one (attention's weights).

    The values may then be counted from any `center`, which broadcasts to them with a single row: their mean moves with
    it, and the products of uncertain shares with uncertain values are as small as the values' distance from it.
    """

    center: Tensor | None = None

    def output_shape(self, *shapes: Shape) -> Shape:
        left, right = shapes
        if left[-1] != right[-2]:
            raise ValueError(f"Shapes {left} and {right} do not multiply.")
        return (*joint_shape(left[:-2], right[:-2]), *left[-2:-1], right[-1])

    def forward(self, *xs: Tensor) -> Tensor:
        left = xs[0].unsqueeze(1) if xs[0].dim() == 2 else xs[0]
        rank = max(left.dim(), xs[1].dim())
        left, right = (t.view(t.shape[0], *[1] * (rank - t.dim()), *t.shape[1:]) for t in (left, xs[1]))
        y = left @ right
        return y.squeeze(-2) if xs[0].dim() == 2 else y

    def write_out(self, builder: Builder, *xs: Value) -> Value:
        shares, values = xs
        if self.center is None:
            return _matmul_variables(builder, shares, values)
        mean = _matmul_variables(builder, shares, scale_shift(builder, values, shift=-self.center))
        center = self.center if len(builder.shape(shares)) > 1 else self.center.squeeze(-2)
        return scale_shift(builder, mean, shift=center)


def _rows_are_shares(builder: Builder, x: Value) -> bool:
    """Whether x is a softmax along its last axis, reshaped or permuted outside of it perhaps."""
    op, arguments = builder.made_by(x)
    while isinstance(op, Reshape | Permute):
        shape, before = builder.shape(x), builder.shape(arguments[0])
        if not shape or not before or shape[-1] != before[-1]:
            return False
        if isinstance(op, Permute) and op.axes[-1] != len(shape) - 1:
            return False
        x = arguments[0]
        op, arguments = builder.made_by(x)
    return isinstance(op, Softmax) and op.axis == len(builder.shape(x)) - 1


def _matmul_variables(builder: Builder, a: Value, b: Value) -> Value:
    """Expand, multiply, sum: element (i, j) is the sum over k of a[i, k] b[k, j]."""
    left, right = builder.shape(a), builder.shape(b)
    if not left or not right:
        raise ValueError("A scalar cannot take part in a matrix product.")
    rows = reshape(builder, a, (1, *left)) if len(left) == 1 else a
    columns = reshape(builder, b, (*right, 1)) if len(right) == 1 else b
    *lead, n, k = builder.shape(rows)
    *other, inner, m = builder.shape(columns)
    if inner != k:
        raise ValueError(f"Shapes {left} and {right} do not multiply.")
    shape = (*joint_shape(lead, other), n, m, k)
    check_size(shape)
    x = take(builder, rows, lambda t: t.unsqueeze(-2).expand(shape))
    y = take(builder, columns, lambda t: t.mT.unsqueeze(-3).expand(shape))
    z = total(builder, multiply(builder, x, y), [len(shape) - 1], keep=False)
    kept = [*shape[:-3], *([n] if len(left) > 1 else []), *([m] if len(right) > 1 else [])]
    return reshape(builder, z, kept)


def check_size(shape: Shape) -> None:
    """Raises Unsupported for more scalar products of two variables than can be bounded."""
    if math.prod(shape) > MAX_PRODUCTS:
        raise Unsupported(f"{math.prod(shape)} products of values that both depend on the network's input")


@onnx_op("MatMul")
def _matmul(builder: Builder, node: OnnxNode) -> Value:
    return matmul(builder, node.required(0), node.required(1))


@onnx_op("Gemm")
def _gemm(builder: Builder, node: OnnxNode) -> Value:
    a, b, c = node.required(0), node.required(1), node.input(2)
    alpha, beta = node.attributes.get("alpha", 1.0), node.attributes.get("beta", 1.0)
    if node.attributes.get("transA", 0):
        a = permute(builder, a, (1, 0))
    weight = builder.tensor(b)
    if weight is None:
        if node.attributes.get("transB", 0):
            b = permute(builder, b, (1, 0))
        matrix = builder.tensor(a)
        if matrix is not None:
            y = matmul_constant(builder, b, matrix * alpha, left=True)
        else:
            y = matmul(builder, a, b)
            y = y if alpha == 1 else scale_shift(builder, y, scale=alpha)
    else:
        weight = weight if node.attributes.get("transB", 0) else weight.T
        bias = builder.tensor(c) if c is not None else None
        if bias is not None and bias.dim() <= 1 and (bias.numel() == weight.shape[0] or bias.numel() == 1):
            bias = (bias * beta).expand(weight.shape[0]).contiguous()
            return builder.add(Linear((weight * alpha).contiguous(), bias), a)
        y = builder.add(Linear((weight * alpha).contiguous()), a)
    if c is None:
        return y
    return add(builder, y, scale_shift(builder, c, scale=beta) if beta != 1 else c)


@aten_op("linear.default")
def _aten_linear(builder: Builder, x: Value, weight: Value, bias: Value | None = None) -> Value:
    w = builder.tensor(weight)
    b = None if bias is None else builder.tensor(bias)
    if w is None:
        y = matmul(builder, x, permute(builder, weight, reversed(range(len(builder.shape(weight))))))
        return y if bias is None else add(builder, y, bias)
    y = builder.add(Linear(w, b), x)
    return y if bias is None or b is not None else add(builder, y, bias)


@aten_op("addmm.default", "baddbmm.default")
def _aten_addmm(
    builder: Builder, bias: Value, x: Value, weight: Value, beta: float = 1, alpha: float = 1
) -> Value:
    y = matmul(builder, x, weight)
    y = y if alpha == 1 else scale_shift(builder, y, scale=float(alpha))
    return add(builder, y, bias if beta == 1 else scale_shift(builder, bias, scale=float(beta)))


@aten_op("mm.default", "matmul.default", "bmm.default", "mv.default", "dot.default")
def _aten_matmul(builder: Builder, a: Value, b: Value) -> Value:
    return matmul(builder, a, b)
