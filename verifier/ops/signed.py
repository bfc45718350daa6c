"""Affine operators whose intervals keep the sign that the result has for certain."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from verifier.graph import Affine, Interval
from verifier.graph.coefficients import Coefficients
from verifier.graph.op import Shape
from verifier.ops.convolution import Conv, ConvTranspose
from verifier.ops.linear import ConstantMatMul, Linear

WEIGHTS = {Linear: "weight", Conv: "weight", ConvTranspose: "weight", ConstantMatMul: "matrix"}
"""The field that holds the linear part, of operators that have one."""


@dataclass(frozen=True, eq=False)
class Signed(Affine):
    """The operator `of`, one of WEIGHTS without a doubt. Where no term of a sum is negative the result is not, either,
    though rounding may be more than the sum; strict comparisons of values that may be equal need this."""

    of: Affine

    def tensors(self) -> Iterator[Tensor]:
        return self.of.tensors()

    def to(self, dtype: torch.dtype | None = None, device: torch.device | str | None = None) -> Signed:
        moved = self.of.to(dtype, device)
        return self if moved is self.of else Signed(moved)

    def output_shape(self, *shapes: Shape) -> Shape:
        return self.of.output_shape(*shapes)

    def fan_in(self, *shapes: Shape) -> int:
        return self.of.fan_in(*shapes)

    def fan_out(self, *shapes: Shape) -> int:
        return self.of.fan_out(*shapes)

    def forward(self, *xs: Tensor) -> Tensor:
        return self.of.forward(*xs)

    def absolute(self, *xs: Tensor) -> Tensor:
        return self.of.absolute(*xs)

    def offset(self, *shapes: Shape) -> Tensor | None:
        return self.of.offset(*shapes)

    def transpose(self, coefficients: Tensor, index: int, *shapes: Shape) -> Tensor:
        return self.of.transpose(coefficients, index, *shapes)

    def backward(self, coefficients: Coefficients, index: int, *shapes: Shape) -> Coefficients:
        return self.of.backward(coefficients, index, *shapes)

    @cached_property
    def _parts(self) -> tuple[Affine, Affine]:
        """Ones where the linear part is positive, and where it is negative."""
        name = WEIGHTS[type(self.of)]
        weight = getattr(self.of, name)
        rest = {"bias": None} if hasattr(self.of, "bias") else {}
        return (
            replace(self.of, **{name: (weight > 0).to(weight), **rest}),  # pyright: ignore[reportArgumentType]
            replace(self.of, **{name: (weight < 0).to(weight), **rest}),  # pyright: ignore[reportArgumentType]
        )

    def interval(self, *xs: Interval) -> Interval:
        found = self.of.interval(*xs)
        below, above = [(x.lower < 0).to(x.lower) for x in xs], [(x.upper > 0).to(x.lower) for x in xs]
        positive, negative = self._parts
        falls = positive.forward(*below) + negative.forward(*above)
        rises = positive.forward(*above) + negative.forward(*below)
        constant = self.offset(*[tuple(x.lower.shape[1:]) for x in xs])
        if constant is not None:
            falls, rises = falls + (constant < 0).to(falls), rises + (constant > 0).to(rises)
        return Interval(
            torch.where(falls == 0, found.lower.clamp(min=0), found.lower),
            torch.where(rises == 0, found.upper.clamp(max=0), found.upper),
        )


def signed(op: Affine) -> Affine:
    """The operator with intervals that keep signs, where that is known how."""
    known = type(op) in WEIGHTS and getattr(op, "doubt", None) is None
    return Signed(op) if known else op
