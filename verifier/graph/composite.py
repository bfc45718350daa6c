"""Operators made of others: evaluated as one, bounded as what they are made of."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence

from verifier.graph.builder import Builder, Value
from verifier.graph.graph import Graph
from verifier.graph.interval import Interval
from verifier.graph.op import Input, Op


class Composite(Op):
    """An operator that `transforms.write_out` replaces by nodes of the three kinds before engines see it; until then
    transforms can still tell what it is."""

    no_derivative = "it is written out first (transforms.write_out)"

    @abstractmethod
    def write_out(self, builder: Builder, *xs: Value) -> Value:
        """Append nodes that compute the same in exact arithmetic."""

    def interval(self, *xs: Interval) -> Interval:
        """Through the nodes that it is made of."""
        builder = Builder()
        arguments = [builder.input(f"x{k}", tuple(x.lower.shape[1:])) for k, x in enumerate(xs)]
        graph = builder.graph(self.write_out(builder, *arguments))
        return intervals(graph.to(xs[0].lower.dtype, xs[0].lower.device), xs)[0]


def intervals(graph: Graph, inputs: Sequence[Interval]) -> list[Interval]:
    """Enclosures of a graph's outputs by interval arithmetic alone; the bound engines' own is in a layer above."""
    values = dict(zip(graph.inputs, inputs, strict=True))
    for i, node in enumerate(graph.nodes):
        if not isinstance(node.op, Input):
            values[i] = node.op.interval(*[values[j] for j in node.inputs])
    return [values[i] for i in graph.outputs]
