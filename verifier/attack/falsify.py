"""Search and replay together: counterexamples that the original network confirms."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from verifier.attack.gradient import AttackOptions, Candidates, Search, Start
from verifier.attack.objective import Compiled, Loss
from verifier.attack.replay import Judge, Networks
from verifier.progress import ProgressCallback
from verifier.results import Counterexample
from verifier.specs.query import Query

_NEAR = 1e-5
"""Scores up to this, in units of the atoms' spread, are tried as well: rounding may favour them."""
_MOVES = 32
"""Points tried in the neighbourhood of a near miss."""


@dataclass(frozen=True)
class Outcome:
    """`margin` is the smallest score seen (inf when nothing was tried). `unconfirmed`: some point violated the
    property in the graph's arithmetic, and none did in the network's own."""

    counterexample: Counterexample | None
    margin: float
    unconfirmed: bool = False


def falsify(
    compiled: Compiled,
    query: Query,
    networks: Networks,
    deadline: float = math.inf,
    options: AttackOptions | None = None,
    rounds: int | None = None,
    callback: ProgressCallback | None = None,
) -> Outcome:
    """Search in rounds until a counterexample is confirmed, `deadline` (of `time.monotonic`) or `rounds` are over.

    Raises ModelError where a network cannot be run.
    """
    options = options or AttackOptions()
    search = Search(compiled, options, deadline, callback)
    random = np.random.default_rng(options.seed)
    trial = _Trial(compiled, search, Judge(query, networks), random)
    for count, found in enumerate(search.rounds(), 1):
        counterexample = trial.confirm(found)
        if counterexample is not None:
            return Outcome(counterexample, search.best)
        if rounds is not None and count >= rounds:
            break
    return Outcome(None, search.best, trial.unconfirmed)


class _Trial:
    """Confirms the candidates of one search, and looks around those that fail."""

    def __init__(self, compiled: Compiled, search: Search, judge: Judge, random: np.random.Generator) -> None:
        self.compiled = compiled
        self.search = search
        self.judge = judge
        self.random = random
        self.unconfirmed = False

    def confirm(self, found: Candidates) -> Counterexample | None:
        near = found.scores <= _NEAR * float(self.search.objective.scale.max())
        if not bool(near.any()):
            return None
        counterexample = self._first(found, int(near.sum()))
        if counterexample is not None:
            return counterexample
        self.unconfirmed |= found.hit
        for target in (0.1, 1.0):  # beyond the boundary rounding does not matter
            start = self._again(found, near)
            better = self.search.descend(start, self.search.options.steps // 2, Loss.HINGE, target)
            counterexample = self._first(better, 4)
            if counterexample is not None or self.search.late:
                return counterexample
        return self._around(found)

    def _first(self, found: Candidates, limit: int) -> Counterexample | None:
        for point in self.compiled.inputs(found.points[:limit].cpu().numpy()):
            counterexample = self.judge.confirm(point)
            if counterexample is not None or time.monotonic() > self.search.deadline:
                return counterexample
        return None

    def _again(self, found: Candidates, rows: Tensor) -> Start:
        cases = found.cases[rows]
        unit = self.search.unit(found.points[rows], cases)
        return Start(unit, cases, torch.full_like(cases, -1), torch.full_like(unit[:, 0], 0.1))

    def _around(self, found: Candidates) -> Counterexample | None:
        """Points a few floats away from the best one."""
        best = self.compiled.inputs(found.points[0].cpu().numpy()).astype(np.float32)
        for i in range(_MOVES):
            size = 2.0 ** (i % 8)
            moves = self.random.integers(-1, 2, best.shape) * size
            counterexample = self.judge.confirm(best + moves * np.spacing(np.abs(best)))
            if counterexample is not None or self.search.late:
                return counterexample
        return None
