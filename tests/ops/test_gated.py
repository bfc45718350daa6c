"""Products with nonlinear factors: never looser than their parts apart, and the values that they are."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from verifier.graph import Builder, Interval, Univariate
from verifier.ops.exponential import Exp
from verifier.ops.gated import FLAT, Gated
from verifier.ops.piecewise_linear import Relu
from verifier.ops.product import Product, Square
from verifier.ops.reciprocal import Reciprocal
from verifier.ops.sigmoid import Sigmoid, Tanh

CASES = 3000
Line = tuple[Tensor, Tensor]  # slope, intercept


def boxes(low: float, high: float, width: float, seed: int) -> Interval:
    generator = torch.Generator().manual_seed(seed)
    center, radius = torch.rand(2, 1, CASES, generator=generator, dtype=torch.float64)
    center, radius = low + (high - low) * center, width * radius
    return Interval(center - radius, center + radius)


def lines(function: Univariate | None, x: Interval, share: Tensor) -> tuple[Line, Line]:
    """Below and above, with a random share of the slopes' ranges."""
    if function is None:
        one, zero = torch.ones_like(x.lower), torch.zeros_like(x.lower)
        return (one, zero), (one, zero)
    own = function.parameters(x)
    found = function.relax({n: p.lower + share * (p.upper - p.lower) for n, p in own.items()}, x)
    zero = torch.zeros_like(x.lower)
    pairs = (
        (found.lower_slopes[0], found.lower_intercept),
        (found.upper_slopes[0], found.upper_intercept),
    )
    (a, b), (c, d) = pairs
    return (a, zero if b is None else b), (c, zero if d is None else d)


def composed(op: Gated, x: Interval, y: Interval, shares: Tensor) -> tuple[list[Tensor], list[Tensor]]:
    """Planes below and above (slopes and intercept) from lines of both factors and planes of their product."""
    z, v = op.gate.interval(x), y if op.other is None else op.other.interval(y)
    first, second = lines(op.gate, x, shares[0]), lines(op.other, y, shares[1])
    product = Product().relax({"lower_mix": shares[2], "upper_mix": shares[3]}, z, v)
    planes = []
    for sign, slopes, intercept in (
        (-1, product.lower_slopes, product.lower_intercept),
        (1, product.upper_slopes, product.upper_intercept),
    ):
        plane, constant = [], intercept
        for k, pair in zip(slopes, (first, second), strict=True):
            upper = sign * k >= 0
            plane.append(k * torch.where(upper, pair[1][0], pair[0][0]))
            constant = constant + k * torch.where(upper, pair[1][1], pair[0][1])
        planes.append([*plane, constant])
    return planes[0], planes[1]


FORMS = [
    pytest.param(Gated(Exp()), (-2, 2, 1.5), id="exp"),
    pytest.param(Gated(Relu()), (-1, 1, 2.0), id="relu"),
    pytest.param(Gated(Reciprocal()), (3, 5, 2.5), id="quotient"),
    pytest.param(Gated(Square()), (-1, 1, 2.0), id="square"),
    pytest.param(Gated(Sigmoid()), (-2, 2, 3.0), id="sigmoid"),
    pytest.param(Gated(Tanh()), (-2, 2, 3.0), id="tanh"),
    pytest.param(Gated(Sigmoid(), Tanh()), (-2, 2, 3.0), id="sigmoid-tanh"),
    pytest.param(Gated(Exp(), Square()), (-1, 1, 1.5), id="exp-square"),
    pytest.param(Gated(Relu(), Exp()), (-1, 1, 1.5), id="relu-exp"),
]


@pytest.mark.parametrize(("op", "where"), FORMS)
def test_never_looser_than_the_parts_with_equal_slopes(op: Gated, where: tuple[float, float, float]) -> None:
    """At the corners of the box, hence on all of it."""
    x, y = boxes(*where, seed=0), boxes(-1, 1, 1.5, seed=1)
    generator = torch.Generator().manual_seed(2)
    better = 0.0
    for _ in range(5):
        shares = torch.rand(4, 1, CASES, generator=generator, dtype=torch.float64)
        low, high = composed(op, x, y, shares)
        slopes = {"lower_x": low[0], "upper_x": high[0], "lower_y": low[1], "upper_y": high[1]}
        joint = op.relax({n: t for n, t in slopes.items() if op.other is not None or n.endswith("x")}, x, y)
        assert joint.lower_intercept is not None and joint.upper_intercept is not None
        for a in x:
            for b in y:
                under = joint.lower_slopes[0] * a + joint.lower_slopes[1] * b + joint.lower_intercept
                over = joint.upper_slopes[0] * a + joint.upper_slopes[1] * b + joint.upper_intercept
                gain = under - (low[0] * a + low[1] * b + low[2])
                saved = high[0] * a + high[1] * b + high[2] - over
                assert (gain > -1e-9 * (1 + under.abs())).all() and (saved > -1e-9 * (1 + over.abs())).all()
                better += float((gain + saved).mean())
    assert better > 0.01


@pytest.mark.parametrize(("op", "where"), FORMS[:6])
def test_starting_planes_are_lower_or_flatter_than_those_of_the_parts(
    op: Gated, where: tuple[float, float, float]
) -> None:
    x, y = boxes(*where, seed=0), boxes(-1, 1, 1.5, seed=1)
    joint = op.relax({n: p.value for n, p in op.parameters(x, y).items()}, x, y)
    half = torch.full((4, 1, CASES), 0.5, dtype=torch.float64)
    starts = [p.value for p in op.gate.parameters(x).values()]
    ranges = list(op.gate.parameters(x).values())
    shares = half.clone()
    width = ranges[0].upper - ranges[0].lower
    shares[0] = torch.where(width > 0, (starts[0] - ranges[0].lower) / width.clamp(min=1e-300), 0.5)
    low, high = composed(op, x, y, shares)
    assert joint.lower_intercept is not None and joint.upper_intercept is not None
    radii = [(t.upper - t.lower) / 2 for t in (x, y)]

    def cost(sign: int, first: Tensor, second: Tensor, intercept: Tensor) -> Tensor:
        """Height in the middle, and some of what the plane rises from there."""
        height = first * x.center + second * y.center + intercept
        return sign * height + FLAT * torch.hypot(first * radii[0], second * radii[1])

    sides = [
        (-1, (*joint.lower_slopes, joint.lower_intercept), low),
        (1, (*joint.upper_slopes, joint.upper_intercept), high),
    ]
    ours, theirs = (sum(cost(sign, *pair[k]) for sign, *pair in sides) for k in (0, 1))
    middle = op.forward(x.center, y.center)
    for sign, *pair in sides:
        gap = cost(sign, *pair[1]) - sign * middle
        assert (
            cost(sign, *pair[0]) - sign * middle <= 1e-9 + 1.005 * gap
        ).all()  # slopes are chosen by samples
    assert isinstance(ours, Tensor) and isinstance(theirs, Tensor)
    assert float((ours / theirs.clamp(min=1e-6)).mean()) < 0.96


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("op", "where"), FORMS)
def test_gradients_in_slopes_and_ends(
    op: Gated, where: tuple[float, float, float], dtype: torch.dtype
) -> None:
    """Finite on degenerate, huge and ordinary boxes, and right where nothing is degenerate."""
    x, y = boxes(*where, seed=0), boxes(-1, 1, 1.5, seed=1)
    odd = torch.tensor(
        [[-1.0, 1.0], [0.0, 0.0], [1.0, 1.0], [0.0, 1e30], [-torch.inf, torch.inf], [-1.0, torch.inf]]
    )
    pairs = torch.cartesian_prod(torch.arange(len(odd)), torch.arange(len(odd)))
    xs = [Interval(*odd[pairs[:, k]].T.unsqueeze(1).to(dtype)) for k in (0, 1)]
    for boxed in (xs, [t.map(lambda e: e[:, :200].to(dtype)) for t in (x, y)]):
        leaves = [end.clone().requires_grad_() for box in boxed for end in box]
        at = [Interval(leaves[0], leaves[1]), Interval(leaves[2], leaves[3])]
        free = {n: p.value.detach().requires_grad_() for n, p in op.parameters(*boxed).items()}
        found = op.relax(free, *at)
        every = (*found.lower_slopes, *found.upper_slopes, found.lower_intercept, found.upper_intercept)
        total = sum(torch.where(t.isfinite(), t, torch.zeros_like(t)).sum() for t in every if t is not None)
        gradients = torch.autograd.grad(total, [*leaves, *free.values()], allow_unused=True)
        assert not any(t is not None and t.isnan().any() for t in every)
        assert not any(g is not None and g.isnan().any() for g in gradients)


def test_gradient_of_the_intercept_is_that_of_differences() -> None:
    op, x, y = Gated(Exp()), boxes(-1, 1, 1.0, seed=3), boxes(-1, 1, 1.0, seed=4)
    share = torch.rand(1, CASES, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    free = {
        n: (p.lower + share * (p.upper - p.lower)).requires_grad_() for n, p in op.parameters(x, y).items()
    }
    center = op.relax(free, x, y)
    assert center.upper_intercept is not None
    (slope,) = torch.autograd.grad(center.upper_intercept.sum(), [free["upper_x"]])
    step = 1e-6
    moved = [op.relax({**free, "upper_x": free["upper_x"] + s}, x, y).upper_intercept for s in (step, -step)]
    assert moved[0] is not None and moved[1] is not None
    difference = (moved[0] - moved[1]) / (2 * step)
    assert float(((slope - difference).abs() < 1e-4).double().mean()) > 0.99  # kinks excepted


def test_a_batch_of_one_stands_for_all() -> None:
    x, y = boxes(-1, 1, 1.0, seed=3), boxes(-1, 1, 1.0, seed=4)
    many = Interval(*(t.view(3, -1) for t in x))
    one = y.map(lambda t: t[:, : CASES // 3])
    for op in (Gated(Exp()), Gated(Exp(), Square())):
        found = op.parameters(many, one)
        lines = op.relax({n: p.value for n, p in found.items()}, many, one)
        same = op.relax({n: p.value for n, p in found.items()}, many, one.expand(3))
        assert all(
            p.value.shape == p.lower.shape == p.upper.shape == many.lower.shape for p in found.values()
        )
        torch.testing.assert_close(lines.lower_intercept, same.lower_intercept)
        torch.testing.assert_close(lines.upper_slopes, same.upper_slopes)


def test_derivatives() -> None:
    for op in (Gated(Exp()), Gated(Exp(), Square())):
        b = Builder()
        x, y = b.input("x", (3,)), b.input("y", (3,))
        out = b.add(op, x, y)
        seed = b.input("seed", (3,))
        graph = b.graph(*[v for v in op.vjp(b, [x, y], out, seed) if v is not None])
        values = torch.randn(3, 5, 3, dtype=torch.float64)
        u, v = values[0].requires_grad_(), values[1].requires_grad_()
        expected = torch.autograd.grad((op.forward(u, v) * values[2]).sum(), [u, v])
        torch.testing.assert_close(graph.evaluate([u, v, values[2]]), list(expected))


@pytest.mark.parametrize(
    "op", [Gated(Sigmoid()), Gated(Exp()), Gated(Sigmoid(), Tanh()), Gated(Tanh(), Exp())]
)
def test_sketches_are_near_the_planes(op: Gated) -> None:
    x, y = boxes(-2, 2, 1.5, 0), boxes(-2, 2, 1.5, 1)
    chosen = {n: p.lower + 0.3 * (p.upper - p.lower) for n, p in op.parameters(x, y).items()}
    exact, rough = op.relax(chosen, x, y), op.sketch(chosen, x, y)
    assert rough is not None
    low, high = op.interval(x, y)
    for side in ("lower", "upper"):
        ends = []
        for found in (exact, rough):
            slopes, intercept = getattr(found, f"{side}_slopes"), getattr(found, f"{side}_intercept")
            ends.append(slopes[0] * x.center + slopes[1] * y.center + intercept)
        assert ((ends[0] - ends[1]).abs() / (high - low)).mean() < 0.03


ENDS = [0.0, 1e-45, 1e-40, 1.2e-38, 1e-20, 1e-7, 0.3, 1.0, 30.0, 1e10, 1e30, 8e37, 9e37, 3e38]


@pytest.mark.parametrize("other", [None, Exp(), Relu(), Square(), Tanh()], ids=str)
@pytest.mark.parametrize("gate", [Sigmoid(), Tanh(), Square(), Relu()], ids=str)
def test_planes_and_intervals_hold_between_any_float32_numbers(
    gate: Univariate, other: Univariate | None
) -> None:
    """From denormal numbers, whose products underflow, to the largest ones; for all slopes."""
    op, generator = Gated(gate, other), torch.Generator().manual_seed(0)
    ends = torch.tensor([-t for t in ENDS] + ENDS)
    chosen = ends[torch.randint(len(ends), (2, 2, 1, 2000), generator=generator)].sort(0).values
    x, y = (Interval(chosen[0, k], chosen[1, k]) for k in (0, 1))
    own, found = op.parameters(x, y), op.interval(x, y)
    for _ in range(3):
        share = torch.rand(1, 2000, generator=generator)
        lines = op.relax({n: torch.lerp(p.lower, p.upper, share) for n, p in own.items()}, x, y)
        for a in x:
            for b in y:
                value = op.forward(a.double(), b.double())
                known = ~value.isnan()
                off = 1e-12 * value.abs()
                assert (value >= found.lower - off)[known].all() and (value <= found.upper + off)[known].all()
                for sign, (p, q), r in (
                    (-1, lines.lower_slopes, lines.lower_intercept),
                    (1, lines.upper_slopes, lines.upper_intercept),
                ):
                    assert r is not None
                    terms = [p.double() * a.double(), q.double() * b.double(), r.double()]
                    size = sum(t.abs() for t in terms)
                    line = sum(terms) + sign * (op.relaxation_error * 2**-23 * size + off + 1e-37)
                    assert ((sign * (line - value) >= 0) | r.isinf())[known].all()


def test_products_that_underflow_lie_in_their_intervals() -> None:
    x, y = torch.tensor([[-1e-7, 1e-7]]), torch.tensor([[-7e-40, 0.0]])
    found = Product().interval(Interval(x[:, :1], x[:, 1:]), Interval(y[:, :1], y[:, 1:]))
    assert float(found.lower) < 0 < float(found.upper)
    small = torch.tensor([[1e-40]])
    assert float(Square().interval(Interval(-small, small)).upper) > 0
    positive = Product().interval(Interval(small, small), Interval(small, small))
    assert float(positive.lower) == 0 < float(positive.upper)
    nothing = Product().interval(Interval(0 * small, 0 * small), Interval(-small, small))
    assert float(nothing.lower) == float(nothing.upper) == 0
