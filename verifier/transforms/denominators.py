"""Margins of a normalised value, times the deviation that it was divided by: w . x / s + b > 0 says w . x + b s > 0.

As s is positive, both have one sign. What is left has no products, and a deviation that may be small no longer makes
the margins' bounds large.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from verifier.graph import Affine, Builder, Graph, Value
from verifier.graph.builder import rewritten
from verifier.graph.op import Shape
from verifier.ops.arithmetic import add, scale_shift
from verifier.ops.movement import broadcast, reshape, take
from verifier.ops.norms import Standardised
from verifier.ops.product import multiply

GROUPS = 1024
"""Most groups of numbers of one value, each with a deviation of its own, among which the margins' one is looked for."""


def multiply_by_deviation(graph: Graph) -> Graph:
    """A graph whose outputs have the signs of `graph`'s, where all of these are affine in one normalised group of
    numbers; `graph` itself where they are not."""
    if len(graph.outputs) != 1:
        return graph
    path = _affine_path(graph)
    first = graph.nodes[path[-1]]
    if not isinstance(first.op, Standardised) or first.op.epsilon <= 0:
        return graph
    group = _only_group(graph, path)
    return graph if group is None else _multiplied(graph, path, group)


def _affine_path(graph: Graph) -> list[int]:
    """From the output down, as long as nodes are affine functions of one other: the first that is not is the last
    here."""
    path = [graph.outputs[0]]
    while isinstance(graph.nodes[path[-1]].op, Affine) and len(graph.nodes[path[-1]].inputs) == 1:
        path += graph.nodes[path[-1]].inputs
    return path


def _only_group(graph: Graph, path: list[int]) -> Tensor | None:
    """The elements of the normalised value, flat, in the one group that the output depends on; None for several."""
    node = graph.nodes[path[-1]]
    labels = node.op.ordered(node.shape)
    if labels is None or int(labels.max()) >= GROUPS:
        return None
    present = labels.unique()
    marks = labels.unsqueeze(0) == present.view(-1, *[1] * labels.dim())  # [G, *shape]
    for i in reversed(path[:-1]):
        op = graph.nodes[i].op
        assert isinstance(op, Affine)
        marks = op.absolute(marks.to(graph.dtype)) > 0  # sums of sizes of weights: 0 only where all are
    used = marks.flatten(1).any(1)
    if int(used.sum()) != 1:
        return None
    return (labels == present[used]).flatten().nonzero().squeeze(1)


def _multiplied(graph: Graph, path: list[int], group: Tensor) -> Graph:
    excess: list[Value] = []  # s - 1, [1]

    def replacement(builder: Builder, i: int, values: Mapping[int, Value]) -> Value | None:
        if i not in path:
            return None
        node = graph.nodes[i]
        x = values[node.inputs[0]]
        if isinstance(node.op, Standardised):
            x = node.op.numerator(builder, x)
            part = reshape(builder, take(builder, x, lambda t: t.flatten()[group]), (1, len(group)))
            deviation = node.op.deviation(builder, part, [1])
            excess.append(scale_shift(builder, reshape(builder, deviation, (1,)), shift=-1.0))
            return builder.rename(x, node.name)
        assert isinstance(node.op, Affine)
        y = builder.add(node.op, x, name=node.name)
        shape = graph.nodes[node.inputs[0]].shape
        more = _times(builder, excess[0], node.shape, node.op.offset(shape), node.op.uncertainty(shape))
        return y if more is None else builder.rename(add(builder, y, more), node.name)

    return rewritten(graph, replacement)


def _times(
    builder: Builder, factor: Value, shape: Shape, offset: Tensor | None, doubt: Tensor | None
) -> Value | None:
    """A constant that may be off by `doubt`, times a factor [1]; None where it is zero."""
    factor = broadcast(builder, factor, shape)
    if doubt is not None:
        return multiply(builder, scale_shift(builder, factor, scale=0.0, shift=offset, doubt=doubt), factor)
    return None if offset is None or not bool(offset.any()) else scale_shift(builder, factor, scale=offset)
