"""Univariate curves: sound for any slope, tight, with gradients that are right, and never NaN."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

import verifier.ops  # noqa: F401 - registers all operators
from tests.ops.curve_entries import CURVES
from verifier.graph import Builder, Curve, Curved, Elementwise, Interval, Relaxation
from verifier.graph.composite import intervals
from verifier.graph.curve import LEAN
from verifier.ops import sampled
from verifier.ops.power import Power
from verifier.ops.sampled import Sampled
from verifier.ops.sigmoid import Sigmoid
from verifier.transforms.differentiate import differentiate

FORMS = [
    pytest.param(make, fields, id=f"{c.__name__}-{name}", marks=[pytest.mark.full] * (k > 0))
    for c, forms in CURVES.items()
    for k, (name, make, fields) in enumerate(forms)
    if not issubclass(c, Sampled)
]
SAMPLED = [
    pytest.param(make, fields, id=f"{c.__name__}-{name}", marks=[pytest.mark.full] * (k > 0))
    for c, forms in CURVES.items()
    for k, (name, make, fields) in enumerate(forms)
    if issubclass(c, Sampled)
]


@pytest.mark.full
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("make", "fields"), SAMPLED)
def test_sampled_functions_are_sound(
    harness: SimpleNamespace, make: Callable, fields: dict, dtype: torch.dtype
) -> None:
    harness.check(harness.Entry(make, **fields), dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("make", "fields"), FORMS)
def test_sound(harness: SimpleNamespace, make: Callable, fields: dict, dtype: torch.dtype) -> None:
    harness.check(harness.Entry(make, **fields), dtype)


@pytest.mark.full
@pytest.mark.parametrize(("make", "fields"), FORMS)
def test_groups_of_slopes(harness: SimpleNamespace, make: Callable, fields: dict) -> None:
    harness.check_groups(harness.Entry(make, **fields))


def _boxes(
    op: Elementwise, kinks: tuple[float, ...], n: int = 400, dtype: torch.dtype = torch.float64
) -> Interval:
    """Ordinary intervals on which the function is defined: [1, up to n]."""
    generator = torch.Generator().manual_seed(6)

    def uniform() -> Tensor:
        return torch.rand(16 * n, generator=generator, dtype=torch.float64)

    center = torch.tensor(kinks, dtype=torch.float64)[
        torch.randint(len(kinks), (16 * n,), generator=generator)
    ]
    center = center + 4 * uniform() - 2
    width = 4 * uniform() ** 2 + 1e-2
    lower, upper = (center - width).to(dtype), (center + width).to(dtype)
    usable = op.usable(Interval(lower, upper)) if isinstance(op, Curve) else None
    if usable is not None:
        lower, upper = lower[usable], upper[usable]
    x = Interval(lower[:n].unsqueeze(0), upper[:n].unsqueeze(0))
    assert x.lower.numel() > 20
    return x


def _grid(x: Interval, count: int = 801) -> Tensor:
    part = torch.linspace(0, 1, count, dtype=x.lower.dtype).view(-1, 1)
    return (x.lower + part * (x.upper - x.lower)).clamp(x.lower, x.upper)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("make", "fields"), [*FORMS, *SAMPLED])
def test_supports_hold_and_are_tight_for_any_slope(make: Callable, fields: dict, dtype: torch.dtype) -> None:
    """Slopes far outside the useful range too, as products of functions ask for them."""
    x = _boxes(make(1), fields.get("kinks", (0.0,)), dtype=dtype)
    op = make(x.lower.shape[1]).to(dtype)
    points = torch.cat(
        [_grid(x), *[x.lower.new_tensor(k).clamp(x.lower, x.upper) for k in (0.0, *fields.get("kinks", ()))]]
    )
    values = op.to(torch.float64).forward(points.double())
    generator = torch.Generator().manual_seed(7)
    eps = torch.finfo(dtype).eps
    steep = torch.randn(12, x.lower.shape[1], generator=generator, dtype=torch.float64)
    steep = steep * 10 ** torch.tensor([-6, -3, -2, -1, -1, -0.5, 0, 0, 0.5, 1, 3, 6]).double().unsqueeze(1)
    steep[0] = 0
    own = op.parameters(x)
    steep = torch.cat([steep.to(dtype), own["lower_slope"].value, own["upper_slope"].value])
    for slope in steep:
        gaps = values - slope.double() * points.double()
        size = values.abs().amax(0) + (slope.double() * points.double()).abs().amax(0)
        size = size.clamp(min=1.0 if dtype == torch.float32 else 1e-3)
        for found, truth, sign in (
            (op.support_max(slope.unsqueeze(0), x), gaps.amax(0), 1),
            (op.support_min(slope.unsqueeze(0), x), gaps.amin(0), -1),
        ):
            excess = sign * (found[0].double() - truth) / size
            assert (excess >= -4e-16).all(), f"unsound by {-excess.min():.3g}"
            # What the grid misses: points between its own, sides of jumps; and samples, on long intervals.
            curving = torch.inf if op.jumps else 0.05 if isinstance(op, Sampled) else 1e-3
            assert (excess <= curving + 400 * eps).all(), f"loose by {excess.max():.3g}"


@pytest.mark.parametrize("side", ["lower", "upper"])
def test_the_harness_can_fail(harness: SimpleNamespace, side: str) -> None:
    """What `full` runs try with every operator, for one."""
    with pytest.raises(AssertionError, match="a line is wrong"):
        harness.check(harness.Entry(lambda n: Sigmoid()), torch.float32, _scaled(side, "slopes", 1.01))


def _scaled(side: str, what: str, factor: float) -> Callable[[Relaxation], Relaxation]:
    def distort(lines: Relaxation) -> Relaxation:
        old = getattr(lines, f"{side}_{what}")
        new = tuple(factor * t for t in old) if isinstance(old, tuple) else factor * old
        return lines._replace(**{f"{side}_{what}": new})

    return distort


@pytest.mark.full
@pytest.mark.parametrize("what", ["slopes", "intercept"])
@pytest.mark.parametrize("side", ["lower", "upper"])
@pytest.mark.parametrize(("make", "fields"), FORMS)
def test_a_slope_or_intercept_off_by_one_percent_is_found(
    harness: SimpleNamespace, make: Callable, fields: dict, side: str, what: str
) -> None:
    found = 0
    for factor in (0.99, 1.01):
        try:
            harness.check(harness.Entry(make, **fields), torch.float32, _scaled(side, what, factor))
        except AssertionError as error:
            found += "a line is wrong" in str(error)
    assert found


@pytest.mark.parametrize(("make", "fields"), FORMS)
def test_gradients_are_those_of_the_bounds(make: Callable, fields: dict) -> None:
    """In slopes and ends, against differences; away from where the touching point jumps."""
    x = _boxes(make(1), fields.get("kinks", (0.0,)), n=60)
    op = make(x.lower.shape[1]).to(torch.float64)
    generator = torch.Generator().manual_seed(8)
    own = op.parameters(x)
    for name, support in (("lower_slope", op.support_min), ("upper_slope", op.support_max)):
        p = own[name]
        mix = torch.rand(p.value.shape, generator=generator, dtype=torch.float64)
        arguments = [p.lower + mix * (p.upper - p.lower), x.lower, x.upper]
        leaves = [t.clone().requires_grad_() for t in arguments]
        value = support(leaves[0], Interval(*leaves[1:]))
        gradients = torch.autograd.grad(value[value.isfinite()].sum(), leaves)
        for k, gradient in enumerate(gradients):
            step = 1e-5
            sides = []
            for move in (-step, step):
                moved = [t + move if i == k else t for i, t in enumerate(arguments)]
                sides.append(support(moved[0], Interval(*moved[1:])))
            left, right = (sides[1] - value.detach()) / step, (value.detach() - sides[0]) / step
            low, high = torch.minimum(left, right), torch.maximum(left, right)
            # The gradient may belong to either side of a kink of the bound.
            off = torch.maximum(low - gradient, gradient - high).clamp(min=0)
            rough = 1e-3 * (1 + gradient.abs()) + (high - low) + 1e-4 * value.detach().abs()
            assert gradient.isfinite().all()
            assert (off <= rough)[value.isfinite()].float().mean() > 0.97


@pytest.mark.parametrize(("make", "fields"), [*FORMS, *SAMPLED])
def test_derivatives_as_graphs(make: Callable, fields: dict) -> None:
    """The vector-Jacobian product is that of autograd, and bounds of it hold."""
    x = _boxes(make(1), fields.get("kinks", (0.0,)), n=60)
    op = make(x.lower.shape[1]).to(torch.float64)
    if op.no_derivative:
        return
    builder = Builder()
    graph = builder.graph(builder.add(op, builder.input("x", (x.lower.shape[1],))))
    steep = differentiate(graph, cotangent=torch.ones(x.lower.shape[1], dtype=torch.float64))
    points = _grid(x, 21)
    leaf = points.clone().requires_grad_()
    wanted = torch.autograd.grad(op.forward(leaf).sum(), leaf)[0]
    torch.testing.assert_close(steep.evaluate([points])[0], wanted, rtol=1e-8, atol=1e-8)
    found = intervals(steep, [x])[0]
    slack = 1e-12 * (1 + wanted.abs())
    assert (wanted >= found.lower - slack).all() and (wanted <= found.upper + slack).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("make", "fields"), [*FORMS, *SAMPLED])
def test_extreme_intervals_give_no_nan(make: Callable, fields: dict, dtype: torch.dtype) -> None:
    """Endless, saturated, denormal and degenerate intervals; values, lines, and gradients."""
    inf, info = torch.inf, torch.finfo(dtype)
    lower = torch.tensor(
        [-inf, -inf, -1.0, 0.5, 1e30, -1e30, 0.0, 0.3, -info.tiny / 8, 88.0, 800.0, -800.0, info.max]
    )
    upper = torch.tensor(
        [inf, 0.7, inf, inf, 2e30, 1e30, 0.0, 0.3, info.tiny / 8, 90.0, 900.0, -700.0, info.max]
    )
    ends = [t.to(dtype).unsqueeze(0).requires_grad_() for t in (lower, upper)]
    op, x = make(lower.numel()).to(dtype), Interval(*ends)
    own = op.parameters(x)
    for p in own.values():
        assert all(t.isfinite().all() for t in p.__dict__.values())
    for mix in (0.0, 0.5, 1.0):
        chosen = {n: (p.lower + mix * (p.upper - p.lower)).detach().requires_grad_() for n, p in own.items()}
        lines = op.relax(chosen, x)
        total = torch.zeros((), dtype=dtype)
        for line in (*lines.lower_slopes, *lines.upper_slopes, lines.lower_intercept, lines.upper_intercept):
            assert line is not None and not line.isnan().any()
            total = total + line[line.isfinite()].sum()
        gradients = torch.autograd.grad(total, [*ends, *chosen.values()], allow_unused=True)
        assert all(g is None or not g.isnan().any() for g in gradients)
    found = op.interval(x.detach())
    assert not any(end.isnan().any() for end in found) and (found.lower <= found.upper).all()
    values = op.to(torch.float64).forward(
        torch.linspace(-5, 5, 101, dtype=torch.float64).view(-1, 1).expand(-1, lower.numel())
    )
    known = values[~values.isnan().any(1)]
    slack = 1e-12 * (1 + known.abs())
    assert (known >= found.lower[0, 0].double() - slack).all() and (
        known <= found.upper[0, 0].double() + slack
    ).all()


@pytest.mark.parametrize(("make", "fields"), FORMS)
def test_starting_lines_are_nearly_the_best(make: Callable, fields: dict) -> None:
    """Height in the middle and what flat lines are preferred by, against the least over a dense grid of slopes."""
    x = _boxes(make(1), fields.get("kinks", (0.0,)), n=120)
    op = make(x.lower.shape[1]).to(torch.float64)
    points = _grid(x, 401)
    values = op.forward(points)
    own = op.parameters(x)
    middle, half = x.center[0], (x.upper - x.lower)[0] / 2
    steep = torch.diff(values, dim=0) / torch.diff(points, dim=0).clamp(min=1e-300)
    slopes = torch.cat([steep[::4], torch.zeros_like(steep[:1])]).nan_to_num(0.0, 0.0, 0.0)
    lines = op.relax({n: p.value for n, p in own.items()}, x)
    for sign, slope, intercept in (
        (1, lines.upper_slopes[0], lines.upper_intercept),
        (-1, lines.lower_slopes[0], lines.lower_intercept),
    ):
        assert intercept is not None
        ours = (sign * (slope * middle + intercept) + LEAN * slope.abs() * half)[0]
        above = torch.stack([(sign * (values - m * (points - middle))).amax(0) for m in slopes])
        best = (above + LEAN * slopes.abs() * half).amin(0)
        size = 1 + values.abs().amax(0)
        ratio = (ours - best).clamp(min=0) / ((best - sign * values.mean(0)).clamp(min=0) + 1e-4 * size)
        assert ratio.mean() < 0.05, f"{ratio.mean():.3f} over the best line"


@pytest.mark.parametrize(("make", "fields"), FORMS)
def test_pieces_bend_the_way_they_say(make: Callable, fields: dict) -> None:
    """Differences of the derivative have one sign on every piece, and are none on straight ones."""
    op = make(1)
    if not isinstance(op, Curved):
        return
    assert op.pieces[0].start == -torch.inf or op.pieces[0].start in (-1.0, 0.0, 1.0)
    assert all(a.end == b.start for a, b in itertools.pairwise(op.pieces))
    for piece in op.pieces:
        start, end = max(piece.start, -30.0), min(piece.end, 30.0)
        room = 1e-6 * (end - start)
        x = torch.linspace(start + room, end - room, 4001, dtype=torch.float64)
        x = x[op.usable(Interval(x, x))] if op.usable(Interval(x, x)) is not None else x
        steep = op.derivative(x)
        rise = steep[1:] - steep[:-1]
        noise = 4 * op.units * torch.finfo(x.dtype).eps * op.steepness(x, steep) + 1e-300
        noise = noise[1:] + noise[:-1]
        if piece.straight:
            assert (rise.abs() <= noise).all()
        else:
            assert ((rise if piece.convex else -rise) >= -noise).all(), f"{piece}"
        values = op.forward(x)  # and the derivative is that of the value
        slope = (values[2:] - values[:-2]) / (x[2:] - x[:-2])
        low, high = torch.minimum(steep[2:], steep[:-2]), torch.maximum(steep[2:], steep[:-2])
        step = x[2:] - x[:-2]
        off = 4 * op.error(x, values)[1:-1] / step + noise[1:]
        assert (slope >= low - off).all() and (slope <= high + off).all()


def test_ranges_of_slopes_hold_no_useless_ones() -> None:
    """For an S-shape, a line above is never steeper than the one through the lower end that touches."""
    x = Interval(
        torch.tensor([[-3.0, 1.0]], dtype=torch.float64), torch.tensor([[3.0, 2.0]], dtype=torch.float64)
    )
    own = Sigmoid().parameters(x)
    upper, lower = own["upper_slope"], own["lower_slope"]
    assert upper.upper[0, 0] < 0.24 and upper.lower[0, 0] < 0.05
    assert lower.lower[0, 1] == lower.upper[0, 1], "below a concave piece there is only the chord"


def test_a_parabola_of_tiny_values_is_not_cut_off() -> None:
    """Its highest point has a square in it, which must not underflow."""
    ends = torch.tensor([0.0, 1e-21]), torch.tensor([1e-21, 0.0])
    drop = torch.tensor([2.5e-21, 2.5e-21])
    exact = 0.5e-21 + 2.5e-21 / 8 + 1e-21 / 5
    assert bool((sampled._parabola(*ends, drop).double() >= exact * (1 - 1e-6)).all())


def test_parabolas_next_to_an_end_count_their_rounding() -> None:
    """x sin(x) - slope x is least at slope / 2, by slope^2 / 4, in a cell of much larger values."""
    make = next(
        m for c, forms in CURVES.items() for n, m, _ in forms if n == "x sin(x)" and issubclass(c, Sampled)
    )
    op = make(1).to(torch.float32)
    slopes = 10 ** torch.linspace(-8, -1, 300).unsqueeze(0)
    for end in torch.linspace(0.1, 2.0, 20):
        x = Interval(torch.zeros_like(slopes), torch.full_like(slopes, float(end)))
        at = slopes.double() / 2
        truth = at * at.sin() - slopes.double() * at
        assert (op.support_min(slopes, x).double() <= truth).all()


@pytest.mark.parametrize("exponent", [0.3, 1.7, 2.2, -1.7, 0.5, 3.0])
def test_powers_count_the_rounding_of_their_exponent(exponent: float) -> None:
    """In float32, where it counts times the logarithm of the argument."""
    op = Power(exponent)
    large = 30 / max(abs(exponent), 1)
    x = 10 ** (large * (2 * torch.rand(1, 20000, generator=torch.Generator().manual_seed(0)) - 1))
    truth = x.double().pow(exponent)
    found = op.interval(Interval(x, x))
    assert ((truth >= found.lower.double()) & (truth <= found.upper.double())).all()
    wide = Interval(x, 4 * x)
    for slope in (op.derivative(x), op.derivative(2 * x), op.derivative(4 * x)):
        low, high = op.support_min(slope, wide).double(), op.support_max(slope, wide).double()
        for part in (1, 1.5, 2, 3, 4):
            at = part * x.double()
            gap = at.pow(exponent) - slope.double() * at
            assert ((gap >= low) & (gap <= high)).all()


def test_where_the_bend_overflows_nothing_is_known_between_samples() -> None:
    """An infinite drop must not become the largest number: the fifth power on a box whose values just fit float32."""
    make = next(
        m for c, forms in CURVES.items() for n, m, _ in forms if n == "fifth power" and issubclass(c, Sampled)
    )
    op = make(1).to(torch.float32)
    x = Interval(torch.tensor([[-2.1561004e7]]), torch.tensor([[4.4809936e7]]))
    at = torch.linspace(-2.1561004e7, 4.4809936e7, 200001, dtype=torch.float64)
    for factor in torch.linspace(0, 10, 41):
        slope = factor.view(1, 1) * 1e30
        rest = at**5 - float(slope) * at
        assert float(op.support_max(slope, x)) >= float(rest.max())
        assert float(op.support_min(slope, x)) <= float(rest.min())


@pytest.mark.parametrize(("make", "fields"), [*FORMS, *SAMPLED])
def test_sketches_are_near_the_lines(make: Callable, fields: dict) -> None:
    """Within a part of what the function and the line vary by, on intervals of usual widths."""
    x = _boxes(make(1), fields.get("kinks", (0.0,)), n=60)
    op = make(x.lower.shape[1]).to(torch.float64)
    own = op.parameters(x)
    chosen = {n: p.lower + 0.3 * (p.upper - p.lower) for n, p in own.items()}
    exact, rough = op.relax(chosen, x), op.sketch(chosen, x)
    if rough is None:
        return
    width, (low, high) = x.upper - x.lower, op.interval(x)
    for side in ("lower", "upper"):
        slope, near = (getattr(found, f"{side}_slopes")[0] for found in (exact, rough))
        assert torch.equal(slope, near)
        intercept, near = (getattr(found, f"{side}_intercept") for found in (exact, rough))
        size = high - low + slope.abs() * width + 1e-9
        usual = (width < 4) & (x.lower.abs() < 4) & intercept.isfinite()
        off = ((intercept - near).abs() / size)[usual]
        assert off.median() < 2e-3 and off.mean() < 0.02
