"""Parts of a network as networks of their own."""

from __future__ import annotations

from dataclasses import replace

from verifier.graph import Affine, Graph
from verifier.graph.op import Constant, Input


def after(graph: Graph, cut: int) -> Graph:
    """The part of the network behind a node that everything goes through, with that node as its input."""
    needed = graph.ancestors(graph.outputs[0])
    kept = [i for i in sorted(needed) if i >= cut or isinstance(graph.nodes[i].op, Constant)]
    new = {old: k for k, old in enumerate(kept)}
    nodes = [
        replace(graph.nodes[i], op=Input(graph.nodes[i].shape), inputs=())
        if i == cut
        else replace(graph.nodes[i], inputs=tuple(new[j] for j in graph.nodes[i].inputs))
        for i in kept
    ]
    return Graph(tuple(nodes), (new[cut],), (new[graph.outputs[0]],))


def last_curved(graph: Graph) -> int:
    """The node behind which one affine node after another leads to the output."""
    position = graph.outputs[0]
    while isinstance(graph.nodes[position].op, Affine) and len(graph.nodes[position].inputs) == 1:
        (position,) = graph.nodes[position].inputs
    return position
