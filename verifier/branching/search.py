"""The branch-and-bound loop."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from verifier.branching.bounding import Bounded, Bounder
from verifier.branching.clip import clip
from verifier.branching.domains import Domains, Store
from verifier.branching.input_split import halve, scores, sensitivities
from verifier.results import Counterexample, Progress, Reason, Status

Try = Callable[[Tensor, Tensor], Counterexample | None]
"""Points [M, n_in] in float64 with their cases [M], to be evaluated and confirmed; a counterexample ends the search."""

CLIP_WORK = 30_000_000
SENSITIVITY_WORK = 100_000_000
SECONDS_PER_STEP = 1.0


@dataclass(frozen=True)
class SearchOptions:
    """`deadline` is a time of `time.monotonic`; `batch` the most subdomains bounded at once."""

    deadline: float
    batch: int = 1024
    max_domains: int | None = None
    memory: int = 2 << 30


@dataclass(frozen=True)
class Outcome:
    """`bound` is a proved lower bound of the score over all cases; `domains` how many were bounded."""

    status: Status
    reason: Reason
    bound: float
    domains: int
    branches: int
    counterexample: Counterexample | None = None


class Search:
    """One run of branch and bound over input boxes. Subdomains are bounded in batches, worst first; what a plane
    shows to be free of solutions is clipped away before the rest is halved."""

    def __init__(
        self,
        bounder: Bounder,
        start: Domains,
        try_points: Try,
        options: SearchOptions,
        progress: Callable[[Progress], None] | None = None,
    ) -> None:
        self._bounder, self._try, self._options, self._progress = bounder, try_points, options, progress
        self._store = Store(options.memory)
        self._store.push(start)
        self._closed = torch.inf
        self._stuck = torch.inf
        self._began = time.monotonic()
        self.domains = 0
        self.branches = 0

    def run(self) -> Outcome:
        """Until everything is refuted, a counterexample is confirmed, or a limit is reached."""
        size = min(self._options.batch, 64)
        while len(self._store):
            if time.monotonic() > self._options.deadline:
                return self._outcome(Status.TIMEOUT, Reason.NONE)
            if self._options.max_domains is not None and self.domains >= self._options.max_domains:
                return self._outcome(Status.UNKNOWN, Reason.DOMAIN_LIMIT)
            batch = self._store.take(size)
            began = time.monotonic()
            try:
                found = self._step(batch)
            except (RuntimeError, MemoryError) as error:
                if not _out_of_memory(error):
                    raise
                self._store.push(batch)
                if size == 1:
                    return self._outcome(Status.UNKNOWN, Reason.MEMORY)
                size = max(1, len(batch) // 2)
                continue
            if found is not None:
                return self._outcome(Status.SAT, Reason.NONE, found)
            size = self._next_size(size, len(batch), time.monotonic() - began)
            self._report()
        if self._stuck < torch.inf:
            return self._outcome(Status.UNKNOWN, Reason.NUMERICS)
        return self._outcome(Status.UNSAT, Reason.NONE)

    def _step(self, batch: Domains) -> Counterexample | None:
        with torch.no_grad():
            bounded = self._bounder.bound(batch)
            self.domains += len(batch)
            open_ = ~bounded.refuted.all(1)
            if bool((~open_).any()):
                self._closed = min(self._closed, float(bounded.score[~open_].min()))
            if not bool(open_.any()):
                return None
            known = self._bounder.known(bounded)
            rest, left, jacobian = self._keep(batch, bounded, open_)
            found = self._try(*_candidates(rest, left))
            if found is not None:
                return found
            rest = replace(rest, known={i: b.index(open_) for i, b in known.items()})
            rest, left, jacobian = self._clip(rest, left, jacobian)
            if not len(rest):
                return None
            children, stuck = halve(rest, scores(rest, left, self._bounder.clauses, jacobian))
            if bool(stuck.any()):
                self._stuck = min(self._stuck, float(rest.bound[stuck].min()))
            self.branches += len(children) // 2
            self._store.push(children)
        return None

    def _keep(
        self, batch: Domains, bounded: Bounded, open_: Tensor
    ) -> tuple[Domains, Bounded, Tensor | None]:
        """The subdomains that are still open, with their bounds, and the sensitivities if they are affordable."""
        graph = self._bounder.graph
        widest = max(graph.nodes[i].numel for i in graph.ancestors(self._bounder.target))
        jacobian = None
        if int(open_.sum()) * graph.nodes[graph.inputs[0]].numel * widest <= SENSITIVITY_WORK:
            bounds = {i: b.index(open_) for i, b in bounded.bounds.items()}
            jacobian = sensitivities(graph, bounds, int(open_.sum()))
        rest = batch.index(open_)
        rest = replace(
            rest,
            open=rest.open & ~bounded.refuted[open_],
            bound=torch.maximum(rest.bound, bounded.score[open_]),
            known={},
        )
        left = Bounded(
            bounded.score[open_],
            bounded.disjunct[open_],
            bounded.refuted[open_],
            bounded.planes[open_],
            bounded.constants[open_],
            {},
        )
        return rest, left, jacobian

    def _clip(
        self, rest: Domains, left: Bounded, jacobian: Tensor | None
    ) -> tuple[Domains, Bounded, Tensor | None]:
        """Every box shrunk to the hull of its open disjuncts' boxes; empty ones are closed."""
        batch, disjuncts, width, size = left.planes.shape
        if left.planes.numel() > CLIP_WORK:
            return rest, left, jacobian
        finite = left.constants.isfinite()
        constants = torch.where(finite, left.constants, 0.0).flatten(0, 1)
        planes = torch.where(finite.unsqueeze(3), left.planes, 0.0).flatten(0, 1)
        constants = torch.where(finite.flatten(0, 1), constants, -1.0)
        wide = [t.unsqueeze(1).expand(-1, disjuncts, -1).flatten(0, 1) for t in (rest.lower, rest.upper)]
        lower, upper, empty = clip(wide[0], wide[1], planes, constants)
        gone = (empty.view(batch, disjuncts) | left.refuted).unsqueeze(2)
        lower = torch.where(gone, torch.inf, lower.view(batch, disjuncts, size)).amin(1)
        upper = torch.where(gone, -torch.inf, upper.view(batch, disjuncts, size)).amax(1)
        alive = ~gone.all(1).squeeze(1)
        if not bool(alive.all()):
            self._closed = min(self._closed, 0.0)
        rest = replace(rest, lower=lower, upper=upper, open=rest.open & ~gone.squeeze(2)).index(alive)
        left = Bounded(
            left.score[alive],
            left.disjunct[alive],
            (left.refuted | gone.squeeze(2))[alive],
            left.planes[alive],
            left.constants[alive],
            {},
        )
        return rest, left, None if jacobian is None else jacobian[alive]

    def _next_size(self, size: int, count: int, seconds: float) -> int:
        """Twice as many, within the limit and about a second (less when the deadline is near)."""
        left = max(self._options.deadline - time.monotonic(), 0.0)
        affordable = int(count / max(seconds, 1e-6) * min(SECONDS_PER_STEP, 0.2 * left))
        return max(1, min(2 * size, self._options.batch, max(affordable, 16)))

    def _report(self) -> None:
        if self._progress is not None:
            self._progress(
                Progress(
                    domains_done=self.domains,
                    domains_open=len(self._store),
                    worst_bound=self._bound(),
                    seconds=time.monotonic() - self._began,
                )
            )

    def _bound(self) -> float:
        return min(self._store.worst, self._closed, self._stuck)

    def _outcome(self, status: Status, reason: Reason, found: Counterexample | None = None) -> Outcome:
        return Outcome(status, reason, self._bound(), self.domains, self.branches, found)


def _candidates(rest: Domains, left: Bounded) -> tuple[Tensor, Tensor]:
    """Points worth trying: where the least refuted disjunct's best plane is smallest, and the boxes' centers."""
    disjunct = torch.where(left.refuted, torch.inf, left.disjunct).argmin(1)
    rows = torch.arange(len(disjunct), device=disjunct.device)
    planes, constants = left.planes[rows, disjunct], left.constants[rows, disjunct]
    middle = (rest.lower + rest.upper) / 2
    live = constants.isfinite()
    total = (planes * live.unsqueeze(2)).sum(1)
    corner = torch.where(total > 0, rest.lower, torch.where(total < 0, rest.upper, middle))
    return torch.cat([middle, corner]), torch.cat([rest.case, rest.case])


def _out_of_memory(error: BaseException) -> bool:
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "memory" in str(error).lower()
