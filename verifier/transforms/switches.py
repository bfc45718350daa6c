"""Products with a step as one node (`ops/switched.py`), for graphs of derivatives that count almost everywhere."""

from __future__ import annotations

from collections.abc import Mapping

from verifier.graph import Builder, Graph, Value
from verifier.graph.builder import rewritten
from verifier.ops.product import Product
from verifier.ops.step import Step
from verifier.ops.switched import Switched


def join_switches(graph: Graph) -> Graph:
    """A graph with the same values at almost all inputs, in which products step(z) * g are one node each."""

    def replacement(builder: Builder, i: int, values: Mapping[int, Value]) -> Value | None:
        node = graph.nodes[i]
        if not isinstance(node.op, Product):
            return None
        for gate, other in (node.inputs, node.inputs[::-1]):
            op = graph.nodes[gate].op
            if isinstance(op, Step) and not op.chosen:
                z = values[graph.nodes[gate].inputs[0]]
                return builder.add(Switched(op.knots, op.levels), z, values[other], name=node.name)
        return None

    return rewritten(graph, replacement)
