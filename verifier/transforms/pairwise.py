"""Maxima of many values as maxima of two, whose Relus can be split until everything is linear."""

from __future__ import annotations

from collections.abc import Mapping

from verifier.graph import Builder, Graph, Value
from verifier.graph.builder import rewritten
from verifier.ops.extremum import maximum, tree
from verifier.ops.maximum import Maximum


def pairwise(graph: Graph) -> Graph:
    """An equal graph with max(a, b) = b + relu(a - b) in place of every Maximum; `graph` itself if there is none.

    Half-spaces on the arguments of a Maximum do not make it linear where two of them may be equal; on their
    differences they do.
    """
    if not any(isinstance(node.op, Maximum) for node in graph.nodes):
        return graph

    def replacement(builder: Builder, i: int, values: Mapping[int, Value]) -> Value | None:
        node = graph.nodes[i]
        return (
            tree(builder, [values[j] for j in node.inputs], maximum) if isinstance(node.op, Maximum) else None
        )

    return rewritten(graph, replacement)
