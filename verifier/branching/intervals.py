"""Cases that interval arithmetic settles, before anything dearer looks at them."""

from __future__ import annotations

import math
from dataclasses import replace

import torch

from verifier.branching.bounding import Bounder
from verifier.branching.domains import Domains

MANY = 64
"""With as many cases a pass of intervals pays; so it does for boxes that are points,"""
POINT = 1e-6
"""compared with the largest number in them."""
_SHARES = 8
"""Enclosures of how many times the nodes' values a pass holds at once, about."""


def by_intervals(bounder: Bounder, start: Domains, memory: int) -> tuple[Domains, float]:
    """What intervals in float64 leave of many cases, or of points, and the least proved score of what they refute.
    `memory` in bytes is what a pass may take."""
    if len(start) < MANY and not _points(start):
        return start, math.inf
    plain = Bounder(
        bounder.compiled,
        bounder.device,
        torch.float64,
        replace(bounder.options, linear=False, gaps=False),
    )
    numbers = (
        sum(node.numel for node in plain.graph.nodes) + start.lower.shape[1] * bounder.clauses[0].numel()
    )
    batch = max(1, min(len(start), memory // (8 * _SHARES * numbers)))
    left, closed = [], math.inf
    for rows in torch.arange(len(start), device=start.lower.device).split(batch):
        part = start.index(rows)
        with torch.no_grad():
            found = plain.bound(part)
        refuted = found.refuted & part.open
        closed = min(closed, float(torch.where(refuted, found.disjunct, math.inf).clamp(min=0).amin()))
        open_ = part.open & ~found.refuted
        left.append(replace(part, open=open_).index(open_.any(1).nonzero()[:, 0]))
    return Domains.cat(left), closed


def _points(start: Domains) -> bool:
    size = torch.maximum(start.lower.abs(), start.upper.abs()).amax()
    return bool((start.upper - start.lower).amax() <= POINT * size)
