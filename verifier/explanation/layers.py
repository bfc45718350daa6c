"""Where bounds get loose: the widths of every layer by intervals and by CROWN beside those that inputs reach."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from verifier.attack.surrogate import gradient_at, with_gradients
from verifier.bounds.interval import interval_bounds
from verifier.bounds.rows import refinable
from verifier.branching.bounded import Bounded
from verifier.branching.bounding import Bounder
from verifier.branching.domains import Domains
from verifier.explanation.findings import Layer
from verifier.graph import Elementwise, Graph, Interval

DRIVEN = 32
"""Undecided neurons of a layer, at most, that are driven to both ends along gradients."""
STEPS = 2
RANDOM = 128
"""Random inputs, and as many random corners."""
AT_ONCE = 64
"""Inputs that are evaluated together."""


@dataclass(frozen=True, eq=False)
class _Driven:
    """Elements `column` [K] of the node `node`, driven to both ends."""

    node: int
    column: Tensor


def layers(
    bounder: Bounder, domain: Domains, bounded: Bounded, points: Tensor, deadline: float, seed: int
) -> tuple[Layer, ...]:
    """The layers that relaxed operators read, for one subdomain (a batch of 1) and its bounds; `points` [S, n_in] are
    inputs that an attack came to. Where the deadline comes early, fewer neurons are driven to their ends."""
    graph = bounder.graph
    box = Interval(domain.lower, domain.upper).narrow(bounder.dtype)
    with torch.no_grad():
        plain = interval_bounds(graph, [box])
    crown = dict(bounded.bounds)
    nodes = [i for i in bounder.split_nodes if graph.variable[i] and i in crown]
    relevant = graph.relevant([bounder.target])
    undecided: dict[int, Tensor] = {}
    for i in nodes:
        mask = refinable(graph, i, crown)
        if mask is not None:
            undecided[i] = (mask & relevant[i] if i in relevant else mask)[:1].flatten()
    driven = [_spread(i, mask) for i, mask in undecided.items()]
    seen, reached = _seen(graph, box, driven, points, deadline, seed)
    costs = {i: float(bounded.gaps[i].sum()) for i in undecided if i in bounded.gaps}
    cost = sum(costs.values())
    found = []
    for one, done in zip(driven, reached, strict=True):
        i, mask = one.node, undecided[one.node]
        widths = [_widths(b[i])[one.column] for b in (plain, crown, seen)]
        means = [float(w.mean()) if done and len(w) else None for w in widths]
        found.append(
            Layer(
                name=graph.nodes[i].source or graph.nodes[i].name,
                readers=_readers(graph, i),
                neurons=graph.nodes[i].numel,
                undecided=int(mask.sum()),
                driven=len(one.column) if done else 0,
                intervals=means[0],
                crown=means[1],
                widest=float(_widths(crown[i])[mask].max()) if bool(mask.any()) else None,
                seen=means[2],
                loose=means[1] / means[2] if means[1] is not None and means[2] else None,
                loses=costs[i] / cost if cost > 0 and i in costs else None,
            )
        )
    return tuple(found)


def _widths(enclosure: Interval) -> Tensor:
    """Of every element of the first instance, float64."""
    return (enclosure.upper.double() - enclosure.lower.double())[0].flatten()


def _spread(node: int, undecided: Tensor) -> _Driven:
    """DRIVEN of the undecided neurons, evenly spread."""
    column = undecided.nonzero()[:, 0]
    count = min(DRIVEN, len(column))
    return _Driven(node, column[torch.arange(count, device=column.device) * len(column) // max(count, 1)])


def _readers(graph: Graph, position: int) -> str:
    ops = [graph.nodes[k].op for k in graph.users[position]]
    return ", ".join(dict.fromkeys(type(op).__name__ for op in ops if isinstance(op, Elementwise)))


def _seen(
    graph: Graph,
    box: Interval,
    driven: Sequence[_Driven],
    points: Tensor,
    deadline: float,
    seed: int,
) -> tuple[dict[int, Interval], list[bool]]:
    """The ranges [1, *shape] of the nodes' values at all inputs that were tried, and which of `driven` were."""
    nodes = [one.node for one in driven]
    random = torch.Generator().manual_seed(seed)
    unit = torch.rand(2 * RANDOM, box.lower.shape[1], generator=random).to(box.lower)
    unit[RANDOM:] = unit[RANDOM:].round()
    tried = [box.center, points.to(box.lower), box.lower + unit * (box.upper - box.lower)]
    smooth, reached = with_gradients(graph), []
    for one in driven:
        reached.append(time.monotonic() < deadline)
        if reached[-1]:
            tried.append(_ends(smooth, box, one))
    lower: list[Tensor] = []
    upper: list[Tensor] = []
    with torch.no_grad():
        for some in torch.cat(tried).split(AT_ONCE):
            values = graph.evaluate([some], nodes)
            low, high = [v.amin(0, keepdim=True) for v in values], [v.amax(0, keepdim=True) for v in values]
            lower = [torch.minimum(a, b) for a, b in zip(lower, low, strict=True)] if lower else low
            upper = [torch.maximum(a, b) for a, b in zip(upper, high, strict=True)] if upper else high
    return {i: Interval(a, b) for i, a, b in zip(nodes, lower, upper, strict=True)}, reached


def _ends(graph: Graph, box: Interval, one: _Driven) -> Tensor:
    """Inputs at which the neurons are low and high: corners along the gradient, from the middle and from there."""
    count = len(one.column)
    sign = torch.tensor([-1.0, 1.0], device=box.lower.device).to(box.lower).repeat_interleave(count)
    column = one.column.repeat(2)
    x, found = box.center.expand(2 * count, -1), []
    for _ in range(STEPS if count else 0):
        x = x.detach().requires_grad_(True)
        with torch.enable_grad():
            (value,) = graph.evaluate([x], [one.node])
            total = (sign * value.flatten(1).gather(1, column.unsqueeze(1))[:, 0]).sum()
        gradient = gradient_at(total, x).nan_to_num(0.0, 0.0, 0.0)
        x = torch.where(gradient > 0, box.upper, torch.where(gradient < 0, box.lower, x.detach()))
        found.append(x)
    return torch.cat(found) if found else box.lower[:0]
