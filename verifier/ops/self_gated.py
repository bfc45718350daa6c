"""x S(x) for a smooth step S: Silu, Gelu, Mish, and their derivatives."""

from __future__ import annotations

import dataclasses
import functools
import math
from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from verifier.graph import Builder, Curved, Piece, Value
from verifier.graph.curve import alternating
from verifier.graph.registry import OnnxNode, Unsupported, aten_op, onnx_op, unary_op
from verifier.ops.arithmetic import scale_shift
from verifier.ops.product import multiply

ORDERS = 2
"""The last derivative that is an operator; its pieces need the gate's derivatives up to two orders beyond."""


@dataclass(frozen=True, eq=False)
class SelfGated(Curved):
    """The derivative of x S(x) of some order, x S^(n)(x) + n S^(n - 1)(x)."""

    order: int = 0
    units = 32

    @property
    def no_derivative(self) -> str:  # pyright: ignore[reportIncompatibleVariableOverride]
        return "it is the last derivative that is known" if self.order == ORDERS else ""

    @property
    def limits(self) -> tuple[float, float]:  # pyright: ignore[reportIncompatibleVariableOverride]
        return 0.0, (math.inf, 1.0, 0.0)[self.order]

    @abstractmethod
    def gate(self, x: Tensor, order: int) -> Tensor:
        """S^(order)(x), relative to itself but for a few roundings of `gate_size`."""

    def gate_size(self, x: Tensor, order: int) -> Tensor:
        """What rounding of the gate's derivative is relative to."""
        return self.gate(x, order).abs()

    def _of(self, x: Tensor, order: int) -> Tensor:
        x = x.clamp(-1e4, max=torch.finfo(x.dtype).max)
        y = _times(x, self.gate(x, order))
        return y if order == 0 else y + order * self.gate(x, order - 1)

    def _size(self, x: Tensor, order: int) -> Tensor:
        x = x.clamp(-1e4, max=torch.finfo(x.dtype).max)
        y = _times(x, self.gate_size(x, order)).abs()
        return y if order == 0 else y + order * self.gate_size(x, order - 1)

    def forward(self, *xs: Tensor) -> Tensor:
        return self._of(xs[0], self.order)

    def derivative(self, x: Tensor) -> Tensor:
        return self._of(x, self.order + 1)

    def size(self, x: Tensor, y: Tensor) -> Tensor:
        return self._size(x, self.order)

    def steepness(self, x: Tensor, d: Tensor) -> Tensor:
        return self._size(x, self.order + 1)

    @cached_property
    def pieces(self) -> tuple[Piece, ...]:  # pyright: ignore[reportIncompatibleVariableOverride]
        return _pieces(lambda x: self._of(x, self.order + 2), self.reach)

    def vjp(
        self, builder: Builder, inputs: Sequence[Value], output: Value, cotangent: Value
    ) -> Sequence[Value | None]:
        steep = builder.add(dataclasses.replace(self, order=self.order + 1), inputs[0])
        return [multiply(builder, cotangent, steep)]


def _times(x: Tensor, gate: Tensor) -> Tensor:
    """x * gate, 0 where the gate is, however large x is."""
    return torch.where(gate == 0, gate, x * gate)


def _pieces(curvature: Callable[[Tensor], Tensor], reach: float) -> tuple[Piece, ...]:
    """The line cut where a function, given by its second derivative, changes how it bends: simple zeros, farther apart
    than a step of the search."""
    part = torch.linspace(-1, 1, 20001, dtype=torch.float64)
    points = reach * part * part.abs()
    signs = curvature(points).sign()
    points, signs = points[signs != 0], signs[signs != 0]
    turns = (signs[1:] != signs[:-1]).nonzero().squeeze(1)
    low, high = points[turns], points[turns + 1]
    for _ in range(60):
        middle = (low + high) / 2
        left = curvature(middle).sign() == signs[turns]
        low, high = torch.where(left, middle, low), torch.where(left, high, middle)
    knots = [0.0 if abs(k) < 1e-12 else k for k in ((low + high) / 2).tolist()]
    return alternating(knots, convex=bool(signs[0] > 0))


@dataclass(frozen=True, eq=False)
class Silu(SelfGated):
    """x sigmoid(w), w = linear x + cubic x^3: Silu itself with (1, 0), and the tanh form of Gelu."""

    linear: float = 1.0
    cubic: float = 0.0

    @property
    def reach(self) -> float:  # pyright: ignore[reportIncompatibleVariableOverride]
        return 750.0 / self.linear if self.cubic == 0 else 40.0

    def gate(self, x: Tensor, order: int) -> Tensor:
        return self._gate(x, order, absolute=False)

    def gate_size(self, x: Tensor, order: int) -> Tensor:
        return self._gate(x, order, absolute=True)

    def _gate(self, x: Tensor, order: int, absolute: bool) -> Tensor:
        """The chain rule for a sigmoid of a polynomial; beyond 1e4 nothing changes any more."""
        x = x.clamp(-1e4, 1e4)
        w = x * (self.linear + self.cubic * x * x)
        if order == 0:
            y = w.sigmoid()
            return y * (1 + w.abs().clamp(max=1e3)) if absolute else y
        inner = [self.linear + 3 * self.cubic * x * x, 6 * self.cubic * x, torch.full_like(x, 6 * self.cubic)]
        t = (w / 2).tanh()
        if absolute:
            inner, t = [d.abs() for d in inner], t.abs()
        a, b, c = inner
        sign = 1.0 if absolute else -1.0
        first, second = torch.full_like(t, 0.25), sign * t / 4
        third, fourth = (3 * t * t + sign) / 8, t * (2 + sign * 3 * t * t) / 4
        total = {
            1: lambda: a * first,
            2: lambda: a * a * second + b * first,
            3: lambda: a**3 * third + 3 * a * b * second + c * first,
            4: lambda: a**4 * fourth + 6 * a * a * b * third + (3 * b * b + 4 * a * c) * second,
        }[order]()
        y = _times(total, 4 * w.sigmoid() * (-w).sigmoid())
        return y * (1 + w.abs().clamp(max=1e3)) if absolute else y


@dataclass(frozen=True, eq=False)
class Gelu(SelfGated):
    """x times the normal distribution's cumulative function."""

    reach = 40.0

    def gate(self, x: Tensor, order: int) -> Tensor:
        if order == 0:
            return 0.5 * torch.special.erfc(-x * math.sqrt(0.5))
        return self._bell(x, order, (1.0, -1.0))

    def gate_size(self, x: Tensor, order: int) -> Tensor:
        """The argument is rounded before it is raised."""
        rounded = 1 + (x * x).clamp(max=1e3)
        if order == 0:
            return self.gate(x, 0) * torch.where(x < 0, rounded, torch.ones_like(rounded))
        return self._bell(x.abs(), order, (1.0, 1.0)) * rounded

    def _bell(self, x: Tensor, order: int, signs: tuple[float, float]) -> Tensor:
        x = x.clamp(-50, 50)
        plus, minus = signs
        hermite = {
            1: lambda: torch.ones_like(x),
            2: lambda: minus * x,
            3: lambda: x * x + minus,
            4: lambda: x * (3 + minus * x * x),
        }[order]()
        return plus * hermite * (-x * x / 2).exp() / math.sqrt(2 * math.pi)


@unary_op("Mish", "mish.default", "mish_.default")
@dataclass(frozen=True, eq=False)
class Mish(SelfGated):
    """x tanh(softplus(x))."""

    reach = 750.0

    def gate(self, x: Tensor, order: int) -> Tensor:
        return self._gate(x, order, 1.0)

    def gate_size(self, x: Tensor, order: int) -> Tensor:
        return self._gate(x, order, -1.0) if order > 1 else self.gate(x, order)

    def _gate(self, x: Tensor, order: int, sign: float) -> Tensor:
        """1 - 2 / D with D = n^2 + 2 n + 2 and n = e^x: every derivative is P(n) / D^(order + 1) with a polynomial P,
        both computed in e^-|x|, which does not overflow."""
        weights = [w if sign > 0 else abs(w) for w in _mish(order)]
        e = (-x.abs()).exp()
        right = x > 0
        total = torch.zeros_like(x)
        for low, high in zip(reversed(weights), weights, strict=True):
            total = total * e + torch.where(right, high, low)
        scale = torch.where(right, 1 + 2 * e + 2 * e * e, 2 + 2 * e + e * e)
        return total / scale ** (order + 1)


@functools.cache
def _mish(order: int) -> tuple[float, ...]:
    """Coefficients in n of P, padded to the degree of D^(order + 1): n d/dn takes P / D^k to
    n (P' D - k P D') / D^(k + 1)."""
    n, d = np.polynomial.Polynomial([0.0, 1.0]), np.polynomial.Polynomial([2.0, 2.0, 1.0])
    p = n * n + 2 * n
    for k in range(order):
        p = n * (p.deriv() * d - (k + 1) * p * d.deriv())
    coefficients = [float(c) for c in p.coef]
    return (*coefficients, *[0.0] * (2 * order + 3 - len(coefficients)))


@unary_op("silu.default", "silu_.default")
def silu(builder: Builder, x: Value) -> Value:
    return builder.add(Silu(), x)


def gelu(builder: Builder, x: Value, approximate: str = "none") -> Value:
    """Raises Unsupported for a form that is not known."""
    if approximate == "none":
        return builder.add(Gelu(), x)
    if approximate == "tanh":
        linear = 2 * math.sqrt(2 / math.pi)
        return builder.add(Silu(linear=linear, cubic=linear * 0.044715), x)
    raise Unsupported(f"the form {approximate!r}")


@onnx_op("Gelu")
def _gelu(builder: Builder, node: OnnxNode) -> Value:
    form = node.attributes.get("approximate", "none")
    return gelu(builder, node.required(0), form.decode() if isinstance(form, bytes) else form)


@onnx_op("Swish")
def _swish(builder: Builder, node: OnnxNode) -> Value:
    """x sigmoid(alpha x)."""
    alpha = float(node.attributes.get("alpha", 1.0))
    x = node.required(0)
    if alpha == 0:
        return scale_shift(builder, x, scale=0.5)
    y = silu(builder, scale_shift(builder, x, scale=alpha))
    return scale_shift(builder, y, scale=1 / alpha)


@aten_op("gelu.default")
def _aten_gelu(builder: Builder, x: Value, approximate: str = "none") -> Value:
    return gelu(builder, x, approximate)
