"""What splitting a neuron may be worth, in two ways that need no bounds of the halves."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from verifier.bounds.relaxations import relax_at
from verifier.branching.bounded import Bounded
from verifier.branching.clip_neurons import NeuronPlanes, constrained
from verifier.graph import Elementwise, Graph, Interval


class Argument(NamedTuple):
    """Elements `column` [M] of a node in the subdomains `rows` [M], and a part of their ranges."""

    rows: Tensor
    column: Tensor
    part: Interval


def gaps(graph: Graph, target: int, bounded: Bounded) -> dict[int, Tensor]:
    """Per node that elementwise operators read what their relaxations may cost the row that decides, [M, *shape].

    That is |coefficient| times the widest gap between function and line seen at the ends and the branching point: the
    intercept score of BaBSR (Bunel et al. 2020), for any operator.
    """
    batch = len(bounded.score)
    every = torch.arange(batch, device=bounded.row.device)
    found: dict[int, Tensor] = {}
    for i, coefficients in bounded.arrived.items():
        node, op = graph.nodes[i], graph.nodes[i].op
        assert isinstance(op, Elementwise)
        boxes = [bounded.bounds[j].expand(batch) for j in node.inputs]
        own = {n: t[every, 0, bounded.row] for n, t in bounded.warm.get((target, i), {}).items()}
        cost = _cost(op, coefficients[every, bounded.row].to(boxes[0].lower), boxes, own)
        for k, j in enumerate(node.inputs):
            point = op.branching_point(k, *boxes)
            inside = (point > boxes[k].lower) & (point < boxes[k].upper)
            part = cost * (op.refinable(k, *boxes) & inside)
            found[j] = found[j] + part if j in found else part
    return found


def _cost(op: Elementwise, arrived: Tensor, boxes: list[Interval], own: Mapping[str, Tensor]) -> Tensor:
    """|coefficient| times the widest gap between the function and the line that the coefficient takes."""
    lines = relax_at(op, own, *boxes, sketch=True)  # nothing is claimed
    below = above = torch.zeros_like(arrived)
    points = [[b.lower for b in boxes], [b.upper for b in boxes]]
    points.append([op.branching_point(k, *boxes).clamp(b.lower, b.upper) for k, b in enumerate(boxes)])
    for point in points:
        y = op.forward(*point)
        low = y - sum(s * x for s, x in zip(lines.lower_slopes, point, strict=True))
        high = sum(s * x for s, x in zip(lines.upper_slopes, point, strict=True)) - y
        below = torch.maximum(below, low if lines.lower_intercept is None else low - lines.lower_intercept)
        above = torch.maximum(above, high if lines.upper_intercept is None else high + lines.upper_intercept)
    cost = arrived.clamp(min=0) * below - arrived.clamp(max=0) * above
    return torch.nan_to_num(cost, nan=0.0, posinf=torch.finfo(cost.dtype).max)


def shortcut(
    graph: Graph,
    target: int,
    bounded: Bounded,
    planes: NeuronPlanes,
    node: int,
    argument: Argument,
    high: bool,
) -> Tensor:
    """What the scores [m] of halves are about, without a pass through the network.

    The lines of the split neuron change and nothing else; what this adds to the coefficient of the neuron goes straight
    to the inputs through the forms that bound the neuron on the whole box (the shortcut of BBPS, Shi et al. 2025); or
    not even the lines change, whichever is more. Either way the minimum is taken where the neuron is in its half.
    Operators of several arguments count as unchanged.
    """
    rows, column, half = argument
    slope, shift = _changes(graph, target, bounded, node, argument)
    plane, constant = bounded.worst_plane(planes.least)
    level = constant + plane @ planes.center.double()
    plane = (plane * planes.radius).to(slope)
    place, end = planes.places(node, column), half.lower if high else -half.upper
    found = []
    for part in torch.arange(len(rows), device=rows.device).split(planes.chunk):
        at, side = place[part], (slope[part] < 0).long()
        size = slope[part].abs()
        q = plane[rows[part]] + size.unsqueeze(1) * planes.matrix[side, at]
        middle = level[rows[part]] + shift[part] + size * planes.middle[side, at]
        inside = planes.middle[int(high), at] + end[part]
        limit, inside = planes.matrix[int(high), at], inside.to(q)
        changed = constrained(q, middle, limit, inside)[0]
        same = constrained(plane[rows[part]], level[rows[part]], limit, inside)[0]
        found.append(torch.maximum(changed, torch.maximum(same, bounded.score[rows[part]])))
    return torch.where(place >= 0, torch.cat(found), bounded.score[rows]) if found else bounded.score[rows]


def _changes(
    graph: Graph, target: int, bounded: Bounded, node: int, argument: Argument
) -> tuple[Tensor, Tensor]:
    """By how much the coefficient of each element and the constant change [m] when its range becomes a part of it."""
    rows, column, half = argument
    whole = bounded.bounds[node].expand(len(bounded.score))
    before = Interval(*[t.flatten(1)[rows, column] for t in whole])
    slope = shift = torch.zeros_like(before.lower)
    for i, coefficients in bounded.arrived.items():
        op, shape = graph.nodes[i].op, graph.nodes[i].shape
        if graph.nodes[i].inputs != (node,) or not isinstance(op, Elementwise):
            continue
        a = coefficients.flatten(2)[rows, bounded.row[rows], column].to(slope)
        own = {
            n: t.flatten(3)[rows, 0, bounded.row[rows], column]
            for n, t in bounded.warm.get((target, i), {}).items()
            if t.shape[3:] == shape
        }
        op = op.restrict(column, shape)
        for sign, box in ((-1, before), (1, half)):
            lines = relax_at(op, own, box.map(lambda t: t.unsqueeze(0)))
            zero = torch.zeros_like(lines.lower_slopes[0])
            low, up = [zero if t is None else t for t in (lines.lower_intercept, lines.upper_intercept)]
            slope = slope + sign * a * torch.where(a > 0, lines.lower_slopes[0], lines.upper_slopes[0])[0]
            shift = shift + sign * a * torch.where(a > 0, low, up)[0]
    return slope, shift
