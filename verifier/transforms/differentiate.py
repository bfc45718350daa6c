"""Gradients of a graph as a graph, by reverse accumulation.

Every engine then bounds derivatives as it bounds values. Where operators have kinks, bounds of the result hold all
generalised derivatives that the chain rule gives (a set around Clarke's Jacobian); its value is one of them.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from verifier.errors import UnsupportedError
from verifier.graph import Builder, Graph, Value
from verifier.ops.arithmetic import add
from verifier.transforms.composites import write_out
from verifier.transforms.fold import fold


def differentiate(graph: Graph, output: int = 0, cotangent: Tensor | None = None) -> Graph:
    """The vector-Jacobian products of one output: sums over its elements of cotangent times derivative.

    The result has the inputs of `graph` and one output per input, of that input's shape. `cotangent`, of the shape of
    output number `output` and not batched, is part of the graph (ones: the gradient of the sum); without it the graph
    has one more input at the end, called "cotangent". Loops and composite operators are written out. Raises
    UnsupportedError that names all operators without a derivative.
    """
    graph = write_out(graph)
    builder = Builder()
    values = {i: builder.input(graph.nodes[i].name, graph.nodes[i].shape) for i in graph.inputs}
    target = graph.outputs[output]
    if cotangent is None:
        seed = builder.input("cotangent", graph.nodes[target].shape)
    else:
        if cotangent.shape != graph.nodes[target].shape:
            shapes = f"shape {tuple(cotangent.shape)}, the output {graph.nodes[target].shape}"
            raise ValueError(f"The cotangent has {shapes}.")
        seed = builder.constant(cotangent.to(graph.dtype))
    values.update(builder.embed(graph, values))
    found = pull_back(builder, graph, values, {target: seed})
    gradients = [
        found[i] if i in found else builder.constant(torch.zeros(graph.nodes[i].shape, dtype=graph.dtype))
        for i in graph.inputs
    ]
    return fold(builder.graph(*gradients)).to(graph.dtype)


def pull_back(
    builder: Builder, graph: Graph, values: Mapping[int, Value], cotangents: Mapping[int, Value]
) -> dict[int, Value]:
    """Append the vector-Jacobian products of nodes of `graph` (the keys of `cotangents`) to a builder that holds it.

    `values` maps the graph's positions to its nodes in the builder, as `Builder.embed` returns them. The result
    maps every variable node that has a derivative, inputs included, to it. Raises UnsupportedError.
    """
    _require_rules(graph, cotangents)
    pulled = dict(cotangents)
    for i in range(max(pulled), -1, -1):
        node = graph.nodes[i]
        if i not in pulled or not graph.variable[i] or not node.inputs:
            continue
        builder.at(node.source)
        parts = node.op.vjp(builder, [values[j] for j in node.inputs], values[i], pulled[i])
        for j, part in zip(node.inputs, parts, strict=True):
            if part is not None and graph.variable[j]:
                pulled[j] = add(builder, pulled[j], part) if j in pulled else part
    return {i: value for i, value in pulled.items() if graph.variable[i]}


def _require_rules(graph: Graph, cotangents: Mapping[int, Value]) -> None:
    needed = set().union(*[graph.ancestors(i) for i in cotangents])
    nodes = [graph.nodes[i] for i in sorted(needed) if graph.variable[i] and graph.nodes[i].inputs]
    refused = [
        (n.source or n.name, type(n.op).__name__, 0, n.op.no_derivative) for n in nodes if n.op.no_derivative
    ]
    if refused:
        raise UnsupportedError(refused)
