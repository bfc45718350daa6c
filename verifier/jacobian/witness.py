"""Lower bounds of a Lipschitz constant: norms of gradients at points, by sampling and climbing."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from verifier.bounds.interval import interval_bounds
from verifier.graph import Interval
from verifier.jacobian.objective import Objective

CHUNK = 1 << 22
"""Numbers of one batch of points, about."""
KEPT = 32
"""Points that are climbed from."""
SAMPLED = 128
"""Points between two looks at the time."""
CHECKED = 4
"""Points of a batch, at most, that are looked at closely."""


@dataclass(frozen=True, eq=False)
class Witness:
    """`value` is reached at the input `point` [n_in] (all inputs one after another) with seed number `seed`."""

    value: float
    point: Tensor
    seed: int


class Climber:
    """Evaluates an objective in float64 and remembers the best point.

    What is remembered are lower ends of intervals, rounding included: at a kink all gradients beside it count.
    """

    def __init__(
        self, objective: Objective, device: torch.device, inside: Callable[[Tensor], Tensor] | None = None
    ) -> None:
        """`inside` moves points [M, n_in] into the set, where this is no box."""
        self._inside = inside
        self._graph = objective.flat.to(torch.float64, device)
        self._seeds = objective.seeds.to(torch.float64).to(device).flatten(1)
        self._size = sum(n.numel for n in self._graph.nodes)
        self.best: Witness | None = None

    @torch.no_grad()
    def values(self, points: Tensor, seeds: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The objective at `points` [M, n_in], -inf where it is not finite, and the seed that gives it, each [M]; of
        the seeds [M] where these are given. Those that seem to be the best are evaluated again with their rounding."""
        points = points if self._inside is None else self._inside(points)
        found, which = [], []
        every = len(self._seeds) if seeds is None else 1
        rows = torch.arange(len(points), device=points.device)
        for part in rows.split(max(1, CHUNK // (self._size * every))):
            x = points[part]
            if seeds is None:
                x, seed = x.repeat_interleave(every, 0), self._seeds.repeat(len(part), 1)
            else:
                seed = self._seeds[seeds[part]]
            value = self._graph.evaluate([torch.cat([x, seed], 1)])[0].flatten(1).amax(1)
            top = _finite(value).expand(len(x)).reshape(len(part), every).max(1)
            found.append(top.values)
            which.append(top.indices if seeds is None else seeds[part])
        value, seed = torch.cat(found), torch.cat(which)
        best = -math.inf if self.best is None else self.best.value
        better = value.topk(min(CHECKED, len(value))).indices
        better = better[value[better] > best]
        if len(better):
            value = value.index_copy(0, better, self._sure(points[better], seed[better]))
            self._remember(points[better], value[better], seed[better])
        return value, seed

    def _sure(self, points: Tensor, seeds: Tensor) -> Tensor:
        """Lower ends of intervals of the values."""
        at = torch.cat([points, self._seeds[seeds]], 1)
        value = interval_bounds(self._graph, [Interval(at, at)])[self._graph.outputs[0]].lower
        return _finite(value.flatten(1).amax(1)).expand(len(at)).clone()

    def _remember(self, points: Tensor, value: Tensor, seed: Tensor) -> None:
        k = int(value.argmax())
        top = float(value[k])
        if math.isfinite(top) and (self.best is None or top > self.best.value):
            self.best = Witness(top, points[k].clone(), int(seed[k]))

    def climb(self, box: Interval, samples: int, rounds: int, deadline: float, seed: int = 0) -> None:
        """Random points of the box [1, n_in], then steps of shrinking random size from the best of them: norms of
        piecewise linear networks are flat but for jumps, where gradients say nothing."""
        generator = torch.Generator(device=box.lower.device).manual_seed(seed)
        width = box.upper - box.lower

        def random(count: int) -> Tensor:
            shape = (count, box.lower.shape[1])
            return torch.rand(shape, generator=generator, dtype=torch.float64, device=box.lower.device)

        points = box.lower + random(samples) * width
        points[: samples // 2] = torch.where(random(samples // 2) < 0.5, box.lower, box.upper)  # and corners
        points = torch.cat([box.center, points.lerp(box.center, 1e-6)])
        parts = []
        for part in points.split(SAMPLED):
            parts.append(self.values(part))
            if time.monotonic() > deadline:
                break
        value, which = (torch.cat(t) for t in zip(*parts, strict=True))
        order = value.argsort(descending=True)[:KEPT]
        points, value, which = points[order], value[order], which[order]
        for k in range(rounds):
            if time.monotonic() > deadline:
                return
            reach = width * 0.5 * 0.01 ** (k / max(rounds - 1, 1))
            few = random(len(points)) < max(0.05, 4 / box.lower.shape[1])
            step = reach * (2 * random(len(points)) - 1) * (few if k % 2 else 1.0)
            tried = torch.minimum(torch.maximum(points + step, box.lower), box.upper)
            new, _ = self.values(tried, which)
            better = new > value
            points = torch.where(better.unsqueeze(1), tried, points)
            value = torch.where(better, new, value)


def _finite(value: Tensor) -> Tensor:
    return torch.nan_to_num(value, nan=-torch.inf, posinf=-torch.inf, neginf=-torch.inf)
