"""Multipliers with which a split starts, so that no half is bounded worse than the whole was.

In a half, the lines of an operator become steeper or flatter, and what they lose where the split cuts off the other
half is paid back by multipliers of low <= x <= high: for a line m x + c below f before and m' x + c' after, both
through f at the end towards which the difference falls, a (m' x + c') + a (m - m') (x - end) = a (m x + c).
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from verifier.bounds.ascent import Leaves
from verifier.bounds.final import HIGH, LOW
from verifier.bounds.relaxations import relax_at
from verifier.branching.bounded import Bounded
from verifier.branching.bounding import Bounder
from verifier.graph import Elementwise, Interval, Univariate
from verifier.graph.op import Op


def starts_anew(op: Op) -> bool:
    """Whether lines over a half start as any do. Those of a smooth operator that were best over the whole touch it
    where the half may not be: one step of ascent from there shows nothing of what a split gains."""
    return isinstance(op, Univariate) and op.smooth


def forget(warm: Leaves, bounder: Bounder, node: int, rows: Tensor, column: Tensor) -> None:
    """Drops from `warm` the parameters of the elements `column` [m] of `node`, in the subdomains `rows` [m], of
    operators that start anew: not a number stands for what is not given."""
    for i in bounder.elementwise:
        own = warm.get((bounder.target, i), {})
        if bounder.graph.nodes[i].inputs != (node,) or not starts_anew(bounder.graph.nodes[i].op):
            continue
        for name, old in own.items():
            fresh = old.clone()
            fresh.flatten(3)[rows, 0, :, column] = torch.nan
            own[name] = fresh


def split_multipliers(
    bounder: Bounder, bounded: Bounded, node: int, half: Interval, rows: Tensor, column: Tensor
) -> tuple[Tensor, Tensor]:
    """For LOW and HIGH, each [m, R]: the multipliers of element `column` [m] of `node` in the subdomains `rows` [m]
    when its enclosure becomes `half` [m, *shape]. Operators of several arguments, and those whose lines start anew,
    start from zero."""
    graph = bounder.graph
    whole = bounded.bounds[node].expand(len(bounded.score)).index(rows)
    count = bounded.planes.shape[1] * bounded.planes.shape[2]
    zero = half.lower.new_zeros(len(rows), count)
    low, high = zero, zero
    for i in bounder.elementwise:
        op, inputs = graph.nodes[i].op, graph.nodes[i].inputs
        if inputs != (node,) or not isinstance(op, Elementwise) or starts_anew(op):
            continue
        if i not in bounded.arrived:
            continue
        own = {n: t[rows].squeeze(1) for n, t in bounded.warm.get((bounder.target, i), {}).items()}
        before, after = _slopes(op, own, whole, column), _slopes(op, own, half, column)
        arrived = bounded.arrived[i][rows].flatten(2)
        a = arrived.gather(2, column.view(-1, 1, 1).expand(-1, count, 1)).squeeze(2)
        rise = a.clamp(min=0) * (after[0] - before[0]) + a.clamp(max=0) * (after[1] - before[1])
        low, high = low + rise.clamp(min=0), high - rise.clamp(max=0)
    return torch.nan_to_num(low, posinf=0.0), torch.nan_to_num(high, posinf=0.0)


def _slopes(
    op: Elementwise, own: Mapping[str, Tensor], box: Interval, column: Tensor
) -> tuple[Tensor, Tensor]:
    """The slopes [m, R or 1] of the lines below and above one element, at parameters brought into their ranges."""
    lines = relax_at(op, own, box.map(lambda t: t.unsqueeze(1)))

    def pick(slope: Tensor) -> Tensor:
        flat = slope.flatten(2)
        return flat.gather(2, column.view(-1, 1, 1).expand(-1, flat.shape[1], 1)).squeeze(2)

    return pick(lines.lower_slopes[0]), pick(lines.upper_slopes[0])


def add_multipliers(
    warm: Leaves,
    key: tuple[int, int],
    values: tuple[Tensor, Tensor],
    place: tuple[Tensor, Tensor],
    like: Tensor,
) -> None:
    """Add `values` [m, R] to the multipliers of the elements `place` (subdomains [m], columns [m]) in `warm`, whose
    tensors are laid out as `like` [M, 1, R, *shape] and zero where there are none."""
    rows, column = place
    own = warm.setdefault(key, {})
    for name, value in zip((LOW, HIGH), values, strict=True):
        old = own.get(name)
        fresh = torch.zeros_like(like) if old is None else old.clone()
        fresh.flatten(3)[rows, 0, :, column] += value
        own[name] = fresh
