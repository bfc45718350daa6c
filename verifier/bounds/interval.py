"""Interval bound propagation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from verifier.graph import Graph, Interval
from verifier.graph.op import Input

Bounds = dict[int, Interval]
"""Node position to the enclosure of its value, each end [B or 1, *shape]."""


def interval_of(graph: Graph, position: int, bounds: Mapping[int, Interval]) -> Interval:
    """The enclosure of one node from those of its arguments."""
    node = graph.nodes[position]
    return node.op.interval(*[bounds[j] for j in node.inputs])


def interval_bounds(
    graph: Graph, inputs: Sequence[Interval], known: Mapping[int, Interval] | None = None
) -> Bounds:
    """Enclosures of all nodes (IBP, Gowal et al. 2018), each intersected with `known` where that has the
    node.

    `inputs` holds one interval [B, *shape] per graph input.
    """
    bounds: Bounds = dict(zip(graph.inputs, inputs, strict=True))
    for i, node in enumerate(graph.nodes):
        if not isinstance(node.op, Input):
            bounds[i] = interval_of(graph, i, bounds)
        if known is not None and i in known:
            bounds[i] = bounds[i].intersect(known[i])
    return bounds
