"""Whether a graph computes what a reference implementation does, seen through float rounding."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from verifier.graph import Affine, Graph

SLACK = 32.0
"""How many times the difference between float32 and float64 two float32 evaluations may differ."""
FLOOR = 1e-5
"""And relative to the largest value of a tensor, what is never worth a complaint."""


def disagreements(
    graph: Graph, points: Sequence[Tensor], theirs: Sequence[Tensor], eps: float
) -> list[float]:
    """For each output of `graph` its largest distance to `theirs` in units of the tolerance, over all points.

    `points` holds one tensor [N, *shape] per input, `theirs` one [N, *shape] per output, computed with unit
    rounding `eps`. Both are held against a float64 evaluation; the tolerance is a multiple of what float32
    and a perturbation of the inputs in their last digits change, so a point near a discontinuity does not
    count. Above 1, and inf for other shapes, the two do not compute the same.
    """
    exact = [p.double() for p in points]
    graph = graph.to(torch.float64)
    ours = graph.evaluate(exact)
    floats = graph.to(torch.float32).evaluate([x.float() for x in exact])
    generator = torch.Generator().manual_seed(1)
    signs = [torch.randint(0, 2, x.shape, generator=generator).to(x) * 2 - 1 for x in exact]
    digits = [s * eps * x.abs().clamp(min=0.1) for x, s in zip(exact, signs, strict=True)]
    moved = [
        graph.evaluate([x + step * d for x, d in zip(exact, digits, strict=True)])
        for step in (1.0, -1.0, 4.0)
    ]
    result = []
    for i, (value, other) in enumerate(zip(ours, theirs, strict=True)):
        if value.shape[1:] != other.shape[1:]:
            result.append(float("inf"))
            continue
        if not value.numel():
            result.append(0.0)
            continue
        short, noise = _largest(floats[i].double() - value), [_largest(m[i] - value) for m in moved]
        known = short.isfinite()  # float32 may overflow where float64 does not
        noise = torch.stack([torch.where(known, short, 0), *noise]).amax(0)
        distance, size = _largest(other.to(value) - value), _largest(value)
        tolerance = SLACK * noise + FLOOR * size + 1e-30
        # Where our own value overflows, as precisely as they count or in float64, or there is none (NaN) a last digit
        # away, nothing can be compared.
        lost = ~size.isfinite() | ~noise.isfinite() | (~known & ~distance.isfinite())
        ratio = torch.where(lost, torch.zeros_like(distance), distance / tolerance)
        result.append(float(ratio.nan_to_num(nan=torch.inf).amax()))
    return result


def last_terms(graph: Graph, points: Sequence[Tensor]) -> Tensor:
    """[N]: the largest sum of the sizes of what the graph's one output adds up last; 0 where it adds up nothing."""
    graph, place = graph.to(torch.float64), graph.outputs[0]
    while len(graph.nodes[place].inputs) == 1 and not _adds(graph, place):
        place = graph.nodes[place].inputs[0]
    node = graph.nodes[place]
    if not isinstance(node.op, Affine):
        return torch.zeros(len(points[0]), dtype=torch.float64)
    inputs = graph.evaluate([p.double() for p in points], list(node.inputs))
    offset = node.op.offset(*[graph.nodes[i].shape for i in node.inputs])
    size = 0.0 if offset is None else float(offset.abs().amax())
    return _largest(node.op.absolute(*[x.abs() for x in inputs])) + size


def _adds(graph: Graph, place: int) -> bool:
    node = graph.nodes[place]
    shapes = [graph.nodes[i].shape for i in node.inputs]
    return isinstance(node.op, Affine) and (len(shapes) > 1 or node.op.fan_in(*shapes) > 1)


def _largest(difference: Tensor) -> Tensor:
    """[N, *shape] to [N]."""
    return difference.abs().reshape(len(difference), -1).amax(1)
