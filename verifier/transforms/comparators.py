"""One Relu for max(a, b) and min(a, b): both are written with relu(a - b), which sharing makes exact in their sum."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from torch import Tensor

from verifier.graph import Affine, Builder, Graph, Op, Value
from verifier.graph.builder import rewritten
from verifier.ops.piecewise_linear import Relu

_SMALL = 16
"""Tensors of up to so many numbers are compared by these; larger ones are equal where they are the same tensor."""


def share_relus(graph: Graph) -> Graph:
    """An equal graph in which Relus of one argument, or of arguments computed alike by affine nodes, are one; `graph`
    itself where there are none. Affine nodes stay apart: they fuse with what reads them."""
    first: dict[object, int] = {}
    alike = list(range(len(graph.nodes)))
    for i, node in enumerate(graph.nodes):
        if node.inputs and isinstance(node.op, Affine | Relu):
            alike[i] = first.setdefault((_identity(node.op), tuple(alike[j] for j in node.inputs)), i)
    again = {
        i: alike[i]
        for i, node in enumerate(graph.nodes)
        if isinstance(node.op, Relu) and alike[i] != i and i not in graph.outputs
    }
    if not again:
        return graph

    def replacement(builder: Builder, i: int, values: Mapping[int, Value]) -> Value | None:
        return values[again[i]] if i in again else None

    return rewritten(graph, replacement)


def _identity(op: Op) -> object:
    """Equal for operators that are known to be equal."""
    parts: list[object] = []
    for field in dataclasses.fields(op):  # pyright: ignore[reportArgumentType]
        value = getattr(op, field.name)
        if isinstance(value, Tensor) and value.numel() <= _SMALL and not value.requires_grad:
            parts.append((value.dtype, tuple(value.shape), tuple(value.flatten().tolist())))
        elif isinstance(value, int | float | str | None):
            parts.append((type(value), value))
        elif isinstance(value, tuple) and all(isinstance(v, int) for v in value):
            parts.append(value)
        else:
            parts.append(id(value))
    return type(op), tuple(parts)
