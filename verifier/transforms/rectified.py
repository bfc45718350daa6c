"""Comparisons moved before the Relu whose value has to be the larger one: relu(a) > relu(c) says a > relu(c).

What is larger than something that is not negative is positive, where a Relu does nothing. On the whole region where
both are inactive relu(c) - relu(a) is zero, which no bound tells from less; relu(c) - a is positive there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from verifier.graph import Builder, Graph, Value
from verifier.graph.builder import rewritten
from verifier.ops.linear import Linear
from verifier.ops.movement import Permute, Reshape, Take
from verifier.ops.piecewise_linear import Relu
from verifier.ops.select import concat


def compare_before_relu(graph: Graph, strict: Tensor) -> Graph:
    """A graph of which output k, a vector's element, is negative (or at most zero, unless `strict[k]`) just where
    `graph`'s is; `graph` itself where no margin says that one value behind a last Relu is larger than others."""
    if len(graph.outputs) != 1:
        return graph
    target = graph.outputs[0]
    last = graph.nodes[target]
    if not isinstance(last.op, Linear) or last.op.doubt is not None or len(last.shape) != 1:
        return graph
    path = [last.inputs[0]]
    while isinstance(graph.nodes[path[-1]].op, Reshape | Permute | Take):
        path.append(graph.nodes[path[-1]].inputs[0])
    if not isinstance(graph.nodes[path[-1]].op, Relu):
        return graph
    moved = _moved(last.op, strict)
    return graph if moved is None else _rewritten(graph, path, moved)


def _moved(op: Linear, strict: Tensor) -> Linear | None:
    """The operator on the values behind the Relu and then those before it; None where it needs none of these."""
    weight = op.weight
    bias = weight.new_zeros(len(weight)) if op.bias is None else op.bias
    below = weight < 0
    one = (below.sum(1) == 1) & ((bias > 0) | ((bias == 0) & strict.to(bias.device)))
    if not bool(one.any()):
        return None
    chosen = below & one.unsqueeze(1)
    zero = torch.zeros_like(weight)
    both = torch.cat([torch.where(chosen, zero, weight), torch.where(chosen, weight, zero)], 1)
    return Linear(both, op.bias)


def _rewritten(graph: Graph, path: Sequence[int], op: Linear) -> Graph:
    target = graph.outputs[0]

    def replacement(builder: Builder, i: int, values: Mapping[int, Value]) -> Value | None:
        if i != target:
            return None
        before = values[graph.nodes[path[-1]].inputs[0]]
        for k in reversed(path[:-1]):
            before = builder.add(graph.nodes[k].op, before)
        return builder.add(op, concat(builder, [values[path[0]], before], 0), name=graph.nodes[i].name)

    return rewritten(graph, replacement)
