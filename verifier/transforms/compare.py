"""Comparisons moved before what preserves order: softmax(x)_i <= softmax(x)_j says x_i <= x_j.

In exact arithmetic these are the same. What comes before is easier to bound, and does not saturate.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping

import torch
from torch import Tensor

from verifier.graph import Builder, Graph, Value
from verifier.graph.builder import rewritten
from verifier.ops.linear import Linear
from verifier.ops.movement import Permute, Reshape, Take


def compare_earlier(graph: Graph) -> Graph:
    """A graph whose outputs have the signs of `graph`'s, where these are differences of elements that some operator
    orders as it finds them. Such an operator is left out; where an output needs more than that, nothing changes."""
    while len(graph.outputs) == 1 and (position := _superfluous(graph)) is not None:
        graph = _without(graph, position)
    return graph


def _without(graph: Graph, position: int) -> Graph:
    def replacement(builder: Builder, i: int, values: Mapping[int, Value]) -> Value | None:
        return values[graph.nodes[i].inputs[0]] if i == position else None

    return rewritten(graph, replacement)


def _superfluous(graph: Graph) -> int | None:
    """The node that the outputs' comparisons do not need, if there is one."""
    last = graph.nodes[graph.outputs[0]]
    if not isinstance(last.op, Linear) or last.op.doubt is not None:
        return None
    path = [last.inputs[0]]
    while isinstance(graph.nodes[path[-1]].op, Reshape | Permute | Take):
        path.append(graph.nodes[path[-1]].inputs[0])
    position = path.pop()
    node = graph.nodes[position]
    if len(node.inputs) != 1 or graph.nodes[node.inputs[0]].shape != node.shape:
        return None
    groups = node.op.ordered(node.shape)
    if groups is None or any(graph.users[i] != (k,) for i, k in _links(position, path, graph)):
        return None
    moved = groups.double().unsqueeze(0)
    for i in reversed(path):
        moved = graph.nodes[i].op.forward(moved)
    return position if len(moved.shape) == 2 and _compares(last.op, moved[0]) else None


def _links(position: int, path: list[int], graph: Graph) -> list[tuple[int, int]]:
    chain = [position, *reversed(path), graph.outputs[0]]
    return list(itertools.pairwise(chain))


def _compares(op: Linear, groups: Tensor) -> bool:
    """Whether each row is a multiple of x_a - x_b with a and b in one group, or constant."""
    weight = op.weight.detach()
    used = weight != 0
    count = used.sum(1)
    low = torch.where(used, groups.to(weight), torch.inf).amin(1)
    high = torch.where(used, groups.to(weight), -torch.inf).amax(1)
    differences = (count == 2) & (weight.sum(1) == 0) & (low == high)
    if op.bias is not None:
        differences &= op.bias.detach() == 0
    return bool((differences | (count == 0)).all()) and bool(differences.any())
