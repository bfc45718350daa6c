"""Univariate functions known through their value, their derivative and where they curve which way.

From these follow rigorous support functions for any slope, the range, good lines to start from and the slopes that
are worth trying. Where a line touches need not be known well: the bound is made of the tangent at the point that was
found, so that an inexact point costs tightness and nothing else.
"""

from __future__ import annotations

import itertools
import math
from abc import abstractmethod
from collections.abc import Iterable, Mapping
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from verifier.graph.interval import Interval
from verifier.graph.op import Parameter, Relaxation, Univariate

SAMPLES = 33
"""Points of an interval from which lines are sketched: off by a thousandth of what the chord is."""

STEPS = 4
"""Lines tried in the search for one to start from; each is off by the square of what the one before was off by."""

LEAN = 0.25
"""Lines start as good as can be this part of the half-width away from the middle, on the side where flatter ones are:
what a relaxation of the argument leaves open is multiplied by the slope, so that the flatter of two lines with equal
areas bounds a deep network more tightly. The least height in the middle plus LEAN times the slope's size times the
half-width is attained there."""

_DENSE = 4.0


class Piece(NamedTuple):
    """The function is convex on [start, end], or concave; a straight one is called convex as well as concave."""

    start: float
    end: float
    convex: bool
    straight: bool = False


class _Edge(NamedTuple):
    """A line on one side of a curve: its slope, the points where it touches, whether it is the tangent between them
    instead, and how far from the middle it is the best one, in half-widths."""

    slope: Tensor
    left: Tensor
    right: Tensor
    inside: Tensor
    lean: Tensor


def alternating(knots: Iterable[float], convex: bool) -> tuple[Piece, ...]:
    """The real line cut at the knots, of which the first part is convex or not and each next one the opposite."""
    ends = [-math.inf, *knots, math.inf]
    return tuple(Piece(a, b, convex == (k % 2 == 0)) for k, (a, b) in enumerate(itertools.pairwise(ends)))


def known(bound: Tensor) -> Tensor:
    """An upper bound that is infinite instead of NaN: a comparison with NaN would drop it."""
    return torch.nan_to_num(bound, nan=torch.inf, posinf=torch.inf, neginf=-torch.inf)


def spaced(x: Interval, count: int) -> Tensor:
    """Increasing points of an interval [count, ...], both ends included: evenly spaced up to about a distance of _DENSE
    from zero, by ratios beyond."""
    part = torch.arange(1, count - 1, dtype=x.lower.dtype, device=x.lower.device) / (count - 1)
    part = part.view(-1, *[1] * x.lower.dim())
    low, high = ((t / _DENSE).asinh() for t in x)
    inner = _DENSE * (low + part * (high - low)).sinh()
    inner = torch.minimum(torch.maximum(torch.nan_to_num(inner), x.lower), x.upper)
    return torch.cat([x.lower.unsqueeze(0), inner, x.upper.unsqueeze(0)])


def leant(x: Interval, lean: Tensor | float) -> Tensor:
    """The middle of an interval moved by so many half-widths."""
    return (1 - lean) * (x.lower / 2) + (1 + lean) * (x.upper / 2)


class Curve(Univariate):
    """What all functions share whose extrema over an interval, less a line, can be found.

    Subclasses give `forward`, `derivative`, `extreme` and `slopes`; they see finite intervals on which `usable` holds.
    Gradients of supports are those of the envelope theorem: minus the touching point in the slope, f' - slope at an
    end that is touched.
    """

    smooth = True
    units: int = 8
    """Rounding units, relative to `size`, by which `forward` and `derivative` may be off: twice what libraries state,
    and the operations of the formula."""

    bottom: float = -math.inf
    """The infimum of the function where it is defined."""

    top: float = math.inf
    """The supremum."""

    limits: tuple[float, float] = (-math.inf, math.inf)
    """The values at minus and plus infinity; for functions without one, numbers such that it stays between them and
    values taken elsewhere."""

    rising: bool = False
    """True where the function never decreases."""

    home: float = 0.0
    """A point where the function is usable."""

    @abstractmethod
    def derivative(self, x: Tensor) -> Tensor:
        """f'(x), of one side at kinks."""

    @abstractmethod
    def extreme(self, slope: Tensor, x: Interval, sign: int) -> tuple[Tensor, Tensor]:
        """At least the maximum of sign * (f - slope x) over the interval, rounding included, and where it is about."""

    @abstractmethod
    def slopes(self, x: Interval) -> Interval:
        """Least and largest derivative, about."""

    def size(self, x: Tensor, y: Tensor) -> Tensor:
        """What rounding of the value y = f(x) is relative to: the sum of the sizes of its terms."""
        return y.abs()

    def steepness(self, x: Tensor, d: Tensor) -> Tensor:
        """What rounding of the derivative d = f'(x) is relative to."""
        return d.abs()

    def usable(self, x: Interval) -> Tensor | None:
        """Where the function is defined on the interval and nothing overflows; None for everywhere."""
        return None

    def error(self, x: Tensor, y: Tensor) -> Tensor:
        """A bound on what y = `forward(x)` is off by."""
        info = torch.finfo(y.dtype)
        return self.units * info.eps * self.size(x, y) + 8 * info.tiny

    def gap(self, slope: Tensor, x: Tensor, sign: int) -> Tensor:
        """sign * (f - slope x), rounded up."""
        y = self.forward(x)
        info, line = torch.finfo(y.dtype), slope * x
        rounding = self.error(x, y) + info.eps * (line.abs() + y.abs()) + info.tiny * (4 + slope.abs())
        return known(sign * (y - line) + rounding)

    def tangent(self, point: Tensor, slope: Tensor, x: Interval, sign: int) -> tuple[Tensor, Tensor]:
        """At least the maximum of sign * (f - slope x) over an interval on which sign * f is concave, from the tangent
        at a point near the maximum; and that point, moved into the interval."""
        point = torch.minimum(torch.maximum(torch.nan_to_num(point), x.lower), x.upper)
        steep = self.derivative(point)
        info = torch.finfo(point.dtype)
        off = self.units * info.eps * (self.steepness(point, steep) + slope.abs()) + 8 * info.tiny
        excess = sign * (steep - slope)
        right, left = (off + excess).clamp(min=0), (off - excess).clamp(min=0)
        rest = torch.maximum(right * (x.upper - point), left * (point - x.lower))
        return known(self.gap(slope, point, sign) + rest), point

    def interval(self, *xs: Interval) -> Interval:
        if not self.rising:
            return super().interval(*xs)
        x = calm(xs[0])
        low, high = self.forward(x.lower), self.forward(x.upper)
        found = Interval(low - self.error(x.lower, low), high + self.error(x.upper, high)).sanitise()
        found = found.map(lambda t: t.clamp(self.bottom, self.top))
        usable = self.usable(x)
        return found if usable is None else _where(usable, found, Interval.everything(1, low))

    def samples(self, x: Interval) -> Tensor:
        """Increasing points [n, ...] of an interval, both ends included, from which lines are sketched."""
        return spaced(x, SAMPLES)

    def sketch(self, parameters: Mapping[str, Tensor], *xs: Interval) -> Relaxation | None:
        """From samples. Where a parameter is missing that has one value alone, that is the chord's slope."""
        x = self.samples(xs[0])
        y, width = self.forward(x), x[-1] - x[0]
        chord = (y[-1] - y[0]) / torch.where(width > 0, width, torch.ones_like(width))
        lower, upper = (parameters.get(f"{side}_slope", chord) for side in ("lower", "upper"))
        return Relaxation((lower,), (y - lower * x).amin(0), (upper,), (y - upper * x).amax(0))

    def support_max(self, slope: Tensor, x: Interval) -> Tensor:
        return self._support(slope, x, 1)

    def support_min(self, slope: Tensor, x: Interval) -> Tensor:
        return -self._support(slope, x, -1)

    def _support(self, slope: Tensor, x: Interval, sign: int) -> Tensor:
        with torch.no_grad():
            tame, wild, open_ = self._tamed(x)
            bound, point = self.extreme(slope.detach(), tame, sign)
            bound = self._bounded(bound, slope, tame, sign)
            if open_ is not None:
                bound = self._at_infinity(bound, slope, x, sign)
            if wild is not None:
                bound = bound.masked_fill(wild, torch.inf)
        if not torch.is_grad_enabled() or not any(t.requires_grad for t in (slope, *x)):
            return self._live(bound, point, sign)
        with torch.no_grad():
            fine = bound.isfinite()
            steep = sign * torch.nan_to_num(self.derivative(point) - slope, nan=0.0, posinf=0.0, neginf=0.0)
            at_lower = (point <= tame.lower) & fine
            at_upper = (point >= tame.upper) & fine & ~at_lower
            gradients = (-sign * point * fine, steep * at_lower, steep * at_upper)
        return self._live(_Known.apply(bound, slope, *x, *gradients), point, sign)

    def _live(self, bound: Tensor, point: Tensor, sign: int) -> Tensor:
        """The bound with its gradient in the operator's own tensors, where they have one."""
        if not torch.is_grad_enabled() or not any(t.requires_grad for t in self.tensors()):
            return bound
        value = self.forward(point)
        return bound + sign * (value - value.detach())

    def _tamed(self, x: Interval) -> tuple[Interval, Tensor | None, Tensor | None]:
        """The interval with finite ends, inside the domain; and where it was not usable, and where it was endless (None
        for nowhere)."""
        lower, upper = x.lower.detach(), x.upper.detach()
        most = torch.finfo(lower.dtype).max / 8
        open_ = torch.maximum(lower.abs(), upper.abs()) > most
        endless = open_ if bool(open_.any()) else None
        usable = self.usable(Interval(lower, upper))
        wild = None
        if usable is not None and not bool(usable.all()):
            wild = ~usable
            lower, upper = lower.masked_fill(wild, self.home), upper.masked_fill(wild, self.home)
        if endless is not None:
            lower, upper = lower.clamp(-most, most), upper.clamp(-most, most)
        return Interval(lower, upper), wild, endless

    def _bounded(self, bound: Tensor, slope: Tensor, x: Interval, sign: int) -> Tensor:
        """No more than the function's supremum plus what the line adds."""
        info = torch.finfo(bound.dtype)
        bound = torch.nan_to_num(bound, nan=torch.inf, posinf=torch.inf, neginf=-info.max)
        most = self.top if sign > 0 else -self.bottom
        if math.isinf(most):
            return bound
        tilt = torch.maximum(-sign * slope * x.lower, -sign * slope * x.upper)
        size = abs(most) + torch.maximum((slope * x.lower).abs(), (slope * x.upper).abs())
        cap = most + tilt + 2 * info.eps * size + info.tiny * (4 + slope.abs())
        return torch.where(cap < bound, cap, bound)

    def _at_infinity(self, bound: Tensor, slope: Tensor, x: Interval, sign: int) -> Tensor:
        """Endless intervals have lines of slope zero alone, at the range, which the limits belong to."""
        most = torch.finfo(bound.dtype).max / 8
        for beyond, limit in zip((x.lower < -most, x.upper > most), self.limits, strict=True):
            reached = max(bound.new_tensor(sign * limit).item(), -most)
            bound = torch.where(beyond & (slope == 0), bound.clamp(min=reached), bound)
            bound = bound.masked_fill(beyond & (slope != 0), torch.inf)
        far = (x.lower > most) | (x.upper < -most)
        return bound.masked_fill(far, torch.inf)

    def parameters(self, *xs: Interval) -> dict[str, Parameter]:
        """Start from the lines that are best at a point near the middle (see `LEAN`): that touch on both sides of it,
        or in it."""
        tame, wild, endless = self._tamed(xs[0])
        flat = tame.lower >= tame.upper
        for mask in (wild, endless):
            flat = flat if mask is None else flat | mask
        with torch.no_grad():
            steep = self.slopes(tame)
        return {
            "lower_slope": self._best(xs[0], tame, steep, flat, -1),
            "upper_slope": self._best(xs[0], tame, steep, flat, 1),
        }

    def all_slopes(self, x: Interval) -> Interval:
        """The slopes that the function has on an interval, 0 where that has no inside or no finite ones; at far less
        cost than the ranges that `parameters` finds within."""
        with torch.no_grad():
            tame, wild, endless = self._tamed(x)
            low, high = self.slopes(tame)
            fine = (tame.lower < tame.upper) & low.isfinite() & high.isfinite()
            for mask in (wild, endless):
                fine = fine if mask is None else fine & ~mask
            zero = torch.zeros_like(low)
            return Interval(torch.where(fine, low, zero), torch.where(fine, high, zero))

    def _best(self, x: Interval, tame: Interval, steep: Interval, flat: Tensor, sign: int) -> Parameter:
        """The slope at which the line on one side is best near the middle. Slopes beyond that of a line through an end
        only lift the line at the other end."""
        with torch.no_grad():
            edge = self._leaning(tame, sign)
            start, low, high = edge.slope, *steep
            first, last = edge.left <= tame.lower, edge.right >= tame.upper
            if sign < 0:
                first, last = last, first
            low = torch.where(last & ~edge.inside, start, torch.minimum(low, start))
            high = torch.where(first & ~edge.inside, start, torch.maximum(high, start))
            fine = ~flat & low.isfinite() & high.isfinite() & start.isfinite()
            low, high = low.masked_fill(~fine, 0.0), high.masked_fill(~fine, 0.0)
        if torch.is_grad_enabled() and any(t.requires_grad for t in (*x, *self.tensors())):
            start = self._moving(x, tame, edge)
        return Parameter(torch.where(fine, start, torch.zeros_like(start)), low, high)

    def _leaning(self, x: Interval, sign: int) -> _Edge:
        """The line to start from: above sign * f the best one to the right of the middle where that rises, to the left
        where it falls, and a level one where neither does."""
        points = self.samples(x)
        values = sign * self.forward(points)
        if self.rising:
            return self._edge(x, points, values, torch.full_like(x.lower, sign * LEAN), sign)
        level = self._edge(x, points, values, torch.zeros_like(x.lower), sign)
        edge = self._edge(x, points, values, LEAN * (sign * level.slope).sign(), sign)
        turned = edge.slope * level.slope <= 0
        return edge._replace(slope=edge.slope.masked_fill(turned, 0.0), inside=edge.inside | turned)

    def _edge(self, x: Interval, points: Tensor, values: Tensor, lean: Tensor, sign: int) -> _Edge:
        """About the best line above the values of sign * f at the middle moved by `lean` half-widths. From samples:
        lines are bounded for whatever slope they have."""
        at = leant(x, lean).clamp(x.lower, x.upper)
        tangent = self.derivative(at)
        slope = sign * _chord(x.lower, x.upper, values[0], values[-1], sign * tangent)
        left, low, right, high = x.lower, values[0], x.upper, values[-1]
        for _ in range(STEPS):
            index = (values - slope * points).argmax(0, keepdim=True)
            point, value = (t.gather(0, index).squeeze(0) for t in (points, values))
            before = point < at
            left, low = torch.where(before, point, left), torch.where(before, value, low)
            right, high = torch.where(before, right, point), torch.where(before, high, value)
            slope = _chord(left, right, low, high, sign * tangent)
        peaks = [(values - m * (points - at)).amax(0) for m in (slope, sign * tangent)]
        inside = (peaks[1] <= peaks[0]) & tangent.isfinite()
        return _Edge(torch.where(inside, tangent, sign * slope), left, right, inside, lean)

    def _moving(self, x: Interval, tame: Interval, edge: _Edge) -> Tensor:
        """The starting slope as a function of the interval's ends: the touching points inside do not move it."""
        lower, upper = (torch.where(a == b, a, b) for a, b in zip(x, tame, strict=True))
        at = leant(Interval(lower, upper), edge.lean).clamp(tame.lower, tame.upper)
        left = torch.where(edge.left <= tame.lower, lower, edge.left)
        right = torch.where(edge.right >= tame.upper, upper, edge.right)
        tangent = self.derivative(at)
        chord = _chord(left, right, self.forward(left), self.forward(right), tangent)
        moving = torch.where(edge.inside, tangent, chord) * (edge.slope != 0)  # level lines stay level
        if moving.requires_grad:
            moving.register_hook(lambda g: torch.nan_to_num(g, nan=0.0, posinf=0.0, neginf=0.0))
        return edge.slope + (moving - moving.detach())

    def branching_point(self, index: int, *xs: Interval) -> Tensor:
        tame, _, _ = self._tamed(xs[0])
        return tame.center.clamp(xs[0].lower, xs[0].upper)

    def ordered(self, shape: tuple[int, ...]) -> Tensor | None:
        return torch.zeros(shape, dtype=torch.int64) if self.rising else None


class Curved(Curve):
    """A function of finitely many pieces, each convex or concave.

    The kinks where pieces meet may be kinks of either sort, and jumps: both one-sided values count. `derivative` must
    belong to a concave piece at its ends where it has kinks there.
    """

    reach: float = 40.0
    """Beyond this distance from the outermost finite ends of pieces the derivative is constant to within rounding."""

    @property
    @abstractmethod
    def pieces(self) -> tuple[Piece, ...]:
        """From left to right, without gaps."""

    def touching(self, slope: Tensor, piece: Piece) -> Tensor:
        """About where on a piece f' = slope; anything where that is nowhere. By table, unless overridden."""
        return self._tables[piece].find(self, slope)

    @cached_property
    def _tables(self) -> _Tables:
        return _Tables(self)

    @cached_property
    def knots(self) -> tuple[tuple[float, float, float], ...]:
        """Where pieces meet, with the values on their two sides."""
        found = []
        for piece in self.pieces[1:]:
            knot = torch.tensor(piece.start, dtype=torch.float64)
            sides = [torch.nextafter(knot, torch.full_like(knot, end)) for end in (-math.inf, math.inf)]
            found.append((piece.start, *[float(self.forward(s)) for s in sides]))
        return tuple(found)

    @cached_property
    def turns(self) -> tuple[tuple[float, float], ...]:
        """Points inside of pieces where the derivative is zero, and the values there."""
        found = []
        for piece in self.pieces:
            if piece.straight:
                continue
            far = max(abs(t) for t in (piece.start, piece.end, 0.0) if math.isfinite(t)) + self.reach
            ends = torch.tensor([max(piece.start, -far), min(piece.end, far)], dtype=torch.float64)
            ends = torch.nextafter(ends, ends.flip(0))
            low, high = ends
            before = self.derivative(ends).sign()
            if before[0] * before[1] >= 0 or not bool(before.isfinite().all()):
                continue
            for _ in range(64):
                middle = (low + high) / 2
                same = bool(self.derivative(middle).sign() == before[0])
                low, high = (middle, high) if same else (low, middle)
            found.append((float(low), float(self.forward(low))))
        return tuple(found)

    def interval(self, *xs: Interval) -> Interval:
        """From the values at the ends, at knots, and where the derivative is zero: a point that is off by d gives a
        value that is off by d d, which is far below its rounding."""
        if self.rising:
            return super().interval(*xs)
        x, wild, endless = self._tamed(xs[0])
        if endless is not None:
            return super().interval(*xs)
        x = calm(xs[0]) if wild is None else x
        ends = [(t, self.forward(t)) for t in x]
        bounds = [(y - self.error(t, y), y + self.error(t, y)) for t, y in ends]
        low = torch.minimum(bounds[0][0], bounds[1][0])
        high = torch.maximum(bounds[0][1], bounds[1][1])
        for point, *values in (*self.turns, *self.knots):
            met = (x.lower <= point) & (x.upper >= point)
            at = [low.new_tensor(v) for v in values]
            doubt = [self.error(low.new_tensor(point), y) for y in at]
            least = min(float(y - e) for y, e in zip(at, doubt, strict=True))
            most = max(float(y + e) for y, e in zip(at, doubt, strict=True))
            low = torch.where(met, low.clamp(max=least), low)
            high = torch.where(met, high.clamp(min=most), high)
        found = Interval(low.clamp(self.bottom, self.top), high.clamp(self.bottom, self.top)).sanitise()
        return found if wild is None else _where(wild, Interval.everything(1, low), found)

    @cached_property
    def _steeps(self) -> tuple[tuple[float, float, float], ...]:
        """The knots with the derivatives on their two sides."""
        found = []
        for knot, _, _ in self.knots:
            at = torch.tensor(knot, dtype=torch.float64)
            sides = [torch.nextafter(at, torch.full_like(at, end)) for end in (-math.inf, math.inf)]
            found.append((knot, *[float(self.derivative(s)) for s in sides]))
        return tuple(found)

    def slopes(self, x: Interval) -> Interval:
        ends = [self.derivative(t) for t in x]
        low, high = torch.minimum(*ends), torch.maximum(*ends)
        for knot, *sides in self._steeps:
            met = (x.lower <= knot) & (x.upper >= knot)
            low = torch.where(met, low.clamp(max=min(sides)), low)
            high = torch.where(met, high.clamp(min=max(sides)), high)
        return Interval(low, high)

    def extreme(self, slope: Tensor, x: Interval, sign: int) -> tuple[Tensor, Tensor]:
        best, other = self.gap(slope, x.lower, sign), self.gap(slope, x.upper, sign)
        zero = torch.zeros_like(best)
        point = torch.where(other > best, x.upper + zero, x.lower + zero)
        best = torch.maximum(best, other)
        info = torch.finfo(best.dtype)
        for knot, *sides in self.knots:
            value, line = max(sign * side for side in sides), slope * knot
            high = value - sign * line
            size = max(float(self.size(best.new_tensor(knot), best.new_tensor(value))), abs(value))
            high = high + (self.units + 2) * info.eps * (size + line.abs()) + 8 * info.tiny
            met = (x.lower <= knot) & (x.upper >= knot) & (high > best)
            best, point = torch.where(met, high, best), torch.where(met, knot, point)
        for piece in self.pieces:
            if piece.straight or piece.convex == (sign > 0):
                continue
            high, at = self._on(piece, slope, x, sign)
            better = high > best
            best, point = torch.where(better, high, best), torch.where(better, at, point)
        return best, point

    def _on(self, piece: Piece, slope: Tensor, x: Interval, sign: int) -> tuple[Tensor, Tensor]:
        """The bound from one piece that bends away from lines of this sign, minus infinity beside it."""
        low, high = x.lower.clamp(min=piece.start), x.upper.clamp(max=piece.end)
        beside = low >= high
        low, high = torch.where(beside, x.lower, low), torch.where(beside, x.upper, high)
        bound, point = self.tangent(self.touching(slope, piece), slope, Interval(low, high), sign)
        return bound.masked_fill(beside, -torch.inf), point

    def refinable(self, index: int, *xs: Interval) -> Tensor:
        """Not where the function is straight."""
        wanted = xs[index].lower < xs[index].upper
        for piece in self.pieces:
            if piece.straight:
                wanted = wanted & ~((xs[index].lower >= piece.start) & (xs[index].upper <= piece.end))
        return wanted

    def branching_point(self, index: int, *xs: Interval) -> Tensor:
        """The kink nearest to the middle, where one lies well inside the interval (or at all, if the function jumps
        there); else the middle. Where the curvature turns is a worse place: both halves of sigmoids are then wide."""
        lower, upper = xs[index]
        middle = super().branching_point(index, *xs)
        chosen, distance = middle, torch.full_like(middle, torch.inf)
        margin = (0.0 if self.jumps else 0.05) * (upper - lower)
        for knot, left, right in self._steeps:
            if not self.jumps and abs(left - right) <= 1e-6 * (1 + abs(left)):
                continue
            inside = (knot - lower > margin) & (upper - knot > margin)
            nearer = inside & ((middle - knot).abs() < distance)
            distance = torch.where(nearer, (middle - knot).abs(), distance)
            chosen = torch.where(nearer, knot, chosen)
        return chosen.clamp(lower, upper)


class _Tables:
    """Inverse derivatives of the pieces of one operator, made when first asked for."""

    def __init__(self, curve: Curved) -> None:
        self._curve = curve
        self._made: dict[Piece, _Table] = {}

    def __getitem__(self, piece: Piece) -> _Table:
        if piece not in self._made:
            self._made[piece] = _Table.of(self._curve, piece)
        return self._made[piece]


class _Table:
    """Points of a piece and the derivative there, increasing in `keys`; nodes are dense where the derivative turns."""

    COUNT = 4096

    def __init__(self, keys: Tensor, points: Tensor) -> None:
        self._stored = {(keys.dtype, keys.device): (keys, points)}
        self._origin = (keys, points)

    @classmethod
    def of(cls, curve: Curved, piece: Piece) -> _Table:
        part = torch.linspace(0, 1, cls.COUNT, dtype=torch.float64)
        start, end = piece.start, piece.end
        if math.isfinite(start) and math.isfinite(end):
            points = start + (end - start) * (0.5 - 0.5 * (math.pi * part).cos())
        elif math.isfinite(start):
            points = start + curve.reach * part**6
        elif math.isfinite(end):
            points = (end - curve.reach * part**6).flip(0)
        else:
            points = curve.reach * (2 * part - 1) ** 7
        keys = curve.derivative(points)
        if not piece.convex:
            keys, points = keys.flip(0), points.flip(0)
        return cls(keys.cummax(0).values, points)

    def find(self, curve: Curved, slope: Tensor) -> Tensor:
        """By the chord of the cell, and one step of Newton's method with it."""
        place = (slope.dtype, slope.device)
        if place not in self._stored:
            keys, points = self._origin
            self._stored[place] = (
                keys.to(dtype=place[0], device=place[1]),
                points.to(dtype=place[0], device=place[1]),
            )
        keys, points = self._stored[place]
        cell = torch.searchsorted(keys, slope.contiguous()).clamp(1, len(keys) - 1)
        first, last = points[cell - 1], points[cell]
        rise = (keys[cell] - keys[cell - 1]).clamp(min=torch.finfo(slope.dtype).tiny)
        rate = (last - first) / rise
        low, high = torch.minimum(first, last), torch.maximum(first, last)
        point = torch.nan_to_num(first + (slope - keys[cell - 1]) * rate).clamp(low, high)
        return torch.nan_to_num(point - (curve.derivative(point) - slope) * rate).clamp(low, high)


class _Calm(torch.autograd.Function):
    """The identity; no gradient where it is not finite, as at a vertical tangent."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return torch.nan_to_num(grad, nan=0.0, posinf=0.0, neginf=0.0)


def calmed(t: Tensor) -> Tensor:
    """The tensor; gradients that are not finite end at it."""
    return _Calm.apply(t) if t.requires_grad else t  # pyright: ignore[reportReturnType]


def calm(x: Interval) -> Interval:
    """The interval; gradients that are not finite end at it."""
    return x.map(calmed)


class _Known(torch.autograd.Function):
    """A value whose derivatives in slope, lower and upper end are known."""

    @staticmethod
    def forward(
        ctx: Any, value: Tensor, slope: Tensor, lower: Tensor, upper: Tensor, *gradients: Tensor
    ) -> Tensor:
        ctx.save_for_backward(*gradients)
        ctx.shapes = (slope.shape, lower.shape, upper.shape)
        return value.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        parts = [
            (grad * known).sum_to_size(shape) if needed else None
            for known, shape, needed in zip(
                ctx.saved_tensors, ctx.shapes, ctx.needs_input_grad[1:4], strict=True
            )
        ]
        return (None, *parts, None, None, None)


def _chord(left: Tensor, right: Tensor, low: Tensor, high: Tensor, otherwise: Tensor) -> Tensor:
    """The slope between two points, or `otherwise` where they are too near to each other to tell."""
    info = torch.finfo(left.dtype)
    run = right - left
    some = run.detach() > 64 * info.eps * torch.maximum(left.abs(), right.abs()).detach() + 64 * info.tiny
    return torch.where(some, (high - low) / torch.where(some, run, torch.ones_like(run)), otherwise)


def _where(condition: Tensor, a: Interval, b: Interval) -> Interval:
    return Interval(torch.where(condition, a.lower, b.lower), torch.where(condition, a.upper, b.upper))
