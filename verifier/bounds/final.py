"""The final pass alone, with optimised slopes and multipliers of split constraints, on fixed inner bounds.

The inner bounds cost most of a pass and the final one little, so this is the cheap part of alpha-CROWN (Xu et al.
2021), and with split constraints beta-CROWN (Wang et al. 2021): a constraint low <= x <= high on a node enters the
bound with multipliers a, b >= 0 as a (low - x) + b (x - high), which is not positive wherever it holds.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from verifier.bounds.alike import alike, parameters_of, relaxations_of
from verifier.bounds.ascent import Adam, Free, Leaves, Pool
from verifier.bounds.backward import LinearBound, OutOfTime, PassOptions, backward
from verifier.bounds.cuts import Cuts
from verifier.bounds.interval import Bounds
from verifier.bounds.lines import is_finite
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
    """R rows of `target` over B instances, on fixed enclosures `bounds` of the inner nodes. `warm` are parameters to
    start from (NaN: not given). After `deadline` (of `time.monotonic`) a pass raises OutOfTime."""

    graph: Graph
    sets: Sequence[InputSet]
    target: int
    rows: Coefficients
    count: int
    bounds: Bounds
    splits: Splits = field(default_factory=dict)
    cuts: Cuts | None = None
    deadline: float = math.inf
    warm: Leaves = field(default_factory=dict)

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
        """The free parameters of every elementwise node; the enclosures are fixed, and so are these. Where all of them
        are given, only their ranges are asked for, which may cost a tenth."""
        found: dict[int, dict[str, Parameter]] = {}
        given = self._given
        for nodes, start in ((self.operators.keys() - given, True), (given, False)):
            for group in alike(self.graph, sorted(nodes), self.batch):
                own = parameters_of(self.operators[group[0]], [self._boxes(j) for j in group], start)
                found.update(zip(group, own, strict=True))
        return found

    @cached_property
    def _given(self) -> set[int]:
        """The nodes whose parameters are given for all elements."""
        own = {j: self.warm[self.target, j] for j in self.operators if self.warm.get((self.target, j))}
        if not own:
            return set()
        whole = torch.stack([torch.stack([t.isnan().any() for t in v.values()]).any() for v in own.values()])
        return {j for j, missing in zip(own, whole.tolist(), strict=True) if not missing}

    @cached_property
    def split_ends(self) -> dict[int, Interval]:
        """The ends of the split constraints, [B, 1, *shape], zero where there is no constraint."""
        return {
            i: ends.map(lambda t: torch.where(t.isfinite(), t, 0.0).unsqueeze(1))
            for i, ends in self.splits.items()
        }

    @cached_property
    def lines(self) -> dict[int, Relaxation]:
        """The starting lines."""
        found: dict[int, Relaxation] = {}
        for group in alike(self.graph, self.operators, self.batch):
            starts = [{name: p.value for name, p in self.ranges[j].items()} for j in group]
            own = relaxations_of(self.operators[group[0]], starts, [self._boxes(j) for j in group])
            found.update(zip(group, own, strict=True))
        return found

    def _boxes(self, node: int) -> list[Interval]:
        return [self.bounds[k] for k in self.graph.nodes[node].inputs]

    def run(
        self,
        leaves: Leaves,
        rounding: bool,
        record: dict[int, Tensor] | None = None,
        lines: Mapping[int, Relaxation] | None = None,
        finite: bool = False,
    ) -> tuple[LinearBound, Tensor]:
        """The bound at given parameters (inside their ranges), and its minimum [B, R]; some nodes may be given other
        `lines`. Without `rounding` it is an estimate, by sketches where operators have them. Where lines are `finite`
        nothing asks whether they are."""
        start: dict[int, Coefficients] = {self.target: self.rows}
        shift: Tensor | float = 0.0
        slack: Tensor | float = 0.0
        for node, ends in self.split_ends.items():
            own = leaves.get((self.target, node), {})
            if LOW not in own:
                continue
            low, high = own[LOW].squeeze(1), own[HIGH].squeeze(1)
            start[node] = Dense((high - low).expand(self.batch, -1, *ends.lower.shape[2:]))
            terms = [low * ends.lower, high * ends.upper]
            shift = shift + (terms[0] - terms[1]).flatten(2).sum(2)
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
        chosen = {} if lines is None else dict(lines)
        chosen.update(self._lines_at(leaves, self.operators.keys() - chosen, sketch=not rounding))
        how = PassOptions(rounding, finite=finite, deadline=self.deadline)
        plane = backward(self.graph, start, chosen, self.bounds, how, record)
        if self.splits or self.cuts is not None:
            error = plane.error if plane.error is None else plane.error + slack
            plane = LinearBound(plane.coefficients, plane.constant + shift, error)
        return plane, plane.minimum(self.graph, self.sets).expand(self.batch, -1)

    def _lines_at(self, leaves: Leaves, nodes: Collection[int], sketch: bool) -> dict[int, Relaxation]:
        """The lines of nodes, with slopes per row [B, R, *shape] where a node has leaves, else [B, *shape]."""
        free = [j for j in nodes if leaves.get((self.target, j), {}).keys() & self.ranges[j].keys()]
        found = {j: self.lines[j] for j in nodes} if len(free) < len(nodes) else {}
        for group in alike(self.graph, free, self.batch * self.count):
            chosen = []
            for j in group:
                own, ranges = leaves[self.target, j], self.ranges[j].items()
                chosen.append({n: own[n].squeeze(1) if n in own else p.value.unsqueeze(1) for n, p in ranges})
            boxes = [[b.map(lambda t: t.unsqueeze(1)) for b in self._boxes(j)] for j in group]
            own = relaxations_of(self.operators[group[0]], chosen, boxes, sketch)
            found.update(zip(group, own, strict=True))
        return found

    def ascend(self, options: AscentOptions, record: Sequence[int] = ()) -> Ascent:
        """Optimise from the plain relaxations, or from those given; the best of every row is kept and recomputed with
        rounding errors. `record` names nodes whose coefficients are wanted."""
        pool = self._pool()
        found: Leaves = {}
        if pool is not None:
            best = self._optimise(pool, options)[1] if options.steps else pool.values
            found = pool.leaves(pool.parts(best))
        seen: dict[int, Tensor] = dict.fromkeys(record, self.bounds[self.graph.inputs[0]].lower)
        with torch.no_grad():
            plane, lower = self.run(found, rounding=True, record=seen)
        return Ascent(plane, lower, found, seen)

    def values(self, options: AscentOptions) -> Tensor:
        """The best lower bounds [B, R] that `ascend` would find, rounding left aside: estimates."""
        pool = self._pool()
        if pool is None:
            return self.run({}, rounding=False)[1]
        return self._optimise(pool, options)[0]

    def _optimise(self, pool: Pool, options: AscentOptions) -> tuple[Tensor, Tensor]:
        """The best values [B, R] and the parameters [B, R, N] that gave them."""
        adam = Adam([pool.values], [pool.scale], options.rate, options.decay)
        parts = [t.detach().requires_grad_() for t in pool.parts(pool.values)]
        leaves = pool.leaves(parts)
        best, most = pool.values.clone(), None
        tame = False
        for step in range(options.steps + 1):
            if time.monotonic() > self.deadline:
                raise OutOfTime
            seen = dict.fromkeys(self.splits, torch.empty(0)) if step == 0 else None
            with torch.enable_grad():
                lines = self._lines_at(leaves, self.operators.keys(), sketch=True)
                if step == 0:  # steps need not ask: a bound that is not finite is passed over
                    tame = is_finite(lines.values())
                _, lower = self.run(leaves, rounding=False, record=seen, lines=lines, finite=tame)
                total = torch.where(lower.isfinite(), lower, 0.0).sum()
            lower = lower.detach()
            if most is None:
                most = lower
            else:
                best = torch.where((lower > most).unsqueeze(2), pool.values, best)
                most = torch.maximum(lower, most)
            if seen is not None:
                self._measure(pool, seen, lower)
            if step == options.steps or not total.requires_grad:
                break
            adam.step([pool.joined(torch.autograd.grad(total, parts, allow_unused=True))])
            pool.project()
        assert most is not None
        return most, best

    def _pool(self) -> Pool | None:
        """The free parameters, where they are given so; None where nothing is free."""
        slopes = [(j, name, p) for j in self.operators for name, p in self.ranges[j].items()]
        tests = [(p.upper > p.lower).any() for _, _, p in slopes]
        tests += [(e.lower.isfinite() | e.upper.isfinite()).any() for e in self.splits.values()]
        chosen = torch.stack(tests).tolist() if tests else []
        free: list[Free] = []
        for j, name, p in itertools.compress(slopes, chosen):
            start, low, high = [t[:, None, None] for t in (p.value, p.lower, p.upper)]
            scale = self.operators[j].stride * torch.nan_to_num(high - low, nan=0.0, posinf=1.0)
            value = _warm(self.warm, (self.target, j), name, start)
            free.append(Free((self.target, j), name, value, low, high, scale))
        for node, ends in itertools.compress(self.splits.items(), chosen[len(slopes) :]):
            for name, end in ((LOW, ends.lower), (HIGH, ends.upper)):
                zero = torch.zeros_like(end)[:, None, None]
                high = torch.where(end.isfinite(), torch.inf, 0.0).to(end)[:, None, None]
                value = _warm(self.warm, (self.target, node), name, zero)
                free.append(Free((self.target, node), name, value, zero, high, torch.ones_like(zero)))
        if self.cuts is not None:
            key, one = (self.target, min(self.cuts.terms)), torch.ones_like(self.cuts.least).unsqueeze(1)
            value, low = _warm(self.warm, key, CUT, one), torch.zeros_like(one[:, :, :1])
            free.append(Free(key, CUT, value, low, torch.full_like(low, torch.inf), low + CUT_SCALE))
        return Pool(free, self.batch, self.count) if free else None

    def _measure(self, pool: Pool, arrived: Mapping[int, Tensor], lower: Tensor) -> None:
        """Steps of multipliers are measured by the coefficients that they add to; where all of these are zero (an
        operator may be flat between its jumps), by what changes the bound by about itself."""
        scales = pool.leaves(pool.parts(pool.scale))
        missing = torch.nan_to_num(lower.detach(), neginf=0.0).abs().amax(1)
        for node, coefficients in arrived.items():
            size = coefficients.detach().abs().flatten(1).amax(1)
            reach = self.bounds[node].magnitude.flatten(1).amax(1).clamp(min=torch.finfo(size.dtype).tiny)
            size = torch.where(size > 0, size, (missing / reach).nan_to_num(1.0, posinf=1.0))
            own = scales.get((self.target, node), {})
            for scale in [own[name] for name in (LOW, HIGH) if name in own]:
                scale.copy_(0.3 * size.view(-1, *([1] * (scale.dim() - 1))).expand_as(scale))


def _warm(warm: Leaves, key: tuple[int, int], name: str, start: Tensor) -> Tensor:
    """The parameter that is given, where it is given, else its start."""
    given = warm.get(key, {}).get(name)
    return start if given is None else torch.where(given.isnan(), start, given)
