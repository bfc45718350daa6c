"""Optimised slopes of the final pass alone: a few steps of ascent on fixed inner bounds.

The inner bounds cost most of a pass and the final one little, so this is the cheap part of alpha-CROWN; in
branch and bound it closes several times as many subdomains for a fraction more time.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from verifier.bounds.ascent import Adam, Best, Leaves
from verifier.bounds.backward import LinearBound
from verifier.bounds.crown import specification_bound
from verifier.bounds.interval import Bounds
from verifier.graph import Elementwise, Graph
from verifier.graph.coefficients import Coefficients
from verifier.sets import InputSet


def ascend(
    graph: Graph,
    sets: Sequence[InputSet],
    target: int,
    rows: Coefficients,
    bounds: Bounds,
    count: int,
    steps: int = 4,
    rate: float = 0.3,
    decay: float = 0.9,
) -> LinearBound:
    """The final pass for `count` rows of `target` with slopes of its own for every row and instance.

    `bounds` are fixed. Starts from the plain relaxations and keeps the best of every row; rounding is included in
    the result, which may be below the plain pass by rounding alone.
    """
    batch = max(s.batch for s in sets)
    leaves, scales = _start(graph, target, bounds, batch, count)
    if not leaves:
        return specification_bound(graph, sets, target, rows, bounds)
    adam = Adam(leaves, scales, rate, decay)
    everything = torch.arange(batch, device=bounds[graph.inputs[0]].lower.device)
    best: Best | None = None
    for step in range(steps + 1):
        with torch.enable_grad():
            plane = specification_bound(graph, sets, target, rows, bounds, leaves, rounding=False)
            lower = plane.minimum(graph, sets)
            total = lower[lower.isfinite()].sum()
        values = {target: lower.detach().expand(batch, -1).unsqueeze(1)}
        if best is None:
            best = Best(leaves, values)
        else:
            best.update(everything, leaves, values)
        if step == steps or not total.requires_grad:
            break
        keys = [(key, name) for key, own in leaves.items() for name in own]
        found = torch.autograd.grad(total, [leaves[k][n] for k, n in keys], allow_unused=True)
        adam.step(leaves, {key: g for key, g in zip(keys, found, strict=True) if g is not None})
        _project(graph, bounds, leaves)
    assert best is not None
    with torch.no_grad():
        return specification_bound(graph, sets, target, rows, bounds, best.slopes)


def _start(graph: Graph, target: int, bounds: Bounds, batch: int, count: int) -> tuple[Leaves, Leaves]:
    """Leaves [B, 1, R, *shape] at the starting values, and the widths of their ranges [B or 1, 1, 1, *shape]."""
    leaves: Leaves = {}
    scales: Leaves = {}
    for j in sorted(graph.ancestors(target)):
        op = graph.nodes[j].op
        if not isinstance(op, Elementwise):
            continue
        for name, p in op.parameters(*[bounds[k] for k in graph.nodes[j].inputs]).items():
            width = (p.upper - p.lower)[:, None, None]
            if bool((width > 0).any()):
                shape = (batch, 1, count, *graph.nodes[j].shape)
                leaves.setdefault((target, j), {})[name] = (
                    p.value[:, None, None].detach().expand(shape).clone().requires_grad_()
                )
                scales.setdefault((target, j), {})[name] = torch.nan_to_num(width, nan=0.0, posinf=1.0)
    return leaves, scales


@torch.no_grad()
def _project(graph: Graph, bounds: Bounds, leaves: Leaves) -> None:
    for (_, j), own in leaves.items():
        op = graph.nodes[j].op
        if not isinstance(op, Elementwise):
            continue
        ranges = op.parameters(*[bounds[k] for k in graph.nodes[j].inputs])
        for name, tensor in own.items():
            tensor.clamp_(ranges[name].lower[:, None, None], ranges[name].upper[:, None, None])


def pick_better(first: LinearBound, second: LinearBound, wins: Tensor) -> LinearBound:
    """Row by row the first, or the second where `wins` [B, R]; tensors shared by all instances are expanded."""
    batch = wins.shape[0]

    def wide(plane: LinearBound) -> LinearBound:
        error = None if plane.error is None else plane.error.expand(batch, -1)
        coefficients = {i: c.expand(batch, *c.shape[1:]) for i, c in plane.coefficients.items()}
        return LinearBound(coefficients, plane.constant.expand(batch, -1), error)

    return wide(second).where(wins, wide(first))
