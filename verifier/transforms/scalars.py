"""Values without dimensions as vectors of one element, which is what the engines' matrices are made for."""

from __future__ import annotations

from collections.abc import Sequence

from verifier.graph import Builder, Elementwise, Graph, Node, Value
from verifier.graph.op import Constant, Input, Shape
from verifier.ops.arithmetic import Add, ScaleShift
from verifier.ops.integers import Integral
from verifier.ops.movement import Permute, Reshape, Take, reshape


def scalars_as_vectors(graph: Graph) -> Graph:
    """An equal graph where only inputs, outputs, and results of rare operators have the shape (); `graph` itself where
    that is so already."""
    hidden = set(range(len(graph.nodes))) - set(graph.inputs) - set(graph.outputs)
    if not any(graph.variable[i] and not graph.nodes[i].shape for i in hidden):
        return graph
    builder = Builder()
    values: list[Value] = []
    for node in graph.nodes:
        builder.at(node.source)
        if isinstance(node.op, Input):
            values.append(builder.input(node.name, node.shape))
        elif isinstance(node.op, Constant):
            values.append(builder.constant(node.op.value, node.name))
        else:
            shapes = [graph.nodes[j].shape for j in node.inputs]
            values.append(_placed(builder, node, [values[j] for j in node.inputs], shapes))
    ends = [reshape(builder, values[i], graph.nodes[i].shape) for i in graph.outputs]
    return builder.graph(*ends)


def _placed(builder: Builder, node: Node, arguments: Sequence[Value], shapes: Sequence[Shape]) -> Value:
    """The node on `arguments`, of which some are vectors where it had scalars; `shapes` are what it had."""
    op = node.op
    if not node.shape:
        if isinstance(op, Elementwise | Add | ScaleShift | Integral):
            return builder.add(op, *[reshape(builder, a, (1,)) for a in arguments], name=node.name)
        if isinstance(op, Reshape | Permute):
            return reshape(builder, arguments[0], (1,))
        if isinstance(op, Take):
            return builder.add(Take(op.index, (1,)), arguments[0], name=node.name)
    elif isinstance(op, Reshape | Take):  # they look at elements only
        return builder.add(op, *arguments, name=node.name)
    given = [reshape(builder, a, s) for a, s in zip(arguments, shapes, strict=True)]
    value = builder.add(op, *given, name=node.name)
    return value if node.shape else reshape(builder, value, (1,))
