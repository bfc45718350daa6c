"""How far the lines of univariate operators are from the best ones.

    python -m benchmarks.relaxations [--intervals N] [--seed S] [--only NAME ...]

For random intervals of three sizes (half-widths up to 0.3, 2 and 10, inside the operator's domain) the *gap* of a
line is the mean distance from the function over the interval, both sides added. The best line is that of the linear
program "least mean gap over a dense grid, beyond the function at every grid point", whose optimum is the hull of the
points at their mean; kinks and both sides of jumps are grid points too. The table shows the mean over intervals of
gap / best gap, and the worst, of the lines that operators start from, and after 20 steps of the ascent that alpha-
CROWN uses, from the start and from the middle of the range of slopes. Float64, one thread.
"""

from __future__ import annotations

import argparse
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from torch import Tensor

from benchmarks.common import machine
from verifier.bounds.alpha import AlphaOptions
from verifier.bounds.ascent import Adam
from verifier.graph import Builder, Curved, Interval, Univariate
from verifier.ops.elu import Elu, EluDerivative
from verifier.ops.erf import Bell, Erf
from verifier.ops.exponential import Exp
from verifier.ops.hyperbolic import Acosh, Asinh, Atanh, Cosh, Sinh
from verifier.ops.piecewise_linear import PRelu, Relu
from verifier.ops.piecewise_polynomial import PiecewisePolynomial, b_spline, hard_swish, poly_relu
from verifier.ops.power import Log, Power
from verifier.ops.product import Square
from verifier.ops.reciprocal import Reciprocal
from verifier.ops.rounding import Rounding, Staircase
from verifier.ops.self_gated import Gelu, Mish, Silu
from verifier.ops.sigmoid import Sigmoid, SigmoidDerivative, Tanh
from verifier.ops.softplus import Softplus
from verifier.ops.softsign import Softsign, SoftsignDerivative
from verifier.ops.trigonometric import Asin, AsinDerivative, Atan, AtanDerivative, Sine, Tan, TanDerivative

GRID = 241
SIZES = (0.3, 2.0, 10.0)
_LINEAR = 2 * math.sqrt(2 / math.pi)


@dataclass(frozen=True)
class Subject:
    """An operator, the span in which intervals lie, and points that grids must hold besides."""

    name: str
    op: Univariate
    span: tuple[float, float] = (-12.0, 12.0)
    kinks: tuple[float, ...] = ()


def _built(make) -> Univariate:
    builder = Builder()
    op, _ = builder.made_by(make(builder, builder.input("x", ())))
    assert isinstance(op, Univariate)
    return op


def _spline(degree: int) -> Univariate:
    grid = torch.linspace(-3, 3, 12, dtype=torch.float64)
    weights = torch.randn(11 - degree, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return _built(lambda b, x: b_spline(b, x, grid, weights, degree))


def subjects() -> list[Subject]:
    """Every univariate operator."""
    positive, unit = (0.02, 12.0), (-0.98, 0.98)
    bell = Bell((2 / math.sqrt(math.pi),))
    found = [
        Subject("Relu", Relu(), kinks=(0.0,)),
        Subject("LeakyRelu 0.1", PRelu(torch.tensor(0.1, dtype=torch.float64)), kinks=(0.0,)),
        Subject("Abs", PRelu(torch.tensor(-1.0, dtype=torch.float64)), kinks=(0.0,)),
        Subject("Sigmoid", Sigmoid()),
        *[Subject(f"Sigmoid, derivative {k}", SigmoidDerivative(k)) for k in (1, 2)],
        Subject("Tanh", Tanh()),
        Subject("Softplus", Softplus()),
        Subject("Elu", Elu()),
        Subject("Elu 0.3", Elu(0.3)),
        Subject("Elu, derivative", EluDerivative()),
        Subject("Elu 0.3, derivative", EluDerivative(0.3)),
        Subject("Softsign", Softsign()),
        *[Subject(f"Softsign, derivative {k}", SoftsignDerivative(k)) for k in (1, 2)],
        Subject("Erf", Erf()),
        Subject("Erf, derivative 1", bell),
        Subject("Erf, derivative 2", Bell((0.0, -4 / math.sqrt(math.pi)))),
        *[Subject(f"Silu{', derivative ' * (k > 0)}{k or ''}", Silu(k)) for k in (0, 1, 2)],
        *[Subject(f"Gelu{', derivative ' * (k > 0)}{k or ''}", Gelu(k)) for k in (0, 1, 2)],
        *[
            Subject(f"Gelu (tanh){', derivative ' * (k > 0)}{k or ''}", Silu(k, _LINEAR, 0.044715 * _LINEAR))
            for k in (0, 1, 2)
        ],
        *[Subject(f"Mish{', derivative ' * (k > 0)}{k or ''}", Mish(k)) for k in (0, 1, 2)],
        Subject("HardSwish", _built(hard_swish), kinks=(-3.0, 3.0)),
        Subject("Exp", Exp()),
        Subject("Log", Log(), positive),
        Subject("Sqrt", Power(0.5), positive),
        Subject("rsqrt", Power(-0.5), positive),
        Subject("Reciprocal", Reciprocal(), positive),
        Subject("Square", Square()),
        *[Subject(f"Pow {p:g}", Power(p)) for p in (3.0, 4.0, 5.0)],
        *[Subject(f"Pow {p:g}", Power(p), positive) for p in (-3.0, -2.0, 0.3, 1.5)],
        Subject("Sin", Sine()),
        Subject("Cos", Sine(1)),
        Subject("Tan", Tan(), (-1.5, 1.5)),
        Subject("Tan, derivative", TanDerivative(), (-1.5, 1.5)),
        Subject("Atan", Atan()),
        *[Subject(f"Atan, derivative {k}", AtanDerivative(k)) for k in (1, 2)],
        Subject("Asin", Asin(), unit),
        *[Subject(f"Asin, derivative {k}", AsinDerivative(k), unit) for k in (1, 2)],
        Subject("Sinh", Sinh()),
        Subject("Cosh", Cosh()),
        Subject("Asinh", Asinh()),
        Subject("Acosh", Acosh(), (1.0, 12.0)),
        Subject("Atanh", Atanh(), unit),
        *[
            Subject(k.value.capitalize(), Staircase(k), kinks=tuple(i / 2 for i in range(-24, 25)))
            for k in Rounding
        ],
        Subject("PolyReLU", _built(lambda b, x: poly_relu(b, x, [0.0, 1 / 3, 1 / 3, 1 / 3])), kinks=(0.0,)),
        Subject("cubic B-spline", _spline(3)),
        Subject("linear B-spline", _spline(1)),
    ]
    return found


class Row(NamedTuple):
    """Gap over best gap: mean and worst of the start, and after ascent from the start and from the middle."""

    start: float
    worst_start: float
    optimised: float
    worst_optimised: float
    from_middle: float


def measure(subject: Subject, intervals: int, seed: int) -> Row:
    """Over `intervals` random intervals of each size."""
    x = _intervals(subject, intervals, seed)
    grid = _grid(subject, x)
    values = subject.op.forward(grid)
    even = torch.linspace(0, 1, 4 * GRID, dtype=torch.float64).view(-1, 1)
    mean = torch.trapezoid(
        subject.op.forward(x.lower + even * (x.upper - x.lower)), dx=1 / (4 * GRID - 1), dim=0
    )
    best = _hull(grid, values, x.center[0]) - mean + _hull(grid, -values, x.center[0]) + mean
    start = {n: p.value for n, p in subject.op.parameters(x).items()}
    middle = {n: (p.lower + p.upper) / 2 for n, p in subject.op.parameters(x).items()}
    curved = best > 1e-6 * (values.amax(0) - values.amin(0)) + 1e-12
    ratios = [
        (_width(subject.op, x, slopes) / best)[curved]
        for slopes in (start, _ascended(subject.op, x, start), _ascended(subject.op, x, middle))
    ]
    if not bool(curved.any()):
        return Row(1.0, 1.0, 1.0, 1.0, 1.0)
    first, last, other = (r.mean().item() for r in ratios)
    return Row(first, ratios[0].max().item(), last, ratios[1].max().item(), other)


def _intervals(subject: Subject, count: int, seed: int) -> Interval:
    generator = torch.Generator().manual_seed(seed)
    low, high = subject.span
    ends = []
    for size in SIZES:
        center = low + (high - low) * torch.rand(count, generator=generator, dtype=torch.float64)
        half = size * torch.rand(count, generator=generator, dtype=torch.float64)
        ends.append(torch.stack([center - half, center + half]).clamp(low, high))
    lower, upper = torch.cat(ends, 1)
    wide = upper - lower > 1e-3
    return Interval(lower[wide].unsqueeze(0), upper[wide].unsqueeze(0))


def _grid(subject: Subject, x: Interval) -> Tensor:
    """Sorted points [P, N] of each interval."""
    part = torch.linspace(0, 1, GRID, dtype=torch.float64).view(-1, 1)
    points = [x.lower + part * (x.upper - x.lower)]
    kinks = list(subject.kinks)
    if isinstance(subject.op, Curved):
        kinks += [knot for knot, *_ in subject.op.knots]
    if isinstance(subject.op, PiecewisePolynomial):
        kinks += subject.op.knots.tolist()
    for kink in kinks:
        at = torch.full_like(x.lower, kink)
        sides = [torch.nextafter(at, torch.full_like(at, end)) for end in (-math.inf, math.inf)]
        points += [t.clamp(x.lower, x.upper) for t in (at, *sides)]
    return torch.cat(points).clamp(x.lower, x.upper).sort(0).values


def _hull(x: Tensor, y: Tensor, at: Tensor) -> Tensor:
    """The upper hull of the points [P, N] at `at` [N]: the highest chord across it, which is what the program finds."""
    best = torch.full_like(at, -math.inf)
    for left, low in zip(x, y, strict=True):
        run = x - left
        across = (left <= at) & (x >= at) & (run > 0)
        height = low + (at - left) / run.clamp(min=1e-300) * (y - low)
        best = torch.maximum(best, height.masked_fill(~across, -math.inf).amax(0))
    return best


def _width(op: Univariate, x: Interval, slopes: dict[str, Tensor]) -> Tensor:
    """The mean distance between the two lines: [N]."""
    lines = op.relax(slopes, x)
    zero = torch.zeros_like(x.lower)
    low, high = (t if t is not None else zero for t in (lines.lower_intercept, lines.upper_intercept))
    return ((lines.upper_slopes[0] - lines.lower_slopes[0]) * x.center + high - low)[0]


def _ascended(op: Univariate, x: Interval, start: dict[str, Tensor]) -> dict[str, Tensor]:
    """The narrowest of the lines that the ascent passes, per interval."""
    options = AlphaOptions()
    ranges = op.parameters(x)
    free = {n: t.clone().requires_grad_() for n, t in start.items()}
    best = {n: t.detach().clone() for n, t in free.items()}
    least = torch.full_like(x.lower[0], math.inf)
    adam = Adam(
        list(free.values()),
        [ranges[n].upper - ranges[n].lower for n in free],
        options.learning_rate,
        options.decay,
    )
    for step in range(options.iterations + 1):
        width = _width(op, x, free)
        better = width.detach() < least
        least = torch.where(better, width.detach(), least)
        best = {n: torch.where(better, free[n].detach(), t) for n, t in best.items()}
        if step == options.iterations or not width.requires_grad:
            break
        adam.step(torch.autograd.grad(-width.sum(), list(free.values()), allow_unused=True))
        with torch.no_grad():
            for n, t in free.items():
                t.clamp_(ranges[n].lower, ranges[n].upper)
    return best


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description="How far the lines of univariate operators are from the best ones."
    )
    parser.add_argument("--intervals", type=int, default=300, help="per operator and size")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="*", default=None, help="names of operators")
    given = parser.parse_args(words)
    torch.set_num_threads(1)
    print(f"{machine()}\n")
    print("| operator | start | worst | optimised | worst | from the middle |")
    print("|---|--:|--:|--:|--:|--:|")
    rows = []
    for subject in subjects():
        if given.only is None or subject.name in given.only:
            row = measure(subject, given.intervals, given.seed)
            rows.append(row)
            print(f"| {subject.name} | " + " | ".join(f"{v:.4f}" for v in row) + " |", flush=True)
    if rows:
        means = [sum(r[k] for r in rows) / len(rows) for k in range(len(rows[0]))]
        print("| all | " + " | ".join(f"{v:.4f}" for v in means) + " |")


if __name__ == "__main__":
    main()
