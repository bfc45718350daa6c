"""Matrix products of several values summed: what is left of a network between its undecided neurons."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from verifier.graph import Affine
from verifier.graph.coefficients import Coefficients, Dense, Rows
from verifier.graph.op import Shape


@dataclass(frozen=True, eq=False)
class Combination(Affine):
    """y = sum over k of weights[k] x_k + bias, up to `doubt`; every x_k a vector.

    `weights[k]` is [out, n_k], `bias` and `doubt` [out]. The matrices were computed: the value that is meant differs
    from `forward` by at most `doubt` as long as |x_k| <= magnitudes[k] [n_k], which also pays for casting them.
    """

    weights: tuple[Tensor, ...]
    bias: Tensor
    doubt: Tensor
    magnitudes: tuple[Tensor, ...]

    def tensors(self) -> Iterator[Tensor]:
        yield from (*self.weights, self.bias, self.doubt, *self.magnitudes)

    def to(self, dtype: torch.dtype | None = None, device: torch.device | str | None = None) -> Combination:
        """Casting rounds matrices and bias; the doubt grows by the most that this can matter."""
        weights = tuple(w.to(device=device, dtype=dtype) for w in self.weights)
        bias = self.bias.to(device=device, dtype=dtype)
        doubt = self.doubt.to(device)
        magnitudes = tuple(m.to(device) for m in self.magnitudes)
        if dtype is not None and dtype != self.bias.dtype:
            old = [w.to(device) for w in self.weights]
            moved = (bias.to(self.bias.dtype) - self.bias.to(device)).abs()
            for before, after, magnitude in zip(old, weights, magnitudes, strict=True):
                moved = moved + (after.to(before.dtype) - before).abs() @ magnitude
            info = torch.finfo(dtype)
            doubt = ((doubt + moved) * (1 + 16 * info.eps) + info.tiny).to(dtype)
            magnitudes = tuple((m * (1 + 4 * info.eps) + info.tiny).to(dtype) for m in magnitudes)
        return dataclasses.replace(self, weights=weights, bias=bias, doubt=doubt, magnitudes=magnitudes)

    def output_shape(self, *shapes: Shape) -> Shape:
        if any(s != (w.shape[1],) for s, w in zip(shapes, self.weights, strict=True)):
            raise ValueError(f"Vectors of shapes {shapes} do not fit the matrices of a Combination.")
        return (self.bias.shape[0],)

    def fan_in(self, *shapes: Shape) -> int:
        return sum(w.shape[1] for w in self.weights) + 1

    def fan_out(self, *shapes: Shape) -> int:
        return self.bias.shape[0]

    def forward(self, *xs: Tensor) -> Tensor:
        return sum((functional.linear(x, w) for x, w in zip(xs, self.weights, strict=True)), self.bias)

    def absolute(self, *xs: Tensor) -> Tensor:
        total = functional.linear(xs[0], self.weights[0].abs())
        for x, w in zip(xs[1:], self.weights[1:], strict=True):
            total = total + functional.linear(x, w.abs())
        return total

    def offset(self, *shapes: Shape) -> Tensor | None:
        return self.bias

    def uncertainty(self, *shapes: Shape) -> Tensor | None:
        return self.doubt

    def transpose(self, coefficients: Tensor, index: int, *shapes: Shape) -> Tensor:
        return torch.matmul(coefficients, self.weights[index])

    def backward(self, coefficients: Coefficients, index: int, *shapes: Shape) -> Coefficients:
        if isinstance(coefficients, Rows):
            return Dense(self.weights[index][coefficients.index] * coefficients.scale.unsqueeze(2))
        return super().backward(coefficients, index, *shapes)
