"""ONNX's control flow: If with a constant condition, and Scan and Loop with a known number of rounds.

A loop whose rounds are all alike is a `Repeat`. One that counts, or whose states are constant integers or change their
shape, is written out at once, because its rounds are different networks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from verifier.graph import Builder, Value
from verifier.graph.op import Shape
from verifier.graph.registry import Body, OnnxNode, Subgraph, Unsupported, onnx_op
from verifier.ops.integers import integral
from verifier.ops.movement import permute, take
from verifier.ops.repeat import repeat
from verifier.ops.select import flip, stack

MOST_ROUNDS, MOST_ALIKE = 1 << 12, 1 << 16
"""Rounds that are written out here, and rounds of a `Repeat`; longer loops are refused."""


@onnx_op("If", note="constant condition")
def _if(builder: Builder, node: OnnxNode) -> list[Value]:
    branch = "then_branch" if _truth(builder, node.input(0), "the condition") else "else_branch"
    return _include(builder, node.subgraphs[branch].convert([]), [])


@onnx_op("Loop", note="a number of rounds that does not depend on the input")
def _loop(builder: Builder, node: OnnxNode) -> list[Value]:
    most = node.constant(builder, 0, "M")
    going = node.input(1) is None or _truth(builder, node.input(1), "the condition")
    states = [node.required(i) for i in range(2, len(node.inputs))]
    body = node.subgraphs["body"]
    trips = None if most is None else max(int(most), 0) * going
    if trips is not None and 0 < trips <= MOST_ALIKE and not body.read[0] and _alike(builder, states):
        leading = [torch.tensor(0), torch.tensor(True)]
        found = _as_repeat(builder, body, trips, leading, states, [])
        if found is not None:
            return found
    emitted: list[list[Value]] = []
    while going and (trips is None or len(emitted) < trips):
        if len(emitted) == MOST_ROUNDS:
            raise Unsupported(f"it has more than {MOST_ROUNDS} rounds")
        leading = [torch.tensor(len(emitted)), torch.tensor(True)]
        condition, *results = _round(builder, body, leading, states)
        going = _truth(builder, condition, "the condition for another round")
        states = results[: len(states)]
        emitted.append(results[len(states) :])
    return [*states, *_stacked(builder, node, emitted, len(states))]


@onnx_op("Scan", note="from opset 9")
def _scan(builder: Builder, node: OnnxNode) -> list[Value]:
    if node.opset < 9:
        raise Unsupported("Scan before opset 9 is another operator")
    count = int(node.attributes["num_scan_inputs"])
    every = [node.required(i) for i in range(len(node.inputs))]
    states, sequences = every[: len(every) - count], every[len(every) - count :]
    axes, backwards = (_per(node, f"scan_input_{kind}", count) for kind in ("axes", "directions"))
    for k, value in enumerate(sequences):
        value = _moved(builder, value, axes[k] % len(builder.shape(value)), 0)
        sequences[k] = flip(builder, value) if backwards[k] else value
    lengths = {builder.shape(v)[0] for v in sequences}
    if len(lengths) != 1:
        raise ValueError(f"Its sequences have different lengths: {sorted(lengths)}.")
    trips = lengths.pop()
    body, found = node.subgraphs["body"], None
    if _alike(builder, [*states, *sequences]):
        found = _as_repeat(builder, body, trips, [], states, sequences)
    if found is None:
        emitted: list[list[Value]] = []
        for step in range(trips):
            slices = [take(builder, v, lambda t, k=step: t[k]) for v in sequences]
            results = _round(builder, body, [], [*states, *slices])
            states = results[: len(states)]
            emitted.append(results[len(states) :])
        found = [*states, *_stacked(builder, node, emitted, len(states))]
    last, emissions = found[: len(states)], found[len(states) :]
    axes, backwards = (_per(node, f"scan_output_{kind}", len(emissions)) for kind in ("axes", "directions"))
    for k, value in enumerate(emissions):
        value = flip(builder, value) if backwards[k] else value
        emissions[k] = _moved(builder, value, 0, axes[k] % len(builder.shape(value)))
    return [*last, *emissions]


def _as_repeat(
    builder: Builder,
    subgraph: Subgraph,
    trips: int,
    leading: Sequence[Tensor],
    states: Sequence[Value],
    sequences: Sequence[Value],
) -> list[Value] | None:
    """The results of a body that gets `leading`, states and slices, and gives as many conditions, states and emitted
    values; None where rounds are not alike, or nothing that they compute varies."""
    shapes = [builder.shape(s) for s in states]
    body = subgraph.convert([*leading, *shapes, *[builder.shape(v)[1:] for v in sequences]])
    graph, skipped = body.graph, len(leading) // 2
    conditions = [graph.constant(i) for i in graph.outputs[:skipped]]
    if not all(c is not None and bool(c.all()) for c in conditions):
        return None
    outputs = graph.outputs[skipped:]
    after = [graph.nodes[i].shape for i in outputs[: len(states)]]
    if after != shapes or not all(graph.variable[i] for i in outputs):
        return None
    arguments = (*states, *sequences, *body.captured)
    return repeat(builder, replace(graph, outputs=outputs), trips, len(states), *arguments)


def _round(
    builder: Builder, subgraph: Subgraph, leading: Sequence[Tensor], values: Sequence[Value]
) -> list[Value]:
    """The results of one round, written out."""
    formal: list[Shape | Tensor] = []
    for value in values:
        tensor = builder.tensor(value)
        if tensor is None and integral(builder, value):
            raise Unsupported("integers in it depend on the network's input")
        formal.append(builder.shape(value) if tensor is None else tensor)
    return _include(
        builder, subgraph.convert([*leading, *formal]), [v for v in values if builder.is_variable(v)]
    )


def _include(builder: Builder, body: Body, arguments: Sequence[Value]) -> list[Value]:
    feed = zip(body.graph.inputs, [*arguments, *body.captured], strict=True)
    return builder.include(body.graph, dict(feed))


def _alike(builder: Builder, values: Sequence[Value]) -> bool:
    """Whether a loop may take these values as they come: none is an integer."""
    tensors = [builder.tensor(v) for v in values]
    return all(
        not integral(builder, v) if t is None else t.is_floating_point()
        for v, t in zip(values, tensors, strict=True)
    )


def _stacked(
    builder: Builder, node: OnnxNode, emitted: Sequence[Sequence[Value]], states: int
) -> list[Value]:
    """What each round emits, along a new first axis."""
    if not emitted:
        if any(k >= states for k in node.used):
            raise Unsupported("what it collects is empty, because it has no rounds")
        return []
    return [stack(builder, values) for values in zip(*emitted, strict=True)]


def _truth(builder: Builder, value: Value | None, what: str) -> bool:
    tensor = None if value is None else builder.tensor(value)
    if tensor is None:
        raise Unsupported(f"{what} must be a constant, but depends on the network's input")
    if tensor.numel() != 1:
        raise ValueError(f"{what.capitalize()} is not a single truth value.")
    return bool(tensor)


def _per(node: OnnxNode, attribute: str, count: int) -> list[int]:
    """One number for each of `count` values, zero by default."""
    given = [int(n) for n in node.attributes.get(attribute, [0] * count)]
    if len(given) != count:
        raise ValueError(f"{attribute} has {len(given)} entries for {count} values.")
    return given


def _moved(builder: Builder, x: Value, source: int, to: int) -> Value:
    """x with dimension `source` at position `to`."""
    axes = [a for a in range(len(builder.shape(x))) if a != source]
    axes.insert(to, source)
    return permute(builder, x, axes)
