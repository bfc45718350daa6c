"""Differences of values that are computed alike, and the operator that carries them through functions."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from verifier.bounds.compute import compute_bounds
from verifier.bounds.lines import sane
from verifier.graph import Builder, Graph, Interval, Univariate, Value
from verifier.ops.alternatives import Alternatives
from verifier.ops.arithmetic import add, scale_shift, subtract
from verifier.ops.convolution import Conv, Window
from verifier.ops.difference import Difference, Rate, Secant
from verifier.ops.exponential import Exp
from verifier.ops.linear import Linear
from verifier.ops.movement import reshape, take
from verifier.ops.piecewise_linear import PRelu, Relu
from verifier.ops.product import multiply
from verifier.ops.reciprocal import Reciprocal
from verifier.ops.select import pad
from verifier.ops.sigmoid import Sigmoid, Tanh
from verifier.ops.sign import Sign
from verifier.ops.signed import Signed
from verifier.sets import Box
from verifier.transforms.fold import fold
from verifier.transforms.pairs import carry_differences

CASES = 10_000


def _randn(generator: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("of", [Relu(), PRelu(torch.tensor(-0.3)), Tanh(), Sigmoid(), Exp()])
def test_lines_and_intervals_of_a_difference_hold(of: Univariate) -> None:
    """Boxes with any two of a, b and d wide or narrow; values are told in float64, lines made in float32."""
    generator = torch.Generator().manual_seed(0)

    def uniform(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(1, CASES, generator=generator, dtype=torch.float64)

    center, width, apart = uniform(-3, 3), 10 ** uniform(-4, 0.5), 10 ** uniform(-4, 0.5)
    a = center + width * (2 * torch.rand(40, CASES, generator=generator, dtype=torch.float64) - 1)
    low = -apart * torch.rand(1, CASES, generator=generator).double() * (uniform(0, 1) > 0.3)
    d = low + (apart - low) * torch.rand(40, CASES, generator=generator, dtype=torch.float64)
    at = [a, a + d, d]
    xs = [Interval(p.amin(0, keepdim=True), p.amax(0, keepdim=True)).narrow(torch.float32) for p in at]
    op = Difference(of, (CASES,)).to(torch.float32)
    truth = of.to(torch.float64).forward(at[1]) - of.to(torch.float64).forward(at[0])
    noise = 1e-15 * (1 + of.forward(at[1]).abs() + of.forward(at[0]).abs())
    found = op.interval(*xs).to(torch.float64)
    assert ((truth >= found.lower - noise) & (truth <= found.upper + noise)).all()
    start = op.parameters(*xs)
    ranges = op.ranges(*xs)
    eps = torch.finfo(torch.float32).eps
    for part in (None, 0.0, 0.37, 1.0):
        values = {
            n: p.value if part is None else ranges[n].lower + part * (ranges[n].upper - ranges[n].lower)
            for n, p in start.items()
        }
        lines = op.relax(values, *xs)
        for sign, slopes, level in (
            (1, lines.lower_slopes, lines.lower_intercept),
            (-1, lines.upper_slopes, lines.upper_intercept),
        ):
            assert level is not None
            terms = [s.double() * p for s, p in zip(slopes, at, strict=True)] + [level.double()]
            slack = op.relaxation_error * eps * sum(t.abs() for t in terms) + noise
            assert (sign * (truth - sum(terms)) >= -slack).all()


def test_lines_of_a_difference_have_no_intercept_where_it_has_one_sign() -> None:
    """relu(b) - relu(a) lies between 0 and d for d >= 0, exactly: what is equal never counts as different."""
    a, b = (Interval(torch.tensor([[-1.0]]), torch.tensor([[1.0]])) for _ in range(2))
    for low, high, ends in ((0.0, 0.5, (0.0, 1.0)), (-0.5, 0.0, (1.0, 0.0)), (0.0, 0.0, (1.0, 0.0))):
        d = Interval(torch.tensor([[low]]), torch.tensor([[high]]))
        op = Difference(Relu(), (1,))
        values = {n: p.value for n, p in op.parameters(a, b, d).items()}
        assert values["lower_mix"].item() == values["upper_mix"].item() == 1.0
        lines = op.relax(values, a, b, d)
        assert lines.lower_intercept == 0 and lines.upper_intercept == 0
        assert (lines.lower_slopes[2].item(), lines.upper_slopes[2].item()) == ends
        found = op.interval(a, b, d)
        assert (found.lower.item() >= 0) == (low >= 0) and (found.upper.item() <= 0) == (high <= 0)


@pytest.mark.parametrize("kind", [Difference, Secant])
def test_slopes_say_nothing_across_a_pole(kind: type[Difference | Secant]) -> None:
    """1 / x on both sides of zero: every derivative is negative, and the difference is positive."""
    a, b = (Interval(torch.tensor([[x - 0.5]]), torch.tensor([[x + 0.5]])) for x in (-1.5, 1.5))
    third = Interval(torch.tensor([[2.0]]), torch.tensor([[4.0]]))
    op = kind(Reciprocal(), (1,))
    at = [torch.full((1, 1), v) for v in (-1.5, 1.5, 3.0)]
    truth = float(op.forward(*at))
    assert truth > 0
    found = op.interval(a, b, third)
    assert found.lower <= truth <= found.upper
    lines = sane(op.relax({n: p.value for n, p in op.parameters(a, b, third).items()}, a, b, third))
    assert lines.lower_intercept is not None and lines.upper_intercept is not None
    low, high = (
        sum(float(s * x) for s, x in zip(slopes, at, strict=True)) + float(level)
        for slopes, level in (
            (lines.lower_slopes, lines.lower_intercept),
            (lines.upper_slopes, lines.upper_intercept),
        )
    )
    assert low <= truth + 1e-6 and high >= truth - 1e-6


@pytest.mark.parametrize("of", [Relu(), PRelu(torch.tensor(-0.3)), Tanh(), Sigmoid(), Exp()])
def test_lines_and_intervals_of_a_secant_hold(of: Univariate) -> None:
    """Its value in float64 is off by what a quotient of small differences loses."""
    generator = torch.Generator().manual_seed(6)

    def uniform(low: float, high: float, rows: int = 1) -> Tensor:
        return low + (high - low) * torch.rand(rows, CASES, generator=generator, dtype=torch.float64)

    center, width, apart = uniform(-3, 3), 10 ** uniform(-4, 0.5), 10 ** uniform(-4, 0.5)
    a = center + width * uniform(-1, 1, 40)
    at = [a, a + apart * uniform(-1, 1, 40), uniform(-1, 1) + 10 ** uniform(-4, 0) * uniform(-1, 1, 40)]
    xs = [Interval(p.amin(0, keepdim=True), p.amax(0, keepdim=True)).narrow(torch.float32) for p in at]
    op = Secant(of, (CASES,)).to(torch.float32)
    truth = op.to(torch.float64).forward(*at)
    slope = (of.to(torch.float64).forward(at[1]) - of.forward(at[0])) / (at[1] - at[0])
    near = (truth - slope * at[2]).abs() <= 1e-5 * (1 + slope.abs()) * at[2].abs()
    assert near.double().mean() > 0.99  # the derivative stands in for the quotient where that is rounded
    noise = 1e-8 * (1 + truth.abs() + of.forward(at[1]).abs())
    found = op.interval(*xs).to(torch.float64)
    assert ((truth >= found.lower - noise) & (truth <= found.upper + noise)).all()
    lines = op.relax({}, *xs)
    for sign, slopes, level in (
        (1, lines.lower_slopes, lines.lower_intercept),
        (-1, lines.upper_slopes, lines.upper_intercept),
    ):
        assert level is not None
        terms = [s.double() * p for s, p in zip(slopes, at, strict=True)] + [level.double()]
        slack = op.relaxation_error * torch.finfo(torch.float32).eps * sum(t.abs() for t in terms) + noise
        assert (sign * (truth - sum(terms)) >= -slack).all()


def test_signs_are_kept_where_they_are_known() -> None:
    """Sums of terms of one sign, however small; and never where a term has the other sign."""
    generator = torch.Generator().manual_seed(7)
    weight = _randn(generator, 40, 6).float()
    weight[:10] = weight[:10].abs()
    weight[10:20] = 0
    low = _randn(generator, 500, 6).float()
    low[::2] = low[::2].abs() * 1e-30
    low[::5] = 0
    x = Interval(
        low, low + torch.rand(500, 6, generator=generator) * (torch.arange(500) % 3 > 0).float()[:, None]
    )
    for bias in (None, torch.zeros(40), _randn(generator, 40).float().abs()):
        op = Signed(Linear(weight, bias))
        found, plain = op.interval(x), op.of.interval(x)
        assert (found.lower >= plain.lower).all() and (found.upper <= plain.upper).all()
        products = torch.stack([weight * end[:, None] for end in x])
        exact = [products.amin(0).double().sum(2), products.amax(0).double().sum(2)]
        shift = 0 if bias is None else bias.double()
        assert (found.lower <= exact[0] + shift).all() and (found.upper >= exact[1] + shift).all()
        assert (found.lower[::2, :10] >= 0).all()
        if bias is None:
            assert (found.lower[:, 10:20] == 0).all() and (found.upper[:, 10:20] == 0).all()


def _monotone(generator: torch.Generator, act: Callable[[], Univariate]) -> list:
    layers = [(w.abs() if k else w, b, a) for k, (w, b, a) in enumerate(_network(generator, act))]
    layers[0][0][:, 0].abs_()
    return layers


def _rates(layers: list, others: bool = False) -> Graph:
    """(y(x + d e) - y(x)) / d for one input e; or with another one that moves, too."""
    builder = Builder()
    v = builder.input("v", (6,))
    x = take(builder, v, lambda t: t[:4])
    place = torch.tensor([4, 5 if others else 6, 6, 6])
    moved = take(builder, pad(builder, v, [0], [1]), lambda t: t[place])
    y, z = _apply(builder, layers, x), _apply(builder, layers, add(builder, x, moved))
    unit = take(builder, v, lambda t: t[torch.tensor([4, 4, 4])])
    return builder.graph(builder.add(Rate(1), y, z, unit))


@pytest.mark.parametrize("act", [Relu, Tanh])
def test_rates_of_change_keep_their_sign(act: Callable[[], Univariate]) -> None:
    """Of a monotone network, also where nothing changes; they bound what is measured."""
    generator = torch.Generator().manual_seed(8)
    graph = _rates(_monotone(generator, act))
    joint = fold(carry_differences(graph))
    low = torch.tensor([[-1.0] * 4 + [0.0, 0.0]], dtype=torch.float64)
    box = Box(low, low + torch.tensor([[2.0] * 4 + [0.5, 0.0]], dtype=torch.float64))
    x = low + torch.rand(500, 6, dtype=torch.float64) * (box.upper - box.lower)
    rate = graph.evaluate([x])[0]
    torch.testing.assert_close(joint.evaluate([x])[0], rate, rtol=1e-4, atol=1e-4)
    for method in ("interval", "crown"):
        found = compute_bounds(joint, [box], method)
        assert (found.lower >= 0).all(), method
        assert (rate <= found.upper + 1e-9).all() and (rate >= found.lower - 1e-9).all()


def test_a_rate_is_nothing_where_something_else_makes_the_difference() -> None:
    """Another input that moves, or other weights: -1, an atom that always holds."""
    generator = torch.Generator().manual_seed(9)
    layers = _monotone(generator, Relu)
    (last,) = fold(carry_differences(_rates(layers, others=True))).outputs
    graph = fold(carry_differences(_rates(layers, others=True)))
    value = graph.evaluate([torch.zeros(1, 6, dtype=torch.float64)])[0]
    assert value.tolist() == [[-1.0] * 3] and not graph.variable[last]


def _network(generator: torch.Generator, act: Callable[[], Univariate]) -> list:
    weights = [_randn(generator, 8, 4) / 2, _randn(generator, 8, 8) / 2, _randn(generator, 3, 8) / 2]
    return [(w, _randn(generator, len(w)) / 4, act) for w in weights]


def _apply(builder: Builder, layers: list, x: Value) -> Value:
    for k, (weight, bias, act) in enumerate(layers):
        x = builder.add(Linear(weight), x)
        x = scale_shift(builder, x, shift=bias)
        x = x if k + 1 == len(layers) else builder.add(act(), x)
    return x


def _rounded(layers: list, parts: float) -> list:
    return [((w * parts).round() / parts, (b * parts).round() / parts, act) for w, b, act in layers]


def _assert_equal_and_tighter(graph: Graph, box: Box, factor: float) -> None:
    joint, apart = fold(carry_differences(graph)), fold(graph)
    assert any(isinstance(n.op, Alternatives) for n in joint.nodes)
    x = box.lower + torch.rand(200, *box.lower.shape[1:], dtype=torch.float64) * (box.upper - box.lower)
    y = graph.evaluate([x])[0]
    torch.testing.assert_close(joint.evaluate([x])[0], y, rtol=0, atol=1e-12)
    for method in ("interval", "crown", "alpha-crown"):
        new, old = compute_bounds(joint, [box], method), compute_bounds(apart, [box], method)
        assert (y >= new.lower).all() and (y <= new.upper).all()
        assert ((new.upper - new.lower) <= (old.upper - old.lower) * (1 + 1e-6)).all(), method
        assert (new.upper - new.lower).sum() * factor < (old.upper - old.lower).sum(), method


@pytest.mark.parametrize("act", [Relu, Tanh])
def test_rounded_weights_on_one_input(act: Callable[[], Univariate]) -> None:
    generator = torch.Generator().manual_seed(1)
    layers, builder = _network(generator, act), Builder()
    x = builder.input("x", (4,))
    y, z = _apply(builder, layers, x), _apply(builder, _rounded(layers, 64), x)
    ends = torch.full((1, 4), 0.5, dtype=torch.float64)
    _assert_equal_and_tighter(builder.graph(subtract(builder, z, y)), Box(-ends, ends), 5)


@pytest.mark.parametrize("act", [Relu, Sigmoid])
def test_one_network_on_two_inputs_that_are_close(act: Callable[[], Univariate]) -> None:
    generator = torch.Generator().manual_seed(2)
    layers, builder = _network(generator, act), Builder()
    v = builder.input("v", (8,))
    x, d = take(builder, v, lambda t: t[:4]), take(builder, v, lambda t: t[4:])
    y, z = _apply(builder, layers, x), _apply(builder, layers, add(builder, x, d))
    ends = torch.tensor([[0.5] * 4 + [0.01] * 4], dtype=torch.float64)
    _assert_equal_and_tighter(builder.graph(subtract(builder, z, y)), Box(-ends, ends), 2.5)


def test_convolutions_and_products() -> None:
    """x1 x2 of two layers' results, and a convolution with other weights."""
    generator = torch.Generator().manual_seed(3)
    kernel, builder = _randn(generator, 3, 1, 3, 3) / 3, Builder()
    window = Window((3, 3), (1, 1), (1, 1), (1, 1), (1, 1))
    x = builder.input("x", (16,))

    def network(weight: Tensor) -> Value:
        image = builder.add(Conv(weight, None, window), reshape(builder, x, (1, 1, 4, 4)))
        flat = reshape(builder, builder.add(Relu(), image), (48,))
        return multiply(builder, take(builder, flat, lambda t: t[:24]), take(builder, flat, lambda t: t[24:]))

    graph = builder.graph(subtract(builder, network(kernel), network((kernel * 128).round() / 128)))
    ends = torch.full((1, 16), 0.3, dtype=torch.float64)
    _assert_equal_and_tighter(graph, Box(-ends, ends), 5)


def test_the_same_network_on_the_same_input_differs_by_zero() -> None:
    generator = torch.Generator().manual_seed(4)
    layers, builder = _network(generator, Relu), Builder()
    x = builder.input("x", (4,))
    graph = builder.graph(subtract(builder, _apply(builder, layers, x), _apply(builder, layers, x)))
    ends = torch.ones(1, 4, dtype=torch.float64)
    found = compute_bounds(carry_differences(graph), [Box(-ends, ends)], "interval")
    assert (found.lower == 0).all() and (found.upper == 0).all()


def test_nothing_is_carried_where_nothing_is_in_common() -> None:
    """Inputs of their own, other weights, another structure, a function with jumps."""
    generator = torch.Generator().manual_seed(5)
    one, other = _network(generator, Relu), _network(generator, Relu)
    for first, second, tied in (
        (one, one, False),
        (one, other, True),
        (one, [(w, b, Tanh) for w, b, _ in one], True),
        ([(w, b, Sign) for w, b, _ in one], [(w, b, Sign) for w, b, _ in one], True),
    ):
        builder = Builder()
        x = builder.input("x", (4,))
        u = x if tied else builder.input("u", (4,))
        graph = builder.graph(subtract(builder, _apply(builder, second, u), _apply(builder, first, x)))
        assert carry_differences(graph) is graph
