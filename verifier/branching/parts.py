"""Parts of subdomains in which one neuron is on one side of a point."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from enum import IntEnum

import torch
from torch import Tensor

from verifier.branching.bounded import Bounded
from verifier.branching.bounding import Bounder
from verifier.branching.domains import Domains
from verifier.branching.multipliers import add_multipliers, forget, split_multipliers
from verifier.branching.points import RULES, movable
from verifier.graph import Elementwise, Graph, Interval, Univariate

PLACES = (0.1, 0.2, 0.3, 0.5, 0.7, 0.8, 0.9)
"""Parts of an enclosure to cut at: what a split gains often lies in closing one small part at once."""


class Side(IntEnum):
    """Where the neuron is: below the point, at it, or above."""

    LOW = -1
    POINT = 0
    HIGH = 1


@dataclass(frozen=True, eq=False)
class Cut:
    """Elements `column` [m] of `node` in the subdomains `rows` [m] are cut at `point` [m]. The enclosure of the low
    part ends at `last`, that of the high part begins at `first`.

    Where nothing jumps all three are one number, where the parts meet. Where whatever reads the node jumps there, the
    point belongs to the part whose values it has, and the other part is open: its enclosure ends at the next
    number, and between that and the point the operators have the values that they have there. A point with values of
    its own is a part by itself, where `alone` [m] says so.
    """

    node: int
    rows: Tensor
    column: Tensor
    point: Tensor
    last: Tensor
    first: Tensor
    alone: Tensor | None = None


def by_node(
    graph: Graph, nodes: Sequence[int], places: Tensor
) -> Iterator[tuple[int, tuple[Tensor, ...], Tensor]]:
    """For each of `nodes` that some of `places` (elements of all of these, one node after the other) lie in: the node,
    where in `places` these are (an index), and which of the node's elements each is."""
    start = 0
    for i in nodes:
        size = graph.nodes[i].numel
        at = ((places >= start) & (places < start + size)).nonzero(as_tuple=True)
        if len(at[0]):
            yield i, at, places[at] - start
        start += size


def cuts_at(
    bounder: Bounder, bounded: Bounded, nodes: Sequence[int], places: Tensor, points: Tensor
) -> list[Cut]:
    """Cuts of the neurons at `places` [M] among all of `nodes`, at `points` [M], node by node."""
    return [
        _cut(bounder, bounded, i, rows, column, points[rows])
        for i, (rows,), column in by_node(bounder.graph, nodes, places)
    ]


def points_at(
    bounder: Bounder, bounded: Bounded, nodes: Sequence[int], places: Tensor, rule: str = "table"
) -> Tensor:
    """Where the neurons at `places` [M, K] among all of `nodes` are cut, by a rule of `points.RULES`: [M, K]."""
    found = torch.zeros(places.shape, dtype=bounder.dtype, device=places.device)
    for i, (rows, k), column in by_node(bounder.graph, nodes, places):
        own = branching_points(bounder, i, bounded, len(places), rule).flatten(1)
        found[rows, k] = own[rows, column]
    return found


def spread_points(
    bounder: Bounder, bounded: Bounded, nodes: Sequence[int], places: Tensor, points: Tensor
) -> Tensor:
    """`points` [M, K] and others to choose from [M, K, P]: where smooth operators read the neuron, at PLACES of its
    enclosure; elsewhere the same again."""
    found = points.unsqueeze(2).repeat(1, 1, 1 + len(PLACES))
    part = torch.tensor(PLACES, dtype=points.dtype, device=points.device)
    for i, (rows, k), column in by_node(bounder.graph, nodes, places):
        if _smooth(bounder, i):
            low, high = (t.flatten(1)[rows, column] for t in bounded.bounds[i].expand(len(places)))
            found[rows, k, 1:] = low.unsqueeze(1) + part * (high - low).unsqueeze(1)
    return found


def _smooth(bounder: Bounder, node: int) -> bool:
    """Whether all elementwise operators that read a node are of one argument and may be cut anywhere."""
    graph = bounder.graph
    readers = [graph.nodes[i].op for i in bounder.elementwise if node in graph.nodes[i].inputs]
    return all(isinstance(op, Univariate) and movable(op) for op in readers)


def branching_points(bounder: Bounder, node: int, bounded: Bounded, batch: int, rule: str) -> Tensor:
    """The branching points [M, *shape] of the first operator that reads the node, one of one argument if there is."""
    graph = bounder.graph
    readers = [i for i in bounder.elementwise if node in graph.nodes[i].inputs]
    for i in sorted(readers, key=lambda i: len(graph.nodes[i].inputs)):
        op, inputs = graph.nodes[i].op, graph.nodes[i].inputs
        boxes = [bounded.bounds[j].expand(batch) for j in inputs]
        if isinstance(op, Univariate):
            return RULES[rule](op, boxes[0])
        if isinstance(op, Elementwise):
            return op.branching_point(inputs.index(node), *boxes)
    raise KeyError(f"No elementwise operator reads node {node}.")


def _cut(bounder: Bounder, bounded: Bounded, node: int, rows: Tensor, column: Tensor, point: Tensor) -> Cut:
    graph = bounder.graph
    readers = [graph.nodes[i] for i in graph.users[node]]
    steps = [n.op for n in readers if isinstance(n.op, Elementwise) and n.op.jumps and len(n.inputs) == 1]
    cut = Cut(node, rows, column, point, point, point)
    if len(steps) < len(readers):  # to others the next number is not the point
        return cut
    below = torch.nextafter(point, torch.full_like(point, -torch.inf))
    above = torch.nextafter(point, torch.full_like(point, torch.inf))
    whole = bounded.bounds[node].expand(len(bounded.score)).index(rows)
    low = high = torch.ones_like(rows, dtype=torch.bool)
    for op in steps:
        values = [op.interval(_replaced(whole, column, t, t)) for t in (point, below, above)]
        at, left, right = [[_element(end, column) for end in value] for value in values]
        low = low & (at[0] == left[0]) & (at[1] == left[1])
        high = high & (at[0] == right[0]) & (at[1] == right[1])
    return replace(
        cut,
        last=torch.where(low, point, below),
        first=torch.where(high, point, above),
        alone=~low & ~high,
    )


def one_part(
    bounder: Bounder, domains: Domains, bounded: Bounded, cuts: Sequence[Cut], side: Side
) -> Domains:
    """One part of every subdomain, which starts with multipliers that reproduce the bound of the whole."""
    splits, known = dict(domains.splits), dict(domains.known)
    warm = {key: dict(own) for key, own in domains.warm.items()}
    for cut in cuts:
        i, rows, column = cut.node, cut.rows, cut.column
        enclosure = bounded.bounds[i].expand(len(domains))
        whole = enclosure.index(rows)
        ends = _element(whole.lower, column), _element(whole.upper, column)
        low = ends[0] if side == Side.LOW else cut.point
        high = ends[1] if side == Side.HIGH else cut.point
        half = _replaced(whole, column, low, high)
        splits[i] = _constrained(
            domains.splits.get(i) or Interval.everything(len(domains), half.lower), half, rows, column
        )
        if cut.alone is not None:
            inner = {Side.LOW: (low, cut.last), Side.HIGH: (cut.first, high), Side.POINT: (low, high)}[side]
            mine = _replaced(whole, column, *inner)
            known[i] = Interval(*[end.index_copy(0, rows, m) for end, m in zip(enclosure, mine, strict=True)])
        if domains.warm:
            values = split_multipliers(bounder, bounded, i, half, rows, column)
            shape = bounder.graph.nodes[i].shape
            like = half.lower.new_empty(len(domains), 1, values[0].shape[1], *shape)
            add_multipliers(warm, (bounder.target, i), values, (rows, column), like)
            forget(warm, bounder, i, rows, column)
    return replace(domains, splits=splits, warm=warm, known=known)


def all_parts(
    bounder: Bounder, domains: Domains, bounded: Bounded, cuts: Sequence[Cut]
) -> tuple[Domains, Tensor]:
    """All parts of every subdomain, and which subdomain each is a part of."""
    every = torch.arange(len(domains), device=domains.lower.device)
    parts = [one_part(bounder, domains, bounded, cuts, side) for side in (Side.LOW, Side.HIGH)]
    alone = [cut.rows[cut.alone] for cut in cuts if cut.alone is not None]
    rows = torch.cat(alone) if alone else every[:0]
    if len(rows):
        parts.append(one_part(bounder, domains, bounded, cuts, Side.POINT).index(rows))
    return Domains.cat(parts), torch.cat([every, every, rows])


def _element(t: Tensor, column: Tensor) -> Tensor:
    """Element `column` [m] of each of t [m, *shape]."""
    return t.flatten(1).gather(1, column.unsqueeze(1)).squeeze(1)


def _replaced(whole: Interval, column: Tensor, low: Tensor, high: Tensor) -> Interval:
    """`whole` [m, *shape] with the ends of element `column` [m] of each replaced."""

    def put(end: Tensor, value: Tensor) -> Tensor:
        return end.flatten(1).scatter(1, column.unsqueeze(1), value.unsqueeze(1)).view(end.shape)

    return Interval(put(whole.lower, low), put(whole.upper, high))


def _constrained(splits: Interval, half: Interval, rows: Tensor, column: Tensor) -> Interval:
    """The constraints `splits` [M, *shape] with those of one more element, both of its ends: the other end held before
    the split too, and its multiplier takes the place of the line that the split makes exact."""
    every = torch.arange(len(rows), device=rows.device)
    ends = [end.flatten(1)[every, column] for end in half]
    lower, upper = splits.lower.flatten(1).clone(), splits.upper.flatten(1).clone()
    lower[rows, column] = torch.maximum(lower[rows, column], ends[0])
    upper[rows, column] = torch.minimum(upper[rows, column], ends[1])
    return Interval(lower.view_as(splits.lower), upper.view_as(splits.upper))
