"""Piecewise polynomials up to the third degree: B-splines (KAN), PolyReLU, HardSwish, and their derivatives."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from verifier.graph import Builder, Curve, Interval, Value
from verifier.graph.curve import known
from verifier.graph.op import Shape, some
from verifier.graph.registry import unary_op
from verifier.ops.movement import joint_shape
from verifier.ops.product import multiply

DEGREE = 3


@dataclass(frozen=True, eq=False)
class PiecewisePolynomial(Curve):
    """On the piece between knots k - 1 and k the sum over d of coefficients[k, d] (x - origins[k])^d.

    `knots` [K], increasing; `origins` [K + 1]; `coefficients` [K + 1, D + 1, ...], D up to 3, each of which broadcasts
    to the argument. At a knot the value is that of the right side. `jumps` says whether the sides may differ; bounds
    hold both.
    """

    knots: Tensor
    origins: Tensor
    coefficients: Tensor
    jumps: bool = False  # pyright: ignore[reportIncompatibleVariableOverride]
    units = 16

    def __post_init__(self) -> None:
        pieces, terms = self.coefficients.shape[:2]
        if not 1 <= terms <= DEGREE + 1 or pieces != len(self.knots) + 1 or pieces != len(self.origins):
            raise ValueError(f"{pieces} pieces of degree {terms - 1} do not fit {len(self.knots)} knots.")

    @property
    def no_derivative(self) -> str:  # pyright: ignore[reportIncompatibleVariableOverride]
        return "it jumps, where there is no derivative" if self.jumps else ""

    def output_shape(self, *shapes: Shape) -> Shape:
        if joint_shape(tuple(self.coefficients.shape[2:]), shapes[0]) != shapes[0]:
            raise ValueError(f"Coefficients {tuple(self.coefficients.shape)} do not fit values {shapes[0]}.")
        return shapes[0]

    def restrict(self, index: Tensor, shape: Shape) -> PiecewisePolynomial:
        return dataclasses.replace(self, coefficients=some(self.coefficients, 2, index, shape))

    def _pick(self, x: Tensor, order: int) -> Tensor:
        """The derivative of an order at x, piece by piece."""
        y = self._piece(0, x, order)
        for k, knot in enumerate(self.knots):
            y = torch.where(x >= knot, self._piece(k + 1, x, order), y)
        return y

    def _piece(self, k: int, x: Tensor, order: int, absolute: bool = False) -> Tensor:
        t, weights = x - self.origins[k], self.coefficients[k]
        if absolute:
            t, weights = t.abs(), weights.abs()
        total = torch.zeros_like(t)
        for d in range(len(weights) - 1, order - 1, -1):
            factor = float(np.prod(range(d - order + 1, d + 1)))
            total = total * t + factor * weights[d]
        return total

    def forward(self, *xs: Tensor) -> Tensor:
        return self._pick(xs[0], 0)

    def derivative(self, x: Tensor) -> Tensor:
        return self._pick(x, 1)

    def usable(self, x: Interval) -> Tensor:
        """Where no term overflows; the far ends of pieces are beyond."""
        largest = self.coefficients.detach().abs().amax((0, 1))
        reach = x.magnitude + self.origins.abs().amax()
        size = largest * (1 + reach) ** (self.coefficients.shape[1] - 1)
        return size < torch.finfo(size.dtype).max / 2**24

    def _parts(self, x: Interval) -> list[tuple[int, Interval, Tensor]]:
        """Of each piece its share of the interval, widened by what knots are rounded by, and where it has one."""
        eps = torch.finfo(x.lower.dtype).eps
        found = []
        for k in range(len(self.origins)):
            low, high = x.lower, x.upper
            if k > 0:
                low = torch.maximum(low, self.knots[k - 1] - eps * self.knots[k - 1].abs())
            if k < len(self.knots):
                high = torch.minimum(high, self.knots[k] + eps * self.knots[k].abs())
            met = low <= high
            found.append((k, Interval(torch.where(met, low, x.lower), torch.where(met, high, x.lower)), met))
        return found

    def _gap(self, k: int, slope: Tensor, x: Tensor, sign: int) -> Tensor:
        """sign * (the piece - slope x), rounded up."""
        y, line, info = self._piece(k, x, 0), slope * x, torch.finfo(x.dtype)
        size = self._piece(k, x, 0, absolute=True) + self.origins[k].abs() * self._piece(
            k, x, 1, absolute=True
        )
        return (
            sign * (y - line)
            + info.eps * (self.units * size + 2 * line.abs())
            + info.tiny * (8 + slope.abs())
        )

    def extreme(self, slope: Tensor, x: Interval, sign: int) -> tuple[Tensor, Tensor]:
        best = torch.full_like(slope + x.lower, -torch.inf)
        point = torch.zeros_like(best)
        for k, own, met in self._parts(x):
            candidates = [(self._gap(k, slope, end, sign), end) for end in own]
            if self.coefficients.shape[1] > 2:
                candidates.append(self._arch(k, slope, own, sign))
            for high, at in candidates:
                high = known(high)
                better = met & (high > best)
                best, point = torch.where(better, high, best), torch.where(better, at, point)
        return best, point

    def _arch(self, k: int, slope: Tensor, x: Interval, sign: int) -> tuple[Tensor, Tensor]:
        """From the tangent on the part of a piece where sign * f is concave, on one side of its turning point."""
        info, weights = torch.finfo(slope.dtype), self.coefficients[k].detach()
        square, cube = sign * weights[2], torch.zeros_like(weights[2])
        if len(weights) > 3:
            cube = sign * weights[3]
        some = cube.abs() > 1e-12 * square.abs() + info.tiny * 2**20
        turn = self.origins[k] - square / torch.where(some, 3 * cube, torch.ones_like(cube))
        low = torch.where(some & (cube < 0), torch.maximum(x.lower, turn), x.lower)
        high = torch.where(some & (cube > 0), torch.minimum(x.upper, turn), x.upper)
        bent = some | (square < 0)
        # Of 3 cube t^2 + 2 square t + c = 0 the root with a negative second derivative, without cancellation.
        c = sign * (weights[1] - slope)
        root = (square * square - 3 * cube * c).clamp(min=0).sqrt()
        divisor = square - root
        touched = self.origins[k] - torch.where(
            square <= 0,
            c / torch.where(divisor == 0, torch.ones_like(divisor), divisor),
            (square + root) / torch.where(some, 3 * cube, torch.ones_like(cube)),
        )
        beside = ~bent | (low >= high)
        low, high = torch.where(beside, x.lower, low), torch.where(beside, x.upper, high)
        point = torch.minimum(torch.maximum(torch.nan_to_num(touched), low), high)
        steep = self._piece(k, point, 1)
        size = self._piece(k, point, 1, absolute=True) + self.origins[k].abs() * self._piece(
            k, point, 2, absolute=True
        )
        # The turning point is rounded, and a tiny cubic term left out bends the other way.
        off = self.units * info.eps * (size + slope.abs()) + 8 * info.tiny
        left_out = torch.where(some, torch.zeros_like(cube), 3 * cube.abs()) * (x.upper - x.lower) ** 2
        excess = sign * (steep - slope)
        right, left = (off + left_out + excess).clamp(min=0), (off + left_out - excess).clamp(min=0)
        rest = torch.maximum(right * (high - point), left * (point - low))
        return (self._gap(k, slope, point, sign) + rest).masked_fill(beside, -torch.inf), point

    def slopes(self, x: Interval) -> Interval:
        """At ends of pieces, and where the second derivative is zero."""
        low = torch.full_like(x.lower, torch.inf)
        high = -low
        for k, own, met in self._parts(x):
            points = list(own)
            if self.coefficients.shape[1] > 3:
                weights = self.coefficients[k]
                turn = self.origins[k] - weights[2] / torch.where(weights[3] == 0, 1.0, 3 * weights[3])
                points.append(turn.clamp(own.lower, own.upper))
            for p in points:
                steep = self._piece(k, p, 1)
                low = torch.where(met, torch.minimum(low, steep), low)
                high = torch.where(met, torch.maximum(high, steep), high)
        return Interval(low, high)

    def _at_infinity(self, bound: Tensor, slope: Tensor, x: Interval, sign: int) -> Tensor:
        most = torch.finfo(bound.dtype).max / 8
        return bound.masked_fill((x.magnitude > most), torch.inf)

    def refinable(self, index: int, *xs: Interval) -> Tensor:
        """Not inside a straight piece."""
        x = xs[index]
        wanted = (x.lower < x.upper) & torch.ones_like(x.lower, dtype=torch.bool)
        straight = (self.coefficients[:, 2:] == 0).all(1)
        for k, own, met in self._parts(x):
            alone = met & (own.lower == x.lower) & (own.upper == x.upper)
            wanted = wanted & ~(alone & straight[k])
        return wanted

    def branching_point(self, index: int, *xs: Interval) -> Tensor:
        """The knot nearest to the middle where it lies well inside, else the middle."""
        lower, upper = xs[index]
        middle = xs[index].center.clamp(lower, upper)
        if not len(self.knots):
            return middle
        view = (-1, *([1] * middle.dim()))
        knot = self.knots[(self.knots.view(view) - middle).abs().argmin(0)]
        margin = (0.0 if self.jumps else 0.05) * (upper - lower)
        return torch.where((knot - lower > margin) & (upper - knot > margin), knot, middle)

    def vjp(
        self, builder: Builder, inputs: Sequence[Value], output: Value, cotangent: Value
    ) -> Sequence[Value | None]:
        terms = self.coefficients.shape[1]
        view = (1, -1, *([1] * (self.coefficients.dim() - 2)))
        powers = torch.arange(1, terms, dtype=self.coefficients.dtype).view(view)
        steep = self.coefficients[:, 1:] * powers.to(self.coefficients)
        if terms == 1:
            steep = torch.zeros_like(self.coefficients)
        op = PiecewisePolynomial(self.knots, self.origins, steep)
        op = dataclasses.replace(op, jumps=op._jumping())
        return [multiply(builder, cotangent, builder.add(op, inputs[0]))]

    def _jumping(self) -> bool:
        """Whether the sides differ at some knot by more than rounding."""
        for k, knot in enumerate(self.knots):
            left, right = self._piece(k, knot, 0), self._piece(k + 1, knot, 0)
            size = self._piece(k, knot, 0, absolute=True) + self._piece(k + 1, knot, 0, absolute=True)
            if bool(((left - right).abs() > 1e-6 * size).any()):
                return True
        return False


def poly_relu(builder: Builder, x: Value, coefficients: Sequence[Tensor | float]) -> Value:
    """The sum over d of coefficients[d] relu(x)^d, d up to 3 (Zhuo et al., 2024); they broadcast to x."""
    tensors = [torch.as_tensor(c, dtype=torch.float64) for c in coefficients]
    tensors = torch.broadcast_tensors(*tensors)
    right = torch.stack(list(tensors))
    left = torch.cat([right[:1], torch.zeros_like(right[1:])])
    knots = torch.zeros(1, dtype=right.dtype)
    return builder.add(
        PiecewisePolynomial(knots, torch.zeros(2, dtype=right.dtype), torch.stack([left, right])), x
    )


def b_spline(builder: Builder, x: Value, grid: Tensor, coefficients: Tensor, degree: int = 3) -> Value:
    """The sum over i of coefficients[i] B_i(x), zero outside the grid: one spline per element.

    `grid` [N], strictly increasing; `coefficients` [N - degree - 1, ...], each of which broadcasts to x. Raises
    ValueError where the numbers do not fit, or for degrees above 3.
    """
    count = len(grid) - degree - 1
    if not 0 <= degree <= DEGREE or count < 1 or len(coefficients) != count:
        raise ValueError(
            f"{len(coefficients)} splines of degree {degree} do not fit {len(grid)} grid points."
        )
    points = grid.detach().double().cpu().numpy()
    origins = np.concatenate([points[:1], (points[1:] + points[:-1]) / 2, points[-1:]])
    matrix = torch.from_numpy(_bases(points, origins, degree)).to(coefficients)
    inner = torch.einsum("pdi,i...->pd...", matrix, coefficients)
    zero = torch.zeros_like(inner[:1])
    pieces = torch.cat([zero, inner, zero])
    places = [torch.from_numpy(t).to(coefficients) for t in (points, origins)]
    return builder.add(PiecewisePolynomial(places[0], places[1], pieces, jumps=degree == 0), x)


def _bases(grid: np.ndarray, origins: np.ndarray, degree: int) -> np.ndarray:
    """[pieces, degree + 1, bases]: on each piece the bases' coefficients around its middle (Cox and de Boor)."""
    pieces = len(grid) - 1
    table = np.zeros((pieces, degree + 1, pieces))
    table[np.arange(pieces), 0, np.arange(pieces)] = 1.0
    center = origins[1:-1]
    for k in range(1, degree + 1):
        count = pieces - k
        new = np.zeros((pieces, degree + 1, count))
        for i in range(count):
            for j, sign, start, run in (
                (i, 1.0, grid[i], grid[i + k] - grid[i]),
                (i + 1, -1.0, grid[i + k + 1], grid[i + k + 1] - grid[i + 1]),
            ):
                constant, rate = sign * (center - start) / run, sign / run
                new[:, :, i] += constant[:, None] * table[:, :, j]
                new[:, 1:, i] += rate * table[:, :-1, j]
        table = new
    return table


@unary_op("HardSwish", "hardswish.default", "hardswish_.default")
def hard_swish(builder: Builder, x: Value, alpha: float = 1 / 6, beta: float = 0.5) -> Value:
    """x * max(0, min(1, alpha x + beta)), alpha > 0."""
    knots = torch.tensor([-beta / alpha, (1 - beta) / alpha], dtype=torch.float64)
    coefficients = torch.tensor([[0.0, 0.0, 0.0], [0.0, beta, alpha], [0.0, 1.0, 0.0]], dtype=torch.float64)
    return builder.add(PiecewisePolynomial(knots, torch.zeros(3, dtype=torch.float64), coefficients), x)
