"""Products with inputs that have one value in all boxes are scalings."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from verifier.graph import Builder, Graph, Value
from verifier.graph.builder import rewritten
from verifier.ops.arithmetic import scale_shift
from verifier.ops.gated import Gated
from verifier.ops.product import Product
from verifier.transforms.copies import input_places


def scale_by_fixed(graph: Graph, lower: Tensor, upper: Tensor) -> Graph:
    """A graph that is equal on the boxes `lower`, `upper` [N, n] of its one input [n]; `graph` itself where nothing is
    fixed. Factors of input elements that are one number in all boxes scale; where they are one number in each box, a
    plain product is as tight as a gated one, and cheaper."""
    if not len(lower):
        return graph
    single = (lower == upper).all(0)
    fixed = single & (lower == lower[:1]).all(0)
    places = input_places(graph)

    def replacement(builder: Builder, i: int, values: Mapping[int, Value]) -> Value | None:
        node = graph.nodes[i]
        for k in _factors(node.op):
            place = places.get(node.inputs[k])
            if place is None or bool((place < 0).any()) or not bool(single[place].all()):
                continue
            rest = values[node.inputs[1 - k]]
            if isinstance(node.op, Gated):
                rest = builder.add(node.op.gate, rest)
            if bool(fixed[place].all()):
                scaled = scale_shift(builder, rest, scale=lower[0, place].view(node.shape))
                return builder.rename(scaled, node.name)
            if isinstance(node.op, Gated):
                return builder.add(Product(), rest, values[node.inputs[k]], name=node.name)
        return None

    return rewritten(graph, replacement) if any(_factors(node.op) for node in graph.nodes) else graph


def _factors(op: object) -> tuple[int, ...]:
    """The arguments of an operator that are factors themselves, not through another function."""
    if isinstance(op, Product):
        return (0, 1)
    return (1,) if isinstance(op, Gated) and op.other is None else ()
