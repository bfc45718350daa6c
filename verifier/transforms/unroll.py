"""Loops written out, so that every engine can treat them."""

from __future__ import annotations

from collections.abc import Mapping

from verifier.graph import Builder, Graph, Value
from verifier.graph.builder import rewritten
from verifier.graph.op import Constant
from verifier.ops.arithmetic import Add, add
from verifier.ops.movement import take
from verifier.ops.product import Product, multiply
from verifier.ops.repeat import Repeat
from verifier.ops.select import stack


def unroll(graph: Graph) -> Graph:
    """An equal graph without Repeat nodes; `graph` itself where it has none. Nodes that differ only in which
    result of a loop they take (the same body object and arguments) share the rounds."""
    if not any(isinstance(node.op, Repeat) for node in graph.nodes):
        return graph
    loops: dict[tuple[int, int, tuple[int, ...]], list[list[Value]]] = {}

    def replacement(builder: Builder, i: int, values: Mapping[int, Value]) -> Value | None:
        op = graph.nodes[i].op
        if not isinstance(op, Repeat):
            return None
        key = (id(op.body), op.trips, graph.nodes[i].inputs)
        if key not in loops:
            loops[key] = _rounds(builder, op, [values[j] for j in graph.nodes[i].inputs])
        return _result(builder, op, loops[key])

    return rewritten(graph, replacement)


def _rounds(builder: Builder, loop: Repeat, arguments: list[Value]) -> list[list[Value]]:
    """The body's outputs in every round."""
    body = unroll(loop.body)
    sequences = range(loop.states, loop.states + loop.scanned)
    current = list(arguments)
    rounds: list[list[Value]] = []
    for step in range(loop.trips):
        feed = [_slice(builder, v, step) if k in sequences else v for k, v in enumerate(current)]
        rounds.append(_round(builder, body, dict(zip(body.inputs, feed, strict=True))))
        current[: loop.states] = rounds[-1][: loop.states]
    return rounds


def _round(builder: Builder, body: Graph, feed: Mapping[int, Value]) -> list[Value]:
    """The body's outputs for these inputs. A sum or product with one that is constant (a first state) is a shift or
    scaling."""
    values = dict(feed)
    for i, node in enumerate(body.nodes):
        if i in values:
            continue
        builder.at(node.source)
        arguments = [values[j] for j in node.inputs]
        fixed = not all(builder.is_variable(v) for v in arguments)
        if isinstance(node.op, Constant):
            values[i] = builder.constant(node.op.value, node.name)
        elif fixed and isinstance(node.op, Product):
            values[i] = multiply(builder, arguments[0], arguments[1])
        elif fixed and isinstance(node.op, Add) and len(arguments) == 2:
            values[i] = add(builder, arguments[0], arguments[1])
        else:
            values[i] = builder.add(node.op, *arguments, name=node.name)
    return [values[i] for i in body.outputs]


def _slice(builder: Builder, sequence: Value, step: int) -> Value:
    return take(builder, sequence, lambda t: t[step])


def _result(builder: Builder, loop: Repeat, rounds: list[list[Value]]) -> Value:
    if not loop.stacked:
        return rounds[-1][loop.output]
    return stack(builder, [outputs[loop.output] for outputs in rounds])
