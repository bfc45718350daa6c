"""Clipping of inner enclosures with the plane of a bound (Clip-and-Verify, Zhou et al. 2025).

Where the property is violated, the plane below its margin is at most zero: p x + c <= 0. With a linear form q x + d
below a neuron on the whole box, computed once, its least value there is at least

    max over m >= 0 of min over the box of (q + m p) x + d + m c,

concave in m. The closer the bound is to zero, the smaller the part of the box that is left, and the tighter the
neurons: often so tight that the next bound is positive, which saves the whole tree below.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from verifier.bounds.backward import PassOptions, backward
from verifier.bounds.crown import Effort, inner_bounds
from verifier.bounds.relaxations import Relaxations
from verifier.bounds.rows import refinable, select
from verifier.graph import Graph, Interval
from verifier.sets import Box

SPREAD = (-2.0, 6.0)
"""Powers of two between which multipliers are sought, in units of what makes both forms equally large."""
HALVINGS = 3
NEURONS = 150
"""Neurons per subdomain that are clipped: those whose relaxations cost the bound most."""
_CHUNK = {"cpu": 1 << 21, "cuda": 1 << 26}
"""Coefficients treated at once."""


@dataclass(frozen=True, eq=False)
class NeuronPlanes:
    """Linear forms on one box below N neurons and below their negatives: `matrix` [2, N, inputs] in units of the box's
    radius; in float64 `middle` [2, N], their values at its center, and `reach` [2, N], the sums of |q| |x|.
    `columns` are the flat elements of each node that the neurons are, one node after another."""

    columns: Mapping[int, Tensor]
    matrix: Tensor
    middle: Tensor
    reach: Tensor
    center: Tensor
    radius: Tensor

    @property
    def chunk(self) -> int:
        """How many forms are treated at once."""
        return max(1, _CHUNK[self.matrix.device.type] // self.matrix.shape[2])

    def least(self, plane: Tensor, constant: Tensor) -> Tensor:
        """The minimum over the box of forms [M, inputs], float64, with constants [M]."""
        return constant + plane @ self.center.double() - plane.abs() @ self.radius.double()

    def width(self, plane: Tensor) -> Tensor:
        """How much forms [M, inputs], float64, vary over the box: [M]."""
        return 2 * plane.abs() @ self.radius.double()

    def clip(
        self, known: Mapping[int, Interval], gaps: Mapping[int, Tensor], plane: Tensor, constant: Tensor
    ) -> dict[int, Interval]:
        """`known` [M, *shape], tighter where plane x + constant <= 0: float64 [M, inputs] and [M], any sign outside."""
        cost = torch.cat([gaps[i].flatten(1)[:, c] for i, c in self.columns.items()], 1)
        values, chosen = cost.topk(min(NEURONS, cost.shape[1]), dim=1)
        size = max(1, self.chunk // (2 * chosen.shape[1]))
        every = torch.arange(len(plane), device=plane.device)
        ends = torch.cat([self._ends(plane[r], constant[r], chosen[r]) for r in every.split(size)])
        ends = torch.where((values > 0).unsqueeze(1), ends, -torch.inf)
        ends = ends.new_full((len(plane), 2, cost.shape[1]), -torch.inf).scatter(
            2, chosen.unsqueeze(1).expand(-1, 2, -1), ends
        )
        result = dict(known)
        parts = ends.split([len(c) for c in self.columns.values()], dim=2)
        for (i, column), part in zip(self.columns.items(), parts, strict=True):
            low, high = Interval.everything(len(plane), known[i].lower).map(lambda t: t.flatten(1))
            low[:, column], high[:, column] = part[:, 0], -part[:, 1]
            shape = known[i].lower.shape
            result[i] = known[i].intersect(Interval(low.view(shape), high.view(shape)))
        return result

    def _ends(self, plane: Tensor, constant: Tensor, chosen: Tensor) -> Tensor:
        """Least values [m, 2, K] of the chosen neurons and of their negatives."""
        dtype = self.matrix.dtype
        forms, middle, own = [t[:, chosen].transpose(0, 1) for t in (self.matrix, self.middle, self.reach)]
        level = (constant + plane @ self.center.double())[:, None, None]
        scaled = (plane * self.radius).to(dtype)[:, None, None]
        value, factor = constrained(forms, middle, scaled, level)
        # Products and casts round in the forms' precision, sums in float64; forms may underflow.
        info, inputs = torch.finfo(dtype), plane.shape[1]
        reach = (constant.abs() + plane.abs() @ (self.center.abs() + self.radius).double())[:, None, None]
        units = 16 * info.eps + 4 * inputs * torch.finfo(torch.float64).eps
        value = value - units * (own + factor * reach) - inputs * info.tiny * (2 + factor)
        return Interval(value, -value).narrow(dtype).lower.nan_to_num(nan=-torch.inf, posinf=-torch.inf)

    def places(self, node: int, column: Tensor) -> Tensor:
        """Which neurons the elements `column` of a node are, -1 where they are none."""
        if node not in self.columns:
            return torch.full_like(column, -1)
        own = self.columns[node]
        start = sum(len(c) for i, c in self.columns.items() if i < node)
        at = torch.searchsorted(own, column).clamp(max=len(own) - 1)
        return torch.where(own[at] == column, start + at, -1)


def constrained(q: Tensor, middle: Tensor, p: Tensor, level: Tensor) -> tuple[Tensor, Tensor]:
    """Lower bounds, in float64 but for the rounding of their terms, of q u + middle over |u| <= 1 where
    p u + level <= 0, and the multipliers that give them: q [..., n], p broadcast to it, the others [...].

    The slope in the multiplier m is level - |p| + 2 (the |p| of those elements whose sign p decides not), by which
    the best m is found by halving.
    """
    size = p.abs()
    total = size.sum(-1)
    q = q * p.sign()
    slack = (total - level).clamp(min=0)
    unit = q.abs().sum(-1) / total.clamp(min=torch.finfo(q.dtype).tiny)
    low, high = torch.full_like(unit, SPREAD[0]), torch.full_like(unit, SPREAD[1])
    for _ in range(HALVINGS):
        power = (low + high) / 2
        moved = torch.addcmul(q, (unit * power.exp2()).unsqueeze(-1), size)
        mass = torch.where(moved < 0, size, torch.zeros_like(size)).sum(-1)
        more = 2 * mass > slack
        low, high = torch.where(more, power, low), torch.where(more, high, power)
    factor = unit * ((low + high) / 2).exp2()
    moved = torch.addcmul(q, factor.unsqueeze(-1), size)
    return middle + factor * level - moved.abs_().sum(-1, dtype=torch.float64), factor


@dataclass(frozen=True)
class PlaneLimits:
    """How many numbers the matrix of the forms may have; after `deadline` (of `time.monotonic`) OutOfTime is raised."""

    numbers: int
    deadline: float = math.inf


def neuron_planes(
    graph: Graph,
    box: Box,
    nodes: Sequence[int],
    target: int,
    known: Mapping[int, Interval],
    limits: PlaneLimits,
) -> NeuronPlanes | None:
    """The forms of all undecided neurons of `nodes` for one box (batch 1) by the usual relaxations; None where there
    are none or the matrix would be too large. `known` encloses the nodes, [1, *shape]."""
    bounds = inner_bounds(graph, [box], [target], known, effort=Effort(refine=False))
    masks = {i: mask for i in nodes if (mask := refinable(graph, i, bounds)) is not None}
    chosen = {i: select(mask, graph.nodes[i].shape) for i, mask in masks.items()}
    selections = {i: selection for i, selection in chosen.items() if selection is not None}
    columns = {i: selection.index[0] for i, selection in selections.items()}
    inputs = graph.nodes[graph.inputs[0]].numel
    if not columns or 2 * inputs * sum(len(c) for c in columns.values()) > limits.numbers:
        return None
    ends = box.box().map(lambda t: t.flatten())
    center = (ends.lower + ends.upper) / 2
    radius = torch.maximum(ends.upper - center, center - ends.lower)
    lines, how = Relaxations(graph, bounds), PassOptions(deadline=limits.deadline)
    matrices, middles, reaches = [], [], []
    for i, selection in selections.items():
        window = graph.window(i, None)
        step = max(1, (1 << 22) // max(graph.nodes[j].numel for j in window.nodes))
        for first in range(0, len(columns[i]), step):
            rows = selection.rows(ends.lower, first, first + step)
            found = backward(graph, {i: rows}, lines.of(i, slice(None), window), bounds, how)
            plane = found.coefficients[graph.inputs[0]][0].flatten(1)
            constant = found.constant[0] if found.error is None else found.constant[0] - found.error[0]
            constant, exact = constant.double().expand(len(plane)), plane.double()
            middle = constant + exact @ center.double()
            reach = exact.abs() @ (center.abs() + radius).double() + constant.abs()
            matrices.append((plane * radius).view(2, -1, inputs))
            middles.append(middle.view(2, -1))
            reaches.append(reach.view(2, -1))
    matrix, middle, reach = [torch.cat(parts, 1) for parts in (matrices, middles, reaches)]
    return NeuronPlanes(columns, matrix, middle, reach, center, radius)
