"""What a chain of operators on one scalar computes, in exact arithmetic, P(x) + Q(x) S(w(x)) with polynomials P, Q and
w and a step S; and which operator knows that function as one."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction

import torch

from verifier.graph import Builder, Value
from verifier.graph.op import Op
from verifier.ops.arithmetic import Add, ScaleShift, add, scale_shift
from verifier.ops.decay import ExpSigmoid, Gompertz, SigmoidPower
from verifier.ops.erf import Erf
from verifier.ops.exponential import Exp
from verifier.ops.piecewise_polynomial import DEGREE, PiecewisePolynomial
from verifier.ops.power import Log, Power
from verifier.ops.product import Product, Square
from verifier.ops.reciprocal import Reciprocal
from verifier.ops.self_gated import Gelu, Mish, Silu
from verifier.ops.sigmoid import Sigmoid, Tanh
from verifier.ops.softplus import Softplus

Poly = tuple[Fraction, ...]
"""Coefficients, lowest first, without zeros at the end."""
ROOT_TWO = Fraction(2**0.5)
_MOST = 12
_STEEP = 64.0
"""Decays of rates up to this, or down to one by this, are operators of their own."""


@dataclass(frozen=True)
class Form:
    """`plain` + `factor` * step(`inner`); `step` is empty where there is none. Of the steps "sigmoid power"
    (sigmoid^rate), "exp exp" (e^(rate e^x)) and "exp sigmoid" (e^(rate sigmoid(x))) there is one for every rate."""

    plain: Poly
    factor: Poly = ()
    step: str = ""
    inner: Poly = ()
    rate: Fraction = Fraction(0)


IDENTITY = Form((Fraction(0), Fraction(1)))


def apply(op: Op, arguments: Sequence[Form]) -> Form | None:
    """The form of an operator's result, or None where there is none."""
    first = arguments[0]
    if isinstance(op, ScaleShift):
        return _scaled(op, first)
    if isinstance(op, Add):
        return _sum(first, arguments[1])
    if isinstance(op, Product):
        return _product(first, arguments[1])
    if isinstance(op, Square):
        return _product(first, first)
    if isinstance(op, Power) and op.exponent == int(op.exponent) and 0 < op.exponent < _MOST:
        result: Form | None = first
        for _ in range(int(op.exponent) - 1):
            result = None if result is None else _product(result, first)
        return result
    return _step(op, first)


def _step(op: Op, x: Form) -> Form | None:
    one, two = (Fraction(1),), (Fraction(2),)
    if isinstance(op, Tanh) and x == Form((), one, "softplus", x.inner):
        return Form((), one, "mish", x.inner)
    if isinstance(op, Reciprocal) and x.step == "exp" and len(x.plain) == 1 and x.plain == x.factor:
        return Form((), (1 / x.plain[0],), "sigmoid", _times((Fraction(-1),), x.inner))  # 1 / (c + c e^w)
    if x.step:
        return _decay(op, x)
    if isinstance(op, Exp):
        return Form((), one, "exp", x.plain)
    if isinstance(op, Sigmoid):
        return Form((), one, "sigmoid", x.plain)
    if isinstance(op, Tanh):
        return Form((Fraction(-1),), two, "sigmoid", _times(two, x.plain))
    if isinstance(op, Erf):
        return Form((), one, "erf", x.plain)
    if isinstance(op, Softplus) and op.threshold == float("inf"):
        return Form((), one, "softplus", x.plain)
    return None


def _decay(op: Op, x: Form) -> Form | None:
    """Exponentials, logarithms and powers of a multiple of a step."""
    one, away = (Fraction(1),), _times((Fraction(-1),), x.inner)
    if x.plain or len(x.factor) != 1:
        return None
    rate = x.factor[0]
    if isinstance(op, Exp) and x.step == "softplus" and rate < 0:
        return Form((), one, "sigmoid power", away, -rate)  # e^(-c log(1 + e^w))
    if isinstance(op, Exp) and x.step in ("exp", "sigmoid"):
        return Form((), one, f"exp {x.step}", x.inner, rate)
    if x.step == "sigmoid" and rate == 1 and isinstance(op, Log):
        return Form((), (Fraction(-1),), "softplus", away)
    if x.step == "sigmoid" and rate == 1 and isinstance(op, Power) and op.exponent > 0:
        return Form((), one, "sigmoid power", x.inner, Fraction(op.exponent))
    return None


def _scaled(op: ScaleShift, x: Form) -> Form | None:
    if op.doubt is not None or any(t is not None and t.numel() != 1 for t in (op.scale, op.shift)):
        return None
    scale = Fraction(1) if op.scale is None else Fraction(float(op.scale))
    shift = Fraction(0) if op.shift is None else Fraction(float(op.shift))
    return Form(
        _plus(_times((scale,), x.plain), _trim((shift,))), _times((scale,), x.factor), x.step, x.inner, x.rate
    )


def _sum(a: Form, b: Form) -> Form | None:
    if a.step and b.step and (a.step, a.inner, a.rate) != (b.step, b.inner, b.rate):
        return None
    stepped = a if a.step else b
    return Form(_plus(a.plain, b.plain), _plus(a.factor, b.factor), stepped.step, stepped.inner, stepped.rate)


def _product(a: Form, b: Form) -> Form | None:
    if a.step and b.step:
        return None
    stepped, other = (a, b) if a.step else (b, a)
    plain, factor = _times(stepped.plain, other.plain), _times(stepped.factor, other.plain)
    if len(plain) + len(factor) > 2 * _MOST:
        return None
    return Form(plain, factor, stepped.step, stepped.inner, stepped.rate)


def _trim(p: Poly) -> Poly:
    while p and p[-1] == 0:
        p = p[:-1]
    return p


def _plus(a: Poly, b: Poly) -> Poly:
    size = max(len(a), len(b))
    wide = [(*p, *[Fraction(0)] * (size - len(p))) for p in (a, b)]
    return _trim(tuple(x + y for x, y in zip(*wide, strict=True)))


def _times(a: Poly, b: Poly) -> Poly:
    result = [Fraction(0)] * max(len(a) + len(b) - 1, 0)
    for i, x in enumerate(a):
        for j, y in enumerate(b):
            result[i + j] += x * y
    return _trim(tuple(result))


def _shifted(p: Poly, by: Fraction) -> Poly:
    """p(z + by)."""
    result: Poly = ()
    for c in reversed(p):
        result = _plus(_times(result, (by, Fraction(1))), _trim((c,)))
    return result


def writer(form: Form) -> Callable[[Builder, Value], Value] | None:
    """How to append nodes with one curved operator that compute the form; None where none is known.

    The constants are rounded once, relative to themselves, which the operators count.
    """
    if not form.step or not form.factor:
        return _polynomial(form.plain) if 2 < len(form.plain) <= DEGREE + 1 else None
    if len(form.factor) == 1 and len(form.inner) == 2 and len(form.plain) <= 2:
        return _multiple(form)
    if len(form.factor) != 2 or len(form.plain) > 2:
        return None
    origin = -form.factor[0] / form.factor[1]  # where the factor is zero
    inner = _shifted(form.inner, origin)
    if len(inner) not in (2, 4) or inner[0] != 0 or (len(inner) == 4 and inner[2] != 0):
        return None
    rate = inner[1]
    cubic = inner[3] / rate**3 if len(inner) == 4 and rate != 0 else Fraction(0)
    if rate == 0 or cubic < 0 or (cubic and form.step != "sigmoid"):
        return None
    # factor * step(inner) = weight * (y step(y + cubic y^3)) for y = rate (x - origin)
    weight, plain = form.factor[1] / rate, form.plain
    if form.step == "sigmoid":
        op = Silu(cubic=float(cubic))
    elif form.step == "mish":
        op = Mish()
    elif (
        form.step == "erf"
    ):  # x erf(x) = sqrt(2) z (2 Phi(z) - 1) / 2 for z = sqrt(2) x, without rounding of sqrt(2)
        op = Gelu()
        rate, weight = rate * ROOT_TWO, 2 * weight / ROOT_TWO
        half = (-weight * rate / 2 * -origin, -weight * rate / 2)
        plain = _plus(plain, _trim(half))
    else:
        return None
    return _Around(op, rate, -rate * origin, weight, plain)


def _multiple(form: Form) -> _Around | None:
    """A multiple of an operator of a straight line."""
    shift, rate = form.inner[0], float(form.rate)
    if form.step == "sigmoid":
        op = Sigmoid()
    elif form.step == "softplus":
        op = Softplus()
    elif form.step == "sigmoid power" and 1 / _STEEP < rate < _STEEP:
        op = SigmoidPower(rate)
    elif form.step == "exp sigmoid" and 1 / _STEEP < abs(rate) < _STEEP:
        op = ExpSigmoid(rate)
    elif form.step == "exp exp" and -_STEEP < rate < -1 / _STEEP:
        op, shift = Gompertz(), shift + Fraction(math.log(-rate))
    else:
        return None
    return _Around(op, form.inner[1], shift, form.factor[0], form.plain)


@dataclass(frozen=True)
class _Around:
    """weight * op(rate x + shift) + plain(x), appended to a builder."""

    op: Op
    rate: Fraction
    shift: Fraction
    weight: Fraction
    plain: Poly

    def __call__(self, builder: Builder, x: Value) -> Value:
        y = _affine(builder, x, self.rate, self.shift)
        y = _affine(builder, builder.add(self.op, y), self.weight, Fraction(0))
        if not self.plain:
            return y
        constant, rest = (*self.plain, Fraction(0))[:2]
        if rest == 0:
            return scale_shift(builder, y, shift=float(constant))
        return add(builder, y, _affine(builder, x, rest, constant))


def _affine(builder: Builder, x: Value, scale: Fraction, shift: Fraction) -> Value:
    if scale == 1 and shift == 0:
        return x
    return scale_shift(builder, x, None if scale == 1 else float(scale), float(shift) if shift != 0 else None)


def _polynomial(p: Poly) -> Callable[[Builder, Value], Value]:
    def append(builder: Builder, x: Value) -> Value:
        coefficients = torch.tensor([[float(c) for c in p]], dtype=torch.float64)
        empty, zero = torch.zeros(0, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)
        return builder.add(PiecewisePolynomial(empty, zero, coefficients), x)

    return append
