"""The final pass alone, with optimised slopes and multipliers of split constraints, on fixed inner bounds.

The inner bounds cost most of a pass and the final one little, so this is the cheap part of alpha-CROWN (Xu et al.
2021), and with split constraints beta-CROWN (Wang et al. 2021): a constraint low <= x <= high on a node enters the
bound with multipliers a, b >= 0 as a (low - x) + b (x - high), which is not positive wherever it holds.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from verifier.bounds.ascent import Adam, Best, Leaves
from verifier.bounds.backward import LinearBound, backward
from verifier.bounds.crown import OutOfTime
from verifier.bounds.cuts import Cuts
from verifier.bounds.interval import Bounds
from verifier.graph import Elementwise, Graph, Interval, Parameter, Relaxation
from verifier.graph.coefficients import Coefficients, Dense
from verifier.sets import InputSet

LOW, HIGH = "multiplier of the lower split", "multiplier of the upper split"
CUT = "multiplier of the cuts"
CUT_SCALE = 0.1
"""Steps of the cuts' multipliers, which start at 1, are measured by this."""

Splits = Mapping[int, Interval]
"""Split constraints: node to [B, *shape] ends, infinite where there is no constraint."""


@dataclass(frozen=True)
class AscentOptions:
    """`rate` is in units of each parameter's range and is multiplied by `decay` after every step."""

    steps: int = 4
    rate: float = 0.3
    decay: float = 0.9


@dataclass(frozen=True, eq=False)
class Ascent:
    """The best of every row: `plane` (rounding included), its minimum `lower` [B, R], and the parameters that gave
    it, [B, 1, R, *shape], to start from again. `coefficients` are those that arrive at the recorded nodes."""

    plane: LinearBound
    lower: Tensor
    leaves: Leaves
    coefficients: dict[int, Tensor] = field(default_factory=dict)

    def merged(self, better: Ascent, rows: Tensor) -> Ascent:
        """With the results `better` of the instances `rows` where they are better, row by row."""
        batch = len(self.lower)
        wins = better.lower > self.lower[rows]

        def merge(old: Tensor, new: Tensor) -> Tensor:
            old = old.expand(batch, *old.shape[1:])
            mask = wins.view(*wins.shape, *([1] * (old.dim() - 2)))
            return old.index_copy(0, rows, torch.where(mask, new, old[rows]))

        first, second = self.plane, better.plane
        error = None
        if first.error is not None and second.error is not None:
            error = merge(first.error, second.error)
        plane = LinearBound(
            {i: merge(c, second.coefficients[i]) for i, c in first.coefficients.items()},
            merge(first.constant, second.constant),
            error,
        )
        seen = {i: merge(c, better.coefficients[i]) for i, c in self.coefficients.items()}
        leaves = {
            key: {
                n: merge(t.squeeze(1), better.leaves[key][n].squeeze(1)).unsqueeze(1)
                for n, t in own.items()
                if n in better.leaves.get(key, {})
            }
            for key, own in self.leaves.items()
        }
        return Ascent(plane, merge(self.lower, better.lower), leaves, seen)


@dataclass(frozen=True, eq=False)
class FinalPass:
    """R rows of `target` over B instances, on fixed enclosures `bounds` of the inner nodes. After `deadline` (of
    `time.monotonic`) an optimisation raises OutOfTime at its next step."""

    graph: Graph
    sets: Sequence[InputSet]
    target: int
    rows: Coefficients
    count: int
    bounds: Bounds
    splits: Splits = field(default_factory=dict)
    cuts: Cuts | None = None
    deadline: float = math.inf

    @property
    def batch(self) -> int:
        return max(s.batch for s in self.sets)

    @cached_property
    def operators(self) -> dict[int, Elementwise]:
        """The elementwise nodes that the target depends on."""
        found = {j: self.graph.nodes[j].op for j in sorted(self.graph.ancestors(self.target))}
        return {j: op for j, op in found.items() if isinstance(op, Elementwise)}

    @cached_property
    def ranges(self) -> dict[int, dict[str, Parameter]]:
        """The free parameters of every elementwise node; the enclosures are fixed, and so are these."""
        return {j: op.parameters(*self._boxes(j)) for j, op in self.operators.items()}

    @cached_property
    def constrained(self) -> dict[int, Interval]:
        """1 where a split is a constraint and 0 where it is not, per end."""
        return {i: c.map(lambda t: t.isfinite().to(t.dtype)) for i, c in self.splits.items()}

    def _boxes(self, node: int) -> list[Interval]:
        return [self.bounds[k] for k in self.graph.nodes[node].inputs]

    def run(
        self, leaves: Leaves, rounding: bool, record: dict[int, Tensor] | None = None
    ) -> tuple[LinearBound, Tensor]:
        """The bound at given parameters (inside their ranges), and its minimum [B, R]."""
        start: dict[int, Coefficients] = {self.target: self.rows}
        shift: Tensor | float = 0.0
        slack: Tensor | float = 0.0
        for node, ends in self.splits.items():
            own = leaves.get((self.target, node), {})
            if LOW not in own and HIGH not in own:
                continue
            low, high = self._multipliers(own, node)
            start[node] = Dense((high - low).expand(self.batch, -1, *ends.lower.shape[1:]))
            terms = [low * _finite(ends.lower).unsqueeze(1), -high * _finite(ends.upper).unsqueeze(1)]
            shift = shift + sum(t.flatten(2).sum(2) for t in terms)
            if rounding:
                size = sum(t.abs().flatten(2).sum(2) for t in terms)
                units = ends.lower[0].numel() + len(self.splits) + 4
                slack = slack + units * torch.finfo(low.dtype).eps * size
        if self.cuts is not None:
            own = leaves.get((self.target, min(self.cuts.terms)), {})
            factor = own[CUT].squeeze(1) if CUT in own else torch.ones_like(self.cuts.least)
            parts, added, lost = self.cuts.enter(factor, self.bounds)
            for node, part in parts.items():
                part = part.unflatten(2, self.graph.nodes[node].shape)
                start[node] = Dense(part + start[node].dense() if node in start else part)
            shift, slack = shift + added, slack + 2 * lost
        lines = {j: self._relax(j, op, leaves.get((self.target, j), {})) for j, op in self.operators.items()}
        plane = backward(self.graph, start, lines, self.bounds, rounding, record)
        if self.splits or self.cuts is not None:
            error = plane.error if plane.error is None else plane.error + slack
            plane = LinearBound(plane.coefficients, plane.constant + shift, error)
        return plane, plane.minimum(self.graph, self.sets).expand(self.batch, -1)

    def _relax(self, node: int, op: Elementwise, own: Mapping[str, Tensor]) -> Relaxation:
        """With slopes per row [B, R, *shape] where the node has leaves, else [B, *shape]."""
        ranges, boxes = self.ranges[node], self._boxes(node)
        if not own.keys() & ranges.keys():
            return op.relax({name: p.value for name, p in ranges.items()}, *boxes)
        chosen = {n: own[n].squeeze(1) if n in own else p.value.unsqueeze(1) for n, p in ranges.items()}
        return op.relax(chosen, *[box.map(lambda t: t.unsqueeze(1)) for box in boxes])

    def _multipliers(self, own: Mapping[str, Tensor], node: int) -> tuple[Tensor, Tensor]:
        """[B, R, *shape], zero where there is no constraint."""
        mask = self.constrained[node]
        zero = torch.zeros_like(mask.lower).unsqueeze(1)
        low = own[LOW].squeeze(1) * mask.lower.unsqueeze(1) if LOW in own else zero
        high = own[HIGH].squeeze(1) * mask.upper.unsqueeze(1) if HIGH in own else zero
        return low, high

    def ascend(
        self, options: AscentOptions, warm: Leaves | None = None, record: Sequence[int] = ()
    ) -> Ascent:
        """Optimise from the plain relaxations, or from `warm`; the best of every row is kept and recomputed with
        rounding errors. `record` names nodes whose coefficients are wanted."""
        leaves, scales = self._start(warm or {})
        best: Best | None = None
        if leaves and options.steps:
            leaves = {k: {n: t.requires_grad_() for n, t in own.items()} for k, own in leaves.items()}
            best = self._optimise(leaves, scales, options)
        found = leaves if best is None else best.slopes
        found = {k: {n: t.detach() for n, t in own.items()} for k, own in found.items()}
        seen: dict[int, Tensor] = dict.fromkeys(record, self.bounds[self.graph.inputs[0]].lower)
        with torch.no_grad():
            plane, lower = self.run(found, rounding=True, record=seen)
        return Ascent(plane, lower, found, seen)

    def values(self, options: AscentOptions, warm: Leaves | None = None) -> Tensor:
        """The best lower bounds [B, R] that `ascend` would find, rounding left aside: estimates."""
        leaves, scales = self._start(warm or {})
        leaves = {k: {n: t.requires_grad_() for n, t in own.items()} for k, own in leaves.items()}
        return self._optimise(leaves, scales, options).values[self.target].squeeze(1)

    def _optimise(self, leaves: Leaves, scales: Leaves, options: AscentOptions) -> Best:
        adam = Adam(leaves, scales, options.rate, options.decay)
        everything = torch.arange(self.batch, device=self.bounds[self.graph.inputs[0]].lower.device)
        best: Best | None = None
        step = 0
        while True:
            if time.monotonic() > self.deadline:
                raise OutOfTime
            seen = dict.fromkeys(self.splits, torch.empty(0)) if step == 0 else None
            with torch.enable_grad():
                _, lower = self.run(leaves, rounding=False, record=seen)
                total = lower[lower.isfinite()].sum()
            if seen is not None:
                self._measure(scales, seen)
            values = {self.target: lower.detach().unsqueeze(1)}
            if best is None:
                best = Best(leaves, values)
            else:
                best.update(everything, leaves, values)
            if step == options.steps or not total.requires_grad:
                return best
            keys = [(key, name) for key, own in leaves.items() for name in own]
            found = torch.autograd.grad(total, [leaves[k][n] for k, n in keys], allow_unused=True)
            adam.step(leaves, {key: g for key, g in zip(keys, found, strict=True) if g is not None})
            self._project(leaves)
            step += 1

    def _start(self, warm: Leaves) -> tuple[Leaves, Leaves]:
        """Leaves [B, 1, R, *shape] and the scales of their steps [B or 1, 1, 1, *shape]."""
        leaves: Leaves = {}
        scales: Leaves = {}
        for j in self.operators:
            shape = (self.batch, 1, self.count, *self.graph.nodes[j].shape)
            for name, p in self.ranges[j].items():
                width = (p.upper - p.lower)[:, None, None]
                if bool((width > 0).any()):
                    first = warm.get((self.target, j), {}).get(name)
                    value = p.value[:, None, None].expand(shape) if first is None else first
                    value = torch.where(value.isnan(), p.value[:, None, None], value.detach())
                    value = value.clamp(p.lower[:, None, None], p.upper[:, None, None])
                    leaves.setdefault((self.target, j), {})[name] = value.expand(shape).clone()
                    scales.setdefault((self.target, j), {})[name] = torch.nan_to_num(
                        width, nan=0.0, posinf=1.0
                    )
        self._start_multipliers(warm, leaves, scales)
        if self.cuts is not None:
            key = (self.target, min(self.cuts.terms))
            first = warm.get(key, {}).get(CUT)
            value = torch.ones_like(self.cuts.least).unsqueeze(1)
            value = value if first is None else first.nan_to_num(1.0).clamp(min=0)
            leaves.setdefault(key, {})[CUT] = value.expand(self.batch, -1, -1, -1).clone()
            scales.setdefault(key, {})[CUT] = torch.full_like(value[:, :, :1, :1], CUT_SCALE)
        return leaves, scales

    def _start_multipliers(self, warm: Leaves, leaves: Leaves, scales: Leaves) -> None:
        """Multipliers start at zero where `warm` has none."""
        for node, ends in self.splits.items():
            key = (self.target, node)
            shape = (self.batch, 1, self.count, *self.graph.nodes[node].shape)
            for name, end in ((LOW, ends.lower), (HIGH, ends.upper)):
                if not bool(end.isfinite().any()):
                    continue
                first = warm.get(key, {}).get(name)
                value = end.new_zeros(1) if first is None else first.nan_to_num(0.0).clamp(min=0)
                leaves.setdefault(key, {})[name] = value.expand(shape).clone()
                scales.setdefault(key, {})[name] = end.new_ones(self.batch, *([1] * (len(shape) - 1)))

    def _measure(self, scales: Leaves, arrived: Mapping[int, Tensor]) -> None:
        """Steps of multipliers are measured by the coefficients that they add to."""
        for node, coefficients in arrived.items():
            if coefficients.numel():
                size = coefficients.detach().abs().flatten(1).amax(1)
                for name, scale in scales.get((self.target, node), {}).items():
                    if name in (LOW, HIGH):
                        scale.copy_(0.3 * size.view(-1, *([1] * (scale.dim() - 1))).expand_as(scale))

    @torch.no_grad()
    def _project(self, leaves: Leaves) -> None:
        for (_, j), own in leaves.items():
            ranges = self.ranges.get(j, {})
            for name, tensor in own.items():
                if name in (LOW, HIGH, CUT):
                    tensor.clamp_(min=0)
                else:
                    tensor.clamp_(ranges[name].lower[:, None, None], ranges[name].upper[:, None, None])


def _finite(end: Tensor) -> Tensor:
    return torch.where(end.isfinite(), end, torch.zeros_like(end))
