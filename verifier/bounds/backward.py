"""Backward linear bound propagation (CROWN, Zhang et al. 2018; on general graphs, Xu et al. 2020)."""

from __future__ import annotations

import heapq
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from verifier.bounds.lines import keeps_factors, sane, through, through_error
from verifier.graph import Affine, Elementwise, Graph, Interval, Relaxation
from verifier.graph.coefficients import Coefficients, Dense, Factored, Rows, Scattered, Several, contract
from verifier.graph.op import Constant, Input, Op, Shape, negligible
from verifier.graph.patches import Patches, image_of, single
from verifier.sets import InputSet


class OutOfTime(Exception):
    """The deadline came before the end of a pass; what it would have given is not known."""


@dataclass(frozen=True)
class PassOptions:
    """`rounding` bounds what rounding does. With `windows` the result may hold `patches`: enough for its minimum, which
    is then cheaper. With `finite` the lines are taken to be finite, and asked nothing; a bound that meets one which is
    not has the minimum -inf. After `deadline` (of `time.monotonic`) a pass raises OutOfTime at its next node. At the
    nodes `ends` it ends with their enclosures."""

    rounding: bool = True
    windows: bool = False
    finite: bool = False
    deadline: float = math.inf
    ends: frozenset[int] = frozenset()


@dataclass(frozen=True, eq=False)
class LinearBound:
    """R linear forms of the inputs that lie below R linear forms of inner nodes, for B subdomains.

    `coefficients` maps an input node to [B or 1, R, *shape]; `constant` is [B, R], and `error` [B, R] or None
    bounds what rounding may have added to coefficients and constant together. `patches` are coefficients too, of
    further input nodes; only `minimum` knows them. `widest` says how many numbers one row had at most on the way.
    """

    coefficients: dict[int, Tensor]
    constant: Tensor
    error: Tensor | None
    patches: Mapping[int, Patches] = field(default_factory=dict)
    widest: int = 0

    def minimum(self, graph: Graph, sets: Sequence[InputSet]) -> Tensor:
        """The forms' lower bounds over the input sets: [B, R], rounding subtracted."""
        total = self.constant
        for position, inputs in zip(graph.inputs, sets, strict=True):
            if position in self.coefficients:
                total = total + inputs.minimum(self.coefficients[position])
            if position in self.patches:
                total = total + inputs.minimum_of(self.patches[position])
        if self.error is not None:
            total = total - self.error
        # Positive infinity is an overflow of some part, whatever the others are: nothing is known.
        return torch.nan_to_num(total, nan=-torch.inf, posinf=-torch.inf, neginf=-torch.inf)

    def index(self, chosen: Tensor) -> LinearBound:
        """Select instances; tensors shared by all of them (B = 1) stay as they are."""

        def pick(t: Tensor) -> Tensor:
            return t if t.shape[0] == 1 else t[chosen]

        coefficients = {i: pick(c) for i, c in self.coefficients.items()}
        return LinearBound(
            coefficients, pick(self.constant), None if self.error is None else pick(self.error)
        )

    def where(self, chosen: Tensor, other: LinearBound) -> LinearBound:
        """Row by row this one where `chosen` [B, R] holds, else `other`; both bound the same rows."""
        coefficients = {
            i: torch.where(chosen.view(*chosen.shape, *([1] * (c.dim() - 2))), c, other.coefficients[i])
            for i, c in self.coefficients.items()
        }
        error = None
        if self.error is not None and other.error is not None:
            error = torch.where(chosen, self.error, other.error)
        return LinearBound(coefficients, torch.where(chosen, self.constant, other.constant), error)


def backward(
    graph: Graph,
    start: Mapping[int, Coefficients],
    relaxations: Mapping[int, Relaxation],
    bounds: Mapping[int, Interval],
    how: PassOptions = PassOptions(),
    record: dict[int, Tensor] | None = None,
) -> LinearBound:
    """Bound sum over nodes of <start[node], value of node> from below by linear forms of the inputs.

    `relaxations` holds one Relaxation per Elementwise node that the start nodes depend on, slopes [B,
    *shape], or [B, G, *shape] with G dividing R when groups of consecutive rows have slopes of their own.
    `bounds` encloses the same nodes; it is used at ends, and for rounding errors, which are bounded rigorously
    (running error analysis, Higham 2002, chapter 3: each step's relative error times the magnitude of the
    terms it sums) and returned. The coefficients that arrive at the nodes named in `record` are stored there.
    """
    rounding, finite = how.rounding, how.finite
    pending: dict[int, Coefficients] = dict(start)
    queue = [-i for i in pending]
    heapq.heapify(queue)
    inputs: dict[int, Tensor] = {}
    patches: dict[int, Patches] = {}
    constant: Tensor | float = 0.0
    error: Tensor | float = 0.0
    spread: Tensor | float = 0.0  # the sum of what was added to the constant, in magnitude
    steps = widest = 0
    sizes = _Sizes(bounds)
    while queue:
        if time.monotonic() > how.deadline:
            raise OutOfTime
        position = -heapq.heappop(queue)
        coefficients = pending.pop(position)
        if isinstance(coefficients, Patches | Dense):
            widest = max(widest, math.prod(coefficients.values.shape[2:]))
        node = graph.nodes[position]
        if record is not None and position in record:
            record[position] = coefficients.dense()
        if position in how.ends:
            if not isinstance(coefficients, Rows | Scattered):
                coefficients = Dense(coefficients.dense())
            part = _least(coefficients, bounds[position])
            constant, spread, steps = constant + part, spread + part.abs(), steps + 1
            if rounding:
                size = sizes.of(position) + negligible(part.dtype)
                unit = 2 * _unit(size, coefficients.roundings)
                error = error + unit * coefficients.contract(size, absolute=True)
            continue
        shapes = [graph.nodes[j].shape for j in node.inputs]
        if isinstance(node.op, Input):
            if how.windows and isinstance(coefficients, Patches):
                patches[position] = coefficients
            else:
                coefficients = Dense(coefficients.dense())
                inputs[position] = coefficients.values
            if rounding:
                size = sizes.of(position) + negligible(bounds[position].lower.dtype)
                unit = _unit(size, coefficients.roundings)
                error = error + unit * coefficients.contract(size, absolute=True)
            continue
        if isinstance(node.op, Constant):
            value = node.op.forward()
            part = coefficients.contract(value)
            constant, spread, steps = constant + part, spread + part.abs(), steps + 1
            if rounding:
                size = value.abs() + negligible(value.dtype)
                unit = _unit(value, coefficients.roundings)
                error = error + unit * coefficients.contract(size, absolute=True)
            continue
        if isinstance(node.op, Affine):
            offset = node.op.offset(*shapes)
            if offset is not None:
                offset = offset.to(bounds[position].lower).unsqueeze(0)
                part = coefficients.contract(offset)
                constant, spread, steps = constant + part, spread + part.abs(), steps + 1
            if rounding:
                error = error + _affine_error(graph, position, coefficients, offset, sizes)
            parts = [_pulled(node.op, coefficients, k, shapes) for k in range(len(node.inputs))]
        elif _is_copy(node.op, relaxations.get(position)):
            parts = [coefficients]
        elif isinstance(node.op, Elementwise):
            if isinstance(coefficients, Several) and (image := image_of(node.shape)) is not None:
                coefficients = _total([single(part, image) for part in coefficients.parts])
            relaxation = relaxations[position] if finite else sane(relaxations[position])
            if isinstance(coefficients, Factored) and not keeps_factors(coefficients, relaxation, node.shape):
                coefficients = Dense(coefficients.dense())
            if not isinstance(coefficients, Patches | Factored | Rows | Scattered):
                coefficients = Dense(coefficients.dense())
            parts, shift = through(coefficients, relaxation, node.shape, finite or relaxation.finite)
            if shift is not None:
                constant, spread, steps = constant + shift, spread + shift.abs(), steps + 1
            if rounding:
                reach = [sizes.of(j) for j in node.inputs]
                units = node.op.relaxation_error + 4
                size = through_error(coefficients, relaxation, reach, node.shape, units)
                size = size + units * sizes.flushed(node.inputs)
                error = error + torch.finfo(size.dtype).eps * size
            parts = parts[: len(parts) - node.op.silent]
        else:
            raise TypeError(f"{type(node.op).__name__} is neither affine nor elementwise; rewrite it first.")
        for j, part in zip(node.inputs, parts, strict=False):
            if j in pending:
                pending[j] = pending[j].add(part)
                if rounding:  # what comes next may cancel this sum
                    size = pending[j].contract(sizes.of(j), absolute=True)
                    error = error + torch.finfo(size.dtype).eps * size
            else:
                pending[j] = part
                heapq.heappush(queue, -j)
    if not isinstance(constant, Tensor):
        some = [*inputs.values(), *[p.values for p in patches.values()]]
        reference = some[0] if some else next(iter(start.values())).dense()
        constant = reference.new_zeros(reference.shape[0], reference.shape[1])
    if isinstance(error, Tensor) and isinstance(spread, Tensor):
        error = error + steps * torch.finfo(spread.dtype).eps * spread
    return LinearBound(inputs, constant, error if isinstance(error, Tensor) else None, patches, widest)


def _is_copy(op: Op, relaxation: Relaxation | None) -> bool:
    """Whether a node's lines are its first argument."""
    return (
        isinstance(op, Elementwise)
        and op.copies
        and relaxation is not None
        and relaxation.lower_intercept is None
        and relaxation.upper_intercept is None
    )


def _least(coefficients: Rows | Scattered | Dense, x: Interval) -> Tensor:
    """The forms' minima [B, R] over a box that holds the interval, within the rounding of a middle."""
    middle = x.center
    radius = torch.maximum(x.upper - middle, middle - x.lower)
    if isinstance(coefficients, Rows | Scattered):
        return coefficients.contract(middle) - coefficients.contract(radius, absolute=True)
    # `absolute` takes sums that are exact enough for error bounds alone.
    return coefficients.contract(middle) - contract(coefficients.values.abs(), radius)


def _pulled(op: Affine, coefficients: Coefficients, index: int, shapes: Sequence[Shape]) -> Coefficients:
    """`op.backward`, of several entries a row one after the other where they stay structured."""
    if isinstance(coefficients, Several):
        first = op.backward(coefficients.parts[0], index, *shapes)
        if not isinstance(first, Dense):
            return _total([first, *[op.backward(p, index, *shapes) for p in coefficients.parts[1:]]])
    return op.backward(coefficients, index, *shapes)


def _total(parts: Sequence[Coefficients]) -> Coefficients:
    total = parts[0]
    for part in parts[1:]:
        total = total.add(part)
    return total


class _Sizes:
    """The largest absolute values [B, *shape] that nodes can have, each taken once in a pass."""

    def __init__(self, bounds: Mapping[int, Interval]) -> None:
        self._bounds = bounds
        self._known: dict[int, Tensor] = {}
        self._sums: dict[int, Tensor] = {}

    def of(self, node: int) -> Tensor:
        if node not in self._known:
            self._known[node] = self._bounds[node].magnitude
        return self._known[node]

    def flushed(self, nodes: Sequence[int]) -> Tensor:
        """What coefficients of these nodes that underflow may cost, in units of rounding: [B, 1]."""
        for j in nodes:
            if j not in self._sums:
                size = self.of(j)
                self._sums[j] = negligible(size.dtype) * size.flatten(1).sum(1, keepdim=True)
        return torch.as_tensor(sum(self._sums[j] for j in nodes))


def _affine_error(
    graph: Graph,
    position: int,
    coefficients: Coefficients,
    offset: Tensor | None,
    sizes: _Sizes,
) -> Tensor | float:
    """The rounding of one affine step: of the coefficients' product with the matrix and with the constant.

    An element of A W is a sum of at most `fan_out` products, so what it may be wrong by, times |x|, sums up to
    at most that many units of |A| |W| |x| (Higham 2002, section 3.1); A c, summed as `contract` does, to `roundings`
    units of |A| |c|. What the operator itself is uncertain of counts twice, for the sake of its own rounding. One
    contraction with all of them weighted by their units gives the sum.
    """
    node = graph.nodes[position]
    shapes = [graph.nodes[j].shape for j in node.inputs]
    assert isinstance(node.op, Affine)
    units = node.op.fan_out(*shapes)
    if isinstance(coefficients, Several) and not node.op.exact:
        units += len(coefficients.parts)  # whose products are added afterwards
    doubt = node.op.uncertainty(*shapes)
    if node.op.exact and units <= 1 and offset is None and doubt is None:
        return 0.0
    reach = [sizes.of(j) for j in node.inputs]
    tiny = negligible(reach[0].dtype)
    weight = (units + 4) * (node.op.absolute(*reach) + tiny)
    if offset is not None:
        weight = weight + (coefficients.roundings + 4) * (offset.abs() + tiny)
    unit = rounding_of(weight.dtype, max(units, node.op.fan_in(*shapes), coefficients.roundings))
    if doubt is not None:
        weight = weight + 2 / unit * doubt
    return unit * (coefficients.contract(weight, absolute=True) + (units + 4) * sizes.flushed(node.inputs))


def _unit(like: Tensor, terms: int) -> float:
    return (terms + 4) * rounding_of(like.dtype, terms)


def rounding_of(dtype: torch.dtype, terms: int) -> float:
    """A bound on one rounding, with what the error bound itself may lose in sums of `terms` terms: eps is twice the
    rounding; of short sums (2^14 roundings of 2^-24 are 0.1 %) a fiftieth is enough."""
    return torch.finfo(dtype).eps * (0.51 if terms <= 1 << 14 else 1.0)
