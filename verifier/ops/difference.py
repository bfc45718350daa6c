"""What a function makes of a difference: f(b) - f(a) beside a, b and d = b - a.

Two copies of a network, or a network and one of the same structure, are compared by carrying the difference of each
pair of values as a value of its own (Paulsen et al., "ReluDiff", 2020, and "NeuroDiff", 2020, for Relu).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple, Self

import numpy as np
import torch
from torch import Tensor

from verifier.graph import Builder, Elementwise, Graph, Interval, Parameter, Relaxation, Univariate, Value
from verifier.graph.op import Input, Shape
from verifier.ops.arithmetic import ScaleShift, add, subtract
from verifier.ops.product import Product, mix

_FIRST, _SECOND = "first_", "second_"


class _Line(NamedTuple):
    """sum of slopes times (a, b, d), plus the intercept."""

    slopes: tuple[Tensor, Tensor, Tensor]
    intercept: Tensor


@dataclass(frozen=True, eq=False)
class _Slopes(Elementwise):
    """What is said by the slopes of f = `of`, which is continuous and has a derivative, between a and b, of arguments
    a, b and a third one, all of `shape`."""

    of: Univariate
    shape: Shape

    @property
    def relaxation_error(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.of.relaxation_error + 4

    def tensors(self) -> Iterator[Tensor]:
        return self.of.tensors()

    def to(self, dtype: torch.dtype | None = None, device: torch.device | str | None = None) -> Self:
        moved = self.of.to(dtype, device)
        return self if moved is self.of else replace(self, of=moved)

    @property
    def domain(self) -> str:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.of.domain

    def outside(self, *xs: Interval) -> Tensor | None:
        found = [m for x in xs[:2] if (m := self.of.outside(x)) is not None]
        return None if not found else torch.stack(torch.broadcast_tensors(*found)).any(0)

    @cached_property
    def _derivative(self) -> Graph:
        """f' of one argument, as a graph."""
        builder = Builder()
        x = builder.input("x", self.shape)
        one = builder.constant(torch.ones(self.shape, dtype=torch.float64))
        (slope,) = self.of.vjp(builder, [x], builder.add(self.of, x), one)
        if slope is None:
            slope = builder.constant(torch.zeros(self.shape, dtype=torch.float64))
        return builder.graph(slope)

    @cached_property
    def _cast(self) -> dict[tuple[torch.dtype, torch.device], Graph]:
        return {}

    def steepness(self, first: Interval, second: Interval) -> Interval:
        """An enclosure of f' on the hull of two intervals."""
        x = Interval(torch.minimum(first.lower, second.lower), torch.maximum(first.upper, second.upper))
        key = (x.lower.dtype, x.lower.device)
        if key not in self._cast:
            self._cast[key] = self._derivative.to(*key)
        graph = self._cast[key]
        known: list[Interval] = []
        for node in graph.nodes:
            xs = [known[j] for j in node.inputs]
            if isinstance(node.op, Input):
                known.append(x)
            elif isinstance(node.op, ScaleShift) and _is_one(node.op):
                known.append(xs[0])  # without rounding: the ends are often exact
            else:
                known.append(node.op.interval(*xs))
        found = known[graph.outputs[0]].sanitise()
        outside = self.of.outside(x)
        if outside is not None:  # between both sides of a pole there is no mean value
            found = Interval(
                torch.where(outside, -torch.inf, found.lower), torch.where(outside, torch.inf, found.upper)
            )
        return found.map(lambda t: t.expand(np.broadcast_shapes(t.shape, x.lower.shape)))

    def _along(self, *xs: Interval) -> tuple[_Line, _Line]:
        """Lines in d alone, below and above: those through the corners of least p d and of largest p d."""
        low, high = self.steepness(xs[0], xs[1])
        left, right = xs[2].lower.clamp(max=0), xs[2].upper.clamp(min=0)
        info = torch.finfo(right.dtype)
        # Too large a part lowers the lower line and lifts the upper one.
        part = right / (right - left).clamp(min=info.tiny * info.eps, max=info.max) * (1 + 4 * info.eps)
        part = part.clamp(max=1)
        rest = part * (high - low) * -left * (1 + 4 * info.eps)
        zero = torch.zeros_like(rest)
        return (
            _Line((zero, zero, mix(part, high, low)), -rest),
            _Line((zero, zero, mix(part, low, high)), rest),
        )

    def refinable(self, index: int, *xs: Interval) -> Tensor:
        if index < 2:
            return self.of.refinable(0, xs[index])
        low, high = self.steepness(xs[0], xs[1])
        return (low < high) & xs[2].wide

    def restrict(self, index: Tensor, shape: Shape) -> Self:
        of = self.of.restrict(index, shape)
        if not isinstance(of, Univariate):
            raise NotImplementedError(f"{type(of).__name__} is not univariate.")
        return replace(self, of=of, shape=(len(index),))

    def branching_point(self, index: int, *xs: Interval) -> Tensor:
        if index < 2:
            return self.of.branching_point(0, xs[index])
        lower, upper = xs[2]
        return torch.where((lower < 0) & (upper > 0), torch.zeros_like(lower), xs[2].center)


@dataclass(frozen=True, eq=False)
class Difference(_Slopes):
    """f(b) - f(a) of arguments a, b and d, of which the third is known to be b - a (whoever builds the node vouches for
    it); f = `of` is continuous and has a derivative, and `shape` is that of the arguments.

    By the mean value theorem (Lebourg's at kinks) it is p d with p between the least and the largest derivative on
    the hull of both intervals: lines in d alone, without an intercept where d has one sign. On the other hand a line
    of f at b less one of f at a holds, in which what b and a have in common is a multiple of d. Either side takes a
    mixture with a free weight per element. The first is better where d is small beside the kinks and bends of f, the
    second is exact where f is a line on both intervals.
    """

    def forward(self, *xs: Tensor) -> Tensor:
        return self.of.forward(xs[0] + xs[2]) - self.of.forward(xs[0])

    def interval(self, *xs: Interval) -> Interval:
        first, second = self.of.interval(xs[0]), self.of.interval(xs[1])
        eps = torch.finfo(xs[0].lower.dtype).eps
        low, high = second.lower - first.upper, second.upper - first.lower
        apart = Interval(low - eps * low.abs(), high + eps * high.abs()).sanitise()
        along = Product().interval(self.steepness(xs[0], xs[1]), xs[2]).sanitise()
        return apart.intersect(along)

    def parameters(self, *xs: Interval) -> dict[str, Parameter]:
        """Start with the mixture's kind that leaves the smaller gap in the middle."""
        own = [self.of.parameters(x) for x in xs[:2]]
        found = {f"{p}{n}": v for p, o in zip((_FIRST, _SECOND), own, strict=True) for n, v in o.items()}
        values = [{n: v.value for n, v in o.items()} for o in own]
        low, high = self._along(*xs)
        lines = [self.of.relax(v, x) for v, x in zip(values, xs, strict=False)]
        apart = sum(_gap(line, x.center) for line, x in zip(lines, xs, strict=False))
        middle = xs[2].center
        along = high.intercept - low.intercept + (high.slopes[2] - low.slopes[2]) * middle
        chosen = torch.nan_to_num(along, nan=torch.inf) <= torch.nan_to_num(
            torch.as_tensor(apart), nan=torch.inf
        )
        start = chosen.to(middle.dtype)
        zero, one = torch.zeros_like(start), torch.ones_like(start)
        return {
            **found,
            "lower_mix": Parameter(start, zero, one),
            "upper_mix": Parameter(start, zero, one),
        }

    def ranges(self, *xs: Interval) -> dict[str, Interval]:
        own = [self.of.ranges(x) for x in xs[:2]]
        found = {f"{p}{n}": v for p, o in zip((_FIRST, _SECOND), own, strict=True) for n, v in o.items()}
        zero = torch.zeros_like(xs[0].lower + xs[2].lower)
        unit = Interval(zero, torch.ones_like(zero))
        return {**found, "lower_mix": unit, "upper_mix": unit}

    def relax(self, parameters: Mapping[str, Tensor], *xs: Interval) -> Relaxation:
        lines = [
            self.of.relax({n.removeprefix(p): t for n, t in parameters.items() if n.startswith(p)}, x)
            for p, x in zip((_FIRST, _SECOND), xs, strict=False)
        ]
        low, high = self._along(*xs)
        apart = [self._apart(lines[1], lines[0], xs, sign) for sign in (-1, 1)]
        below = _mixed(parameters["lower_mix"], low, apart[0], xs, -1)
        above = _mixed(parameters["upper_mix"], high, apart[1], xs, 1)
        return Relaxation(below.slopes, below.intercept, above.slopes, above.intercept)

    def _apart(self, second: Relaxation, first: Relaxation, xs: Sequence[Interval], sign: int) -> _Line:
        """A line of f at b less one of f at a, below (sign -1) or above (1), in which what they have in common is d's.
        What it is off by is on the intercept: it may be large beside what is left."""
        (steep, level), (other, start) = _side(second, sign), _side(first, -sign)
        common = torch.where(steep * other > 0, steep.sign() * torch.minimum(steep.abs(), other.abs()), 0.0)
        size = common.abs() * (xs[0].magnitude + xs[1].magnitude) + level.abs() + start.abs()
        units = (self.of.relaxation_error + 4) * torch.finfo(size.dtype).eps
        return _Line((common - other, steep - common, common), level - start + sign * units * size)

    def derivatives(self, *xs: Interval) -> tuple[Interval, ...]:
        """Of f(b) - f(a): lines in d alone do not tell that it bends with a and b."""
        first, second = self.steepness(xs[0], xs[0]), self.steepness(xs[1], xs[1])
        zero = torch.zeros_like(first.lower)
        return Interval(-first.upper, -first.lower), second, Interval(zero, zero)

    def vjp(
        self, builder: Builder, inputs: Sequence[Value], output: Value, cotangent: Value
    ) -> Sequence[Value | None]:
        """As `forward` is computed."""
        first, _, moved = inputs
        second = add(builder, first, moved)
        (up,) = self.of.vjp(builder, [second], builder.add(self.of, second), cotangent)
        (down,) = self.of.vjp(builder, [first], builder.add(self.of, first), cotangent)
        if up is None or down is None:
            return [None, None, None]
        return [subtract(builder, up, down), None, up]


@dataclass(frozen=True, eq=False)
class Secant(_Slopes):
    """p q of arguments a, b and q, where p is f's slope between a and b: (f(b) - f(a)) / (b - a), and f'(a) where these
    are one. If q is b - a in units of something positive, so is this f(b) - f(a), however small that is."""

    no_derivative = "secants are only bounded"

    def forward(self, *xs: Tensor) -> Tensor:
        a, b, q = xs
        step = b - a
        far = step.abs() > torch.finfo(step.dtype).eps ** 0.4 * (1 + a.abs())
        rise = self.of.forward(b) - self.of.forward(a)
        (near,) = self._derivative.to(a.dtype, a.device).evaluate([(a + b) / 2])
        return q * torch.where(far, rise / torch.where(far, step, torch.ones_like(step)), near)

    def interval(self, *xs: Interval) -> Interval:
        return Product().interval(self.steepness(xs[0], xs[1]), xs[2]).sanitise()

    def parameters(self, *xs: Interval) -> dict[str, Parameter]:
        return {}

    def relax(self, parameters: Mapping[str, Tensor], *xs: Interval) -> Relaxation:
        low, high = self._along(*xs)
        return Relaxation(low.slopes, low.intercept, high.slopes, high.intercept)

    def derivatives(self, *xs: Interval) -> tuple[Interval, ...]:
        """By how much the slope varies over the ranges of a and b, for each of them."""
        slope = self.steepness(xs[0], xs[1])
        wide = torch.maximum(xs[0].upper, xs[1].upper) - torch.minimum(xs[0].lower, xs[1].lower)
        least = torch.finfo(wide.dtype).tiny
        change = (slope.upper - slope.lower) * xs[2].magnitude / wide.clamp(min=least)
        return Interval(-change, change), Interval(-change, change), slope


@dataclass(frozen=True, eq=False)
class Rate(Elementwise):
    """(b - a) / (sign t) of arguments a, b and t, whose sign that is: nothing is known of it. `transforms.pairs` puts
    what is in its place."""

    sign: int
    no_derivative = "it stands for what is put in its place"

    def forward(self, *xs: Tensor) -> Tensor:
        return (xs[1] - xs[0]) / (self.sign * xs[2])

    def interval(self, *xs: Interval) -> Interval:
        return Interval.everything(len(xs[0].lower), xs[0].lower)

    def parameters(self, *xs: Interval) -> dict[str, Parameter]:
        return {}

    def relax(self, parameters: Mapping[str, Tensor], *xs: Interval) -> Relaxation:
        zero, end = torch.zeros_like(xs[0].lower), torch.full_like(xs[0].lower, torch.inf)
        return Relaxation((zero, zero, zero), -end, (zero, zero, zero), end)

    def refinable(self, index: int, *xs: Interval) -> Tensor:
        return torch.zeros_like(xs[index].lower, dtype=torch.bool)


def _side(lines: Relaxation, sign: int) -> tuple[Tensor, Tensor]:
    """Slope and intercept of the lower (-1) or the upper line (1) of one argument."""
    slopes, level = (
        (lines.lower_slopes, lines.lower_intercept)
        if sign < 0
        else (lines.upper_slopes, lines.upper_intercept)
    )
    return slopes[0], torch.zeros_like(slopes[0]) if level is None else level


def _gap(lines: Relaxation, x: Tensor) -> Tensor:
    """What lies between the two lines of one argument at a point."""
    (low, below), (high, above) = _side(lines, -1), _side(lines, 1)
    return (high - low) * x + above - below


def _mixed(weight: Tensor, along: _Line, apart: _Line, xs: Sequence[Interval], sign: int) -> _Line:
    """The part `weight` of one line and the rest of another, below (sign -1) or above (1); all of one where the other
    is not finite. What the sums are rounded by is on the intercept, for terms may cancel."""
    parts = [torch.stack(torch.broadcast_tensors(*line.slopes, line.intercept)) for line in (along, apart)]
    known = [t.detach().isfinite().all(0) for t in parts]
    zero = torch.zeros_like(weight)
    weight = torch.where(known[1], torch.where(known[0], weight, zero), torch.ones_like(weight))
    kept = [torch.where(k, t, torch.zeros_like(t)) for k, t in zip(known, parts, strict=True)]
    total = mix(weight, kept[1], kept[0])
    total = torch.where(known[0] | known[1], total, torch.nan)
    sizes = mix(weight, kept[1].abs(), kept[0].abs())
    most = torch.finfo(total.dtype).max
    reach = sum((s * x.magnitude.clamp(max=most) for s, x in zip(sizes, xs, strict=False)), sizes[3])
    rounded = (weight > 0) & (weight < 1)
    slack = torch.where(rounded, 4 * torch.finfo(total.dtype).eps * reach, 0.0)
    return _Line((total[0], total[1], total[2]), total[3] + sign * slack)


def _is_one(op: ScaleShift) -> bool:
    return op.shift is None and op.doubt is None and op.scale is not None and bool((op.scale == 1).all())
