"""The first bounds of a search that splits activations: alpha-CROWN once per case, handed down to all its parts."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from verifier.bounds.alpha import AlphaOptions, Optimised, optimise
from verifier.bounds.ascent import Leaves
from verifier.bounds.backward import OutOfTime
from verifier.bounds.cases import decision_cases
from verifier.bounds.condense import condense, multiplications
from verifier.bounds.crown import Effort, inner_bounds
from verifier.bounds.cuts import Cuts
from verifier.bounds.final import AscentOptions
from verifier.bounds.interval import Bounds
from verifier.bounds.joint import Final, JointOptions, joint_cuts
from verifier.branching.bounded import Facts
from verifier.branching.bounding import Bounder, BoundOptions
from verifier.branching.clip_neurons import NeuronPlanes, PlaneLimits, neuron_planes
from verifier.branching.domains import Domains
from verifier.graph import Elementwise, Graph, Interval
from verifier.graph.coefficients import Rows
from verifier.sets import Box
from verifier.specs.compile import Compiled

CUTS_GAIN = 0.3
"""Cuts are kept where some case then misses less by so much of what it missed."""
DECIDED = 64
"""Cases of a query, at most, whose open comparisons are decided before anything else."""
WORTH = 32
"""Products of one dense matrix cost as much as one of a pass through convolutions and their neurons: a network is
condensed when it then has at most so many times more of them."""
WORTH_DECIDED = 0.1
"""Where less than this part of the neurons is decided, dense matrices between them are no less work."""
CONDENSE_SHARE = 0.2
"""Part of the time left that condensing may take; a network that takes longer stays as it is."""


@dataclass(frozen=True, eq=False)
class Root:
    """`compiled` has every disjunct that is left as a case of its own, `start` are these cases with the parameters to
    start from, and `enclosures` hold per case what is known of the inner nodes that splits may concern. `closed` is the
    least proved score of the disjuncts that are refuted already, `origin` [P] the query's own case behind each."""

    compiled: Compiled
    start: Domains
    enclosures: dict[int, Interval]
    closed: float
    origin: Tensor


@dataclass(frozen=True, eq=False)
class First:
    """What the first bounds leave of the cases (`left`, still with all disjuncts of a case together), what is known of
    the inner nodes of all of them, in the order of the start, and the least proved score of what is refuted."""

    left: Domains
    enclosures: dict[int, Interval]
    closed: float


def first_bounds(bounder: Bounder, start: Domains, options: AlphaOptions, batch: int) -> First:
    """Bounds of all cases, those that plain CROWN leaves open by alpha-CROWN (unless that has no iterations)."""
    parts, enclosures, closed = [], [], torch.inf
    for rows in torch.arange(len(start), device=start.lower.device).split(batch):
        part = start.index(rows)
        found = bounder.bound(part)
        closed = min([closed, *found.disjunct[found.refuted & part.open].clamp(min=0).tolist()])
        left = (~found.refuted.all(1)).nonzero()[:, 0]
        known = bounder.known(found)
        part = replace(part, open=part.open & ~found.refuted, bound=found.score).index(left)
        if len(left) and options.iterations:
            bounds = {i: b.expand(len(rows)).index(left) for i, b in found.bounds.items()}
            best = _optimised(bounder, part, bounds, options)
            known = {i: _put(b, left, best.bounds[i].expand(len(left))) for i, b in known.items()}
            part = replace(part, warm={k: dict(o) for k, o in best.slopes.items() if k[0] == bounder.target})
            part, least = _refuted(bounder, part, best.lower)
            closed = min(closed, least)
        parts.append(part)
        enclosures.append(known)
    joined = {i: Interval.cat([known[i] for known in enclosures]) for i in enclosures[0]}
    return First(Domains.cat(parts), joined, closed)


def root(bounder: Bounder, start: Domains, options: AlphaOptions, batch: int) -> Root:
    """The first bounds, and every disjunct that they leave open as a case of its own."""
    first = first_bounds(bounder, start, options, batch)
    single, alone, origin = by_disjunct(bounder.compiled, first.left)
    position = torch.zeros(len(bounder.compiled.lower), dtype=torch.int64, device=origin.device)
    position[start.case] = torch.arange(len(start), device=origin.device)  # the start need not be all cases
    joined = {i: b.index(position[origin]) for i, b in first.enclosures.items()}
    return Root(single, alone, joined, first.closed, origin)


def condensed(bounder: Bounder, found: Root, limit: int) -> Root:
    """The same between the neurons that the enclosures leave undecided, where all cases are one box and that is less
    work for a pass; `found` itself otherwise."""
    compiled, graph = found.compiled, bounder.compiled.graph_on(torch.float64, bounder.device)
    if not len(found.start) or not _one_box(found.start):
        return found
    bounds = _shared_bounds(graph, found.start, found.enclosures, bounder.target)
    most = min(limit, WORTH * multiplications(graph, bounder.target))
    now = time.monotonic()
    until = now + CONDENSE_SHARE * (bounder.options.deadline - now)
    try:
        small = condense(graph, bounder.target, bounds, most, until, WORTH_DECIDED)
    except OutOfTime:
        small = None
    if small is None:
        return found
    target = small.graph.outputs[0]

    def elements(place: tuple[int, Tensor], t: Tensor) -> Tensor:
        lead = t.dim() - len(graph.nodes[place[0]].shape)
        return t.flatten(lead)[..., place[1]]

    enclosures = {
        new: found.enclosures[place[0]].map(lambda t, place=place: elements(place, t))
        for new, place in small.arguments.items()
        if place[0] in found.enclosures
    }
    warm: Leaves = {}
    for new, place in small.operators.items():
        own = found.start.warm.get((bounder.target, place[0]), {})
        if own:
            warm[target, new] = {name: elements(place, t) for name, t in own.items()}
    start = replace(found.start, warm=warm)
    compiled = replace(compiled, graph=small.graph.to(device="cpu"), _cast={})
    return Root(compiled, start, enclosures, found.closed, found.origin)


def below(found: Root, bounder: Bounder, options: BoundOptions) -> Bounder:
    """A bounder for the parts of the root's cases: `options`, but inner bounds handed down and few steps of ascent."""
    ascent = AscentOptions(steps=8, rate=0.1, decay=0.95)
    options = replace(options, refine=False, inherit=True, gaps=True, ascent=ascent)
    return Bounder(found.compiled, bounder.device, bounder.dtype, options, Facts(found.enclosures))


def root_cuts(bounder: Bounder, start: Domains, deadline: float) -> Cuts | None:
    """Cuts for every case, from joint relaxations of neurons next to the input, where all cases are one box and the
    cuts close a good part of what some of them miss."""
    operator = _next_to_input(bounder)
    if operator is None or not len(start) or not _one_box(start):
        return None
    seen = bounder.bound(start)
    if operator not in seen.arrived:
        return None
    graph = bounder.compiled.graph_on(torch.float64, bounder.device)
    bounds = _shared_bounds(graph, start, bounder.facts.enclosures, graph.nodes[operator].inputs[0])
    own = {n: t.squeeze(1) for n, t in seen.warm.get((bounder.target, operator), {}).items()}
    final = Final(seen.planes.flatten(1, 2), seen.constants.flatten(1, 2), seen.arrived[operator], own)
    made = joint_cuts(graph, operator, bounds, final, JointOptions(deadline=deadline))
    if made is None:
        return None
    missing = -seen.disjunct[:, 0].clamp(max=0)
    gained = made[1].amax(1) - seen.disjunct[:, 0]
    return made[0] if bool((gained > CUTS_GAIN * missing).any()) else None


def root_planes(bounder: Bounder, start: Domains, limit: int) -> NeuronPlanes | None:
    """Linear forms of the undecided neurons, where all cases are one box, with at most `limit` numbers."""
    if not len(start) or not _one_box(start):
        return None
    box = Interval(start.lower[:1], start.upper[:1]).narrow(bounder.dtype)
    known = {
        i: Interval(b.lower.amin(0, keepdim=True), b.upper.amax(0, keepdim=True))
        for i, b in bounder.facts.enclosures.items()
    }
    graph, nodes = bounder.graph, bounder.split_nodes
    limits = PlaneLimits(limit, bounder.options.deadline)
    return neuron_planes(graph, Box(box.lower, box.upper), nodes, bounder.target, known, limits)


def _next_to_input(bounder: Bounder) -> int | None:
    """The widest operator of one argument below which there is none."""
    graph = bounder.graph
    first = [
        i
        for i in bounder.elementwise
        if len(graph.nodes[i].inputs) == 1
        and not any(isinstance(graph.nodes[j].op, Elementwise) for j in graph.ancestors(i) - {i})
    ]
    return max(first, key=lambda i: graph.nodes[i].numel, default=None)


def _shared_bounds(graph: Graph, start: Domains, enclosures: Mapping[int, Interval], target: int) -> Bounds:
    """Enclosures in float64, [1, *shape], of what a node depends on, for cases that are all one box."""
    known = {i: b.index(slice(0, 1)).to(torch.float64) for i, b in enclosures.items()}
    sets = [Box(start.lower[:1], start.upper[:1])]
    return inner_bounds(graph, sets, [target], known, effort=Effort(refine=False))


def by_decisions(bounder: Bounder, start: Domains) -> tuple[Bounder, Domains]:
    """Every case of the query as cases of the comparisons that it leaves open, with half-spaces, and with enclosures
    among the bounder's facts. As they are where there are too many."""
    if len(start) > DECIDED:
        return bounder, start
    box = Interval(start.lower, start.upper).narrow(bounder.dtype)
    effort = Effort(memory=bounder.options.memory, deadline=bounder.options.deadline)
    found = decision_cases(bounder.graph, [Box(box.lower, box.upper)], [bounder.target], effort=effort)
    if found is None:
        return bounder, start
    parts = start.index(found.owner)
    cases = parts.case.cpu()
    compiled = bounder.compiled
    compiled = replace(
        compiled,
        lower=compiled.lower[cases],
        upper=compiled.upper[cases],
        clauses=compiled.clauses[cases],
    )
    facts = Facts(found.known)
    start = replace(parts, case=torch.arange(len(parts), device=parts.case.device), splits=found.splits)
    return Bounder(compiled, bounder.device, bounder.dtype, bounder.options, facts), start


def _one_box(domains: Domains) -> bool:
    """Whether what holds for one case holds for all: boxes are the same, and none is a part of its box only."""
    if any(bool((b.lower.isfinite() | b.upper.isfinite()).any()) for b in domains.splits.values()):
        return False
    ends = torch.stack([domains.lower, domains.upper])
    return bool((ends == ends[:, :1]).all())


def _optimised(bounder: Bounder, part: Domains, bounds: Bounds, options: AlphaOptions) -> Optimised:
    """Alpha-CROWN for all atoms of the cases' clauses."""
    box = Interval(part.lower, part.upper).narrow(bounder.dtype)
    table = bounder.clauses[part.case].flatten(1).clamp(min=0)
    scale = torch.ones(table.shape, dtype=bounder.dtype, device=table.device)
    rows = Rows(table, scale, bounder.graph.nodes[bounder.target].shape)
    sets = [Box(box.lower, box.upper)]
    return optimise(bounder.graph, sets, bounder.target, rows, bounds, None, options)


def _refuted(bounder: Bounder, part: Domains, lower: Tensor) -> tuple[Domains, float]:
    """What is left of the cases by bounds [N, D * C] of their atoms, and the least score proved of what is not."""
    table = bounder.clauses[part.case]
    disjunct = torch.where(table >= 0, lower.double().view(table.shape), -torch.inf).amax(2)
    fresh = part.open & (disjunct > 0)
    open_ = part.open & ~fresh
    score = torch.where(open_, disjunct, torch.inf).amin(1)
    part = replace(part, open=open_, bound=torch.maximum(part.bound, score)).index(open_.any(1))
    return part, min([torch.inf, *disjunct[fresh].tolist()])


def by_disjunct(compiled: Compiled, domains: Domains) -> tuple[Compiled, Domains, Tensor]:
    """The query with every open disjunct of `domains` as a case of its own, so that every search has one thing to
    refute; the subdomains in these terms, and the case [P] that each new case comes from. Parameters to start from
    are those of the disjunct's atoms."""
    rows, disjuncts = domains.open.nonzero(as_tuple=True)
    alone = domains.index(rows)
    old = alone.case
    table = compiled.clauses.to(old.device)
    cases = old.cpu()
    single = replace(
        compiled,
        lower=compiled.lower[cases],
        upper=compiled.upper[cases],
        clauses=table[old, disjuncts].unsqueeze(1).cpu(),
    )
    warm = {
        key: {name: _atoms(t, disjuncts, table.shape[2]) for name, t in own.items()}
        for key, own in alone.warm.items()
    }
    fresh = torch.arange(len(rows), device=old.device)
    open_ = torch.ones_like(alone.open[:, :1])
    return single, replace(alone, case=fresh, open=open_, warm=warm), old


def _atoms(slopes: Tensor, disjuncts: Tensor, width: int) -> Tensor:
    """Of [P, 1, D * C, *shape] the part [P, 1, C, *shape] of one disjunct each; what all atoms share stays so."""
    if slopes.shape[2] == 1:
        return slopes
    every = torch.arange(len(slopes), device=slopes.device)
    return slopes.unflatten(2, (-1, width))[every, :, disjuncts]


def _put(whole: Interval, rows: Tensor, part: Interval) -> Interval:
    return Interval(whole.lower.index_copy(0, rows, part.lower), whole.upper.index_copy(0, rows, part.upper))
