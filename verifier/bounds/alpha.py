"""Optimised relaxations (alpha-CROWN, Xu et al. 2021): gradient ascent on the free relaxation parameters of
the final pass and of the inner bounds that it rests on."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property

import torch
from torch import Tensor

from verifier.bounds.ascent import Adam, Best, Key, Leaves, index_leaves, pick
from verifier.bounds.backward import LinearBound, OutOfTime, PassOptions
from verifier.bounds.crown import (
    Effort,
    gather,
    inner_bounds,
    neuron_bounds,
    refine,
    scatter,
    specification_bound,
)
from verifier.bounds.interval import Bounds, interval_bounds, interval_of
from verifier.bounds.relaxations import Relaxations, Slopes
from verifier.bounds.rows import Selection, copies, pass_on, select, wanted
from verifier.graph import Elementwise, Graph, Interval, Parameter
from verifier.graph.coefficients import Coefficients
from verifier.sets import Box, InputSet

Stop = Callable[[Tensor], Tensor]
OWN, SHARED = 12, 5
"""Tensors of the size of all coefficients that one iteration keeps alive: with slopes for every row (the
slope, its best, gradient, moments, saved values), and with slopes shared by the neurons of a node."""

FEW_PAIRS = 200
"""Pairs of a bounded and an elementwise node up to which inner neurons have slopes of their own. Beyond they cost twice
the time and gain little: nothing where states depend on one element of the last, a hundredth in attention."""


@dataclass(frozen=True)
class AlphaOptions:
    """How to optimise.

    `learning_rate` is in units of each parameter's range and is multiplied by `decay` after every iteration.
    `intermediate` optimises the inner bounds too, where `memory` (bytes) allows. Rows above `threshold` need
    no more work. `stop` maps the best lower bounds so far, [B, R], to a boolean [B] of instances that are
    finished; without it an instance is finished when all its rows are above the threshold. Both see values
    reduced by an estimate of rounding errors. After `deadline` (of `time.monotonic`) the plain pass at the
    beginning raises OutOfTime; an optimisation that comes too late returns what that has found. Passes for inner bounds
    go through `depth` elementwise nodes, as `Effort` says.
    """

    iterations: int = 20
    learning_rate: float = 0.25
    decay: float = 0.95
    intermediate: bool = True
    threshold: float | None = None
    stop: Stop | None = None
    memory: int = 1 << 30
    deadline: float = math.inf
    depth: int | None = None

    @property
    def effort(self) -> Effort:
        return Effort(memory=self.memory, deadline=self.deadline, depth=self.depth)


@dataclass(frozen=True, eq=False)
class Optimised:
    """Sound results of `optimise`, rounding errors subtracted.

    `lower` [B, R]; `bounds` enclosures of all nodes that the target depends on; `slopes` the best parameters
    found, to start from again; `plane` linear forms of the inputs below the rows, whose minima are `lower`.
    """

    lower: Tensor
    bounds: Bounds
    slopes: Slopes
    plane: LinearBound


def optimise(
    graph: Graph,
    sets: Sequence[InputSet],
    target: int,
    rows: Coefficients,
    bounds: Bounds | None = None,
    slopes: Slopes | None = None,
    options: AlphaOptions = AlphaOptions(),
) -> Optimised:
    """Lower bounds of the linear forms `rows` of node `target`, never below those of plain CROWN.

    `bounds` encloses all nodes that the target depends on, as `inner_bounds` gives it, which is asked where there is
    none. `slopes` is a start, from an earlier
    call on the same sets or larger ones. The batch is treated in parts where `memory` asks for it.
    """
    with torch.no_grad():
        if bounds is None:
            bounds = inner_bounds(graph, sets, [target], effort=options.effort)
        how = PassOptions(deadline=options.deadline)
        plane = specification_bound(graph, sets, target, rows, bounds, how=how)
        lower = plane.minimum(graph, sets)
    batch = sets[0].batch
    plain = Optimised(lower.expand(batch, -1), bounds, {}, plane)
    problem = _problem(graph, sets, target, rows, plain, options)
    if problem.need > options.memory or problem.deep:
        problem = replace(problem, own=frozenset({target}))
    if problem.need > options.memory:
        problem = replace(problem, own=frozenset())
    if problem.need > options.memory:
        problem = replace(problem, selections={})
    part = max(1, options.memory // max(problem.need, 1))
    parts = []
    for chosen in torch.arange(batch, device=lower.device).split(part):
        begin = {} if slopes is None else index_leaves(slopes, chosen)
        parts.append(_ascend(problem.index(chosen), begin, _local(options, lower, chosen)))
    return _join(parts)


def _local(options: AlphaOptions, lower: Tensor, chosen: Tensor) -> AlphaOptions:
    """The options for some instances: `stop` still sees the whole batch."""
    stop = options.stop
    if stop is None or len(chosen) == len(lower):
        return options
    return replace(options, stop=lambda part: stop(lower.index_copy(0, chosen, part))[chosen])


@dataclass(frozen=True, eq=False)
class _Problem:
    """What stays fixed during the optimisation; all tensors have the instances in front. `selections` holds
    the neurons whose bounds are optimised too, `own` the nodes each row of which has slopes of its own."""

    graph: Graph
    sets: tuple[InputSet, ...]
    target: int
    rows: Coefficients
    plain: Optimised
    selections: dict[int, Selection]
    effort: Effort
    own: frozenset[int]

    def index(self, chosen: Tensor) -> _Problem:
        tensors = {f.name: getattr(self.rows, f.name) for f in fields(self.rows)}  # pyright: ignore[reportArgumentType]
        rows = {n: pick(t, chosen) for n, t in tensors.items() if isinstance(t, Tensor)}
        plain = self.plain
        part = replace(
            self,
            sets=tuple(s.index(chosen) for s in self.sets),
            rows=replace(self.rows, **rows),  # pyright: ignore[reportArgumentType]
            plain=replace(
                plain,
                lower=pick(plain.lower, chosen),
                bounds={i: b.index(chosen) for i, b in plain.bounds.items()},
                plane=plain.plane.index(chosen),
            ),
            selections={i: Selection(pick(s.index, chosen), s.shape) for i, s in self.selections.items()},
        )
        for j, own in self._ranges.items():
            part._ranges[j] = {
                name: Parameter(*[pick(t, chosen) for t in (p.value, p.lower, p.upper)])
                for name, p in own.items()
            }
        return part

    def count(self, i: int) -> int:
        """K, the neurons or rows bounded at node i."""
        return self.plain.lower.shape[1] if i == self.target else self.selections[i].index.shape[1]

    def pairs(self) -> Iterator[tuple[int, int]]:
        """(bounded node, elementwise node that its bound passes through)."""
        for i in (*self.selections, self.target):
            whole = i == self.target
            window = self.graph.window(i, None) if whole else self.effort.window(self.graph, i)
            for j in sorted(window.nodes - window.ends):
                if isinstance(self.graph.nodes[j].op, Elementwise):
                    yield i, j

    @property
    def deep(self) -> bool:
        """Whether slopes of their own for inner neurons would cost more than they gain."""
        return sum(1 for _ in self.pairs()) > FEW_PAIRS

    @property
    def need(self) -> int:
        """Bytes that an iteration takes per instance, for coefficients that its passes meet at elementwise nodes."""
        numbers = 0
        for i, j in self.pairs():
            rows = self.count(i) if i == self.target else 2 * self.count(i)
            numbers += rows * self.graph.nodes[j].numel * (OWN if i in self.own else SHARED)
        return numbers * self.plain.lower.element_size()

    @cached_property
    def _ranges(self) -> dict[int, dict[str, Parameter]]:
        return {}

    def ranges(self, j: int) -> dict[str, Parameter]:
        """The free parameters of an elementwise node on the plain bounds, found once."""
        if j not in self._ranges:
            node = self.graph.nodes[j]
            if not isinstance(node.op, Elementwise):
                raise TypeError(f"{node.name} is not elementwise.")
            with torch.no_grad():
                self._ranges[j] = node.op.parameters(*[self.plain.bounds[k] for k in node.inputs])
        return self._ranges[j]

    def start(self, given: Slopes) -> tuple[Leaves, Leaves]:
        """Starting slopes, leaves of the gradient, and the widths of their ranges [B or 1, 1, 1, *shape]."""
        values: Leaves = {}
        scales: Leaves = {}
        for i, j in self.pairs():
            sides = 1 if i == self.target else 2
            count = self.count(i) if i in self.own else 1
            for name, (first, scale) in self.free(j).items():
                earlier = given.get((i, j), {}).get(name)
                if earlier is not None and earlier.shape[2] in (1, count):
                    first = earlier
                shape = (self.sets[0].batch, sides, count, *self.graph.nodes[j].shape)
                values.setdefault((i, j), {})[name] = first.detach().expand(shape).clone().requires_grad_()
                scales.setdefault((i, j), {})[name] = scale
        return values, scales

    def free(self, j: int) -> dict[str, tuple[Tensor, Tensor]]:
        """The starting values of a node's parameters that can vary and the widths of their ranges, [B or 1, 1, 1,
        *shape]; found once."""
        if j not in self._free:
            found: dict[str, tuple[Tensor, Tensor]] = {}
            op = self.graph.nodes[j].op
            stride = op.stride if isinstance(op, Elementwise) else 1.0
            for name, p in self.ranges(j).items():
                width = p.upper - p.lower
                if bool((width > 0).any()):
                    scale = torch.nan_to_num(width, nan=0.0, posinf=1.0)
                    found[name] = p.value[:, None, None], stride * scale[:, None, None]
            self._free[j] = found
        return self._free[j]

    @cached_property
    def _free(self) -> dict[int, dict[str, tuple[Tensor, Tensor]]]:
        return {}

    def evaluate(self, slopes: Slopes) -> tuple[Tensor, dict[int, Tensor]]:
        """The differentiable lower bounds [B, R], and the values of all bounded rows [B, G, K] per bounded
        node (upper bounds negated); without rounding errors.

        A neuron's value is the better of its new and its plain bound, but its gradient is always the new
        one's, so that a step too far does not end its optimisation.
        """
        bounds = dict(self.plain.bounds)
        relaxations = Relaxations(self.graph, bounds, slopes, sketch=True)
        effort = replace(self.effort, rounding=False)
        how = PassOptions(rounding=False, deadline=effort.deadline)
        values: dict[int, Tensor] = {}
        for i, selection in self.selections.items():
            fresh = neuron_bounds(self.graph, self.sets, i, selection, bounds, relaxations, effort)
            full = bounds[i].expand(self.sets[0].batch)
            bounds[i] = scatter(full, selection, _met(fresh, gather(full, selection)))
            for k in copies(self.graph, i, bounds):
                bounds[k] = _met(interval_of(self.graph, k, bounds), bounds[k])
            seen = fresh.detach()
            values[i] = torch.stack([seen.lower, -seen.upper], 1)
        plane = specification_bound(self.graph, self.sets, self.target, self.rows, bounds, relaxations, how)
        lower = plane.minimum(self.graph, self.sets)
        values[self.target] = lower.detach().unsqueeze(1)
        return lower, values


def _met(fresh: Interval, plain: Interval) -> Interval:
    """The intersection, with the gradient of `fresh`."""
    seen = fresh.detach()
    met = plain.intersect(seen)
    return Interval(fresh.lower + (met.lower - seen.lower), fresh.upper + (met.upper - seen.upper))


def _problem(
    graph: Graph,
    sets: Sequence[InputSet],
    target: int,
    rows: Coefficients,
    plain: Optimised,
    options: AlphaOptions,
) -> _Problem:
    """Neurons that are settled after the plain pass, or that depend on nothing relaxed, are not bounded
    again."""
    masks: dict[int, Tensor] = {}
    relevant = graph.relevant([target])
    for i in sorted(graph.ancestors(target) - {target}) if options.intermediate else ():
        if not any(isinstance(graph.nodes[j].op, Elementwise) for j in graph.ancestors(i)):
            continue
        if (ask := wanted(graph, i, plain.bounds, relevant)) is not None:
            masks[ask[0]] = ask[1] | masks[ask[0]] if ask[0] in masks else ask[1]
    chosen = {i: select(masks[i], graph.nodes[i].shape) for i in sorted(masks)}
    selections = {i: selection for i, selection in chosen.items() if selection is not None}
    own = frozenset((*selections, target))
    effort = replace(options.effort, apart=all(isinstance(s, Box) for s in sets))
    return _Problem(graph, tuple(sets), target, rows, plain, selections, effort, own)


def _ascend(problem: _Problem, given: Slopes, options: AlphaOptions) -> Optimised:
    """The optimisation of all instances of a problem."""
    leaves, scales = problem.start(given)
    if not leaves or options.iterations < 1:
        return problem.plain
    try:
        return _finish(problem, _climb(problem, leaves, scales, options))
    except OutOfTime:
        return problem.plain


def _climb(problem: _Problem, leaves: Leaves, scales: Leaves, options: AlphaOptions) -> Leaves:
    """The best parameters found. An iteration is begun where there is time for two more: it and the end."""
    target, plain = problem.target, problem.plain.lower
    keys = [(key, name) for key, own in leaves.items() for name in own]
    steps = [scales[k][n] for k, n in keys]
    adam = Adam(_listed(leaves, keys), steps, options.learning_rate, options.decay)
    active = torch.arange(len(plain), device=plain.device)
    with torch.enable_grad():
        lower, values = problem.evaluate(leaves)
    best = Best(leaves, values)
    slack = torch.nan_to_num(lower.detach() - plain, nan=0.0, posinf=0.0).clamp(min=0)
    began = time.monotonic()
    for done in range(options.iterations):
        now = time.monotonic()
        if done and now + 2 * (now - began) / done > options.deadline:
            break
        reached = torch.maximum(best.values[target].squeeze(1) - slack, plain)
        closed, idle = _finished(reached, options)
        keep = ~closed[active]
        if not bool(keep.any()):
            break
        with torch.enable_grad():
            usable = keep & lower.isfinite().all(1)
            aim = lower[usable][~idle[active][usable]].sum()
        if not aim.requires_grad:
            break
        adam.step(torch.autograd.grad(aim, _listed(leaves, keys), allow_unused=True))
        if not bool(keep.all()):
            kept = keep.nonzero().squeeze(1)
            active, problem = active[kept], problem.index(kept)
            leaves = index_leaves(leaves, kept)
            adam.index(kept, _listed(leaves, keys))
        _project(problem, leaves)
        with torch.enable_grad():
            lower, values = problem.evaluate(leaves)
        best.update(active, leaves, values)
    return best.slopes


def _listed(leaves: Leaves, keys: Sequence[tuple[Key, str]]) -> list[Tensor]:
    return [leaves[key][name] for key, name in keys]


def _finished(reached: Tensor, options: AlphaOptions) -> tuple[Tensor, Tensor]:
    """Instances that need no more work [B], and rows that need none [B, R]."""
    idle = torch.zeros_like(reached, dtype=torch.bool)
    if options.threshold is not None:
        idle = reached > options.threshold
    return options.stop(reached) if options.stop is not None else idle.all(1), idle


@torch.no_grad()
def _project(problem: _Problem, leaves: Leaves) -> None:
    """Back into the ranges that hold on the plain bounds (every relaxation clamps to the current ones)."""
    for j in {j for _, j in leaves}:
        ranges = {n: (p.lower[:, None, None], p.upper[:, None, None]) for n, p in problem.ranges(j).items()}
        for (_, at), own in leaves.items():
            if at == j:
                for name, tensor in own.items():
                    torch.clamp(tensor, *ranges[name], out=tensor)


@torch.no_grad()
def _finish(problem: _Problem, slopes: Leaves) -> Optimised:
    """Everything again at the best slopes, with rounding errors; each row keeps the better of this and
    plain."""
    graph, sets, target, plain = problem.graph, problem.sets, problem.target, problem.plain
    bounds = dict(plain.bounds)
    relaxations = Relaxations(graph, bounds, slopes)
    for i, selection in problem.selections.items():
        bounds[i] = refine(graph, sets, i, selection, bounds, relaxations, problem.effort)
        pass_on(graph, i, bounds)
    how = PassOptions(deadline=problem.effort.deadline)
    plane = specification_bound(graph, sets, target, problem.rows, bounds, relaxations, how)
    lower = plane.minimum(graph, sets)
    tight = interval_bounds(graph, [s.box() for s in sets], bounds)
    return Optimised(
        torch.maximum(lower, plain.lower),
        {i: tight[i] for i in bounds},
        slopes,
        plane.where(lower > plain.lower, plain.plane),
    )


def _join(parts: Sequence[Optimised]) -> Optimised:
    """Results of consecutive parts of the batch as one."""
    if len(parts) == 1:
        return parts[0]
    sizes = [len(p.lower) for p in parts]

    def cat(tensors: Sequence[Tensor]) -> Tensor:
        return torch.cat([t.expand(n, *t.shape[1:]) for t, n in zip(tensors, sizes, strict=True)])

    bounds: Bounds = {}
    for i in parts[0].bounds:
        ends = [p.bounds[i] for p in parts]
        bounds[i] = Interval(cat([e.lower for e in ends]), cat([e.upper for e in ends]))
    slopes: Leaves = {}
    for key in set.intersection(*[set(p.slopes) for p in parts]):
        names = set.intersection(*[set(p.slopes[key]) for p in parts])
        slopes[key] = {n: cat([p.slopes[key][n] for p in parts]) for n in names}
    planes = [p.plane for p in parts]
    errors = [p.error for p in planes if p.error is not None]
    plane = LinearBound(
        {i: cat([p.coefficients[i] for p in planes]) for i in planes[0].coefficients},
        cat([p.constant for p in planes]),
        cat(errors) if len(errors) == len(planes) else None,
    )
    return Optimised(cat([p.lower for p in parts]), bounds, slopes, plane)
