"""Lines of many nodes of one operator at once: where nodes are small a call costs what starting its hundreds of tensor
operations costs, and a recurrence has as many nodes of every gate as it has steps."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from verifier.graph import Elementwise, Graph, Interval, Parameter, Relaxation

TOGETHER = 1 << 18
"""Numbers of one argument, at most, that are joined: beyond, starting operations costs nothing in comparison."""


def alike(graph: Graph, nodes: Iterable[int], each: int) -> list[list[int]]:
    """`nodes` (elementwise) in groups of one operator and shape whose lines cost much to make, which those have that
    can be sketched; all others alone. `each` is how many numbers belong to an element (instances times rows)."""
    groups: dict[object, list[list[int]]] = {}
    for i in nodes:
        op, shape = graph.nodes[i].op, graph.nodes[i].shape
        costly = type(op).sketch is not Elementwise.sketch if isinstance(op, Elementwise) else False
        own = not costly or any(True for _ in op.tensors())
        parts = groups.setdefault(i if own else (type(op), repr(op), shape), [[]])
        if parts[-1] and (len(parts[-1]) + 1) * each * graph.nodes[i].numel > TOGETHER:
            parts.append([])
        parts[-1].append(i)
    return [part for parts in groups.values() for part in parts]


def parameters_of(
    op: Elementwise, boxes: Sequence[Sequence[Interval]], start: bool = True
) -> list[dict[str, Parameter]]:
    """`op.parameters` for the arguments of several nodes; without `start` values are the least ones."""
    lead = max(box.lower.shape[0] for own in boxes for box in own)
    joined = list(boxes[0]) if len(boxes) == 1 else _joined_boxes(boxes, lead)
    if start:
        found = op.parameters(*joined)
    else:
        found = {n: Parameter(r.lower, r.lower, r.upper) for n, r in op.ranges(*joined).items()}
    if len(boxes) == 1:
        return [found]
    parts = {n: [_parts(t, len(boxes), lead) for t in (p.value, p.lower, p.upper)] for n, p in found.items()}
    return [{n: Parameter(*[ends[k] for ends in own]) for n, own in parts.items()} for k in range(len(boxes))]


def relaxations_of(
    op: Elementwise,
    parameters: Sequence[Mapping[str, Tensor]],
    boxes: Sequence[Sequence[Interval]],
    sketch: bool = False,
) -> list[Relaxation]:
    """`op.relax`, or its sketch where it has one and that is asked for, for the parameters and arguments of several
    nodes; the parameters have the same names."""
    if len(boxes) == 1:
        return [_relaxed(op, parameters[0], boxes[0], sketch)]
    lead = max(
        *[box.lower.shape[0] for own in boxes for box in own],
        *[t.shape[0] for own in parameters for t in own.values()],
    )
    names = parameters[0].keys()
    joined = {n: _joined([own[n] for own in parameters], lead) for n in names}
    whole = _relaxed(op, joined, _joined_boxes(boxes, lead), sketch)
    lower, upper = (
        [_parts(t, len(boxes), lead) for t in slopes] for slopes in (whole.lower_slopes, whole.upper_slopes)
    )
    below, above = (
        [None] * len(boxes) if t is None else _parts(t, len(boxes), lead)
        for t in (whole.lower_intercept, whole.upper_intercept)
    )
    return [
        Relaxation(tuple(t[k] for t in lower), below[k], tuple(t[k] for t in upper), above[k], whole.finite)
        for k in range(len(boxes))
    ]


def _relaxed(
    op: Elementwise, parameters: Mapping[str, Tensor], boxes: Sequence[Interval], sketch: bool
) -> Relaxation:
    found = op.sketch(parameters, *boxes) if sketch else None
    return op.relax(parameters, *boxes) if found is None else found


def _joined_boxes(boxes: Sequence[Sequence[Interval]], lead: int) -> list[Interval]:
    """Per argument, those of all nodes one after the other."""
    return [
        Interval(_joined([b.lower for b in own], lead), _joined([b.upper for b in own], lead))
        for own in zip(*boxes, strict=True)
    ]


def _joined(tensors: Sequence[Tensor], lead: int) -> Tensor:
    """Tensors [B or 1, ...] as one [count * B, ...], B being `lead`."""
    rest = np.broadcast_shapes(*[t.shape[1:] for t in tensors])
    return torch.cat([t.expand(lead, *rest) for t in tensors])


def _parts(whole: Tensor, count: int, lead: int) -> Sequence[Tensor]:
    """The nodes' parts of what belongs to all of them, which has to vary with the boxes."""
    return whole.expand(count * lead, *whole.shape[1:]).split(lead) if len(whole) == 1 else whole.split(lead)
