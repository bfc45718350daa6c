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
    gates: dict[tuple[int, tuple[float, ...]], Value] = {}
    boxes: list[Interval] = []
    for i, node in enumerate(graph.nodes):
        if not live[i]:
            continue
        builder.at(node.source)
        if i == seed:
            values[i] = builder.input(node.name, node.shape)
            place = len(boxes)
            continue
        arguments: list[Value] = []
        for k, j in enumerate(node.inputs):
            op, gate = graph.nodes[j].op, node.op
            if k == 0 and isinstance(gate, Switched) and not live[j]:
                # Only on which sides of the knots it is counts here: a range that is no other reader's.
                key = (j, tuple(gate.knots.tolist()))
                if key not in gates:
                    gates[key] = builder.input(graph.nodes[j].name, graph.nodes[j].shape)
                    boxes.append(_around(gate.knots, ranges[j]))
                arguments.append(gates[key])
                continue
            if j not in values and isinstance(op, Constant):
                values[j] = builder.constant(op.value, graph.nodes[j].name)
            elif j not in values:
                values[j] = builder.input(graph.nodes[j].name, graph.nodes[j].shape)
                boxes.append(ranges[j])
            arguments.append(values[j])
        values[i] = builder.add(node.op, *arguments, name=node.name)
    if not live[graph.outputs[0]]:
        raise ValueError("The objective does not depend on its seed.")
    made = builder.graph(*[values[i] for i in graph.outputs])
    last = made.inputs[place]
    inputs = (*made.inputs[:place], *made.inputs[place + 1 :], last)
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
