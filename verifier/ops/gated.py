"""The gated product g(x) y and the product g(x) h(y), each relaxed as one function of x and y.

For a slope m in x, g(x) y - m x is linear in y: what lies above it at both ends of y's interval lies above it
everywhere. At an end s it is at most the largest s g(x) - m x, which the support function of g gives. So the best
plane with the slope m in x is known: it is the chord, over y, of these two numbers. No plane made of lines of g
and planes of a product is lower with the same slope.

For g(x) h(y) and slopes (m, n), the largest z h(y) - n y over y is a convex function of z, below its chord on every
cell of z's range; and above the chord, a line in z = g(x), the support function of g is asked again. With one cell
this is never looser than lines of g and of h and planes of a product together; a cell of half the width is off by a
quarter.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from verifier.graph import Builder, Elementwise, Interval, Parameter, Relaxation, Univariate, Value
from verifier.graph.curve import Curve, calm, calmed, spaced
from verifier.graph.op import Shape
from verifier.ops.product import Product, mix, multiply

CELLS = 3
"""Into how many parts x's interval is cut for g(x) h(y): more gain less than a thousandth."""
SAMPLES, STARTS = 9, 17
"""Points of an interval at which a sketch looks, and the search for slopes to start from."""
MIXES = (0.25, 0.5, 0.75)
"""Shares of both ends' slopes in those tried to start from."""
FLAT = 0.4
"""How much of what a plane rises from the middle counts as height: slopes multiply what relaxations of the arguments
leave open, so that of planes equally high the flattest bounds a deep network best."""
_STEEP = 2.0**40
"""The support function of a gate is asked for slopes up to this, per unit of x; beyond, intervals do as well."""


_SIDES = ((-1.0, "lower"), (1.0, "upper"))


class Planes(NamedTuple):
    """Slopes in x and y and an intercept, and where there is no plane."""

    x: Tensor
    y: Tensor
    intercept: Tensor
    wild: Tensor


@dataclass(frozen=True, eq=False)
class Gated(Elementwise):
    """gate(x) * y, or gate(x) * other(y); neither function jumps.

    Free are the slopes in x, and with `other` those in y too. Where values go beyond the floating range, or the gate's
    are not bounded, there are no planes.
    """

    gate: Univariate
    other: Univariate | None = None
    stride = 0.25  # a slope is good in a small part of the range that McCormick's planes span

    def tensors(self) -> Iterator[Tensor]:
        yield from self.gate.tensors()
        if self.other is not None:
            yield from self.other.tensors()

    def to(self, dtype: torch.dtype | None = None, device: torch.device | str | None = None) -> Gated:
        other = None if self.other is None else self.other.to(dtype, device)
        return dataclasses.replace(self, gate=self.gate.to(dtype, device), other=other)

    def restrict(self, index: Tensor, shape: Shape) -> Gated:
        parts = [None if f is None else f.restrict(index, shape) for f in (self.gate, self.other)]
        return Gated(*parts)  # pyright: ignore[reportArgumentType]

    def forward(self, *xs: Tensor) -> Tensor:
        return self.gate.forward(xs[0]) * (xs[1] if self.other is None else self.other.forward(xs[1]))

    def _factors(self, x: Interval, y: Interval) -> tuple[Interval, Interval]:
        return _lifted(self.gate.interval(x)), y if self.other is None else _lifted(self.other.interval(y))

    def interval(self, *xs: Interval) -> Interval:
        return Product().interval(*self._factors(xs[0], xs[1]))

    def parameters(self, *xs: Interval) -> dict[str, Parameter]:
        """Of the slopes that the gate's starting lines and a product's planes would give, those whose plane is best at
        the middle of the box, which for planes says as much as the volume does, flat ones preferred (see `FLAT`)."""
        box = _Box.of(self, *xs)
        lines = box.lines()
        found = {}
        for sign, side in _SIDES:
            for name, p in zip(("x", "y"), _start(box, lines, sign), strict=False):
                found[f"{side}_{name}"] = p if sign > 0 else Parameter(-p.value, -p.upper, -p.lower)
        return found

    def ranges(self, *xs: Interval) -> dict[str, Interval]:
        box = _Box.of(self, *xs)
        slopes = box.slopes()
        found = {}
        for sign, side in _SIDES:
            for name, t in zip(("x", "y"), _ranges(box, slopes, sign), strict=False):
                found[f"{side}_{name}"] = t if sign > 0 else Interval(-t.upper, -t.lower)
        return found

    def relax(self, parameters: Mapping[str, Tensor], *xs: Interval) -> Relaxation:
        box = _Box.of(self, *[calm(x) for x in xs])
        planes = []
        for sign, side in _SIDES:
            free = [sign * calmed(parameters[f"{side}_{name}"]) for name in ("x", "y")[: box.free]]
            planes.append(_above(box, sign, free, CELLS))
        low, high = planes
        return Relaxation(
            (-low.x, -low.y),
            (-low.intercept).masked_fill(low.wild, -torch.inf),
            (high.x, high.y),
            high.intercept.masked_fill(high.wild, torch.inf),
        )

    def sketch(self, parameters: Mapping[str, Tensor], *xs: Interval) -> Relaxation | None:
        """From samples of both functions, or of the gate at both ends of y."""
        names = ("x", "y")[: 1 if self.other is None else 2]
        if any(f"{side}_{name}" not in parameters for _, side in _SIDES for name in names):
            return None
        x, y, h, g = _sampled(self, xs[0], xs[1], SAMPLES)
        height = g * h
        planes = []
        for sign, side in _SIDES:
            slope = parameters[f"{side}_x"]
            if self.other is None:
                most = sign * (sign * (height - slope * x)).amax(1)
                width = xs[1].upper - xs[1].lower
                steep = (most[1] - most[0]) / torch.where(width > 0, width, torch.ones_like(width))
                planes.append(((slope, steep), most[0] - steep * xs[1].lower))
                continue
            other = parameters[f"{side}_y"]
            most = sign * (sign * (height - slope * x - other * y)).flatten(0, 1).amax(0)
            planes.append(((slope, other), most))
        return Relaxation(*planes[0], *planes[1])

    def refinable(self, index: int, *xs: Interval) -> Tensor:
        """Where the other factor varies, or the own function is more than scaled by it."""
        factors = self._factors(xs[0], xs[1])
        part = (self.gate, self.other)[index]
        own = factors[index].wide & (xs[index].upper > xs[index].lower)
        curved = (
            factors[1 - index].wide
            if part is None
            else factors[1 - index].wide | part.refinable(0, xs[index])
        )
        return own & curved & (factors[1 - index].magnitude > 0)

    def branching_point(self, index: int, *xs: Interval) -> Tensor:
        part = (self.gate, self.other)[index]
        return xs[index].center if part is None else part.branching_point(0, xs[index])

    def vjp(
        self, builder: Builder, inputs: Sequence[Value], output: Value, cotangent: Value
    ) -> Sequence[Value | None]:
        x, y = inputs
        first = builder.add(self.gate, x)
        second = y if self.other is None else builder.add(self.other, y)
        to_first, to_second = multiply(builder, cotangent, second), multiply(builder, cotangent, first)
        left = self.gate.vjp(builder, [x], first, to_first)[0]
        return [left, to_second if self.other is None else self.other.vjp(builder, [y], second, to_second)[0]]


class _Lines(NamedTuple):
    """Slopes of a function's starting lines and of its chord, and the range of its slopes."""

    below: Tensor
    above: Tensor
    chord: Tensor
    least: Tensor
    most: Tensor

    @classmethod
    def of(cls, function: Univariate, x: Interval) -> _Lines:
        own = function.parameters(x)
        if isinstance(function, Curve):
            below, above = own["lower_slope"].value, own["upper_slope"].value
        else:
            lines = function.relax({name: p.value for name, p in own.items()}, x)
            below, above = lines.lower_slopes[0], lines.upper_slopes[0]
        first, last = (function.forward(end) for end in x)
        chord = (last - first) / (x.upper - x.lower)
        chord = torch.where(chord.isfinite(), chord, above)
        ends = [end for p in own.values() for end in (p.lower, p.upper)]
        slopes = (below, above, chord, *ends)
        every = torch.stack(torch.broadcast_tensors(*[_bounded(t) for t in slopes]))
        return cls(every[0], every[1], every[2], every.amin(0), every.amax(0))

    @property
    def steep(self) -> Interval:
        return Interval(self.least, self.most)

    def times(self, sign: float) -> _Lines:
        """Those of the function or of its negative."""
        if sign > 0:
            return self
        return _Lines(-self.above, -self.below, -self.chord, -self.most, -self.least)

    def multiplied(self, factors: Sequence[Tensor]) -> list[Tensor]:
        """Slopes of lines above the function times each of the factors, then the slopes of its chord times each."""
        lines = [k * torch.where(k >= 0, self.above, self.below) for k in factors]
        return [*lines, *[k * self.chord for k in factors]]


def _bounded(slope: Tensor) -> Tensor:
    most = torch.finfo(slope.dtype).max ** 0.5
    return torch.nan_to_num(slope, nan=0.0).clamp(-most, most)


@dataclass(frozen=True, eq=False)
class _Box:
    """Both arguments, the ranges of both factors, and where these are too large to multiply (`wild`; they are zero
    there)."""

    op: Gated
    x: Interval
    y: Interval
    z: Interval
    v: Interval
    wild: Tensor

    @classmethod
    def of(cls, op: Gated, x: Interval, y: Interval) -> _Box:
        z, v = op._factors(x, y)
        wild = (8 * (z.magnitude + 1) * (v.magnitude + 1)).detach().isfinite().logical_not()
        if op.other is None:
            wild = wild | (8 * y.magnitude).detach().isfinite().logical_not()

        def tame(t: Interval) -> Interval:
            return t.map(lambda end: torch.where(wild, torch.zeros_like(end), end))

        z, v = tame(z), tame(v)
        return cls(op, x, v if op.other is None else y, z, v, wild)

    def lines(self) -> list[_Lines]:
        functions = [f for f in (self.op.gate, self.op.other) if f is not None]
        return [_Lines.of(f, x) for f, x in zip(functions, (self.x, self.y), strict=False)]

    def slopes(self) -> list[Interval]:
        """At least the slopes between which `lines` has those of lines and parameters."""
        functions = [f for f in (self.op.gate, self.op.other) if f is not None]
        found = []
        for f, x in zip(functions, (self.x, self.y), strict=False):
            steep = f.all_slopes(x) if isinstance(f, Curve) else _Lines.of(f, x).steep
            found.append(steep.map(_bounded))
        return found

    def within(self, sign: float) -> Interval:
        """The range of sign * g(x)."""
        return self.z if sign > 0 else Interval(-self.z.upper, -self.z.lower)

    @property
    def free(self) -> int:
        """How many slopes are free."""
        return 1 if self.op.other is None else 2


def _above(box: _Box, sign: float, slopes: Sequence[Tensor], cells: int) -> Planes:
    """A plane above sign * g(x) * (y or h(y)) with the given slopes in x (and in y where there is an h)."""
    if box.op.other is None:
        ends = [_support(box.op.gate, sign * end, slopes[0], box.x, box.z) for end in box.y]
        steep, constant = _chord(ends[0][0], ends[1][0], box.y, box.within(sign))
        return Planes(slopes[0], steep, constant, box.wild | ends[0][1] | ends[1][1])
    slope, other_slope = slopes
    x = _cells(box.op.gate, box.x, cells)
    y, v = (t.map(lambda end: end.unsqueeze(0)) for t in (box.y, box.v))
    z = box.op.gate.interval(x)
    z = Interval(torch.maximum(z.lower, box.z.lower), torch.minimum(z.upper, box.z.upper))
    z = z.map(lambda end: torch.where(box.wild, torch.zeros_like(end), end))
    ends = [_support(box.op.other, sign * end, other_slope, y, v) for end in z]
    within = v if sign > 0 else Interval(-v.upper, -v.lower)
    factor, constant = _chord(ends[0][0], ends[1][0], z, within)
    peak, wild = _support(box.op.gate, factor, slope, x, z)
    size = (peak.abs() + constant.abs()).detach()
    total = peak + constant + 2 * torch.finfo(size.dtype).eps * size
    return Planes(slope, other_slope, total.amax(0), box.wild | (wild | ends[0][1] | ends[1][1]).any(0))


def _support(
    function: Univariate, factor: Tensor, slope: Tensor, x: Interval, z: Interval
) -> tuple[Tensor, Tensor]:
    """At least the largest factor * f(x) - slope * x over an interval, f(x) lying in z; and where that is not finite,
    where 0 stands for it.

    That is factor times the support of f for slope / factor, unless the factor is nearly zero.
    """
    info = torch.finfo(slope.dtype)
    reach, size = (t.magnitude.detach().clamp(max=info.max / 4) for t in (x, z))
    small = factor.detach().abs() <= slope.detach().abs() * ((reach + 1) / _STEEP) + info.tiny * _STEEP
    divisor = torch.where(small, torch.ones_like(factor), factor)
    ratio = slope / divisor
    positive = divisor.detach() > 0
    if bool(positive.all()):
        peak = function.support_max(ratio, x)
    else:
        peak = torch.where(positive, function.support_max(ratio, x), function.support_min(ratio, x))
    wild = peak.detach().isfinite().logical_not() & ~small
    scaled = divisor * torch.where(peak.isfinite(), peak, torch.zeros_like(peak))
    units = (function.relaxation_error + 6) * info.eps
    flushed = divisor.abs() * (1 + reach * (slope != 0))
    lift = units * ((slope * reach).abs() + scaled.abs()) + 4 * info.tiny * (1 + flushed)
    most = [-slope * end.clamp(-info.max / 4, info.max / 4) for end in x]
    flat = torch.maximum(*most) + factor.abs() * size
    spare = 4 * info.eps * ((slope * reach).abs() + factor.abs() * size) + info.tiny
    value = torch.where(small, flat + spare.detach(), scaled + lift.detach())
    wild = wild | value.detach().isfinite().logical_not() | ((x.magnitude > info.max / 4) & (slope != 0))
    return torch.where(wild, torch.zeros_like(value), value), wild


def _chord(first: Tensor, last: Tensor, at: Interval, within: Interval) -> tuple[Tensor, Tensor]:
    """Slope (in `within`, where the true one lies) and intercept of a line that is at least `first` and `last` at the
    ends of `at`."""
    info = torch.finfo(first.dtype)
    width = at.upper - at.lower
    flat = width.detach() <= 64 * info.eps * at.magnitude.detach() + 64 * info.tiny
    slope = (last - first) / torch.where(flat, torch.ones_like(width), width)
    slope = torch.where(flat, _middle(within), slope)
    slope = torch.minimum(torch.maximum(slope, within.lower), within.upper)
    reach = slope.abs() * at.magnitude
    error = 4 * info.eps * (first.abs() + last.abs() + 2 * reach) + 4 * info.tiny
    return slope, torch.maximum(first - slope * at.lower, last - slope * at.upper) + error.detach()


def _cells(gate: Univariate, x: Interval, count: int) -> Interval:
    """The interval cut into `count` parts, [count, ...]."""
    if count == 1:
        return x.map(lambda end: end.unsqueeze(0))
    parts = torch.arange(1, count, dtype=x.lower.dtype, device=x.lower.device) / count
    parts = parts.view(-1, *[1] * x.lower.dim())
    inner = mix(parts, x.lower.unsqueeze(0), x.upper.unsqueeze(0))
    inner = torch.minimum(torch.maximum(inner, x.lower), x.upper)  # infinite ends give NaN, which is no knot
    inner = torch.where(inner.isnan(), x.lower.unsqueeze(0), inner)
    return Interval(torch.cat([x.lower.unsqueeze(0), inner]), torch.cat([inner, x.upper.unsqueeze(0)]))


def _start(box: _Box, lines: Sequence[_Lines], sign: float) -> list[Parameter]:
    """The slopes of planes above sign * g(x) h(y): their ranges, and the best of a few."""
    factors = [[box.v.upper, _middle(box.v), box.v.lower]]
    within = box.within(sign)
    factors.append([within.lower, _middle(within), within.upper])
    tried, ranges = [], _ranges(box, [line.steep for line in lines], sign)
    for own, line, limit, first in zip(factors, lines, ranges, (sign, 1.0), strict=False):
        slopes = line.times(first).multiplied(own)
        every = torch.stack(torch.broadcast_tensors(*slopes, *[mix(t, slopes[0], slopes[2]) for t in MIXES]))
        tried.append(torch.minimum(torch.maximum(_bounded(every), limit.lower), limit.upper))
    with torch.no_grad():
        best = _heights(box, sign, tried).argmin(0, keepdim=True)
    chosen = [t.gather(0, best.expand_as(t[:1])).squeeze(0) for t in tried]
    return [Parameter(t, *limit) for t, limit in zip(chosen, ranges, strict=True)]


def _heights(box: _Box, sign: float, slopes: Sequence[Tensor]) -> Tensor:
    """About how high the planes above sign * g(x) * (y or h(y)) with some slopes [N, ...] are in the middle, and FLAT
    times what they rise from there (the root of the sum of squares); infinite where that is not known."""
    x, y, h, g = _sampled(box.op, box.x, box.y, STARTS)
    height, x, y = sign * g * h, x - _middle(box.x), y - _middle(box.y)
    half = [t.upper / 2 - t.lower / 2 for t in (box.x, box.y)]
    if box.op.other is None:
        ends = torch.stack([(height - m * x).amax(1) for m in slopes[0]])
        top, rise = ends.mean(1), (ends[:, 1] - ends[:, 0]).abs() / 2
    else:
        top = torch.stack(
            [(height - m * x - n * y).flatten(0, 1).amax(0) for m, n in zip(*slopes, strict=True)]
        )
        rise = slopes[1].abs() * half[1]
    found = top + FLAT * torch.hypot(rise, slopes[0] * half[0])
    return torch.nan_to_num(found, nan=torch.inf, posinf=torch.inf, neginf=torch.inf)


def _sampled(op: Gated, x: Interval, y: Interval, count: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Points of x [count, ...] and of y [count or, without a function of it, 2, 1, ...], and the factors there."""
    at = spaced(x, count)
    if op.other is None:
        other = torch.stack([*y]).unsqueeze(1)
        return at, other, other, op.gate.forward(at)
    other = spaced(y, count).unsqueeze(1)
    return at, other, op.other.forward(other), op.gate.forward(at)


def _ranges(box: _Box, slopes: Sequence[Interval], sign: float) -> list[Interval]:
    """Between which numbers slopes are worth trying: products of a factor and a slope; along an infinite interval 0."""
    found = []
    sides = ((box.v, box.x, sign), (box.within(sign), box.y, 1.0))
    for steep, (factor, x, turn) in zip(slopes, sides, strict=False):
        corners = torch.stack(torch.broadcast_tensors(*[turn * k * s for k in factor for s in steep]))
        corners = _bounded(corners).masked_fill(box.wild | x.lower.isinf() | x.upper.isinf(), 0.0)
        found.append(Interval(corners.amin(0), corners.amax(0)))
    return found


def _lifted(z: Interval) -> Interval:
    """A range that may be off by what underflows, which a large factor makes visible; signs are exact."""
    spare = 4 * torch.finfo(z.lower.dtype).tiny
    low = torch.where(z.lower >= 0, (z.lower - spare).clamp(min=0), z.lower - spare)
    return Interval(low, torch.where(z.upper <= 0, (z.upper + spare).clamp(max=0), z.upper + spare))


def _middle(x: Interval) -> Tensor:
    return x.lower / 2 + x.upper / 2
