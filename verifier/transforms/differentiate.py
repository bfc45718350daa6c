"""Gradients of a graph as a graph, by reverse accumulation.

Every engine then bounds derivatives as it bounds values. Where operators have kinks, bounds of the result hold all
generalised derivatives that the chain rule gives (a set around Clarke's Jacobian); its value is one of them.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

import torch
from torch import Tensor

from verifier.errors import UnsupportedError
from verifier.graph import Builder, Graph, Value
from verifier.ops.arithmetic import add
from verifier.transforms.composites import write_out
from verifier.transforms.fold import fold


def differentiate(
    graph: Graph, output: int = 0, cotangent: Tensor | None = None, folded: bool = True
) -> Graph:
    """The vector-Jacobian products of one output: sums over its elements of cotangent times derivative.

    The result has the inputs of `graph` and one output per input, of that input's shape. `cotangent`, of the shape of
    output number `output` and not batched, is part of the graph (ones: the gradient of the sum); without it the graph
    has one more input at the end, called "cotangent". Loops and composite operators are written out. Affine operators
    are fused unless numbers are to stay as they are (not `folded`). Raises UnsupportedError that names all operators
    without a derivative.
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
    return _finished(builder.graph(*gradients), folded).to(graph.dtype)


def push_forward(graph: Graph, output: int = 0, folded: bool = True) -> Graph:
    """The Jacobian-vector product of one output: a graph with one more input than `graph` per input, the tangents, and
    one output, the derivative of output number `output` along them.

    The vector-Jacobian product is linear in its cotangent; this is its transpose. Raises UnsupportedError.
    """
    pulled = differentiate(graph, output, folded=folded)
    seed = pulled.inputs[-1]
    builder = Builder()
    values = {i: builder.input(pulled.nodes[i].name, pulled.nodes[i].shape) for i in pulled.inputs[:-1]}
    names = [f"tangent {pulled.nodes[i].name}" for i in pulled.inputs[:-1]]
    tangents = [
        builder.input(n, pulled.nodes[i].shape) for n, i in zip(names, pulled.inputs[:-1], strict=True)
    ]
    # Where the cotangent is does not matter to its transpose, but its node must be variable to be pulled back to.
    values[seed] = builder.input("cotangent", pulled.nodes[seed].shape)
    values.update(builder.embed(pulled, values))
    cotangents: dict[int, Value] = {}
    for out, tangent in zip(pulled.outputs, tangents, strict=True):
        cotangents[out] = add(builder, cotangents[out], tangent) if out in cotangents else tangent
    found = pull_back(builder, pulled, values, cotangents, towards=[seed])
    zero = builder.constant(torch.zeros(pulled.nodes[seed].shape, dtype=graph.dtype))
    made = builder.graph(found.get(seed, zero))
    clean = Builder()
    kept = made.inputs[:-1]  # the cotangent is last, and nothing depends on it
    places = {i: clean.input(made.nodes[i].name, made.nodes[i].shape) for i in kept}
    return _finished(clean.graph(*clean.include(made, places)), folded).to(graph.dtype)


def _finished(graph: Graph, folded: bool) -> Graph:
    return fold(graph) if folded else graph


def pull_back(
    builder: Builder,
    graph: Graph,
    values: Mapping[int, Value],
    cotangents: Mapping[int, Value],
    towards: Collection[int] | None = None,
) -> dict[int, Value]:
    """Append the vector-Jacobian products of nodes of `graph` (the keys of `cotangents`) to a builder that holds it.

    `values` maps the graph's positions to its nodes in the builder, as `Builder.embed` returns them. The result
    maps every variable node that has a derivative, inputs included, to it; with `towards` only nodes that depend on one
    of these are looked at. Raises UnsupportedError.
    """
    on_path = graph.variable if towards is None else depends(graph, towards)
    pulled = dict(cotangents)
    refused: dict[int, tuple[str, str, int, str]] = {}
    behind: set[int] = set()  # what is refused; all of its arguments may count
    for i in range(max(pulled), -1, -1):
        node = graph.nodes[i]
        if (i not in pulled and i not in behind) or not on_path[i] or not node.inputs:
            continue
        if node.op.no_derivative:
            refused[i] = (node.source or node.name, type(node.op).__name__, 0, node.op.no_derivative)
        if i in behind or i in refused:
            behind.update(node.inputs)
            continue
        builder.at(node.source)
        parts = node.op.vjp(builder, [values[j] for j in node.inputs], values[i], pulled[i])
        for j, part in zip(node.inputs, parts, strict=True):
            if part is not None and on_path[j]:
                pulled[j] = add(builder, pulled[j], part) if j in pulled else part
    if refused:
        raise UnsupportedError([refused[i] for i in sorted(refused)])
    return {i: value for i, value in pulled.items() if on_path[i]}


def depends(graph: Graph, sources: Collection[int]) -> list[bool]:
    """For each node whether it depends on one of `sources` (or is one)."""
    found: list[bool] = []
    for i, node in enumerate(graph.nodes):
        found.append(i in sources or any(found[j] for j in node.inputs))
    return found
