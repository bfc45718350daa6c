"""Where a network has a value at all: a logarithm of a negative number is NaN, which a bounded function of it hides."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from verifier.bounds.interval import interval_bounds
from verifier.graph import Builder, Elementwise, Graph, Interval, Value
from verifier.ops.arithmetic import scale_shift
from verifier.ops.movement import Take
from verifier.ops.select import concat
from verifier.transforms.composites import write_out

NOTHING = 1e-290
"""What sums of squares are below zero by, at most, for rounding alone."""


def conditions(graph: Graph, box: Interval) -> Graph | None:
    """A graph of the same input whose output [K] is nowhere negative where all functions in `graph`, in which nothing
    has been fused, have values; None where intervals over the box [1, n] show that they do."""
    graph = write_out(graph)
    limited = _limited(graph)
    if not limited:
        return None
    graph = graph.to(torch.float64, "cpu")
    bounds = interval_bounds(graph, [box.to("cpu", torch.float64)])
    builder = Builder()
    values = {i: builder.input(graph.nodes[i].name, graph.nodes[i].shape) for i in graph.inputs}
    values = builder.embed(graph, values)
    found: list[Value] = []
    for op, j, source in limited:
        builder.at(source)
        low, high = op.valued
        for shown, scale, shift in zip(_shown(op, bounds[j]), (1.0, -1.0), (-low, high), strict=True):
            index = (~shown).expand(1, *graph.nodes[j].shape).flatten().nonzero()[:, 0]
            if len(index):
                part = builder.add(Take(index, (len(index),)), values[j])
                found.append(scale_shift(builder, part, scale=scale, shift=shift))
    return builder.graph(concat(builder, found, 0)) if found else None


def has_values(graph: Graph, boxes: Interval) -> Tensor:
    """Bool [B]: over which boxes [B, *shape of the one input] intervals show that all functions have values."""
    found = torch.ones(len(boxes.lower), dtype=torch.bool)
    graph = write_out(graph)
    limited = _limited(graph)
    if limited:
        bounds = interval_bounds(graph.to(torch.float64, "cpu"), [boxes.to("cpu", torch.float64)])
        for op, j, _ in limited:
            for shown in _shown(op, bounds[j]):
                found = found & shown.flatten(1).all(1)
    return found


def _shown(op: Elementwise, x: Interval) -> tuple[Tensor, Tensor]:
    """Where x is known not to be below and not above what the function needs; NaN is not known."""
    low, high = op.valued
    return x.lower >= low - NOTHING, x.upper <= high


def _limited(graph: Graph) -> list[tuple[Elementwise, int, str]]:
    """The nodes that the output depends on whose functions have no value for some numbers: the function, the argument
    and where it is from."""
    return [
        (node.op, node.inputs[0], node.source)
        for i, node in ((i, graph.nodes[i]) for i in sorted(graph.ancestors(graph.outputs[0])))
        if isinstance(node.op, Elementwise) and node.op.valued != (-math.inf, math.inf) and graph.variable[i]
    ]


def somewhere_negative(graph: Graph, lower: Tensor, upper: Tensor, samples: int = 64) -> bool:
    """Whether one of few points of the boxes [N, n], corners and middles among them, has a negative output."""
    share = torch.rand(
        samples, len(lower), lower.shape[1], generator=torch.Generator().manual_seed(0)
    ).double()
    share[0], share[1], share[2] = 0.0, 1.0, 0.5
    points = lower + (upper - lower) * share
    return bool((graph.evaluate([points.flatten(0, 1)])[0] < 0).any())
