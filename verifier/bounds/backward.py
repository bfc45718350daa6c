"""Backward linear bound propagation (CROWN, Zhang et al. 2018; on general graphs, Xu et al. 2020)."""

from __future__ import annotations

import heapq
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from verifier.graph import Affine, Elementwise, Graph, Interval, Relaxation
from verifier.graph.coefficients import Coefficients, Dense
from verifier.graph.op import Constant, Input, Shape
from verifier.sets import InputSet
from verifier.sets.input_set import contract


@dataclass(frozen=True, eq=False)
class LinearBound:
    """R linear forms of the inputs that lie below R linear forms of inner nodes, for B subdomains.

    `coefficients` maps an input node to [B or 1, R, *shape]; `constant` is [B, R], and `error` [B, R] or None
    bounds what rounding may have added to coefficients and constant together.
    """

    coefficients: dict[int, Tensor]
    constant: Tensor
    error: Tensor | None

    def minimum(self, graph: Graph, sets: Sequence[InputSet]) -> Tensor:
        """The forms' lower bounds over the input sets: [B, R], rounding subtracted."""
        total = self.constant
        for position, inputs in zip(graph.inputs, sets, strict=True):
            if position in self.coefficients:
                total = total + inputs.minimum(self.coefficients[position])
        if self.error is not None:
            total = total - self.error
        return torch.nan_to_num(total, nan=-torch.inf, posinf=torch.inf, neginf=-torch.inf)

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
    rounding: bool = True,
) -> LinearBound:
    """Bound sum over nodes of <start[node], value of node> from below by linear forms of the inputs.

    `relaxations` holds one Relaxation per Elementwise node that the start nodes depend on, slopes [B,
    *shape], or [B, G, *shape] with G dividing R when groups of consecutive rows have slopes of their own.
    `bounds` encloses the same nodes; it is used only for rounding errors, which are bounded rigorously
    (running error analysis, Higham 2002, chapter 3: each step's relative error times the magnitude of the
    terms it sums) and returned.
    """
    pending: dict[int, Coefficients] = dict(start)
    queue = [-i for i in pending]
    heapq.heapify(queue)
    inputs: dict[int, Tensor] = {}
    constant: Tensor | float = 0.0
    error: Tensor | float = 0.0
    while queue:
        position = -heapq.heappop(queue)
        coefficients = pending.pop(position)
        node = graph.nodes[position]
        shapes = [graph.nodes[j].shape for j in node.inputs]
        if isinstance(node.op, Input):
            dense = coefficients.dense()
            inputs[position] = dense
            if rounding:
                error = error + _unit(dense, node.numel) * contract(dense.abs(), bounds[position].magnitude)
            continue
        if isinstance(node.op, Constant):
            constant = constant + contract(coefficients.dense(), node.op.forward())
            continue
        if isinstance(node.op, Affine):
            offset = node.op.offset(*shapes)
            needs_dense = offset is not None or (rounding and not node.op.exact)
            dense = coefficients.dense() if needs_dense else None
            if dense is not None and offset is not None:
                constant = constant + contract(dense, offset.to(dense).unsqueeze(0))
            if dense is not None and rounding:
                magnitude = node.op.absolute(*[bounds[j].magnitude for j in node.inputs])
                if offset is not None:
                    magnitude = magnitude + offset.to(dense).abs()
                units = node.op.fan_in(*shapes) + (node.numel if offset is not None else 0)
                error = error + _unit(dense, units) * contract(dense.abs(), magnitude)
            parts = [node.op.backward(coefficients, k, *shapes) for k in range(len(node.inputs))]
        elif isinstance(node.op, Elementwise):
            dense = coefficients.dense()
            relaxation = relaxations[position]
            parts, shift = _through(dense, relaxation, node.shape)
            if shift is not None:
                constant = constant + shift
            if rounding:
                boxes = [bounds[j] for j in node.inputs]
                units = node.op.relaxation_error + (0 if shift is None else node.numel)
                error = error + _relaxation_error(dense, relaxation, boxes, units)
        else:
            raise TypeError(f"{type(node.op).__name__} is neither affine nor elementwise; rewrite it first.")
        for j, part in zip(node.inputs, parts, strict=True):
            if j in pending:
                pending[j] = pending[j].add(part)
            else:
                pending[j] = part
                heapq.heappush(queue, -j)
    some = next(iter(inputs.values()), None)
    if not isinstance(constant, Tensor):
        reference = some if some is not None else next(iter(start.values())).dense()
        constant = reference.new_zeros(reference.shape[0], reference.shape[1])
    return LinearBound(inputs, constant, error if isinstance(error, Tensor) else None)


def _unit(like: Tensor, terms: int) -> float:
    return (terms + 4) * torch.finfo(like.dtype).eps


def _grouped(dense: Tensor, relaxation: Relaxation, shape: Shape) -> Tensor:
    """`dense` [B, R, *shape] as [B, G, R / G, *shape], G the number of groups of rows with their own
    slopes."""
    groups = 1
    for tensor in (*relaxation.lower_slopes, *relaxation.upper_slopes):
        if tensor.dim() > len(shape) + 1:
            groups = max(groups, tensor.shape[1])
    return dense.unflatten(1, (groups, -1))


def _through(dense: Tensor, relaxation: Relaxation, shape: Shape) -> tuple[list[Coefficients], Tensor | None]:
    """One step through an elementwise operator: positive coefficients take the lower line, negative the
    upper."""
    wide = _grouped(dense, relaxation, shape)
    rising = wide > 0
    parts: list[Coefficients] = []
    for low, high in zip(relaxation.lower_slopes, relaxation.upper_slopes, strict=True):
        slope = torch.where(rising, _spread(low, shape), _spread(high, shape))
        parts.append(Dense((wide * slope).flatten(1, 2)))
    shift = None
    if relaxation.lower_intercept is not None:
        shift = _contract_groups(wide.clamp(min=0), relaxation.lower_intercept, shape)
    if relaxation.upper_intercept is not None:
        term = _contract_groups(wide.clamp(max=0), relaxation.upper_intercept, shape)
        shift = term if shift is None else shift + term
    return parts, shift


def _spread(slope: Tensor, shape: Shape) -> Tensor:
    return slope.unsqueeze(1).unsqueeze(1) if slope.dim() == len(shape) + 1 else slope.unsqueeze(2)


def _contract_groups(wide: Tensor, x: Tensor, shape: Shape) -> Tensor:
    """<wide [B, G, R / G, *shape], x [B, *shape] or [B, G, *shape]>: [B, R]; unbounded x with zero weight is
    0."""
    flat = wide.flatten(3)
    if x.dim() == len(shape) + 1:
        return contract(flat.flatten(1, 2), _finite(x))
    groups = _finite(x).flatten(2).unsqueeze(3)
    return torch.matmul(flat, groups.expand(-1, flat.shape[1], -1, -1)).squeeze(3).flatten(1, 2)


def _finite(x: Tensor) -> Tensor:
    """Infinite intercepts become the largest number, whose square overflows: no bound, without 0 * inf."""
    big = torch.finfo(x.dtype).max
    return torch.nan_to_num(x, nan=torch.nan, posinf=big, neginf=-big)


def _relaxation_error(dense: Tensor, relaxation: Relaxation, boxes: Sequence[Interval], units: int) -> Tensor:
    """Rounding of one elementwise step: `units` of |coefficient| (|slope| |x| + |intercept|), the larger
    line."""
    shape = tuple(boxes[0].lower.shape[1:])
    wide = _grouped(dense, relaxation, shape)

    def magnitude(slopes: Sequence[Tensor], intercept: Tensor | None) -> Tensor:
        total: Tensor | float = 0.0 if intercept is None else intercept.abs()
        for slope, box in zip(slopes, boxes, strict=True):
            size = box.magnitude if slope.dim() == len(shape) + 1 else box.magnitude.unsqueeze(1)
            total = slope.abs() * size + total
        return torch.as_tensor(total)

    lower = magnitude(relaxation.lower_slopes, relaxation.lower_intercept)
    upper = magnitude(relaxation.upper_slopes, relaxation.upper_intercept)
    if lower.dim() != upper.dim():
        short, long = sorted((lower, upper), key=Tensor.dim)
        lower, upper = short.unsqueeze(1), long
    return _unit(dense, units) * _contract_groups(wide.abs(), torch.maximum(lower, upper), shape)
