"""The branch-and-bound loop."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from verifier.bounds.backward import OutOfTime
from verifier.branching.bounded import Bounded
from verifier.branching.bounding import Bounder
from verifier.branching.clip import clip
from verifier.branching.domains import Domains, Store
from verifier.errors import is_out_of_memory
from verifier.results import Counterexample, Progress, Reason, Status

Try = Callable[[Tensor, Tensor], Counterexample | None]
"""Points [M, n_in] in float64 with their cases [M], to be evaluated and confirmed; a counterexample ends the search."""

CLIP_WORK = 30_000_000
"""Above this many plane coefficients in a batch, boxes are not clipped."""


FIRST = 16
"""Subdomains in the first batch on a CPU; later ones are twice as large each."""


class Brancher(Protocol):
    """Splits open subdomains."""

    def branch(self, domains: Domains, bounded: Bounded) -> tuple[Domains, Tensor]:
        """Parts that together cover each subdomain, and a mask [M] of subdomains that cannot be split further."""
        ...


@dataclass(frozen=True)
class SearchOptions:
    """`deadline` is a time of `time.monotonic`; `batch` the most subdomains bounded at once, `first` at first; `closed`
    the least proved score of what was refuted before. `memory` bytes of open subdomains stay on the device, `host`
    bytes may move to host memory (none, where that is the device)."""

    deadline: float
    batch: int = 1024
    max_domains: int | None = None
    memory: int = 2 << 30
    host: int = 0
    closed: float = math.inf
    first: int = FIRST


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
        brancher: Brancher,
        start: Domains,
        try_points: Try,
        options: SearchOptions,
        progress: Callable[[Progress], None] | None = None,
    ) -> None:
        self.bounder, self._brancher, self._try = bounder, brancher, try_points
        self._options, self._progress = options, progress
        self._store = Store(options.memory, options.host)
        self._store.push(start)
        self._closed = options.closed
        self._stuck = torch.inf
        self._began = time.monotonic()
        self._size = min(options.batch, options.first)
        self.domains = 0
        self.branches = 0

    def run(self, until: float = math.inf) -> Outcome | None:
        """Until everything is refuted, a counterexample is confirmed, or a limit is reached; None when the time
        `until` (of `time.monotonic`) comes first, after which the search can go on."""
        self._report()
        while len(self._store):
            now = time.monotonic()
            if now > self._options.deadline:
                return self._outcome(Status.TIMEOUT, Reason.NONE)
            allowed = (
                math.inf if self._options.max_domains is None else self._options.max_domains - self.domains
            )
            if allowed <= 0:
                return self._outcome(Status.UNKNOWN, Reason.DOMAIN_LIMIT)
            if now > until:
                return None
            batch = self._store.take(int(min(self._size, allowed)))
            try:
                found = self._step(batch)
            except OutOfTime:
                self._store.push(batch)
                return self._outcome(Status.TIMEOUT, Reason.NONE)
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                self._store.push(batch)
                if len(batch) == 1:
                    return self._outcome(Status.UNKNOWN, Reason.MEMORY)
                self._size = max(1, len(batch) // 2)
                continue
            if found is not None:  # what it lies in is in no store, and nothing bounds the score from below
                return Outcome(Status.SAT, Reason.NONE, -math.inf, self.domains, self.branches, found)
            self._size = self._next_size(self._size, len(batch), time.monotonic() - now)
            self._report()
        if self._stuck < torch.inf:
            return self._outcome(Status.UNKNOWN, Reason.NUMERICS)
        return self._outcome(Status.UNSAT, Reason.NONE)

    def parts(self) -> Iterator[Domains]:
        """The open subdomains, some at a time; without those that nothing splits further (`stuck`)."""
        return self._store.parts()

    @property
    def stuck(self) -> bool:
        """Whether there are open subdomains that nothing splits further."""
        return self._stuck < torch.inf

    def __len__(self) -> int:
        return len(self._store)

    def _step(self, batch: Domains) -> Counterexample | None:
        with torch.no_grad():
            bounded = self.bounder.bound(batch)
            self.domains += len(batch)
            open_ = ~bounded.refuted.all(1)
            fresh = bounded.refuted & batch.open
            if bool(fresh.any()):  # also where other disjuncts stay open: later bounds leave these out
                self._closed = min(self._closed, float(bounded.disjunct[fresh].clamp(min=0).min()))
            if not bool(open_.any()):
                return None
            known = self.bounder.known(bounded)
            left = bounded.index(open_)
            rest = replace(
                batch.index(open_),
                open=batch.open[open_] & ~left.refuted,
                bound=torch.maximum(batch.bound[open_], left.score),
                known={i: b.index(open_) for i, b in known.items()},
                warm=left.warm,
            )
            found = self._try(*_candidates(rest, left))
            if found is not None:
                return found
            rest, left = self._clip(rest, left)
            if not len(rest):
                return None
            children, stuck = self._brancher.branch(rest, left)
            if bool(stuck.any()):
                self._stuck = min(self._stuck, float(rest.bound[stuck].min()))
            self.branches += len(children) - len(rest) + int(stuck.sum())
            self._store.push(children)
        return None

    def _clip(self, rest: Domains, left: Bounded) -> tuple[Domains, Bounded]:
        """Every box shrunk to the hull of its open disjuncts' boxes; empty ones are closed."""
        batch, disjuncts, _, size = left.planes.shape
        if left.planes.numel() > CLIP_WORK:
            return rest, left
        finite = left.constants.isfinite()
        constants = torch.where(finite, left.constants, -1.0).flatten(0, 1)
        planes = torch.where(finite.unsqueeze(3), left.planes, 0.0).flatten(0, 1)
        wide = [t.unsqueeze(1).expand(-1, disjuncts, -1).flatten(0, 1) for t in (rest.lower, rest.upper)]
        lower, upper, empty = clip(wide[0], wide[1], planes, constants)
        gone = (empty.view(batch, disjuncts) | left.refuted).unsqueeze(2)
        lower = torch.where(gone, torch.inf, lower.view(batch, disjuncts, size)).amin(1)
        upper = torch.where(gone, -torch.inf, upper.view(batch, disjuncts, size)).amax(1)
        alive = ~gone.all(1).squeeze(1)
        if not bool(alive.all()):
            self._closed = min(self._closed, 0.0)
        rest = replace(rest, lower=lower, upper=upper, open=rest.open & ~gone.squeeze(2)).index(alive)
        left = replace(left, refuted=left.refuted | gone.squeeze(2)).index(alive)
        return rest, left

    def _next_size(self, size: int, count: int, seconds: float) -> int:
        """Twice as many, within the limit: a schedule that does not depend on the clock, so that a search can be
        repeated, except where a step would not end before the deadline."""
        left = self._options.deadline - time.monotonic()
        wanted = max(1, min(2 * size, self._options.batch))
        if wanted / max(count, 1) * seconds > 0.3 * left:
            return max(1, int(count / max(seconds, 1e-6) * 0.3 * max(left, 0.0)))
        return wanted

    def _report(self) -> None:
        if self._progress is not None:
            bound = self.bound
            self._progress(
                Progress(
                    domains_done=self.domains,
                    domains_open=len(self._store),
                    worst_bound=bound if math.isfinite(bound) else None,
                    seconds=time.monotonic() - self._began,
                )
            )

    @property
    def bound(self) -> float:
        """A proved lower bound of the score over all cases, as far as the search has come."""
        return min(self._store.worst, self._closed, self._stuck)

    def _outcome(self, status: Status, reason: Reason) -> Outcome:
        return Outcome(status, reason, self.bound, self.domains, self.branches)


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
