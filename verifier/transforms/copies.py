"""Which nodes are copies of elements of the one input."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from verifier.graph import Affine, Graph


def input_places(graph: Graph) -> dict[int, Tensor]:
    """For the graph's one input and every node that only rearranges its elements: which element each one is, int64
    [numel], negative where a rearrangement has filled something in."""
    (source,) = graph.inputs
    places = {source: torch.arange(math.prod(graph.nodes[source].shape))}
    for i, node in enumerate(graph.nodes):
        if (
            len(node.inputs) == 1
            and node.inputs[0] in places
            and isinstance(node.op, Affine)
            and node.op.exact
        ):
            below = node.inputs[0]
            places[i] = _moved(node.op, places[below], graph.nodes[below].shape)
    return places


def _moved(op: Affine, places: Tensor, shape: tuple[int, ...]) -> Tensor:
    numbers = (places + 2).double().view(1, *shape)
    return (op.forward(numbers) - op.forward(torch.zeros_like(numbers))).flatten().long() - 2
