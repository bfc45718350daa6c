"""Lower bounds of a Lipschitz constant: norms of gradients at points, by sampling and climbing."""

from __future__ import annotations

import math
import time
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


@dataclass(frozen=True, eq=False)
class Witness:
    """`value` is reached at the input `point` [n_in] (all inputs one after another) with seed number `seed`."""

    value: float
    point: Tensor
    seed: int


class Climber:
    """Evaluates an objective in float64 and remembers the best point.

    Values are lower ends of intervals, rounding included: at a kink those of all gradients beside it count.
    """

    def __init__(self, objective: Objective, device: torch.device) -> None:
        self._graph = objective.flat.to(torch.float64, device)
        self._seeds = objective.seeds.to(torch.float64).to(device).flatten(1)
        self._size = sum(n.numel for n in self._graph.nodes)
        self.best: Witness | None = None

    @torch.no_grad()
    def values(self, points: Tensor, seeds: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The objective at `points` [M, n_in], -inf where it is not finite, and the seed that gives it, each [M]; of
        the seeds [M] where these are given."""
        found, which = [], []
        every = len(self._seeds) if seeds is None else 1
        for rows in torch.arange(len(points), device=points.device).split(
            max(1, CHUNK // (self._size * every))
        ):
            part = points[rows]
            if seeds is None:
                x = part.repeat_interleave(every, 0)
                seed = self._seeds.repeat(len(part), 1)
            else:
                x, seed = part, self._seeds[seeds[rows]]
            at = torch.cat([x, seed], 1)
            value = interval_bounds(self._graph, [Interval(at, at)])[self._graph.outputs[0]].lower
            best = torch.nan_to_num(
                value.flatten(1).amax(1), nan=-torch.inf, posinf=-torch.inf, neginf=-torch.inf
            )
            best = best.expand(len(at)).reshape(len(part), every)
            top = best.max(1)
            found.append(top.values)
            which.append(top.indices if seeds is None else seeds[rows])
        value, seed = torch.cat(found), torch.cat(which)
        self._remember(points, value, seed)
        return value, seed

    def _remember(self, points: Tensor, value: Tensor, seed: Tensor) -> None:
        if not len(value):
            return
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
        value, which = self.values(points)
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
