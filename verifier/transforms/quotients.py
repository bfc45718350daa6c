"""Norms written out in plain operators, x / sqrt(c |x|^2 + e) or x / max(|x|, e): what no such quotient exceeds.

Intervals and lines do not see that the numerator is one of the numbers whose squares are summed up in the denominator.
Exporters write RMSNorm and l2 normalisation like this (ONNX has a node for RMSNorm only since opset 23).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from verifier.graph import Builder, Graph, Value
from verifier.graph.builder import rewritten
from verifier.ops.arithmetic import ScaleShift
from verifier.ops.piecewise_linear import Relu
from verifier.ops.power import Power
from verifier.ops.product import Product, Square
from verifier.ops.reciprocal import Reciprocal
from verifier.ops.reduction import Sum
from verifier.ops.within import Within, within
from verifier.transforms.chains import moved


class Norm(NamedTuple):
    """The elements of a group, int64 [numel of the node], have a Euclidean norm of at most `most` together."""

    most: float
    groups: Tensor


def bound_quotients(graph: Graph) -> Graph:
    """An equal graph in which such quotients are known to lie between two numbers; `graph` itself where there are
    none, or where the denominator may be 0."""
    found = {
        i: norm
        for i, node in enumerate(graph.nodes)
        if isinstance(node.op, Product) and (norm := norm_of(graph, i))
    }
    if not found:
        return graph

    def replacement(builder: Builder, i: int, values: Mapping[int, Value]) -> Value | None:
        if i not in found:
            return None
        node, most = graph.nodes[i], found[i].most
        product = builder.add(node.op, *[values[j] for j in node.inputs])
        return builder.rename(within(builder, product, -most, most), node.name)

    return rewritten(graph, replacement)


def norm_of(graph: Graph, i: int) -> Norm | None:
    """What is known of the norms of a quotient of x and a norm of parts of x, with or without its `Within`; None of
    anything else."""
    while isinstance(graph.nodes[i].op, Within):
        i = graph.nodes[i].inputs[0]
    if not isinstance(graph.nodes[i].op, Product):
        return None
    x, y = graph.nodes[i].inputs
    return _divided(graph, x, y) or _divided(graph, y, x)


def _divided(graph: Graph, x: int, factor: int) -> Norm | None:
    """Of x * factor, where `factor` is one over such a norm of x, else None."""
    if graph.nodes[factor].shape != graph.nodes[x].shape:
        return None
    i, places = moved(graph, factor)
    op = graph.nodes[i].op
    if isinstance(op, Reciprocal):
        i, places = _behind(graph, i, places)
        op = graph.nodes[i].op
        if isinstance(op, ScaleShift):
            return _clamped(graph, x, i, places)
        rooted = isinstance(op, Power) and op.exponent == 0.5
    else:
        rooted = isinstance(op, Power) and op.exponent == -0.5
    if not rooted:
        return None
    i, places = _behind(graph, i, places)
    op = graph.nodes[i].op
    if not isinstance(op, ScaleShift) or op.doubt is not None or not _positive(op.shift):
        return None
    if op.scale is not None and not _positive(op.scale):
        return None
    groups = _groups(graph, x, *_behind(graph, i, places))
    if groups is None:
        return None
    scale = 1.0 if op.scale is None else float(op.scale.amin())
    return Norm(1.0 if scale == 1 else math.sqrt(1 / scale) * (1 + 1e-15), groups)


def _clamped(graph: Graph, x: int, i: int, places: Tensor) -> Norm | None:
    """For e + relu(|x| - e), e > 0."""
    raised = graph.nodes[i].op
    i, places = _behind(graph, i, places)
    if not isinstance(graph.nodes[i].op, Relu):
        return None
    i, places = _behind(graph, i, places)
    lowered = graph.nodes[i].op
    if not isinstance(lowered, ScaleShift) or not isinstance(raised, ScaleShift):
        return None
    if any(t is not None for t in (raised.scale, raised.doubt, lowered.scale, lowered.doubt)):
        return None
    if not _positive(raised.shift) or raised.shift is None or lowered.shift is None:
        return None
    if bool((raised.shift.amax() != raised.shift) | (-lowered.shift != raised.shift)):
        return None
    i, places = _behind(graph, i, places)
    op = graph.nodes[i].op
    if not (isinstance(op, Power) and op.exponent == 0.5):
        return None
    groups = _groups(graph, x, *_behind(graph, i, places))
    return None if groups is None else Norm(1.0, groups)


def _groups(graph: Graph, x: int, i: int, places: Tensor) -> Tensor | None:
    """Which of the sums of squares that a node holds each element of x is in, where `places` (one per element of x)
    say so, else None."""
    if isinstance(graph.nodes[i].op, Within):
        i, places = _behind(graph, i, places)
    op = graph.nodes[i].op
    if not isinstance(op, Sum):
        return None
    squares = graph.nodes[graph.nodes[i].inputs[0]]
    if not isinstance(squares.op, Square) or squares.inputs != (x,):
        return None
    shape = graph.nodes[x].shape
    kept = [1 if axis in op.axes else n for axis, n in enumerate(shape)]
    own = torch.arange(math.prod(kept)).view(kept).expand(shape).flatten()
    return own if torch.equal(places, own) else None


def _behind(graph: Graph, i: int, places: Tensor) -> tuple[int, Tensor]:
    """What a node's argument is copied from, and which of its elements those at `places` are functions of."""
    source, index = moved(graph, graph.nodes[i].inputs[0])
    return source, index[places]


def _positive(tensor: Tensor | None) -> bool:
    return tensor is not None and bool((tensor > 0).all())
