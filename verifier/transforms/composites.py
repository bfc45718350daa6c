"""Operators made of others, and loops, written out, so that every engine can treat them."""

from __future__ import annotations

from collections.abc import Mapping

from verifier.graph import Builder, Composite, Graph, Op, Value
from verifier.graph.builder import rewritten
from verifier.transforms.scalars import scalars_as_vectors
from verifier.transforms.unroll import unroll


def write_out(graph: Graph, keep: tuple[type[Op], ...] = ()) -> Graph:
    """An equal graph of affine and elementwise nodes alone, hardly any of them without dimensions; `graph` itself where
    it is one. The last node of what replaces a composite operator has its name. Composite operators to `keep` stay."""
    graph = unroll(graph)
    composite = [isinstance(node.op, Composite) and not isinstance(node.op, keep) for node in graph.nodes]
    if not any(composite):
        return scalars_as_vectors(graph)

    def replacement(builder: Builder, i: int, values: Mapping[int, Value]) -> Value | None:
        node = graph.nodes[i]
        if not composite[i] or not isinstance(node.op, Composite):
            return None
        return builder.rename(node.op.write_out(builder, *[values[j] for j in node.inputs]), node.name)

    return scalars_as_vectors(rewritten(graph, replacement))
