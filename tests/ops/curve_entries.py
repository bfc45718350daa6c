"""The forms of all univariate curves, for the property tests."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch

from tests.transforms.test_fuse import CHAINS
from verifier.graph import Builder, Elementwise, Value
from verifier.ops.decay import ExpSigmoid, Gompertz, SigmoidPower
from verifier.ops.elu import Elu, EluDerivative
from verifier.ops.erf import Bell, Erf
from verifier.ops.hyperbolic import Acosh, Asinh, Atanh, Cosh, Sinh
from verifier.ops.piecewise_polynomial import PiecewisePolynomial, b_spline, hard_swish, poly_relu
from verifier.ops.power import Log, Power
from verifier.ops.rounding import Rounding, Staircase
from verifier.ops.sampled import Fused, TrigPolynomial
from verifier.ops.self_gated import Gelu, Mish, Silu
from verifier.ops.sigmoid import Sigmoid, SigmoidDerivative, Tanh
from verifier.ops.softplus import Softplus
from verifier.ops.softsign import Softsign, SoftsignDerivative
from verifier.ops.trigonometric import (
    Asin,
    AsinDerivative,
    Atan,
    AtanDerivative,
    Sine,
    Tan,
    TanDerivative,
)
from verifier.transforms.fuse import fuse

_POSITIVE = {"kinks": (0.0, 1e-3, 1.0, 3.0, -1.0)}
_WAVES = {"kinks": (0.0, 1.5, math.pi, 40.0)}
_UNIT = {"kinks": (-1.0, -0.9, 0.0, 0.5, 1.0)}
_WHOLE = {"kinks": (0.0, 0.5, 1.0, -2.5, 3.0)}
_TURNS = {"kinks": (-2.3, -1.3, 0.0, 1.0, 2.4)}
TANH_FORM = {"linear": 2 * math.sqrt(2 / math.pi), "cubic": 2 * math.sqrt(2 / math.pi) * 0.044715}


def _powers(*exponents: float) -> list[tuple[str, Callable[[int], Elementwise], dict]]:
    return [(f"power {p}", lambda n, p=p: Power(p), _POSITIVE) for p in exponents]


def _built(make: Callable[[Builder, Value], Value], n: int, order: int = 0) -> Elementwise:
    """The operator that a builder's function appends to a value of shape [n], or its derivative."""
    builder = Builder()
    x = builder.input("x", (n,))
    y = make(builder, x)
    op, _ = builder.made_by(y)
    assert isinstance(op, Elementwise)
    for _ in range(order):
        part = op.vjp(builder, [x], builder.add(op, x), builder.input(f"c{order}", (n,)))[0]
        assert part is not None
        op, _ = builder.made_by(builder.made_by(part)[1][1])
        assert isinstance(op, Elementwise)
    return op


def _spline(n: int, degree: int, order: int = 0) -> Elementwise:
    """A spline of its own for every element."""
    grid = torch.linspace(-2, 2, 8, dtype=torch.float64)
    generator = torch.Generator().manual_seed(0)
    coefficients = torch.randn(7 - degree, n, generator=generator, dtype=torch.float64)
    return _built(lambda b, x: b_spline(b, x, grid, coefficients, degree), n, order)


def _poly_relu(n: int, order: int = 0) -> Elementwise:
    return _built(lambda b, x: poly_relu(b, x, [0.1, 0.3, -0.7, 0.4]), n, order)


def _waves(n: int) -> Elementwise:
    generator = torch.Generator().manual_seed(0)
    weights = torch.randn(2, 4, n, generator=generator, dtype=torch.float64)
    return TrigPolynomial(torch.arange(4, dtype=torch.float64), weights[0], weights[1])


def _fused(make: Callable[[Builder, Value], Value]) -> Elementwise:
    builder = Builder()
    graph = fuse(builder.graph(make(builder, builder.input("x", (1,)))))
    return next(node.op for node in graph.nodes if isinstance(node.op, Fused))


_GRID = {"kinks": tuple(-2 + 4 * k / 7 for k in range(8))}
_HARD = {"kinks": (-3.0, 0.0, 3.0)}


# class to its forms: (name, how to make it for arguments of shape [n], other fields of harness.Entry)
CURVES: dict[type[Elementwise], list[tuple[str, Callable[[int], Elementwise], dict]]] = {
    Sigmoid: [("sigmoid", lambda n: Sigmoid(), {})],
    Tanh: [("tanh", lambda n: Tanh(), {})],
    SigmoidDerivative: [(f"order {k}", lambda n, k=k: SigmoidDerivative(k), _TURNS) for k in (1, 2, 3)],
    Softplus: [
        ("plain", lambda n: Softplus(), {}),
        ("threshold", lambda n: Softplus(20.0), {"kinks": (0.0, 20.0)}),
    ],
    Elu: [(f"alpha {a}", lambda n, a=a: Elu(a), {}) for a in (1.0, 0.3, 2.0, -1.0)],
    EluDerivative: [(f"alpha {a}", lambda n, a=a: EluDerivative(a), {}) for a in (0.3, 1.0, 2.0)],
    Softsign: [("softsign", lambda n: Softsign(), {})],
    SoftsignDerivative: [(f"order {k}", lambda n, k=k: SoftsignDerivative(k), {}) for k in (1, 2)],
    Erf: [("erf", lambda n: Erf(), {})],
    Bell: [
        ("first", lambda n: Bell((2 / math.sqrt(math.pi),)), _TURNS),
        ("second", lambda n: Bell((0.0, -2.0)), _TURNS),
    ],
    Silu: [
        ("silu", lambda n: Silu(), _TURNS),
        ("tanh form of gelu", lambda n: Silu(**TANH_FORM), _TURNS),
        ("first derivative", lambda n: Silu(1), _TURNS),
        ("second derivative", lambda n: Silu(2), _TURNS),
        ("first derivative of the tanh form", lambda n: Silu(1, **TANH_FORM), _TURNS),
        ("second derivative of the tanh form", lambda n: Silu(2, **TANH_FORM), _TURNS),
    ],
    SigmoidPower: [
        (f"exponent {c}", lambda n, c=c: SigmoidPower(c), _TURNS) for c in (1 / 16, 0.5, 1.7, 16.0)
    ],
    ExpSigmoid: [(f"rate {c}", lambda n, c=c: ExpSigmoid(c), _TURNS) for c in (-8.0, -0.6065, 0.3, 6.0)],
    Gompertz: [("", lambda n: Gompertz(), _TURNS)],
    Gelu: [(f"order {k}", lambda n, k=k: Gelu(k), _TURNS) for k in (0, 1, 2)],
    Mish: [(f"order {k}", lambda n, k=k: Mish(k), _TURNS) for k in (0, 1, 2)],
    Log: [("log", lambda n: Log(), _POSITIVE)],
    Power: _powers(0.5, -0.5, 3.0, 4.0, -2.0, -3.0, 0.3, 1.5, -1.7, 5.0),
    Sine: [("sin", lambda n: Sine(), _WAVES), ("cos", lambda n: Sine(1), _WAVES)],
    Tan: [("tan", lambda n: Tan(), _WAVES)],
    TanDerivative: [("sec^2", lambda n: TanDerivative(), _WAVES)],
    Atan: [("atan", lambda n: Atan(), {})],
    AtanDerivative: [(f"order {k}", lambda n, k=k: AtanDerivative(k), _TURNS) for k in (1, 2, 3)],
    Asin: [("asin", lambda n: Asin(), _UNIT)],
    AsinDerivative: [(f"order {k}", lambda n, k=k: AsinDerivative(k), _UNIT) for k in (1, 2)],
    Asinh: [("asinh", lambda n: Asinh(), {})],
    Atanh: [("atanh", lambda n: Atanh(), _UNIT)],
    Acosh: [("acosh", lambda n: Acosh(), {"kinks": (1.0, 1.5, 4.0)})],
    Sinh: [("sinh", lambda n: Sinh(), {})],
    Cosh: [("cosh", lambda n: Cosh(), {})],
    PiecewisePolynomial: [
        ("hard swish", lambda n: _built(hard_swish, n), _HARD),
        ("cubic spline", lambda n: _spline(n, 3), _GRID),
        ("derivative of a cubic spline", lambda n: _spline(n, 3, 1), _GRID),
        ("quadratic spline", lambda n: _spline(n, 2), _GRID),
        ("linear spline", lambda n: _spline(n, 1), _GRID),
        ("steps", lambda n: _spline(n, 0), _GRID),
        ("polynomial of relu", lambda n: _poly_relu(n), {}),
        ("derivative of a polynomial of relu", lambda n: _poly_relu(n, 1), {}),
        ("derivative of hard swish", lambda n: _built(hard_swish, n, 1), _HARD),
    ],
    TrigPolynomial: [("per element", _waves, {"kinks": (0.0, 1.0, -2.0)})],
    Fused: [
        (name, lambda n, make=make: _fused(make), {})
        for name, (make, kind) in CHAINS.items()
        if kind is Fused
    ],
    Staircase: [(k.value, lambda n, k=k: Staircase(k), _WHOLE) for k in Rounding],
}
