"""Chains on one scalar become one operator: the same function, sound, and never looser than piece by piece."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch

from verifier.bounds.crown import inner_bounds, specification_bound
from verifier.graph import Builder, Graph, Interval, Univariate, Value
from verifier.graph.coefficients import Dense
from verifier.graph.curve import LEAN
from verifier.ops.arithmetic import add, scale_shift
from verifier.ops.decay import ExpSigmoid, Gompertz, SigmoidPower
from verifier.ops.erf import Erf
from verifier.ops.exponential import Exp
from verifier.ops.piecewise_linear import PRelu, relu
from verifier.ops.piecewise_polynomial import PiecewisePolynomial
from verifier.ops.power import log, power
from verifier.ops.product import multiply, square
from verifier.ops.reciprocal import Reciprocal
from verifier.ops.sampled import Fused
from verifier.ops.self_gated import Gelu, Mish, Silu
from verifier.ops.sigmoid import Sigmoid, sigmoid, tanh
from verifier.ops.softplus import Softplus, softplus
from verifier.ops.trigonometric import Sine
from verifier.sets import Box
from verifier.transforms.fuse import fuse

ROOT = 0.70710677  # 1 / sqrt(2) as float32 stores it


def _gelu_tanh(b: Builder, x: Value) -> Value:
    inner = add(b, x, scale_shift(b, power(b, x, 3.0), scale=0.044715))
    step = scale_shift(b, tanh(b, scale_shift(b, inner, scale=math.sqrt(2 / math.pi))), shift=1.0)
    return multiply(b, scale_shift(b, x, scale=0.5), step)


def _erf(b: Builder, x: Value) -> Value:
    return scale_shift(b, b.add(Erf(), scale_shift(b, x, scale=ROOT)), shift=1.0)


def _shifted(b: Builder, x: Value) -> Value:
    y = scale_shift(b, x, shift=1.5)
    return multiply(b, y, sigmoid(b, scale_shift(b, y, scale=-1.7)))


def _wave(b: Builder, x: Value) -> Value:
    return multiply(b, x, b.add(Exp(), scale_shift(b, square(b, x), scale=-1.0)))


def _exp(b: Builder, x: Value, scale: float) -> Value:
    return b.add(Exp(), scale_shift(b, x, scale=scale))


def _logistic(b: Builder, x: Value) -> Value:
    return b.add(Reciprocal(), scale_shift(b, b.add(Exp(), scale_shift(b, x, scale=-1.0)), shift=1.0))


CHAINS: dict[str, tuple[Callable[[Builder, Value], Value], type]] = {
    "silu": (lambda b, x: multiply(b, x, sigmoid(b, x)), Silu),
    "shifted and scaled": (_shifted, Silu),
    "sigmoid written out": (_logistic, Sigmoid),
    "silu written out": (lambda b, x: multiply(b, x, _logistic(b, x)), Silu),
    "mish": (lambda b, x: multiply(b, x, tanh(b, softplus(b, x))), Mish),
    "gelu": (lambda b, x: multiply(b, scale_shift(b, x, scale=0.5), _erf(b, x)), Gelu),
    "gelu, halved last": (lambda b, x: scale_shift(b, multiply(b, x, _erf(b, x)), scale=0.5), Gelu),
    "tanh form of gelu": (_gelu_tanh, Silu),
    "x tanh(x)": (lambda b, x: multiply(b, x, tanh(b, x)), Silu),
    "polynomial": (
        lambda b, x: add(b, scale_shift(b, multiply(b, x, square(b, x)), scale=0.3), square(b, x)),
        PiecewisePolynomial,
    ),
    "square of sigmoid": (lambda b, x: square(b, sigmoid(b, x)), Fused),
    "wave": (_wave, Fused),
    "sqrt(x^2 + 1)": (lambda b, x: power(b, scale_shift(b, square(b, x), shift=1.0), 0.5), Fused),
    "fifth power": (lambda b, x: multiply(b, square(b, square(b, x)), x), Fused),
    "sigmoid of sine": (lambda b, x: sigmoid(b, b.add(Sine(), x)), Fused),
    "log of sigmoid": (lambda b, x: log(b, sigmoid(b, x)), Softplus),
    "decay by softplus": (
        lambda b, x: _exp(b, softplus(b, scale_shift(b, x, shift=0.3)), -0.7),
        SigmoidPower,
    ),
    "decay by log of sigmoid": (lambda b, x: _exp(b, log(b, sigmoid(b, x)), 1 / 16), SigmoidPower),
    "root of sigmoid": (lambda b, x: power(b, sigmoid(b, x), 0.5), SigmoidPower),
    "decay by exp": (lambda b, x: _exp(b, _exp(b, x, 2.0), -0.4), Gompertz),
    "decay by sigmoid": (lambda b, x: _exp(b, sigmoid(b, x), -0.6065), ExpSigmoid),
    "tanh of tanh": (lambda b, x: tanh(b, tanh(b, x)), Fused),
    "x sin(x)": (lambda b, x: multiply(b, x, b.add(Sine(), x)), Fused),
}


def _graph(make: Callable[[Builder, Value], Value], *shape: int) -> Graph:
    builder = Builder()
    return builder.graph(make(builder, builder.input("x", shape or (1,))))


@pytest.mark.parametrize("name", CHAINS)
def test_it_is_the_same_function(name: str) -> None:
    make, kind = CHAINS[name]
    graph = _graph(make, 2, 3)
    fused = fuse(graph)
    ops = [type(n.op) for n in fused.nodes]
    assert kind in ops and sum(issubclass(t, Univariate) for t in ops) == 1
    assert fused.nodes[-1].name == graph.nodes[-1].name
    x = 4 * torch.randn(50, 2, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(fused.evaluate([x])[0], graph.evaluate([x])[0], atol=1e-13, rtol=1e-13)


def _heights(graph: Graph, box: Box) -> torch.Tensor:
    """Where CROWN's lower plane, and minus its upper one, are in the middle of the box, less what starting lines
    pay for being steep: [B, 2]."""
    rows = Dense(torch.tensor([1.0, -1.0], dtype=torch.float64).view(1, 2, 1))
    target = graph.outputs[0]
    plane = specification_bound(graph, [box], target, rows, inner_bounds(graph, [box], [target]))
    middle, half = (box.lower + box.upper) / 2, (box.upper - box.lower) / 2
    slopes = plane.coefficients[graph.inputs[0]]
    steep = (slopes.abs() * half.unsqueeze(1)).sum(2)
    return (slopes * middle.unsqueeze(1)).sum(2) + plane.constant - LEAN * steep


@pytest.mark.parametrize("name", CHAINS)
def test_it_is_never_looser(name: str) -> None:
    graph = _graph(CHAINS[name][0])
    generator = torch.Generator().manual_seed(1)
    center = 6 * torch.rand(300, 1, generator=generator, dtype=torch.float64) - 3
    half = 10 ** (3.3 * torch.rand(300, 1, generator=generator, dtype=torch.float64) - 3)
    box = Box(center - half, center + half)
    ours, apart = _heights(fuse(graph), box), _heights(graph, box)
    x = box.lower + (box.upper - box.lower) * torch.linspace(0, 1, 101, dtype=torch.float64).view(-1, 1, 1)
    values = graph.evaluate([x.flatten(0, 1)])[0].view(101, 300)
    size = (values.amax(0) - values.amin(0) + 1e-6).unsqueeze(1)
    assert (ours[:, 0] <= values[50]).all() and (ours[:, 1] <= -values[50]).all()
    assert ((apart - ours) / size).max() < 2e-3, "looser in some interval"
    assert ((ours - apart) / size).mean() > 0.001, "no gain"


def test_what_others_read_stays() -> None:
    builder = Builder()
    x = builder.input("x", (3,))
    gate = sigmoid(builder, x)
    graph = builder.graph(multiply(builder, x, gate), scale_shift(builder, gate, scale=2.0))
    fused = fuse(graph)
    assert {type(n.op).__name__ for n in fused.nodes} == {"Input", "Silu", "Sigmoid", "ScaleShift"}
    value = torch.randn(4, 3, dtype=torch.float64)
    for a, b in zip(fused.evaluate([value]), graph.evaluate([value]), strict=True):
        torch.testing.assert_close(a, b)


def test_slopes_stored_with_a_dimension() -> None:
    """As PRelu's are: they broadcast to one dimension and not to none."""
    builder = Builder()
    x = builder.input("x", (2,))
    y = builder.add(
        PRelu(torch.tensor([-0.5]).double()), builder.add(PRelu(torch.tensor([0.25]).double()), x)
    )
    graph = builder.graph(y)
    points = torch.linspace(-3, 3, 12).double().view(-1, 2)
    assert torch.equal(fuse(graph).evaluate([points])[0], graph.evaluate([points])[0])


def test_what_is_no_chain_stays() -> None:
    builder = Builder()
    x, y = builder.input("x", (3,)), builder.input("y", (3,))
    scaled = scale_shift(builder, x, scale=torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64))
    outputs = [multiply(builder, x, sigmoid(builder, y)), multiply(builder, x, sigmoid(builder, scaled))]
    graph = builder.graph(*outputs, square(builder, relu(builder, x)), tanh(builder, y))
    assert fuse(graph) is graph


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", [n for n, (_, kind) in CHAINS.items() if kind is Fused])
def test_chains_in_extreme_intervals(name: str, dtype: torch.dtype) -> None:
    """Never NaN, and sound."""
    op = next(n.op for n in fuse(_graph(CHAINS[name][0])).nodes if isinstance(n.op, Fused)).to(dtype)
    lower = torch.tensor([[-1e30, -1e4, -30.0, 0.0, 1e-40, -3.0, -torch.inf, 88.0]]).to(dtype)
    upper = torch.tensor([[1e30, 1e4, 40.0, 0.0, 2e-40, 1e5, torch.inf, 90.0]]).to(dtype)
    x = Interval(lower.requires_grad_(), upper.requires_grad_())
    own = op.parameters(x)
    lines = op.relax({n: p.value for n, p in own.items()}, x)
    low, high = lines.lower_intercept, lines.upper_intercept
    assert low is not None and high is not None and not low.isnan().any() and not high.isnan().any()
    total = low[low.isfinite()].sum() + high[high.isfinite()].sum()
    if total.requires_grad:
        assert not any(
            g.isnan().any() for g in torch.autograd.grad(total, list(x), allow_unused=True) if g is not None
        )
    at = (
        (lower + (upper - lower) * torch.linspace(0, 1, 41).to(dtype).view(-1, 1))
        .nan_to_num(0.0)
        .clamp(lower, upper)
    )
    truth = op.to(torch.float64).forward(at.detach().double())
    line = lines.upper_slopes[0].double() * at + high.double()
    slack = 8 * torch.finfo(dtype).eps * (line.abs() + (lines.upper_slopes[0] * at).abs()) + 1e-30
    assert ((truth <= line + slack) | truth.isnan()).all()
