"""Branch and bound for the largest value of an objective: an upper bound that only falls, beside a witness."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass

import torch
from torch import Tensor

from verifier.branching.plan import Limits, plan
from verifier.graph import Interval
from verifier.jacobian.objective import Objective
from verifier.jacobian.witness import Climber
from verifier.results import Counterexample
from verifier.solvers.solve import LinearSearch, linear_search
from verifier.specs.compile import Compiled

SLICE = 0.5
"""Seconds between two looks at the gap."""


@dataclass(frozen=True)
class Maximum:
    """`upper` is proved; `domains` were bounded."""

    upper: float
    domains: int


def maximise(objective: Objective, box: Interval, climber: Climber, limits: Limits) -> Maximum:
    """Bound the objective's largest value on a box [1, n_in] of inputs, float64, ever better until `limits` say so.

    Values that are less than what the climber has found need no better bound. Every bounded subdomain's candidates are
    shown to the climber. On small piecewise linear networks linear programs take turns with the search: whether neurons
    can be in the states of a part at all is a question that they answer and bounds do not.
    """
    run = _Run(objective, box, climber, limits)
    while not run.done and time.monotonic() < limits.deadline:
        run.turn()
    return Maximum(run.upper, run.domains)


class _Run:
    """Search and linear programs in turns, for a target that values must reach to count."""

    def __init__(self, objective: Objective, box: Interval, climber: Climber, limits: Limits) -> None:
        self._objective, self._box, self._climber, self._limits = objective, box, climber, limits
        self._target = _target(climber, limits)
        compiled = _compiled(objective, box, self._target)
        self._size = compiled.lower.shape[1] - objective.seeds[0].numel()
        way = plan(compiled, limits)
        self._first, self.done = way.first, not len(way.start)
        self._search = None if self.done else way.search(self._look)
        self.upper = self._target - min(way.closed, 0.0) if self.done else math.inf
        self._programs = None if self.done else self._linear(compiled)
        self._leaves, self._turns = 0, 0

    @property
    def domains(self) -> int:
        later = self._search.domains if self._search is not None else 0
        programs = self._programs.leaves if self._programs is not None else 0
        return self._first + later + programs + self._leaves

    def turn(self) -> None:
        """Some time for both."""
        self._turns += 1
        until = time.monotonic() + SLICE * 1.5**self._turns
        if self._programs is not None:
            self._programs.run(until)
            self._keep(self._programs.bound, self._programs.proved)
            if self._programs.finished and not self.done:
                self._leaves += self._programs.leaves
                again = _target(self._climber, self._limits)
                self._programs = None
                if again > self._target:  # a better witness: less to be proved
                    self._target = again
                    self._programs = self._linear(_compiled(self._objective, self._box, again))
        if not self.done and self._search is not None:
            ended = self._search.run(time.monotonic() + SLICE) is not None
            self._keep(self._search.bound, False)
            self.done |= ended and self._programs is None

    def _keep(self, bound: float, proved: bool) -> None:
        """What a search over the present target, or an earlier one that is less, proves."""
        reached = self._target if proved else max(self._target, self._target - bound)
        self.upper = min(self.upper, reached)
        best = self._climber.best
        self.done |= best is not None and self.upper <= best.value * (1 + 2 * self._limits.gap)

    def _look(self, points: Tensor, chosen: Tensor) -> Counterexample | None:
        """Nothing but its bounds ends a search."""
        self._climber.values(points[:, : self._size])
        return None

    def _linear(self, compiled: Compiled) -> LinearSearch | None:
        limits = self._limits
        return linear_search(compiled, self._look, limits.deadline, limits.memory // 4)


def _target(climber: Climber, limits: Limits) -> float:
    """A little more than the climber's best: what is less need not be bounded better."""
    found = climber.best.value if climber.best is not None else 0.0
    return max(found, 0.0) * (1 + limits.gap) + 1e-30


def _compiled(objective: Objective, box: Interval, target: float) -> Compiled:
    """The question where the value reaches `target`: a case per seed, a disjunct per value."""
    seeds = objective.seeds.to(torch.float64).flatten(1)
    graph = objective.margins(target)
    count = graph.nodes[graph.outputs[0]].numel
    ends = [torch.cat([end.expand(len(seeds), -1), seeds], 1) for end in box]
    clauses = torch.arange(count).view(1, -1, 1).expand(len(seeds), -1, -1)
    lower, upper = ends
    return Compiled(graph, lower, upper, clauses.contiguous(), torch.zeros(count, dtype=torch.bool))
