"""A sign of a sign is one sign: binarised networks write sign(sign(x) + 0.1) for a sign that is never 0."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from verifier.graph import Builder, Graph, Value
from verifier.graph.builder import rewritten
from verifier.ops.arithmetic import ScaleShift, negate
from verifier.ops.movement import Permute, Reshape
from verifier.ops.sign import Sign


def join_signs(graph: Graph) -> Graph:
    """An equal graph in which no Sign takes another one's result, moved, scaled and shifted perhaps, unless its value
    depends on the element; `graph` itself where it has no two signs."""
    if sum(isinstance(node.op, Sign) for node in graph.nodes) < 2:
        return graph

    def replacement(builder: Builder, i: int, values: Mapping[int, Value]) -> Value | None:
        node = graph.nodes[i]
        if not isinstance(node.op, Sign):
            return None
        return _joined(builder, node.op, values[node.inputs[0]], node.name)

    return rewritten(graph, replacement)


def _joined(builder: Builder, sign: Sign, x: Value, name: str) -> Value | None:
    """sign(x) as a sign of what x is a sign of, or None."""
    between: ScaleShift | None = None
    moves: list[Permute | Reshape] = []
    first, origin = builder.made_by(x)
    while isinstance(first, Permute | Reshape) or (isinstance(first, ScaleShift) and between is None):
        if isinstance(first, ScaleShift):
            between = first
        else:
            moves.append(first)
        first, origin = builder.made_by(origin[0])
    if not isinstance(first, Sign):
        return None
    below, at, above = (_value(sign, between or ScaleShift(), v) for v in (-1.0, first.at_zero, 1.0))
    if below is None or at is None or above is None or below != -above or below == 0:
        return None
    y = builder.add(Sign(at if below < 0 else -at), *origin)
    for move in reversed(moves):
        y = builder.add(move, y)
    return builder.rename(y if below < 0 else negate(builder, y), name)


def _value(sign: Sign, between: ScaleShift, value: float) -> float | None:
    """sign(scale * value + shift) where it is the same for all elements and no rounding can change it, else None."""
    zero = torch.zeros((), dtype=torch.float64)
    scale, shift, doubt = (
        zero + default if t is None else t
        for t, default in ((between.scale, 1.0), (between.shift, 0.0), (between.doubt, 0.0))
    )
    y, size = scale * value + shift, (scale * value).abs() + shift.abs()
    certain = (y.abs() > 4 * torch.finfo(y.dtype).eps * size + doubt) | ((size == 0) & (doubt == 0))
    result: Tensor = sign.forward(y)
    first = float(result.flatten()[0])
    return first if bool((certain & (result == first)).all()) else None
