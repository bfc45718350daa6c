"""Where weighted means count their values from: a point of the input set says what is typical of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from verifier.graph import Builder, Graph, Value
from verifier.graph.builder import rewritten
from verifier.ops.matmul import WeightedMean


def has_means(graph: Graph) -> bool:
    """Whether there are weighted means, so that bounds depend on which inputs are typical."""
    return any(isinstance(node.op, WeightedMean) for node in graph.nodes)


def center_means(graph: Graph, points: Sequence[Tensor]) -> Graph:
    """An equal graph whose weighted means have centers: the mean of their values at `points`, one tensor [N, *shape]
    per graph input. `graph` itself where it has none, or where a value there is not finite."""
    found = [i for i, node in enumerate(graph.nodes) if isinstance(node.op, WeightedMean)]
    if not found:
        return graph
    with torch.no_grad():
        values = graph.evaluate(points, [graph.nodes[i].inputs[1] for i in found])
    centers = {i: v.mean(0).mean(-2, keepdim=True) for i, v in zip(found, values, strict=True)}
    if not all(bool(c.isfinite().all()) for c in centers.values()):
        return graph

    def replacement(builder: Builder, i: int, values: Mapping[int, Value]) -> Value | None:
        if i not in centers:
            return None
        node = graph.nodes[i]
        return builder.add(WeightedMean(centers[i]), *[values[j] for j in node.inputs], name=node.name)

    return rewritten(graph, replacement)
