"""Products with a step as one node (`ops/switched.py`), for graphs of derivatives that count almost everywhere, and
for those that count everywhere."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from verifier.graph import Builder, Graph, Op, Value
from verifier.graph.builder import rewritten
from verifier.graph.op import Input
from verifier.ops.arithmetic import scale_shift
from verifier.ops.product import Product
from verifier.ops.step import Step
from verifier.ops.switched import Switched

DOUBT = 1e-30
"""More than what float32 takes for nothing, less than what any bound notices."""


def join_switches(graph: Graph) -> Graph:
    """A graph with the same values at almost all inputs, in which products step(z) * g are one node each."""

    def replacement(builder: Builder, i: int, values: Mapping[int, Value]) -> Value | None:
        node = graph.nodes[i]
        found = _gate(graph, i)
        if found is None:
            return None
        gate, other = found
        z = values[graph.nodes[gate].inputs[0]]
        return builder.add(_switched(graph, gate), z, values[other], name=node.name)

    return rewritten(graph, replacement)


def settle_switches(graph: Graph, between: bool) -> Graph:
    """A graph in which bounds hold for whatever each step is where its argument is at a knot: the level on either side
    and, with `between`, all numbers between these.

    Arguments of steps are taken to be off by up to DOUBT. Then no enclosure ends at a knot but by a split, and what is
    proved of both closed sides, almost everywhere, holds for both levels at the knot itself: they are limits of values
    beside it. What is linear in every single step is then bounded between them, too. Elsewhere (`between`) steps keep
    their enclosures, which hold all that is between, and their arguments are split apart from what others read.
    """
    steps = {i: node.inputs[0] for i, node in enumerate(graph.nodes) if _stands_for_slope(node.op)}
    if not steps:
        return graph
    sources = {j for j in steps.values() if not isinstance(graph.nodes[j].op, Input)}
    doubtful: dict[int, Value] = {}

    def doubted(builder: Builder, values: Mapping[int, Value], j: int) -> Value:
        """Node j, off by a little; it is that already where all of its readers see it so."""
        if j in sources and not between:
            return values[j]
        if j not in doubtful:
            doubtful[j] = scale_shift(builder, values[j], doubt=torch.tensor(DOUBT, dtype=torch.float64))
        return doubtful[j]

    def replacement(builder: Builder, i: int, values: Mapping[int, Value]) -> Value | None:
        node = graph.nodes[i]
        if between:
            return (
                builder.add(node.op, doubted(builder, values, steps[i]), name=node.name)
                if i in steps
                else None
            )
        if i in sources:
            own = builder.add(node.op, *[values[j] for j in node.inputs], name=node.name)
            return scale_shift(builder, own, doubt=torch.tensor(DOUBT, dtype=torch.float64))
        found = _gate(graph, i)
        if found is not None:
            gate, other = found
            z = doubted(builder, values, steps[gate])
            return builder.add(_switched(graph, gate), z, values[other], name=node.name)
        if i in steps:
            z = doubted(builder, values, steps[i])
            one = scale_shift(builder, z, scale=0.0, shift=1.0)
            return builder.add(_switched(graph, i), z, one, name=node.name)
        return None

    return rewritten(graph, replacement)


def _stands_for_slope(op: Op) -> bool:
    return isinstance(op, Step) and not op.chosen


def _gate(graph: Graph, i: int) -> tuple[int, int] | None:
    """The step and the other factor, where node i is a product with one."""
    if not isinstance(graph.nodes[i].op, Product):
        return None
    for gate, other in (graph.nodes[i].inputs, graph.nodes[i].inputs[::-1]):
        if _stands_for_slope(graph.nodes[gate].op):
            return gate, other
    return None


def _switched(graph: Graph, gate: int) -> Switched:
    op = graph.nodes[gate].op
    if not isinstance(op, Step):
        raise TypeError("A gate is a step.")
    return Switched(op.knots, op.levels)
