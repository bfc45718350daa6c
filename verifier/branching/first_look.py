"""Cases that cheap bounds settle, before anything dearer looks at them."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, replace

import torch

from verifier.bounds.final import AscentOptions
from verifier.branching.bounding import Bounder, BoundOptions, few_inputs
from verifier.branching.domains import Domains

MANY = 64
"""With as many cases a pass of intervals pays; so it does for boxes that are points,"""
POINT = 1e-6
"""compared with the largest number in them."""
TRIED = 16
"""Cases on which forward bounds are compared with backward ones."""
STEP = 512
"""Cases of one forward pass, at most."""
_SHARES = 8
"""Enclosures of how many times the nodes' values a pass holds at once, about."""


@dataclass(frozen=True, eq=False)
class Look:
    """The cases that are `left`, the least proved score of what was refuted (`closed`), whether inner enclosures by
    forward functions of the few inputs that vary refuted more in the same time than those by backward passes, and
    whether all boxes are `points`: what is left of them is a counterexample, or nothing says what it is."""

    left: Domains
    closed: float
    forward: bool = False
    points: bool = False


def first_look(bounder: Bounder, start: Domains, memory: int) -> Look:
    """What intervals in float64, and forward bounds where few inputs vary, leave of many cases, or of points. `memory`
    in bytes is what a pass may take."""
    points = _points(start)
    if len(start) < MANY and not points:
        return Look(start, math.inf)
    options = replace(bounder.options, linear=False, gaps=False)
    plain = Bounder(bounder.compiled, bounder.device, torch.float64, options)
    numbers = (
        sum(node.numel for node in plain.graph.nodes) + start.lower.shape[1] * bounder.clauses[0].numel()
    )
    batch = max(1, min(len(start), memory // (8 * _SHARES * numbers)))
    look = _refuted(plain, start, batch)
    few = few_inputs(look.left)
    if points or not bounder.options.linear or few is None or len(look.left) < MANY:
        return replace(look, points=points)
    ahead = bounder.with_options(forward(bounder.options))
    if not _pays(ahead, bounder, look.left.index(slice(0, TRIED))):
        return look
    again = _refuted(ahead, look.left, max(1, min(STEP, batch // (few + 1))))
    return Look(again.left, min(look.closed, again.closed), True)


def forward(options: BoundOptions) -> BoundOptions:
    """With forward bounds, and no optimisation after them: halving once more costs less."""
    return replace(options, forward=True, ascent=AscentOptions(steps=0))


def _refuted(bounder: Bounder, domains: Domains, batch: int) -> Look:
    left, closed = [], math.inf
    for rows in torch.arange(len(domains), device=domains.lower.device).split(batch):
        part = domains.index(rows)
        with torch.no_grad():
            found = bounder.bound(part)
        refuted = found.refuted & part.open
        closed = min(closed, float(torch.where(refuted, found.disjunct, math.inf).clamp(min=0).amin()))
        open_ = part.open & ~found.refuted
        left.append(replace(part, open=open_).index(open_.any(1).nonzero()[:, 0]))
    return Look(Domains.cat(left), closed)


def _pays(ahead: Bounder, back: Bounder, some: Domains) -> bool:
    """Whether the first refutes more of `some` in the time that both take."""
    rates: list[float] = []
    for bounder in (ahead, back):
        began = time.monotonic()
        with torch.no_grad():
            refuted = int(bounder.bound(some).refuted.all(1).sum())
        rates.append((refuted + 1) / (time.monotonic() - began))
    return rates[0] > rates[1]


def _points(start: Domains) -> bool:
    size = torch.maximum(start.lower.abs(), start.upper.abs()).amax()
    return bool((start.upper - start.lower).amax() <= POINT * size)
