"""The property harness: one call checks an operator on tens of thousands of boxes at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from verifier.graph import Affine, Elementwise, Interval, Relaxation
from verifier.graph.coefficients import Diagonal, Rows

CASES = 12_000
POINTS = 14


@dataclass(frozen=True)
class Entry:
    """One form of an operator: `make(n)` returns it for arguments of shape [n]. `equal`: all arguments have
    one value. `kinks`: points to sample besides the random ones. `flat`: sides on which all lines are constant.
    `adapt`: brings boxes and points to where the operator is defined; points that are NaN do not count."""

    make: Callable[[int], Elementwise]
    arguments: int = 1
    equal: bool = False
    kinks: tuple[float, ...] = (0.0,)
    flat: tuple[str, ...] = ()
    adapt: Callable[[list[Interval], list[Tensor]], tuple[list[Interval], list[Tensor]]] = lambda xs, at: (
        xs,
        at,
    )


def boxes(dtype: torch.dtype, kinks: Sequence[float], generator: torch.Generator) -> Interval:
    """[1, CASES]: ordinary boxes, wide ranges of size and offset, degenerate ones, huge ones, ends on
    kinks."""
    part = CASES // 12

    def uniform(low: float, high: float, n: int = part) -> Tensor:
        return low + (high - low) * torch.rand(n, generator=generator, dtype=torch.float64)

    kink = torch.tensor(kinks, dtype=torch.float64)[torch.randint(len(kinks), (part,), generator=generator)]
    center, width = uniform(-3, 3), uniform(0, 4)
    pairs = [
        (center - width, center + width),
        (-(10 ** uniform(-6, 6)), 10 ** uniform(-6, 6)),
        (uniform(-1, 1) * 10 ** uniform(-8, 8), 10 ** uniform(-8, 8)),  # lower end, width
        (center, center),
        (torch.zeros(part), torch.zeros(part)),
        (kink, kink + 10 ** uniform(-10, 3)),
        (kink - 10 ** uniform(-10, 3), kink),
        (-(10 ** uniform(-30, -6)), 10 ** uniform(-30, -6)),
        (-(10 ** uniform(5, 6)), 10 ** uniform(5, 6)),
        (-(10 ** uniform(20, 30)), 10 ** uniform(20, 30)),
        (kink - 10 ** uniform(-9, -4), kink + 10 ** uniform(-9, -4)),
    ]
    pairs[2] = (pairs[2][0], pairs[2][0] + pairs[2][1])
    lower = torch.cat([a.double() for a, _ in pairs]).to(dtype)
    upper = torch.maximum(torch.cat([b.double() for _, b in pairs]).to(dtype), lower)
    ulp = (uniform(-2, 2) * 10 ** uniform(-6, 6)).to(dtype)
    lower = torch.cat([lower, ulp])
    upper = torch.cat([upper, torch.nextafter(ulp, torch.full_like(ulp, torch.inf))])
    return Interval(lower.unsqueeze(0), upper.unsqueeze(0))


def points(x: Interval, kinks: Sequence[float], generator: torch.Generator) -> Tensor:
    """[P, CASES] inside the boxes: ends, middle, kinks and their neighbours, random points."""
    lower, upper = x
    found = [lower, upper, x.center]
    for k in kinks:
        kink = torch.full_like(lower, k)
        found += [
            kink,
            *[torch.nextafter(kink, torch.full_like(kink, end)) for end in (-torch.inf, torch.inf)],
        ]
    shape = (max(POINTS - len(found), 4), lower.shape[1])
    random = torch.rand(shape, generator=generator, dtype=torch.float64).to(lower)
    found += list((lower + random * (upper - lower)).unsqueeze(1))
    return torch.cat([p.clamp(lower, upper) for p in found])


def excess(op: Elementwise, xs: Sequence[Interval], at: Sequence[Tensor], lines: Relaxation) -> Tensor:
    """By how much the lines are violated beyond the documented rounding, at the worst point: [CASES].

    Lines and values are evaluated in float64; what is smaller than the smallest normal number counts as
    nothing.
    """
    dtype = xs[0].lower.dtype
    eps, tiny = torch.finfo(dtype).eps, torch.finfo(dtype).tiny
    wide = [p.double() for p in at]
    truth = op.to(torch.float64).forward(*wide)
    worst = torch.zeros(truth.shape[1], dtype=torch.float64)
    sides = (
        (1.0, lines.lower_slopes, lines.lower_intercept),
        (-1.0, lines.upper_slopes, lines.upper_intercept),
    )
    for sign, slopes, intercept in sides:
        constant = torch.zeros_like(truth) if intercept is None else intercept.double()
        zero = torch.zeros_like(truth)
        value, size = constant + zero, constant.abs() + zero
        for slope, p in zip(slopes, wide, strict=True):
            value, size = value + slope.double() * p, size + (slope.double() * p).abs()
        slack = op.relaxation_error * eps * size + 4 * torch.finfo(torch.float64).eps * truth.abs() + 8 * tiny
        off = torch.where(value == truth, 0.0, value - truth)  # both may be infinite
        violation = torch.nan_to_num(sign * off - slack, nan=torch.inf)
        violation = violation.masked_fill(truth.isnan(), 0.0)  # float64 overflows: what is true is not known
        worst = torch.maximum(worst, violation.amax(0).clamp(min=0))
    return worst


def arguments_for(
    entry: Entry, dtype: torch.dtype, generator: torch.Generator
) -> tuple[list[Interval], list[Tensor]]:
    first = boxes(dtype, entry.kinks, generator)
    if entry.equal:
        at = points(first, entry.kinks, generator)
        grown = []
        for k in range(entry.arguments):  # each wider than the common values, on one side or the other
            amount = (torch.rand(first.lower.shape, generator=generator) * first.radius).to(dtype)
            left, right = (amount, torch.zeros_like(amount)) if k % 2 else (torch.zeros_like(amount), amount)
            grown.append(Interval(first.lower - left, first.upper + right))
        return grown, [at] * entry.arguments
    order = [torch.randperm(CASES, generator=generator) for _ in range(entry.arguments - 1)]
    xs = [first, *[boxes(dtype, entry.kinks, generator).map(lambda t, o=o: t[:, o]) for o in order]]
    return entry.adapt(xs, [points(x, entry.kinks, generator) for x in xs])


def check(entry: Entry, dtype: torch.dtype, broken: Callable[[Relaxation], Relaxation] = lambda r: r) -> None:
    """Lines, interval, parameters and branching points of one operator in one dtype.

    `broken` distorts every relaxation, to test the harness itself. Raises AssertionError at the first
    violation.
    """
    generator = torch.Generator().manual_seed(3)
    op = entry.make(CASES).to(dtype)
    xs, at = arguments_for(entry, dtype, generator)
    parameters = op.parameters(*xs)
    for name, p in parameters.items():
        assert (p.lower <= p.value).all() and (p.value <= p.upper).all(), f"{name} starts outside its range"
        assert p.value.isfinite().all(), f"{name} is not finite"
    for attempt in range(6):
        chosen = {}
        for name, p in parameters.items():
            mix = torch.rand(p.value.shape, generator=generator).to(dtype)
            mixes = (None, 0.0, 1.0, mix, mix.round(), mix**8)
            weight = mixes[attempt]
            value = p.value if weight is None else p.lower + weight * (p.upper - p.lower)
            chosen[name] = torch.minimum(torch.maximum(value, p.lower), p.upper)
        lines = broken(op.relax(chosen, *xs))
        bad = excess(op, xs, at, lines)
        k = int(bad.argmax())
        detail = [(x.lower[0, k].item(), x.upper[0, k].item()) for x in xs]
        where = f"box {detail}, parameters { {n: t[0, k].item() for n, t in chosen.items()} }"
        assert bad[k] == 0, f"{type(op).__name__} {dtype}: a line is wrong by {bad[k]:.3g} for {where}"
    _check_interval(op, xs, at)
    for k, x in enumerate(xs):
        split = op.branching_point(k, *xs)
        assert (split >= x.lower).all() and (split <= x.upper).all(), "a branching point lies outside"
        wanted = op.refinable(k, *xs)
        assert wanted.dtype == torch.bool and wanted.shape == x.lower.shape
        assert not wanted[x.lower == x.upper].any(), "a single point cannot be refined"


def _check_interval(op: Elementwise, xs: Sequence[Interval], at: Sequence[Tensor]) -> None:
    found = op.interval(*xs).to(torch.float64)
    truth = op.to(torch.float64).forward(*[p.double() for p in at])
    slack = 2 * torch.finfo(torch.float64).eps * truth.abs() + torch.finfo(xs[0].lower.dtype).tiny
    unknown = truth.isnan()
    assert not any(end.isnan().any() for end in found), "an end of the interval is NaN"
    assert (unknown | (truth >= found.lower - slack)).all(), "the interval's lower end is too high"
    assert (unknown | (truth <= found.upper + slack)).all(), "the interval's upper end is too low"


def check_groups(entry: Entry) -> None:
    """Slopes [B, G, *shape] with boxes [B, 1, *shape] give the same lines as group by group."""
    generator = torch.Generator().manual_seed(4)
    op = entry.make(CASES).to(torch.float64)
    xs, _ = arguments_for(entry, torch.float64, generator)
    parameters = op.parameters(*xs)
    mixes = {n: torch.rand(1, 3, CASES, generator=generator, dtype=torch.float64) for n in parameters}
    chosen = {n: p.lower[:, None] + mixes[n] * (p.upper - p.lower)[:, None] for n, p in parameters.items()}
    wide = op.relax(chosen, *[x.map(lambda t: t.unsqueeze(1)) for x in xs])
    for g in range(3):
        single = op.relax({n: t[:, g] for n, t in chosen.items()}, *xs)
        for a, b in zip(
            (*wide.lower_slopes, *wide.upper_slopes),
            (*single.lower_slopes, *single.upper_slopes),
            strict=True,
        ):
            assert torch.equal(a.expand(1, 3, CASES)[:, g], b.expand(1, CASES))
        for a, b in (
            (wide.lower_intercept, single.lower_intercept),
            (wide.upper_intercept, single.upper_intercept),
        ):
            assert (a is None) == (b is None)
            if a is not None and b is not None:
                assert torch.allclose(a.expand(1, 3, CASES)[:, g], b, rtol=1e-12, atol=1e-300)


def check_affine(op: Affine, *shapes: tuple[int, ...]) -> None:
    """Transpose, structured coefficients, offset, |L| and interval of an affine operator against its dense
    matrix."""
    generator = torch.Generator().manual_seed(5)
    op = op.to(torch.float64)
    out = op.output_shape(*shapes)
    zeros = [torch.zeros(1, *s, dtype=torch.float64) for s in shapes]
    base = op.forward(*zeros)
    assert base.shape[1:] == out
    offset = op.offset(*shapes)
    assert torch.allclose(
        base[0], torch.zeros(out, dtype=torch.float64) if offset is None else offset.double()
    )
    size = int(torch.Size(out).numel())
    for k, shape in enumerate(shapes):
        numel = int(torch.Size(shape).numel())
        feed = [z.expand(numel, *z.shape[1:]) for z in zeros]
        feed[k] = torch.eye(numel, dtype=torch.float64).view(numel, *shape)
        matrix = (op.forward(*feed) - base).reshape(numel, size)
        absolute = op.absolute(*feed).reshape(numel, size)
        assert torch.allclose(absolute, matrix.abs(), atol=1e-12), "absolute is not |L|"
        rows = torch.randn(2, 5, *out, generator=generator, dtype=torch.float64)
        expected = (rows.reshape(2, 5, size) @ matrix.T).view(2, 5, *shape)
        assert torch.allclose(op.transpose(rows, k, *shapes), expected, atol=1e-10), "transpose is wrong"
        assert torch.allclose(Affine.transpose(op, rows, k, *shapes), expected, atol=1e-10), (
            "autograd disagrees"
        )
        index = torch.randint(size, (2, 7), generator=generator)
        scale = torch.randn(2, 7, generator=generator, dtype=torch.float64)
        values = torch.randn(2, *out, generator=generator, dtype=torch.float64)
        for structured in (Rows(index, scale, out), Diagonal(values), Diagonal(values[:1])):
            dense = structured.dense()
            through = op.backward(structured, k, *shapes).dense()
            wanted = (dense.reshape(dense.shape[0], -1, size) @ matrix.T).view(*dense.shape[:2], *shape)
            assert torch.allclose(through, wanted, atol=1e-10), (
                f"{type(structured).__name__} is not kept right"
            )
    _check_affine_interval(op, shapes, generator)


def _check_affine_interval(op: Affine, shapes: Sequence[tuple[int, ...]], generator: torch.Generator) -> None:
    """float32 intervals hold for values in float64, at corners of boxes of any scale."""
    narrow = op.to(torch.float32)
    exact = narrow.to(torch.float64)
    for scale in (1e-6, 1.0, 1e6):
        ends = [scale * torch.randn(2, 20, *s, generator=generator) for s in shapes]
        xs = [Interval(e.amin(0), e.amax(0)) for e in ends]
        found = narrow.interval(*xs).to(torch.float64)
        for _ in range(8):
            picks = [(torch.rand(x.lower.shape, generator=generator) < 0.5) for x in xs]
            at = [torch.where(p, x.lower, x.upper).double() for p, x in zip(picks, xs, strict=True)]
            value = exact.forward(*at)
            assert (value >= found.lower).all() and (value <= found.upper).all(), "the interval is not sound"


@pytest.fixture(scope="session")
def harness() -> SimpleNamespace:
    """The functions above, for test modules of any folder below."""

    return SimpleNamespace(
        Entry=Entry, check=check, check_groups=check_groups, check_affine=check_affine, cases=CASES
    )
