"""Log, and powers with a constant exponent: Pow, Sqrt, rsqrt."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from verifier.graph import Builder, Curved, Interval, Piece, Value
from verifier.graph.curve import calm
from verifier.graph.registry import OnnxNode, Unsupported, aten_op, onnx_op, unary_op
from verifier.ops.arithmetic import as_value, scale_shift
from verifier.ops.exponential import Exp
from verifier.ops.movement import broadcast, joint_shape
from verifier.ops.product import multiply, square
from verifier.ops.reciprocal import Reciprocal

_NEAR = 1e-3
"""Slopes that are tried next to a pole or a vertical tangent: those up to this part of the interval."""


class _HalfLine(Curved):
    """Functions with a pole or a vertical tangent at zero."""

    home = 1.0

    def slopes(self, x: Interval) -> Interval:
        """Not those next to zero, which have no limit."""
        near = _NEAR * x.magnitude
        low = torch.where(x.lower >= 0, torch.maximum(x.lower, near), x.lower)
        high = torch.where(x.upper <= 0, torch.minimum(x.upper, -near), x.upper)
        return super().slopes(Interval(low, high))


@dataclass(frozen=True, eq=False)
class Log(_HalfLine):
    """The natural logarithm. An interval that reaches zero has no line, and one that reaches below has no bound."""

    rising = True
    valued = (0.0, math.inf)
    domain = "x > 0"

    @property
    def pieces(self) -> tuple[Piece, ...]:
        return (Piece(0.0, math.inf, False),)

    def outside(self, *xs: Interval) -> Tensor:
        return xs[0].lower <= 0

    def usable(self, x: Interval) -> Tensor:
        return x.lower > 4 * torch.finfo(x.lower.dtype).tiny

    def forward(self, *xs: Tensor) -> Tensor:
        return xs[0].log()

    def derivative(self, x: Tensor) -> Tensor:
        return x.reciprocal()

    def interval(self, *xs: Interval) -> Interval:
        return _from_zero(self, xs[0])

    def touching(self, slope: Tensor, piece: Piece) -> Tensor:
        return slope.clamp(min=torch.finfo(slope.dtype).tiny).reciprocal()

    def vjp(
        self, builder: Builder, inputs: Sequence[Value], output: Value, cotangent: Value
    ) -> Sequence[Value | None]:
        return [multiply(builder, cotangent, builder.add(Reciprocal(), inputs[0]))]


def _from_zero(curve: Curved, x: Interval) -> Interval:
    """The range of an increasing function that is defined for x >= 0 (minus infinity at 0, perhaps)."""
    inside = x.lower >= 0
    low, high = (t.clamp(min=0) for t in calm(x))
    bottom, top = curve.forward(low), curve.forward(high)
    far = torch.full_like(bottom, torch.inf)
    bottom = torch.where(inside, bottom - curve.error(low, bottom), -far)
    return Interval(
        bottom.clamp(min=curve.bottom), torch.where(inside, top + curve.error(high, top), far)
    ).sanitise()


@dataclass(frozen=True, eq=False)
class Power(_HalfLine):
    """x ** exponent: on all numbers for positive integers, on one side of zero for negative ones, and from zero on for
    others. Intervals that leave the domain have no bound."""

    exponent: float

    @property
    def _whole(self) -> bool:
        return self.exponent == int(self.exponent)

    @property
    def _even(self) -> bool:
        return self._whole and int(self.exponent) % 2 == 0

    @property
    def rising(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.exponent > 0 and not self._even

    @property
    def units(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        return 8 + 2 * int(abs(self.exponent))

    @property
    def bottom(self) -> float:  # pyright: ignore[reportIncompatibleVariableOverride]
        return 0.0 if self._even or not self._whole else -math.inf

    @property
    def limits(self) -> tuple[float, float]:  # pyright: ignore[reportIncompatibleVariableOverride]
        if self.exponent < 0:
            return 0.0, 0.0
        return (math.inf if self._even else -math.inf), math.inf

    @property
    def pieces(self) -> tuple[Piece, ...]:
        right = Piece(0.0, math.inf, not 0 < self.exponent < 1)
        if not self._whole:
            return (right,)
        return Piece(-math.inf, 0.0, self._even), right

    @property
    def valued(self) -> tuple[float, float]:  # pyright: ignore[reportIncompatibleVariableOverride]
        return (-math.inf if self._whole else 0.0, math.inf)

    @property
    def domain(self) -> str:  # pyright: ignore[reportIncompatibleVariableOverride]
        if self._whole:
            return "" if self.exponent > 0 else "x other than 0"
        return "x >= 0" if self.exponent > 0 else "x > 0"

    def outside(self, *xs: Interval) -> Tensor | None:
        lower, upper = xs[0]
        if self._whole:
            return None if self.exponent > 0 else (lower <= 0) & (upper >= 0)
        return lower < 0 if self.exponent > 0 else lower <= 0

    def usable(self, x: Interval) -> Tensor:
        p, info = self.exponent, torch.finfo(x.lower.dtype)
        large = (info.max / 2**24) ** (1 / p) if p > 1 else info.max  # values times slopes do not overflow
        fits = x.magnitude <= large
        if p > 0:
            return fits if self._whole else fits & (x.lower >= 0)
        near = 1 / (info.max / 2**24) ** (1 / (1 - p))
        some = x.lower >= near
        return (some | (x.upper <= -near)) if self._whole else some

    def forward(self, *xs: Tensor) -> Tensor:
        if self.exponent == 0.5:
            return xs[0].sqrt()
        return xs[0].rsqrt() if self.exponent == -0.5 else xs[0].pow(self.exponent)

    def derivative(self, x: Tensor) -> Tensor:
        """At zero, the derivative nearby where there is none."""
        if self.exponent < 1:
            x = torch.where(x == 0, torch.full_like(x, torch.finfo(x.dtype).tiny), x)
        return self.exponent * x.pow(self.exponent - 1)

    def size(self, x: Tensor, y: Tensor) -> Tensor:
        return self._with_exponent(x, y.abs())

    def steepness(self, x: Tensor, d: Tensor) -> Tensor:
        return self._with_exponent(x, d.abs())

    def _with_exponent(self, x: Tensor, size: Tensor) -> Tensor:
        """More by what an exponent that is rounded costs: that times the logarithm of x."""
        if 2 * self.exponent == int(2 * self.exponent):
            return size
        log = x.abs().clamp(min=torch.finfo(x.dtype).tiny).log().abs()
        return size * (1 + (1 + abs(self.exponent)) / 8 * log)

    def interval(self, *xs: Interval) -> Interval:
        x = calm(xs[0])
        lower, upper = x
        if self.exponent > 0 and not self._whole:
            return _from_zero(self, xs[0])
        ends = [self.forward(t) for t in (lower, upper)]
        found = [
            Interval(y - self.error(t, y), y + self.error(t, y)) for t, y in zip(xs[0], ends, strict=True)
        ]
        low, high = (
            torch.minimum(found[0].lower, found[1].lower),
            torch.maximum(found[0].upper, found[1].upper),
        )
        across = (lower <= 0) & (upper >= 0)
        if self._even and self.exponent > 0:
            low = low.masked_fill(across, 0.0)
        result = Interval(low.clamp(min=self.bottom), high).sanitise()
        if self.exponent > 0:
            return result
        bad = across if self._whole else lower <= 0
        far = torch.full_like(low, torch.inf)
        return Interval(torch.where(bad, -far, result.lower), torch.where(bad, far, result.upper))

    def touching(self, slope: Tensor, piece: Piece) -> Tensor:
        """|x| = (slope / p) ** (1 / (p - 1)) where the signs fit; else beyond the end where f' comes nearest."""
        info = torch.finfo(slope.dtype)
        left = piece.start < 0
        ratio = slope / self.exponent * (-1.0 if left and self._even else 1.0)
        size = ratio.clamp(min=info.tiny).pow(1 / (self.exponent - 1))
        size = size.clamp(min=1e3 * info.tiny)
        return -size if left else size

    def vjp(
        self, builder: Builder, inputs: Sequence[Value], output: Value, cotangent: Value
    ) -> Sequence[Value | None]:
        steep = scale_shift(builder, power(builder, inputs[0], self.exponent - 1), scale=self.exponent)
        return [multiply(builder, cotangent, steep)]


def power(builder: Builder, x: Value, exponent: float) -> Value:
    """x ** exponent, by the simplest operator for it."""
    if exponent == 0:
        return scale_shift(builder, x, scale=0.0, shift=1.0)
    if exponent == 1:
        return x
    if exponent == 2:
        return square(builder, x)
    return builder.add(Reciprocal() if exponent == -1 else Power(exponent), x)


def raised(builder: Builder, x: Value, exponent: Value) -> Value:
    """x ** exponent where one of them is constant, the exponent the same everywhere. Raises Unsupported."""
    known = builder.tensor(exponent)
    if known is not None:
        values = known.flatten().unique().tolist()
        if len(values) != 1 or not math.isfinite(values[0]):
            raise Unsupported("exponents that are not all the same finite number")
        y = power(builder, x, float(values[0]))
        return broadcast(builder, y, joint_shape(builder.shape(x), known.shape))
    base = builder.tensor(x)
    if base is None:
        raise Unsupported("a variable base with a variable exponent")
    if bool((base <= 0).any()):
        raise Unsupported("a variable exponent of a number that is not positive")
    return builder.add(Exp(), scale_shift(builder, exponent, scale=base.double().log()))


@unary_op("Log", "log.default")
def log(builder: Builder, x: Value) -> Value:
    return builder.add(Log(), x)


@onnx_op("Pow", note="a constant exponent, one for all elements, or a constant positive base")
def _pow(builder: Builder, node: OnnxNode) -> Value:
    return raised(builder, node.required(0), node.required(1))


@unary_op("Sqrt", "sqrt.default")
def _sqrt(builder: Builder, x: Value) -> Value:
    return power(builder, x, 0.5)


@aten_op("pow.Tensor_Scalar", "pow.Tensor_Tensor", "pow.Scalar")
def _aten_pow(builder: Builder, x: Value | float, exponent: Value | float) -> Value:
    return raised(builder, as_value(builder, x), as_value(builder, exponent))


@aten_op("rsqrt.default")
def _aten_rsqrt(builder: Builder, x: Value) -> Value:
    return power(builder, x, -0.5)


@aten_op("log2.default")
def _aten_log2(builder: Builder, x: Value) -> Value:
    return scale_shift(builder, log(builder, x), scale=1 / math.log(2))


@aten_op("log10.default")
def _aten_log10(builder: Builder, x: Value) -> Value:
    return scale_shift(builder, log(builder, x), scale=1 / math.log(10))


@aten_op("log1p.default")
def _aten_log1p(builder: Builder, x: Value) -> Value:
    return log(builder, scale_shift(builder, x, shift=1.0))


@aten_op("expm1.default")
def _aten_expm1(builder: Builder, x: Value) -> Value:
    return scale_shift(builder, builder.add(Exp(), x), shift=-1.0)


@aten_op("exp2.default")
def _aten_exp2(builder: Builder, x: Value) -> Value:
    return builder.add(Exp(), scale_shift(builder, x, scale=math.log(2)))
