"""Norms written out in plain operators, x / sqrt(c |x|^2 + e) or x / max(|x|, e): what no such quotient exceeds.

Intervals and lines do not see that the numerator is one of the numbers whose squares are summed up in the denominator.
Exporters write RMSNorm and l2 normalisation like this (ONNX has a node for RMSNorm only since opset 23).
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from verifier.graph import Builder, Graph, Value
from verifier.graph.builder import rewritten
from verifier.graph.op import Op
from verifier.ops.arithmetic import ScaleShift
from verifier.ops.movement import Reshape, Take
from verifier.ops.piecewise_linear import Relu
from verifier.ops.power import Power
from verifier.ops.product import Product, Square
from verifier.ops.reciprocal import Reciprocal
from verifier.ops.reduction import Sum
from verifier.ops.within import Within, within


def bound_quotients(graph: Graph) -> Graph:
    """An equal graph in which such quotients are known to lie between two numbers; `graph` itself where there are
    none, or where the denominator may be 0."""
    found: list[float] = []

    def replacement(builder: Builder, i: int, values: Mapping[int, Value]) -> Value | None:
        node = graph.nodes[i]
        if not isinstance(node.op, Product):
            return None
        x, y = (values[j] for j in node.inputs)
        for part, factor in ((x, y), (y, x)):
            most = _most(builder, part, factor)
            if most is not None:
                found.append(most)
                return builder.rename(within(builder, builder.add(node.op, x, y), -most, most), node.name)
        return None

    changed = rewritten(graph, replacement)
    return changed if found else graph


def _most(builder: Builder, x: Value, factor: Value) -> float | None:
    """What |x * factor| does not exceed, where `factor` is one over such a norm of x, else None."""
    shape = builder.shape(x)
    if builder.shape(factor) != shape:
        return None
    op, value, places = _moved(builder, factor, torch.arange(math.prod(shape)))
    if isinstance(op, Power) and op.exponent == -0.5:
        op, value, places = _moved(builder, value, places)
    elif isinstance(op, Reciprocal):
        op, value, places = _moved(builder, value, places)
        if isinstance(op, ScaleShift):
            return _clamped(builder, x, op, value, places)
        if not (isinstance(op, Power) and op.exponent == 0.5):
            return None
        op, value, places = _moved(builder, value, places)
    else:
        return None
    if not isinstance(op, ScaleShift) or op.doubt is not None or not _positive(op.shift):
        return None
    if op.scale is not None and not _positive(op.scale):
        return None
    if not _sums_squares(builder, x, value, places):
        return None
    scale = 1.0 if op.scale is None else float(op.scale.amin())
    return math.sqrt(1 / scale) * (1 + 1e-15)


def _clamped(builder: Builder, x: Value, raised: ScaleShift, value: Value, places: Tensor) -> float | None:
    """For e + relu(|x| - e), e > 0."""
    op, value, places = _moved(builder, value, places)
    if not isinstance(op, Relu):
        return None
    lowered, value, places = _moved(builder, value, places)
    if not isinstance(lowered, ScaleShift) or not _positive(raised.shift) or lowered.shift is None:
        return None
    if any(t is not None for t in (raised.scale, raised.doubt, lowered.scale, lowered.doubt)):
        return None
    if raised.shift is None or bool((raised.shift.amax() != raised.shift) | (-lowered.shift != raised.shift)):
        return None
    op, value, places = _moved(builder, value, places)
    if not (isinstance(op, Power) and op.exponent == 0.5) or not _sums_squares(builder, x, value, places):
        return None
    return 1.0


def _sums_squares(builder: Builder, x: Value, value: Value, places: Tensor) -> bool:
    """Whether `value` holds, at `places` (one per element of x), a sum of squares that this element's is one of."""
    op, inner, places = _moved(builder, value, places)
    if isinstance(op, Within):
        op, inner, places = _moved(builder, inner, places)
    if not isinstance(op, Sum):
        return False
    squares, behind = builder.made_by(inner)
    if not isinstance(squares, Square) or behind != (x,):
        return False
    shape = builder.shape(x)
    kept = [1 if axis in op.axes else n for axis, n in enumerate(shape)]
    return torch.equal(places, torch.arange(math.prod(kept)).view(kept).expand(shape).flatten())


def _moved(builder: Builder, value: Value, places: Tensor) -> tuple[Op, Value, Tensor]:
    """The operator behind a value, gathers and reshapes aside, its first argument, and the elements of its result that
    `places` are."""
    op, inputs = builder.made_by(value)
    while isinstance(op, Take | Reshape):
        if isinstance(op, Take):
            places = op.index.to(places.device)[places]
        value = inputs[0]
        op, inputs = builder.made_by(value)
    return op, inputs[0] if inputs else value, places


def _positive(tensor: Tensor | None) -> bool:
    return tensor is not None and bool((tensor > 0).all())
