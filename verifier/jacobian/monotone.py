"""Signs of derivatives over boxes."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

import torch
from torch import Tensor

from verifier.bounds.backward import OutOfTime
from verifier.bounds.compute import compute_bounds
from verifier.branching.plan import Limits
from verifier.graph import Graph, Interval
from verifier.graph.precision import full_precision
from verifier.jacobian.decide import NEITHER, decide
from verifier.jacobian.enclosures import BOUNDS, Effort, Method, alpha_options
from verifier.jacobian.jumps import Jumping
from verifier.jacobian.objective import Objective, gradients
from verifier.sets import Box

BATCH = 512
NOTHING = 1e-30
"""Derivatives of no more than this, which rounding makes of none, count as none."""


@dataclass(frozen=True)
class Signs:
    """How to bound derivatives: by a method, and by branch and bound until the effort's deadline with `search`."""

    method: Method = Method.OPTIMISED
    effort: Effort = Effort()
    search: bool = False


def signs(
    graph: Graph,
    data: Tensor,
    ends: tuple[Tensor, Tensor],
    features: Sequence[int],
    radius: float,
    row: Tensor,
    how: Signs = Signs(),
) -> Tensor:
    """int8 [N, F]: 1 where row @ f is proved not to decrease along the feature, -1 not to increase, 2 both (but for
    NOTHING), NEITHER where a search found derivatives of both signs, 0 open.

    `data` [N, n] are samples, `ends` [n] the range of a feature that runs; the others stay within `radius`. Derivatives
    count almost everywhere, which settles the sign of differences of a continuous function; where it may jump, nothing
    is proved, and where the effort's deadline comes first, nothing more. Raises UnsupportedError for operators without
    a derivative.
    """
    effort = how.effort
    asked, jumping = gradients(graph, row), Jumping(graph)
    shape = graph.nodes[graph.inputs[0]].shape
    index = torch.tensor(list(features))
    base = data.double().unsqueeze(1).expand(-1, len(index), -1)  # [N, F, n]
    runs = torch.zeros(len(index), data.shape[1], dtype=torch.bool)
    runs[torch.arange(len(index)), index] = True
    lower = torch.where(runs, ends[0].double(), base - radius).flatten(0, 1)
    upper = torch.where(runs, ends[1].double(), base + radius).flatten(0, 1)
    place = index.repeat(len(data))
    found = torch.zeros(len(lower), dtype=torch.int8)
    settled = torch.zeros(len(lower), dtype=torch.bool)
    with full_precision(), torch.no_grad():
        for rows in torch.arange(len(lower)).split(BATCH):
            box = Box(lower[rows].view(-1, *shape), upper[rows].view(-1, *shape))
            box = box.to(effort.dtype, effort.device)
            settled[rows] = jumping([box]).open.cpu()
            with suppress(OutOfTime):
                found[rows] = _bounded(asked, box, place[rows], how).masked_fill(settled[rows], 0)
        if how.search:
            limits = Limits(effort.deadline, 0.0, effort.memory, effort.device, effort.dtype)
            known = found.masked_fill(settled, NEITHER)  # not to be looked at
            decided = decide(asked, Interval(lower, upper), place, known, limits, effort.seed)
            found = decided.masked_fill(settled, 0)
    return found.view(len(data), len(index))


def _bounded(asked: Objective, box: Box, place: Tensor, how: Signs) -> Tensor:
    """Signs [B] of element `place` [B] of the derivatives on every instance of a box. Raises OutOfTime."""
    effort = how.effort
    prepared = asked.graph.to(effort.dtype, effort.device)
    seeds = asked.seeds.to(effort.dtype).to(effort.device)
    seed = seeds.expand(len(place), *seeds.shape[1:])
    sets = [box, Box(seed, seed)]
    bounds = compute_bounds(prepared, sets, "interval").outputs[0]
    if how.method is not Method.INTERVAL:
        options = alpha_options(effort)
        bounds = bounds.intersect(compute_bounds(prepared, sets, BOUNDS[how.method], (), options).outputs[0])
    low, high = (t.detach().flatten(1).cpu().gather(1, place.unsqueeze(1)).squeeze(1) for t in bounds)
    sign = (low >= 0).to(torch.int8) - (high <= 0).to(torch.int8)
    sign[(low >= -NOTHING) & (high <= NOTHING)] = 2
    return sign
