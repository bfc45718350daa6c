"""Lower bounds of a Lipschitz constant: norms of gradients at points, by sampling and climbing."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass

import torch
from torch import Tensor

from verifier.graph import Interval
from verifier.jacobian.objective import Objective

CHUNK = 1 << 22
"""Numbers of one batch of points, about."""
KEPT = 32
"""Points that are climbed from."""
NEAR = 1e-9
"""So near to a knot, in units of the largest value beside it, a point has no gradient of its own."""


@dataclass(frozen=True, eq=False)
class Witness:
    """`value` is reached at the input `point` [n_in] (all inputs one after another) with seed number `seed`."""

    value: float
    point: Tensor
    seed: int


class Climber:
    """Evaluates an objective in float64 and remembers the best point that has a gradient of its own."""

    def __init__(self, objective: Objective, device: torch.device) -> None:
        self._graph = objective.flat.to(torch.float64, device)
        self._seeds = objective.seeds.to(torch.float64).to(device).flatten(1)
        self._switches = objective.switches
        self._size = sum(n.numel for n in self._graph.nodes)
        self.best: Witness | None = None

    @torch.no_grad()
    def values(self, points: Tensor, seeds: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The objective at `points` [M, n_in], -inf where it has no gradient, and the seed that gives it, each [M]; of
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
            kept = [self._graph.outputs[0], *[node for node, _ in self._switches]]
            value, *at = self._graph.evaluate([torch.cat([x, seed], 1)], kept)
            best = value.flatten(1).amax(1)
            for (_, knots), z in zip(self._switches, at, strict=True):
                z = z.expand(len(best), *z.shape[1:]).flatten(1)
                near = NEAR * z.abs().amax(1, keepdim=True).clamp(min=1e-30)
                on = ((z.unsqueeze(2) - knots.to(z)).abs() <= near.unsqueeze(2)).flatten(1).any(1)
                best = best.masked_fill(on, -torch.inf)
            best = torch.nan_to_num(best, nan=-torch.inf, posinf=-torch.inf).view(len(part), every)
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
