"""Matrix products with a constant."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from verifier.graph import Affine, Builder, Value
from verifier.graph.coefficients import Coefficients, Dense, Diagonal, Rows
from verifier.graph.op import Shape
from verifier.ops.movement import reshape


@dataclass(frozen=True, eq=False)
class Linear(Affine):
    """y = x W^T + b over the last dimension; `weight` [out, in], `bias` [out] or None, which may be off by `doubt`
    [out]."""

    weight: Tensor
    bias: Tensor | None = None
    doubt: Tensor | None = None

    def output_shape(self, *shapes: Shape) -> Shape:
        if not shapes[0] or shapes[0][-1] != self.weight.shape[1]:
            raise ValueError(
                f"A matrix with {self.weight.shape[1]} columns cannot multiply a value of shape {shapes[0]}."
            )
        return (*shapes[0][:-1], self.weight.shape[0])

    def fan_in(self, *shapes: Shape) -> int:
        return self.weight.shape[1] + 1

    def fan_out(self, *shapes: Shape) -> int:
        return self.weight.shape[0]

    def forward(self, *xs: Tensor) -> Tensor:
        return functional.linear(xs[0], self.weight, self.bias)

    def absolute(self, *xs: Tensor) -> Tensor:
        return functional.linear(xs[0], self.weight.abs())

    def offset(self, *shapes: Shape) -> Tensor | None:
        return None if self.bias is None else self.bias.expand(self.output_shape(*shapes))

    def uncertainty(self, *shapes: Shape) -> Tensor | None:
        return None if self.doubt is None else self.doubt.expand(self.output_shape(*shapes))

    def transpose(self, coefficients: Tensor, index: int, *shapes: Shape) -> Tensor:
        return torch.matmul(coefficients, self.weight)

    def backward(self, coefficients: Coefficients, index: int, *shapes: Shape) -> Coefficients:
        if math.prod(shapes[0][:-1]) == 1:
            if isinstance(coefficients, Diagonal):
                values = coefficients.values
                picked = values.reshape(values.shape[0], -1, 1) * self.weight
                return Dense(picked.view(*picked.shape[:2], *shapes[0]))
            if isinstance(coefficients, Rows):
                picked = self.weight[coefficients.index] * coefficients.scale.unsqueeze(2)
                return Dense(picked.view(*picked.shape[:2], *shapes[0]))
        return super().backward(coefficients, index, *shapes)

    def vjp(
        self, builder: Builder, inputs: Sequence[Value], output: Value, cotangent: Value
    ) -> Sequence[Value | None]:
        return [builder.add(Linear(self.weight.T), cotangent)]


@dataclass(frozen=True, eq=False)
class ConstantMatMul(Affine):
    """y = C x (`left`) or x C with numpy's broadcasting over leading dimensions; `matrix` has at least two."""

    matrix: Tensor
    left: bool

    def output_shape(self, *shapes: Shape) -> Shape:
        x = torch.empty(shapes[0], device="meta")
        c = torch.empty(self.matrix.shape, device="meta")
        try:
            return tuple((torch.matmul(c, x) if self.left else torch.matmul(x, c)).shape)
        except RuntimeError as error:
            raise ValueError(f"Shapes {shapes[0]} and {tuple(self.matrix.shape)} do not multiply.") from error

    def fan_in(self, *shapes: Shape) -> int:
        return self.matrix.shape[-1 if self.left else -2]

    def fan_out(self, *shapes: Shape) -> int:
        """All products, shared evenly by the argument's elements."""
        products = math.prod(self.output_shape(*shapes)) * self.fan_in(*shapes)
        return products // max(math.prod(shapes[0]), 1)

    def _product(self, matrix: Tensor, x: Tensor) -> Tensor:
        missing = matrix.dim() - (x.dim() - 1)
        x = x.reshape(x.shape[0], *([1] * max(missing, 0)), *x.shape[1:])
        return torch.matmul(matrix, x) if self.left else torch.matmul(x, matrix)

    def forward(self, *xs: Tensor) -> Tensor:
        return self._product(self.matrix, xs[0])

    def absolute(self, *xs: Tensor) -> Tensor:
        return self._product(self.matrix.abs(), xs[0])

    def transpose(self, coefficients: Tensor, index: int, *shapes: Shape) -> Tensor:
        flipped = self.matrix.transpose(-1, -2)
        grad = torch.matmul(flipped, coefficients) if self.left else torch.matmul(coefficients, flipped)
        extra = grad.dim() - 2 - len(shapes[0])
        if extra > 0:
            grad = grad.sum(dim=tuple(range(2, 2 + extra)))
        shared = [d + 2 for d, n in enumerate(shapes[0]) if n == 1 and grad.shape[d + 2] != 1]
        return grad.sum(dim=shared, keepdim=True) if shared else grad


def matmul_constant(builder: Builder, x: Value, matrix: Tensor, left: bool) -> Value:
    """x times a constant (or the constant times x, `left`), by numpy's MatMul rules for vectors too."""
    shape = builder.shape(x)
    if not shape or matrix.dim() == 0:
        raise ValueError("A scalar cannot take part in a matrix product.")
    vector, x_vector = matrix.dim() == 1, len(shape) == 1
    if vector:
        matrix = matrix.unsqueeze(0 if left else 1)
    if matrix.dim() == 2 and (x_vector or not left):
        y = builder.add(Linear((matrix if left else matrix.T).contiguous()), x)
        return reshape(builder, y, builder.shape(y)[:-1]) if vector else y
    if x_vector:
        x = reshape(builder, x, (*shape, 1) if left else (1, *shape))
    y = builder.add(ConstantMatMul(matrix, left), x)
    out = builder.shape(y)
    # The dimension that stands for a vector: the constant's own, or that of x.
    if vector:
        return reshape(builder, y, (*out[:-2], *out[-1:]) if left else out[:-1])
    if x_vector:
        return reshape(builder, y, out[:-1] if left else (*out[:-2], *out[-1:]))
    return y
