"""Forward linear bounds: every node between two linear functions of the graph's inputs.

The cost grows with the number of input elements, so this is for low-dimensional inputs.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from verifier.bounds.interval import Bounds, interval_of
from verifier.bounds.lines import sane
from verifier.bounds.relaxations import relax
from verifier.graph import Affine, Elementwise, Graph, Interval
from verifier.graph.coefficients import rows
from verifier.graph.op import Constant, Input, Shape
from verifier.sets import InputSet


@dataclass(frozen=True, eq=False)
class Planes:
    """lower . x + lower_bias - error <= value <= upper . x + upper_bias + error, for all x in the input sets.

    `lower` and `upper` are [B, N, *shape], N the number of elements of all graph inputs in order (or of the coordinates
    of a `_Few`), the others [B, *shape]. `error` bounds what rounding may have done to all of them.
    """

    lower: Tensor
    lower_bias: Tensor
    upper: Tensor
    upper_bias: Tensor
    error: Tensor

    def size(self, reach: Tensor) -> Tensor:
        """A bound on the sum of the magnitudes of all terms, [B, *shape]; `reach` [B, N] bounds |x|."""
        slopes = torch.maximum(self.lower.abs(), self.upper.abs())
        wide = reach.view(*reach.shape, *([1] * (slopes.dim() - 2)))
        return (slopes * wide).sum(1) + torch.maximum(self.lower_bias.abs(), self.upper_bias.abs())


class _Frame(ABC):
    """What the linear functions are functions of; `reach` [B, N] bounds its coordinates' magnitudes."""

    reach: Tensor

    @abstractmethod
    def input(self, shape: Shape, start: int) -> Planes:
        """The planes of the graph's input whose elements come after `start` others."""

    @abstractmethod
    def minimum(self, slopes: Tensor, bias: Tensor) -> Tensor:
        """The least value of slopes [B, N, *shape] . coordinates + bias [B, *shape]."""


class _All(_Frame):
    """The elements of all inputs themselves."""

    def __init__(self, graph: Graph, sets: Sequence[InputSet]) -> None:
        self._graph, self._sets = graph, sets
        batch = max(s.batch for s in sets)
        self.reach = torch.cat([rows(s.box().magnitude).expand(batch, -1) for s in sets], 1)

    def input(self, shape: Shape, start: int) -> Planes:
        return _input(shape, start, self.reach)

    def minimum(self, slopes: Tensor, bias: Tensor) -> Tensor:
        wide = rows(slopes, 2).transpose(1, 2)
        total, start = rows(bias), 0
        for position, inputs in zip(self._graph.inputs, self._sets, strict=True):
            node = self._graph.nodes[position]
            part = wide[:, :, start : start + node.numel].unflatten(2, node.shape or (1,))
            total = total + inputs.minimum(part if node.shape else part.squeeze(2))
            start += node.numel
        return total.view(bias.shape)


class _Few(_Frame):
    """How far the `count` elements of a box with the widest ranges are from their middles, others per instance; the
    rest of the box is taken for error."""

    def __init__(self, sets: Sequence[InputSet], count: int) -> None:
        box = [s.box() for s in sets]
        batch = max(s.batch for s in sets)
        lower, upper = (torch.cat([rows(b[k]).expand(batch, -1) for b in box], 1) for k in (0, 1))
        eps = torch.finfo(lower.dtype).eps
        self._middle = lower / 2 + upper / 2
        radius = torch.maximum(upper - self._middle, self._middle - lower) * (1 + 4 * eps)
        self.reach, self._index = radius.topk(count, dim=1)
        self._error = radius.scatter(1, self._index, 0.0) + 4 * eps * self._middle.abs()

    def input(self, shape: Shape, start: int) -> Planes:
        size = math.prod(shape)
        slopes = self._middle.new_zeros(*self.reach.shape, self._middle.shape[1])
        slopes.scatter_(2, self._index.unsqueeze(2), 1.0)
        own = slopes[:, :, start : start + size].reshape(*self.reach.shape, *shape)
        middle, error = (t[:, start : start + size].reshape(-1, *shape) for t in (self._middle, self._error))
        return Planes(own, middle, own, middle, error)

    def minimum(self, slopes: Tensor, bias: Tensor) -> Tensor:
        wide = self.reach.view(*self.reach.shape, *[1] * (slopes.dim() - 2))
        return bias - (slopes.abs() * wide).sum(1)


def forward_bounds(
    graph: Graph,
    sets: Sequence[InputSet],
    known: Mapping[int, Interval] | None = None,
    keep: Iterable[int] = (),
    few: int | None = None,
) -> tuple[Bounds, dict[int, Planes]]:
    """Enclosures of all nodes, never wider than interval arithmetic's, and the planes of the nodes in `keep`.

    Linear functions are evaluated over the sets where an elementwise operator asks for the interval, at the
    graph's outputs and at the nodes in `keep`; elsewhere interval arithmetic stands. With `few` they are functions of
    that many elements of each instance, the widest; the others' ranges count as error.
    """
    keep = set(keep)
    boxes = [s.box() for s in sets]
    batch = max(s.batch for s in sets)
    frame = _All(graph, sets) if few is None else _Few(sets, few)
    reach = frame.reach
    bounds: Bounds = dict(zip(graph.inputs, boxes, strict=True))
    planes: dict[int, Planes] = {}
    last_use = {j: i for i, node in enumerate(graph.nodes) for j in node.inputs}
    start = 0
    for i, node in enumerate(graph.nodes):
        if isinstance(node.op, Input):
            planes[i] = frame.input(node.shape, start)
            start += node.numel
        elif isinstance(node.op, Constant):
            planes[i] = _constant(node.op.interval(), reach)
        elif isinstance(node.op, Affine):
            planes[i] = _affine(node.op, [planes[j] for j in node.inputs], reach)
        elif isinstance(node.op, Elementwise):
            planes[i] = _elementwise(graph, i, bounds, [planes[j] for j in node.inputs], reach)
        else:
            raise TypeError(f"{type(node.op).__name__} is neither affine nor elementwise; rewrite it first.")
        if not isinstance(node.op, Input):
            bounds[i] = interval_of(graph, i, bounds)
            asked = any(isinstance(graph.nodes[k].op, Elementwise) for k in graph.users[i])
            if graph.variable[i] and (asked or i in keep or i in graph.outputs):
                bounds[i] = bounds[i].expand(batch).intersect(_range(frame, planes[i]))
        if known is not None and i in known:
            bounds[i] = bounds[i].intersect(known[i])
        for j in set(node.inputs):
            if last_use[j] == i and j not in keep:
                del planes[j]
    return bounds, {i: planes[i] for i in keep}


def _input(shape: Shape, start: int, reach: Tensor) -> Planes:
    batch, total = reach.shape
    count = int(torch.Size(shape).numel())
    unit = reach.new_zeros(total, count)
    unit[start : start + count].fill_diagonal_(1)
    slopes = unit.view(1, total, *shape).expand(batch, -1, *shape)
    zero = reach.new_zeros(batch, *shape)
    return Planes(slopes, zero, slopes, zero, zero)


def _constant(value: Interval, reach: Tensor) -> Planes:
    batch, total = reach.shape
    low, high = (t.to(reach).expand(batch, *t.shape[1:]) for t in value)
    slopes = reach.new_zeros(batch, total, *low.shape[1:])
    return Planes(slopes, low, slopes, high, torch.zeros_like(low))


def _affine(op: Affine, xs: Sequence[Planes], reach: Tensor) -> Planes:
    """With M and D the middle and half the difference of the bounds, L x lies between L M - |L| D and L M +
    |L| D."""
    batch = reach.shape[0]
    shapes = [tuple(x.error.shape[1:]) for x in xs]
    offset = op.offset(*shapes)

    def split(low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        return (low + high) / 2, (high - low) / 2

    def both(pairs: Sequence[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
        middle = linear_part(op, [m for m, _ in pairs], offset is None, shapes)
        spread = op.absolute(*[d for _, d in pairs])
        return middle - spread, middle + spread

    lower, upper = both([split(x.lower.flatten(0, 1), x.upper.flatten(0, 1)) for x in xs])
    lower_bias, upper_bias = both([split(x.lower_bias, x.upper_bias) for x in xs])
    error = op.absolute(*[x.error for x in xs])
    eps = torch.finfo(reach.dtype).eps
    size = op.absolute(*[x.size(reach) for x in xs])
    if offset is not None:
        offset = offset.to(reach)
        lower_bias, upper_bias, size = lower_bias + offset, upper_bias + offset, size + offset.abs()
    error = error + 2 * (op.fan_in(*shapes) + 4) * eps * (size + error)
    doubt = op.uncertainty(*shapes)
    if doubt is not None:
        error = error + 2 * doubt
    return Planes(
        lower.unflatten(0, (batch, -1)), lower_bias, upper.unflatten(0, (batch, -1)), upper_bias, error
    )


def linear_part(op: Affine, xs: Sequence[Tensor], plain: bool, shapes: Sequence[Shape]) -> Tensor:
    """L(x_1, ...) without the constant: `forward` where that is zero, else the transpose of the transpose,
    for subtracting the constant again would leave its rounding error."""
    if plain:
        return op.forward(*xs)
    total: Tensor | None = None
    for k, x in enumerate(xs):
        with torch.enable_grad():
            probe = x.new_zeros(1, x.shape[0], *op.output_shape(*shapes), requires_grad=True)
            pulled = op.transpose(probe, k, *shapes)
            # Of a scalar: with `grad_outputs` torch would import sympy.
            part = torch.autograd.grad((pulled * x).sum(), probe, create_graph=x.requires_grad)[0]
        total = part.squeeze(0) if total is None else total + part.squeeze(0)
    if total is None:
        raise ValueError("An affine operator has at least one argument.")
    return total


def _elementwise(
    graph: Graph, position: int, bounds: Mapping[int, Interval], xs: Sequence[Planes], reach: Tensor
) -> Planes:
    node = graph.nodes[position]
    lines = sane(relax(graph, position, bounds, {}))
    eps = torch.finfo(reach.dtype).eps
    units = getattr(node.op, "relaxation_error", 0)
    zero = torch.zeros_like(xs[0].error)
    low, low_bias = torch.zeros_like(xs[0].lower), zero
    high, high_bias = torch.zeros_like(xs[0].upper), zero
    error = zero
    size = zero
    for k, x in enumerate(xs):
        box = bounds[node.inputs[k]]
        down, up = lines.lower_slopes[k], lines.upper_slopes[k]
        low = low + _scaled(down, x.lower, x.upper)
        high = high + _scaled(up, x.upper, x.lower)
        low_bias = low_bias + _scaled(down, x.lower_bias, x.upper_bias)
        high_bias = high_bias + _scaled(up, x.upper_bias, x.lower_bias)
        steepest = torch.maximum(down.abs(), up.abs())
        error = error + steepest * x.error
        size = size + steepest * (units * box.magnitude + (4 + 2 * len(xs)) * x.size(reach))
    for intercept in (lines.lower_intercept, lines.upper_intercept):
        if intercept is not None:
            size = size + (units + 4) * intercept.abs()
    if lines.lower_intercept is not None:
        low_bias = low_bias + lines.lower_intercept
    if lines.upper_intercept is not None:
        high_bias = high_bias + lines.upper_intercept
    return Planes(low, low_bias, high, high_bias, error * (1 + 8 * eps) + 2 * eps * size)


def _scaled(slope: Tensor, same: Tensor, other: Tensor) -> Tensor:
    """slope times a bound: `same` where the slope is positive, the `other` bound where it is negative."""
    if same.dim() > slope.dim():
        slope = slope.unsqueeze(1)
    return slope.clamp(min=0) * same + slope.clamp(max=0) * other


def _range(frame: _Frame, planes: Planes) -> Interval:
    """The planes' extrema over the sets, rounding included."""
    reach, eps = frame.reach, torch.finfo(frame.reach.dtype).eps
    slack = planes.error + (reach.shape[1] + 8) * eps * (planes.size(reach) + planes.error)
    low = frame.minimum(planes.lower, planes.lower_bias) - slack
    high = -frame.minimum(-planes.upper, -planes.upper_bias) + slack
    return Interval(low, high).sanitise()
