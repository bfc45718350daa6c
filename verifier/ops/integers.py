"""Values that are whole numbers: casts to integers, and what is known of the results.

ONNX tells integers and floats apart by type. In the graph all values are real numbers, and `Integral` marks those that
are whole in exact arithmetic, so that comparisons of them may be continuous functions (see `comparison.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from verifier.graph import Affine, Builder, Interval, Parameter, Univariate, Value
from verifier.graph.coefficients import Coefficients
from verifier.graph.op import Op, Shape
from verifier.ops.arithmetic import Add, ScaleShift
from verifier.ops.maximum import Maximum
from verifier.ops.movement import Concat, Pad, Permute, Reshape, Take
from verifier.ops.piecewise_linear import Relu
from verifier.ops.product import Product, Square
from verifier.ops.reduction import Sum

BITS, WIDEST = {3: 8, 5: 16, 6: 32, 7: 64}, 64
"""Bits of ONNX's signed integer types, by their codes."""


@dataclass(frozen=True, eq=False)
class Integral(Affine):
    """x itself, which is a whole number in exact arithmetic; whoever builds the node vouches for it. Enclosures shrink
    to whole numbers, which ends what rounding has added to them."""

    elementwise = True
    increasing = True

    def output_shape(self, *shapes: Shape) -> Shape:
        return shapes[0]

    def forward(self, *xs: Tensor) -> Tensor:
        return xs[0]

    def interval(self, *xs: Interval) -> Interval:
        """Never crossed, even if an enclosure holds no whole number: then it stays as it is."""
        low, high = xs[0].lower.ceil(), xs[0].upper.floor()
        fits = low <= high
        return Interval(torch.where(fits, low, xs[0].lower), torch.where(fits, high, xs[0].upper))

    def transpose(self, coefficients: Tensor, index: int, *shapes: Shape) -> Tensor:
        return coefficients

    def backward(self, coefficients: Coefficients, index: int, *shapes: Shape) -> Coefficients:
        return coefficients

    def vjp(
        self, builder: Builder, inputs: Sequence[Value], output: Value, cotangent: Value
    ) -> Sequence[Value | None]:
        return [cotangent]


@dataclass(frozen=True, eq=False)
class Stored(Univariate):
    """x, a whole number, as a signed integer of so many bits: what these cannot hold becomes another number (it wraps
    around, where it is defined at all), of which nothing is known."""

    bits: int
    no_derivative = "its argument is a whole number"

    def forward(self, *xs: Tensor) -> Tensor:
        return xs[0]

    def interval(self, *xs: Interval) -> Interval:
        return _unless(self._beyond(xs[0]), xs[0])

    def support_max(self, slope: Tensor, x: Interval) -> Tensor:
        return _line(1 - slope, x, 1.0).masked_fill(self._beyond(x), torch.inf)

    def support_min(self, slope: Tensor, x: Interval) -> Tensor:
        return _line(1 - slope, x, -1.0).masked_fill(self._beyond(x), -torch.inf)

    def parameters(self, *xs: Interval) -> dict[str, Parameter]:
        one = torch.ones_like(xs[0].lower)
        return {name: Parameter(one, one, one) for name in ("lower_slope", "upper_slope")}

    def refinable(self, index: int, *xs: Interval) -> Tensor:
        return self._beyond(xs[0]) & (xs[0].lower < xs[0].upper)

    def ordered(self, shape: Shape) -> Tensor | None:
        return None

    def _beyond(self, x: Interval) -> Tensor:
        """Where x may be a number that is not held; NaN may."""
        most = 2.0 ** (self.bits - 1)
        return ~((x.lower > -most - 1) & (x.upper < most))


def _unless(beyond: Tensor, x: Interval) -> Interval:
    return Interval(x.lower.masked_fill(beyond, -torch.inf), x.upper.masked_fill(beyond, torch.inf))


def _line(steep: Tensor, x: Interval, sign: float) -> Tensor:
    """The greatest of steep * x, or with sign -1 the least; 0 for a steepness of 0, whatever x."""
    most = torch.finfo(x.lower.dtype).max
    ends = torch.stack([steep * end.clamp(-most, most) for end in x])
    return sign * (sign * ends).amax(0)


@dataclass(frozen=True, eq=False)
class Truncate(Stored):
    """x without its fraction, as casts to integers round: jumps at all whole numbers but 0.

    It is odd, and f(x) - m x has its extrema at the interval's ends or on one side of the first or last jump on
    either side of 0, since jumps of one side lie on a line.
    """

    bits: int = WIDEST
    jumps = True
    no_derivative = "it is constant but for jumps, where there is no derivative"

    def forward(self, *xs: Tensor) -> Tensor:
        return xs[0].trunc()

    def interval(self, *xs: Interval) -> Interval:
        return _unless(self._beyond(xs[0]), xs[0].map(torch.trunc))

    def support_max(self, slope: Tensor, x: Interval) -> Tensor:
        """The supremum, one-sided limits at jumps inside included."""
        return _supremum(slope, x).masked_fill(self._beyond(x), torch.inf)

    def support_min(self, slope: Tensor, x: Interval) -> Tensor:
        return -_supremum(slope, Interval(-x.upper, -x.lower)).masked_fill(self._beyond(x), torch.inf)

    def parameters(self, *xs: Interval) -> dict[str, Parameter]:
        """From flat to the edge of the hull next to the end where the staircase stops. Starts with the line that is
        best at the middle, along the stairs where there are several."""
        x = xs[0]
        below, over = _reach(x)
        above, under = _reach(Interval(-x.upper, -x.lower))
        return {
            "lower_slope": Parameter(torch.where(over, below.clamp(max=1), 0 * below), 0 * below, below),
            "upper_slope": Parameter(torch.where(under, above.clamp(max=1), 0 * above), 0 * above, above),
        }

    def refinable(self, index: int, *xs: Interval) -> Tensor:
        low, high = self.interval(xs[0])
        return (low < high) & (xs[0].lower < xs[0].upper)

    def branching_point(self, index: int, *xs: Interval) -> Tensor:
        """The jump nearest to the middle."""
        middle = xs[0].center
        nearest = torch.where(middle.abs() < 1, torch.where(middle < 0, -1.0, 1.0).to(middle), middle.round())
        other = torch.where(nearest == 1, -1.0, 1.0).to(middle)
        inside = (nearest >= xs[0].lower) & (nearest <= xs[0].upper)
        return torch.where(inside, nearest, other).clamp(xs[0].lower, xs[0].upper)

    def ordered(self, shape: Shape) -> Tensor | None:
        return None


def _supremum(slope: Tensor, x: Interval) -> Tensor:
    """Of trunc(x) - slope x. Right of 0 the stair of jump j starts with the value j at j, left of 0 with j + 1
    right behind j."""
    most = torch.finfo(slope.dtype).max
    lower, upper = x.lower.clamp(-most, most), x.upper.clamp(-most, most)
    best = torch.maximum(lower.trunc() - slope * lower, upper.trunc() - slope * upper)
    for first, last, step in (
        ((lower.floor() + 1).clamp(min=1), upper.floor(), 0.0),
        (lower.ceil(), (upper.ceil() - 1).clamp(max=-1), 1.0),
    ):
        some = first <= last
        for jump in (first, last):
            value = (jump + step) - slope * jump
            best = torch.where(some, torch.maximum(best, value), best)
    wild = x.lower.isinf() & (slope != 0) | x.upper.isinf()
    return best.masked_fill(wild, torch.inf) if bool(wild.any()) else best


def _reach(x: Interval) -> tuple[Tensor, Tensor]:
    """The slope of the lower hull's last edge, from the last jump to the upper end (0 without jumps, at least), and
    whether it or the stairs are best at the middle."""
    lower, upper = x.lower, x.upper
    last = torch.where(upper >= 1, upper.floor(), (upper.ceil() - 1).clamp(max=-1))
    left = torch.where(last > 0, last - 1, last)  # the value left of that jump
    rise = upper.trunc() - left
    there = (last >= lower) & (upper > last) & x.lower.isfinite() & x.upper.isfinite()
    run = torch.where(there, upper - last, torch.ones_like(upper))
    edge = torch.where(there, rise / run.clamp(min=4 * torch.finfo(run.dtype).tiny), torch.zeros_like(upper))
    return edge.detach(), last < x.center


def integral(builder: Builder, x: Value) -> bool:
    """Whether a value is known to be whole: by its mark, by being constant, or by how it is made of such values."""
    known: dict[Value, bool] = {}

    def visit(x: Value) -> bool:
        if x not in known:
            constant = builder.tensor(x)
            known[x] = _made_whole(*builder.made_by(x)) if constant is None else _numbers_whole(constant)
        return known[x]

    def _made_whole(op: Op, arguments: Sequence[Value]) -> bool:
        if isinstance(op, Integral | Stored):
            return True
        if isinstance(op, ScaleShift):
            tensors = [t for t in (op.scale, op.shift) if t is not None]
            return op.doubt is None and all(map(_numbers_whole, tensors)) and visit(arguments[0])
        return isinstance(op, _KEEPS) and all(map(visit, arguments))

    return visit(x)


_KEEPS = (Add, Concat, Maximum, Pad, Permute, Product, Relu, Reshape, Square, Sum, Take)
"""Operators that make whole numbers of whole numbers."""


def _numbers_whole(t: Tensor) -> bool:
    return not t.is_floating_point() or bool((t == t.round()).all())


def whole(builder: Builder, x: Value) -> Value:
    """`x` marked as whole; a copy of what is marked needs no mark."""
    copied = x
    while isinstance(builder.made_by(copied)[0], Reshape | Permute | Take):
        copied = builder.made_by(copied)[1][0]
    if builder.tensor(x) is not None or isinstance(builder.made_by(copied)[0], Integral | Stored):
        return x
    return builder.add(Integral(), x)


def truncated(builder: Builder, x: Value, bits: int) -> Value:
    """x as an integer of so many bits, as casts round: towards zero."""
    if not integral(builder, x):
        return builder.add(Truncate(bits), x)
    return x if bits == WIDEST else stored(builder, x, bits)


def stored(builder: Builder, x: Value, bits: int) -> Value:
    """x, a variable and a whole number, as what is left of it in an integer of so many bits."""
    op = builder.made_by(x)[0]
    return x if isinstance(op, Stored) and op.bits <= bits else builder.add(Stored(bits), x)
