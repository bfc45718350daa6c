"""Where a network may not be defined: a logarithm of a negative number, a division by zero."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch

from verifier.bounds.interval import interval_bounds
from verifier.graph import Elementwise, Graph, Interval
from verifier.ops.gated import Gated


def first_undefined(graph: Graph, box: Interval) -> str:
    """The first of these sentences for a graph of one input that lies in a box, by interval arithmetic on a CPU; empty
    where there is none."""
    if not any(op.domain for i in range(len(graph.nodes)) for op, _ in _functions(graph, i)):
        return ""
    own = graph.to(torch.float64, "cpu")
    found = undefined(own, interval_bounds(own, [box.to("cpu", torch.float64)]))
    return found[0] if found else ""


def undefined(graph: Graph, bounds: Mapping[int, Interval]) -> list[str]:
    """A sentence for every node whose argument may leave its operator's domain, as far as `bounds` tell: there the
    operator has no bounds, and the network perhaps no value."""
    found = []
    for i, node in enumerate(graph.nodes):
        for op, j in _functions(graph, i):
            if not op.domain or j not in bounds:
                continue
            outside = op.outside(bounds[j])
            if outside is not None and bool(outside.any()):
                low, high = (t.detach().expand(outside.shape)[outside] for t in bounds[j])
                found.append(
                    f"Node {node.source or node.name!r} ({type(op).__name__}) is defined for {op.domain}, but its "
                    f"argument is only known to lie in [{float(low.amin()):g}, {float(high.amax()):g}]"
                )
    return found


def _functions(graph: Graph, i: int) -> Iterator[tuple[Elementwise, int]]:
    """The functions of one argument that a node computes, with the argument's position."""
    node = graph.nodes[i]
    if isinstance(node.op, Gated):
        for part, j in zip((node.op.gate, node.op.other), node.inputs, strict=True):
            if part is not None:
                yield part, j
    elif isinstance(node.op, Elementwise) and len(node.inputs) == 1:
        yield node.op, node.inputs[0]
