"""What to do with a query: attack, bounds, branching, in which order and with how much of the time."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from verifier.attack.falsify import falsify
from verifier.attack.gradient import AttackOptions
from verifier.attack.replay import Judge, Networks
from verifier.branching.bounding import Bounder, BoundOptions
from verifier.branching.domains import Domains
from verifier.branching.search import Outcome, Search, SearchOptions
from verifier.options import Options
from verifier.results import Counterexample, Progress, Reason, Result, Stats, Status
from verifier.specs.compile import Compiled
from verifier.specs.query import Query

QUICK_ROUNDS = 2
TRIES_PER_STEP = 4


@dataclass
class Clock:
    """Seconds per phase."""

    seconds: dict[str, float] = field(default_factory=dict)
    _began: float = field(default_factory=time.monotonic)

    def phase(self, name: str) -> None:
        """What passed since the last call belongs to `name`."""
        now = time.monotonic()
        self.seconds[name] = self.seconds.get(name, 0.0) + now - self._began
        self._began = now


def solve(
    query: Query,
    networks: Networks,
    compiled: Compiled,
    options: Options,
    deadline: float,
    progress: Callable[[Progress], None] | None = None,
) -> Result:
    """Decide a compiled query by `deadline` (of `time.monotonic`); never raises for a limit that is reached."""
    clock = Clock()
    device = _device(options)
    if compiled.empty_reason is not None:
        stats = Stats(seconds=clock.seconds, device=str(device))
        return Result(
            Status.UNSAT, math.inf, reason=Reason.EMPTY_INPUT_SET, detail=compiled.empty_reason, stats=stats
        )
    margin = math.inf
    if options.attack:
        found = falsify(
            compiled, query, networks, deadline, AttackOptions(seed=options.seed), QUICK_ROUNDS, progress
        )
        clock.phase("attack")
        margin = found.margin
        if found.counterexample is not None:
            stats = Stats(seconds=clock.seconds, device=str(device), attack_margin=margin)
            return Result(Status.SAT, counterexample=found.counterexample, stats=stats)
    outcome, dtype = _branch(query, networks, compiled, options, deadline, device, progress)
    clock.phase("branch and bound")
    stats = Stats(
        domains=outcome.domains,
        branches=outcome.branches,
        seconds=clock.seconds,
        device=str(device),
        dtype=str(dtype).removeprefix("torch."),
        attack_margin=margin,
    )
    bound = outcome.bound if math.isfinite(outcome.bound) else None
    return Result(outcome.status, bound, outcome.counterexample, outcome.reason, stats=stats)


def _branch(
    query: Query,
    networks: Networks,
    compiled: Compiled,
    options: Options,
    deadline: float,
    device: torch.device,
    progress: Callable[[Progress], None] | None,
) -> tuple[Outcome, torch.dtype]:
    dtype = torch.float64 if options.dtype == "float64" else torch.float32
    memory = int((options.max_memory_gb or 4.0) * 2**30)
    bounder = Bounder(compiled, device, dtype, BoundOptions(memory=memory // 4))
    start = Domains(
        compiled.lower.to(device),
        compiled.upper.to(device),
        torch.arange(len(compiled.lower), device=device),
        (compiled.clauses >= 0).any(2).to(device),
        torch.full((len(compiled.lower),), -math.inf, dtype=torch.float64, device=device),
    )
    attempt = _Attempt(query, networks, compiled, device)
    limits = SearchOptions(
        deadline=deadline,
        batch=options.batch_size or 1024,
        max_domains=options.max_domains,
        memory=memory // 2,
    )
    return Search(bounder, start, attempt, limits, progress).run(), dtype


class _Attempt:
    """Evaluates points in float64 and has the promising ones replayed."""

    def __init__(self, query: Query, networks: Networks, compiled: Compiled, device: torch.device) -> None:
        self._judge = Judge(query, networks)
        self._graph = compiled.graph.to(torch.float64, device)
        self._clauses = compiled.clauses.to(device)

    def __call__(self, points: Tensor, cases: Tensor) -> Counterexample | None:
        margins = self._graph.evaluate([points])[0]
        table = self._clauses[cases]
        values = margins.gather(1, table.clamp(min=0).flatten(1)).view(table.shape)
        worst = torch.where(table >= 0, values, -torch.inf).amax(2)
        worst = torch.where((table >= 0).any(2), worst, torch.inf)
        score = worst.amin(1)
        order = score.argsort()[:TRIES_PER_STEP]
        for point in points[order[score[order] <= 0]]:
            found = self._judge.confirm(point.cpu().numpy())
            if found is not None:
                return found
        return None


def _device(options: Options) -> torch.device:
    """`auto` takes CUDA when there is one, and never anything else but the CPU."""
    if options.device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return torch.device(options.device)
