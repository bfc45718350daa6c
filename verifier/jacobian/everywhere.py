"""Objectives over all inputs instead of a set: what the forward pass may be anywhere takes its place."""

from __future__ import annotations

import torch
from torch import Tensor

from verifier.bounds.interval import interval_bounds
from verifier.graph import Builder, Graph, Interval, Value
from verifier.graph.op import Constant
from verifier.ops.switched import Switched


def everywhere(graph: Graph) -> tuple[Graph, list[Interval]]:
    """The graph of an objective with the forward values that its backward pass reads as free inputs, the seed last, and
    their ranges [1, *shape] over all inputs of the network (float64; infinite where there are none).

    A switch's argument may be on any side of its knots, whatever the network computes.
    """
    seed = graph.inputs[-1]
    live = [False] * len(graph.nodes)
    for i, node in enumerate(graph.nodes):
        live[i] = i == seed or any(live[j] for j in node.inputs)
    ranges = _ranges(graph)
    builder = Builder()
    values: dict[int, Value] = {}
    boxes: list[Interval] = []
    for i, node in enumerate(graph.nodes):
        if not live[i]:
            continue
        builder.at(node.source)
        if i == seed:
            values[i] = builder.input(node.name, node.shape)
            continue
        for k, j in enumerate(node.inputs):
            if j in values:
                continue
            op = graph.nodes[j].op
            if isinstance(op, Constant):
                values[j] = builder.constant(op.value, graph.nodes[j].name)
                continue
            values[j] = builder.input(graph.nodes[j].name, graph.nodes[j].shape)
            gate = node.op if k == 0 else None
            boxes.append(_around(gate.knots, ranges[j]) if isinstance(gate, Switched) else ranges[j])
        values[i] = builder.add(node.op, *[values[j] for j in node.inputs], name=node.name)
    made = builder.graph(*[values[i] for i in graph.outputs])
    last = made.by_name[graph.nodes[seed].name]
    inputs = (*[i for i in made.inputs if i != last], last)
    return Graph(made.nodes, inputs, made.outputs), boxes


def _ranges(graph: Graph) -> dict[int, Interval]:
    """Intervals of all nodes, for all inputs."""
    boxes = []
    for i in graph.inputs:
        end = torch.full((1, *graph.nodes[i].shape), torch.inf, dtype=torch.float64)
        boxes.append(Interval(-end, end))
    return dict(interval_bounds(graph.to(torch.float64), boxes))


def _around(knots: Tensor, reach: Interval) -> Interval:
    """Both sides of all knots, within what the value can be."""
    low = torch.full_like(reach.lower, float(knots.min()) - 1.0)
    high = torch.full_like(reach.upper, float(knots.max()) + 1.0)
    return Interval(
        torch.maximum(low, torch.minimum(reach.lower, high)),
        torch.minimum(high, torch.maximum(reach.upper, low)),
    )
