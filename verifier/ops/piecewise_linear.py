"""Continuous piecewise-linear activations: Relu, LeakyRelu, PRelu, Abs, Clip, HardSigmoid, HardTanh."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from verifier.graph import Builder, Interval, Parameter, Relaxation, Univariate, Value
from verifier.graph.op import Shape, negligible
from verifier.graph.registry import OnnxNode, Unsupported, aten_op, onnx_op, unary_op
from verifier.ops.arithmetic import scale_shift
from verifier.ops.movement import broadcast
from verifier.ops.product import multiply
from verifier.ops.step import Step


@dataclass(frozen=True, eq=False)
class Relu(Univariate):
    """max(x, 0). The chord is the only upper line worth having; the lower slope is free in [0, 1]."""

    def forward(self, *xs: Tensor) -> Tensor:
        return xs[0].clamp(min=0)

    def interval(self, *xs: Interval) -> Interval:
        return Interval(xs[0].lower.clamp(min=0), xs[0].upper.clamp(min=0))

    def support_max(self, slope: Tensor, x: Interval) -> Tensor:
        """Convex: attained at an end."""
        return torch.maximum(x.lower.clamp(min=0) - slope * x.lower, x.upper.clamp(min=0) - slope * x.upper)

    def support_min(self, slope: Tensor, x: Interval) -> Tensor:
        """At an end, or at the kink where the interval holds it (clamped into the interval otherwise)."""
        kink = torch.zeros_like(x.lower).clamp(x.lower, x.upper)
        ends = torch.minimum(x.lower.clamp(min=0) - slope * x.lower, x.upper.clamp(min=0) - slope * x.upper)
        return torch.minimum(ends, kink.clamp(min=0) - slope * kink)

    def parameters(self, *xs: Interval) -> dict[str, Parameter]:
        """For an active or inactive neuron the range of the lower slope is one point, and the line is exact."""
        lower, upper = xs[0]
        high = (upper > 0).to(lower.dtype)
        low = (lower >= 0).to(lower.dtype) * high
        value = (upper > -lower).to(lower.dtype)
        left, right = lower.clamp(max=0), upper.clamp(min=0)
        info = torch.finfo(lower.dtype)
        # From the smallest number, so that only 0 / 0 changes, to the largest: a width that overflows would give
        # slope 0, and a steeper line through the left end is above as well.
        chord = right / (right - left).clamp(min=info.tiny * info.eps, max=info.max)
        return {
            "lower_slope": Parameter(torch.maximum(low, torch.minimum(value, high)), low, high),
            "upper_slope": Parameter(chord, chord, chord),
        }

    def relax(self, parameters: Mapping[str, Tensor], *xs: Interval) -> Relaxation:
        chord = parameters["upper_slope"]
        return Relaxation((parameters["lower_slope"],), None, (chord,), -chord * xs[0].lower.clamp(max=0))

    def refinable(self, index: int, *xs: Interval) -> Tensor:
        return (xs[0].lower < 0) & (xs[0].upper > 0)

    def vjp(
        self, builder: Builder, inputs: Sequence[Value], output: Value, cotangent: Value
    ) -> Sequence[Value | None]:
        levels = torch.tensor([0.0, 1.0], dtype=torch.float64)
        return [_through(builder, inputs[0], torch.zeros(1, dtype=torch.float64), levels, cotangent)]

    def branching_point(self, index: int, *xs: Interval) -> Tensor:
        return torch.zeros_like(xs[0].lower).clamp(xs[0].lower, xs[0].upper)


@dataclass(frozen=True, eq=False)
class PRelu(Univariate):
    """max(x, 0) + slope * min(x, 0); `slope`, of any sign and size, broadcasts to x (Abs has slope -1).

    One side is the chord, the other a line through the kink whose slope is free: the lower side where the
    function is convex (slope <= 1), the upper side where it is concave.
    """

    slope: Tensor

    def output_shape(self, *shapes: Shape) -> Shape:
        if np.broadcast_shapes(self.slope.shape, shapes[0]) != tuple(shapes[0]):
            raise ValueError(f"Slopes of shape {tuple(self.slope.shape)} do not broadcast to {shapes[0]}.")
        return shapes[0]

    def forward(self, *xs: Tensor) -> Tensor:
        return xs[0].clamp(min=0) + self.slope * xs[0].clamp(max=0)

    def restrict(self, index: Tensor, shape: Shape) -> PRelu:
        return PRelu(self.slope.expand(shape).flatten()[index])

    def _extrema(self, slope: Tensor, x: Interval) -> tuple[Tensor, Tensor]:
        """Least and largest of f(x) - slope x, over the ends and the kink (moved into the interval)."""
        points = [x.lower, x.upper, torch.zeros_like(x.lower).clamp(x.lower, x.upper)]
        gaps = [self.forward(p) - slope * p for p in points]
        low = torch.minimum(torch.minimum(gaps[0], gaps[1]), gaps[2])
        return low, torch.maximum(torch.maximum(gaps[0], gaps[1]), gaps[2])

    def support_max(self, slope: Tensor, x: Interval) -> Tensor:
        return self._extrema(slope, x)[1]

    def support_min(self, slope: Tensor, x: Interval) -> Tensor:
        return self._extrema(slope, x)[0]

    def interval(self, *xs: Interval) -> Interval:
        """Only the product on the negative side rounds."""
        low, high = self._extrema(torch.zeros_like(xs[0].lower), xs[0])
        reach = (self.slope * xs[0].lower.clamp(max=0)).abs()
        info = torch.finfo(low.dtype)
        return Interval(low, high).widen(info.eps * reach + info.tiny).sanitise()

    def parameters(self, *xs: Interval) -> dict[str, Parameter]:
        lower, upper = xs[0]
        slope = self.slope.expand_as(lower)
        one = torch.ones_like(lower)
        flat, steep = torch.minimum(slope, one), torch.maximum(slope, one)
        active, inactive = lower >= 0, upper <= 0
        low = torch.where(active, one, torch.where(inactive, slope, flat))
        high = torch.where(active, one, torch.where(inactive, slope, steep))
        value = torch.where(upper > -lower, one, slope)
        return {"slope": Parameter(torch.maximum(low, torch.minimum(value, high)), low, high)}

    def relax(self, parameters: Mapping[str, Tensor], *xs: Interval) -> Relaxation:
        """The chord mixes the slopes 1 and `slope` by the shares of the two sides, so that no difference of
        large numbers is divided by a small one."""
        free = parameters["slope"]
        lower, upper = xs[0].lower.clamp(max=0), xs[0].upper.clamp(min=0)
        info = torch.finfo(lower.dtype)
        half = (upper / 2 - lower / 2).clamp(min=info.tiny * info.eps)  # the whole width might overflow
        right, left = upper / 2 / half, -lower / 2 / half
        chord, intercept = right + self.slope * left, (self.slope - 1) * right * lower
        if bool((self.slope <= 1).all()):
            return Relaxation((free,), None, (chord,), intercept)
        convex = (self.slope <= 1).to(lower.dtype)
        concave = 1 - convex
        return Relaxation(
            (convex * free + concave * chord,),
            concave * intercept,
            (convex * chord + concave * free,),
            convex * intercept,
        )

    def refinable(self, index: int, *xs: Interval) -> Tensor:
        return (xs[0].lower < 0) & (xs[0].upper > 0) & (self.slope != 1)

    def vjp(
        self, builder: Builder, inputs: Sequence[Value], output: Value, cotangent: Value
    ) -> Sequence[Value | None]:
        levels = torch.stack([self.slope, torch.ones_like(self.slope)])
        return [_through(builder, inputs[0], torch.zeros_like(levels.flatten()[:1]), levels, cotangent)]

    def branching_point(self, index: int, *xs: Interval) -> Tensor:
        return torch.zeros_like(xs[0].lower).clamp(xs[0].lower, xs[0].upper)


@dataclass(frozen=True, eq=False)
class PiecewiseLinear(Univariate):
    """Linear between `knots`, with `slopes` (one more than knots, left to right) and value `values[k]` at
    knot k.

    `knots` [K], `slopes` [K + 1], `values` [K], float, knots increasing.
    """

    knots: Tensor
    slopes: Tensor
    values: Tensor

    def restrict(self, index: Tensor, shape: Shape) -> PiecewiseLinear:
        return self

    def forward(self, *xs: Tensor) -> Tensor:
        x = xs[0]
        y = self.values[0] + self.slopes[0] * (x - self.knots[0]).clamp(max=0)
        for k in range(len(self.knots)):
            step = (x - self.knots[k]).clamp(min=0)
            if k + 1 < len(self.knots):
                step = step.clamp(max=self.knots[k + 1] - self.knots[k])
            y = y + self.slopes[k + 1] * step
        return y

    def _candidates(self, x: Interval) -> Tensor:
        """[2 + K, B, *shape]: the ends, and the knots moved into the interval; extrema are among them."""
        inside = [k.expand_as(x.lower).clamp(x.lower, x.upper) for k in self.knots]
        return torch.stack([x.lower, x.upper, *inside])

    def support_max(self, slope: Tensor, x: Interval) -> Tensor:
        points = self._candidates(x)
        return (self.forward(points) - slope * points).amax(0) + self._rounding(points)

    def support_min(self, slope: Tensor, x: Interval) -> Tensor:
        points = self._candidates(x)
        return (self.forward(points) - slope * points).amin(0) - self._rounding(points)

    def _rounding(self, points: Tensor) -> Tensor:
        """What `forward` may be wrong by at any of the points [P, B, *shape], together: [B, *shape]."""
        size = self.values[0].abs() + (self.slopes[0] * (points - self.knots[0]).clamp(max=0)).abs()
        for k in range(len(self.knots)):
            step = (points - self.knots[k]).clamp(min=0)
            if k + 1 < len(self.knots):
                step = step.clamp(max=self.knots[k + 1] - self.knots[k])
            size = size + (self.slopes[k + 1] * step).abs()
        reach = points.abs().amax(0) + self.knots.abs().amax()
        steepest = self.slopes.abs().amax()
        units = 2 * torch.finfo(points.dtype).eps * (len(self.knots) + 3)
        size = size + negligible(points.dtype)
        return units * (size.amax(0) + steepest * torch.minimum(reach, 2 * self.knots.abs().amax()))

    def interval(self, *xs: Interval) -> Interval:
        points = self._candidates(xs[0])
        values = self.forward(points)
        return Interval(values.amin(0), values.amax(0)).widen(self._rounding(points)).sanitise()

    def _slopes_inside(self, x: Interval) -> Tensor:
        """[K + 1, B, *shape]: each piece's slope, NaN where the interval does not reach into the piece."""
        inf = self.knots.new_full((1,), torch.inf)
        left, right = torch.cat([-inf, self.knots]), torch.cat([self.knots, inf])
        view = (-1, *([1] * x.lower.dim()))
        met = (x.lower < right.view(view)) & (x.upper > left.view(view))
        single = (x.lower == x.upper) & (x.lower >= left.view(view)) & (x.lower <= right.view(view))
        return torch.where(met | single, self.slopes.view(view), torch.nan)

    def parameters(self, *xs: Interval) -> dict[str, Parameter]:
        """Start from the line that is best at the interval's middle (least area); any slope between the least
        and the largest inside the interval may be useful. A side whose best line is the chord is fixed."""
        x = xs[0]
        points = self._candidates(x)
        values = self.forward(points)
        first, second = torch.triu_indices(len(points), len(points), 1)
        run = points[second] - points[first]
        chords = _ratio(values[second] - values[first], run, run.new_tensor(torch.nan))
        options = torch.cat([chords, self._slopes_inside(x)])
        options = torch.where(
            options.isfinite(), options, self._slopes_inside(x).nan_to_num(-torch.inf).amax(0)
        )
        middle = x.center
        least = self._slopes_inside(x).nan_to_num(torch.inf).amin(0)
        most = self._slopes_inside(x).nan_to_num(-torch.inf).amax(0)
        gaps = values.unsqueeze(0) - options.unsqueeze(1) * points.unsqueeze(0)
        above, below = gaps.amax(1) + options * middle, gaps.amin(1) + options * middle
        upper = options.gather(0, above.argmin(0, keepdim=True)).squeeze(0).clamp(least, most)
        lower = options.gather(0, below.argmax(0, keepdim=True)).squeeze(0).clamp(least, most)
        chord = _ratio(values[1] - values[0], x.upper - x.lower, upper)
        at_ends = values[0] - chord * points[0]
        slack = 4 * torch.finfo(x.lower.dtype).eps * (values.abs().amax(0) + (chord * points).abs().amax(0))
        concave_side = (values - chord * points).amax(0) <= at_ends + slack
        convex_side = (values - chord * points).amin(0) >= at_ends - slack
        return {
            "lower_slope": Parameter(
                torch.where(convex_side, chord, lower),
                torch.where(convex_side, chord, least),
                torch.where(convex_side, chord, most),
            ),
            "upper_slope": Parameter(
                torch.where(concave_side, chord, upper),
                torch.where(concave_side, chord, least),
                torch.where(concave_side, chord, most),
            ),
        }

    def refinable(self, index: int, *xs: Interval) -> Tensor:
        view = (-1, *([1] * xs[0].lower.dim()))
        knots = self.knots.view(view)
        return ((xs[0].lower < knots) & (xs[0].upper > knots)).any(0)

    def branching_point(self, index: int, *xs: Interval) -> Tensor:
        """The knot nearest to the interval's middle, moved into the interval."""
        middle = xs[0].center
        view = (-1, *([1] * middle.dim()))
        nearest = (self.knots.view(view) - middle).abs().argmin(0)
        return self.knots[nearest].clamp(xs[0].lower, xs[0].upper)

    def vjp(
        self, builder: Builder, inputs: Sequence[Value], output: Value, cotangent: Value
    ) -> Sequence[Value | None]:
        return [_through(builder, inputs[0], self.knots, self.slopes, cotangent)]


def _through(builder: Builder, x: Value, knots: Tensor, slopes: Tensor, cotangent: Value) -> Value:
    """The cotangent times the slope of the piece that x is on."""
    return multiply(builder, cotangent, builder.add(Step(knots, slopes), x))


def _ratio(rise: Tensor, run: Tensor, otherwise: Tensor) -> Tensor:
    """rise / run, or `otherwise` where run is zero; no division by zero even there, for its gradient is
    NaN."""
    some = run.abs() > torch.finfo(run.dtype).tiny
    return torch.where(some, rise / torch.where(some, run, torch.ones_like(run)), otherwise)


def piecewise_linear(knots: list[float], slopes: list[float], value: float) -> PiecewiseLinear:
    """The function with `value` at the first knot."""
    values = [value]
    for k in range(1, len(knots)):
        values.append(values[-1] + slopes[k] * (knots[k] - knots[k - 1]))
    return PiecewiseLinear(*[torch.tensor(v, dtype=torch.float64) for v in (knots, slopes, values)])


@unary_op("Abs", "abs.default")
def absolute(builder: Builder, x: Value) -> Value:
    return prelu(builder, x, torch.tensor(-1.0, dtype=torch.float64))


def leaky_relu(builder: Builder, x: Value, slope: float) -> Value:
    return prelu(builder, x, torch.tensor(slope, dtype=torch.float64))


@unary_op("Relu", "relu.default", "relu_.default")
def relu(builder: Builder, x: Value) -> Value:
    return builder.add(Relu(), x)


def clip(builder: Builder, x: Value, low: float, high: float) -> Value:
    """min(max(x, low), high); infinite ends are allowed."""
    if low > high:
        return scale_shift(builder, x, scale=0.0, shift=high)
    if math.isinf(low) and math.isinf(high):
        return x
    if math.isinf(high):
        return scale_shift(builder, relu(builder, scale_shift(builder, x, shift=-low)), shift=low)
    if math.isinf(low):
        lifted = relu(builder, scale_shift(builder, x, scale=-1.0, shift=high))
        return scale_shift(builder, lifted, scale=-1.0, shift=high)
    return builder.add(piecewise_linear([low, high], [0.0, 1.0, 0.0], low), x)


def prelu(builder: Builder, x: Value, slope: Tensor) -> Value:
    """max(x, 0) + slope * min(x, 0), x and slope broadcast against each other; slope may be a live
    parameter."""
    shape = tuple(np.broadcast_shapes(builder.shape(x), slope.shape))
    return builder.add(PRelu(slope), broadcast(builder, x, shape))


@onnx_op("LeakyRelu")
def _leaky_relu(builder: Builder, node: OnnxNode) -> Value:
    return leaky_relu(builder, node.required(0), node.attributes.get("alpha", 0.01))


@onnx_op("PRelu")
def _prelu(builder: Builder, node: OnnxNode) -> Value:
    slope = node.constant(builder, 1, "slope")
    if slope is None:
        raise Unsupported("the slope is missing")
    return prelu(builder, node.required(0), slope)


@onnx_op("Clip")
def _clip(builder: Builder, node: OnnxNode) -> Value:
    def end(i: int, attribute: str, default: float) -> float:
        tensor = node.constant(builder, i, attribute)
        given = float(node.attributes.get(attribute, default if tensor is None else tensor))
        # Exporters write the largest float32 where nothing is meant.
        return default if math.copysign(1, default) * given >= torch.finfo(torch.float32).max else given

    return clip(builder, node.required(0), end(1, "min", -math.inf), end(2, "max", math.inf))


@onnx_op("HardSigmoid")
def _hard_sigmoid(builder: Builder, node: OnnxNode) -> Value:
    alpha, beta = node.attributes.get("alpha", 0.2), node.attributes.get("beta", 0.5)
    return clip(
        builder, scale_shift(builder, node.required(0), scale=float(alpha), shift=float(beta)), 0.0, 1.0
    )


@aten_op("leaky_relu.default", "leaky_relu_.default")
def _aten_leaky_relu(builder: Builder, x: Value, negative_slope: float = 0.01) -> Value:
    return leaky_relu(builder, x, float(negative_slope))


@aten_op("prelu.default", "_prelu_kernel.default")
def _aten_prelu(builder: Builder, x: Value, weight: Value) -> Value:
    slope = builder.tensor(weight)
    if slope is None:
        raise Unsupported("a slope that depends on the network's input")
    rank = len(builder.shape(x))
    if slope.dim() == 1 and slope.numel() > 1 and rank > 1:
        slope = slope.view(-1, *([1] * (rank - 2)))
    return prelu(builder, x, slope)


@aten_op("clamp.default")
def _aten_clamp(builder: Builder, x: Value, min: float | None = None, max: float | None = None) -> Value:
    return clip(builder, x, -math.inf if min is None else float(min), math.inf if max is None else float(max))


@aten_op("clamp_min.default")
def _aten_clamp_min(builder: Builder, x: Value, min: float) -> Value:
    return clip(builder, x, float(min), math.inf)


@aten_op("clamp_max.default")
def _aten_clamp_max(builder: Builder, x: Value, max: float) -> Value:
    return clip(builder, x, -math.inf, float(max))


@aten_op("hardtanh.default")
def _aten_hardtanh(builder: Builder, x: Value, min_val: float = -1.0, max_val: float = 1.0) -> Value:
    return clip(builder, x, float(min_val), float(max_val))


@aten_op("relu6.default")
def _aten_relu6(builder: Builder, x: Value) -> Value:
    return clip(builder, x, 0.0, 6.0)
