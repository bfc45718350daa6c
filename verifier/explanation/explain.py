"""`explain`: a search, and then measurements of what it left open."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor

from verifier import api
from verifier.attack.gradient import AttackOptions, Search
from verifier.attack.replay import Judge
from verifier.bounds.backward import OutOfTime
from verifier.bounds.final import AscentOptions
from verifier.branching.bounded import Bounded
from verifier.branching.bounding import Bounder, BoundOptions
from verifier.branching.domains import Domains
from verifier.branching.search import Search as BranchAndBound
from verifier.branching.sizes import free_memory, step_size
from verifier.environment import peak_memory_mb, versions
from verifier.errors import OptionsError, is_out_of_memory
from verifier.explanation.advice import hints
from verifier.explanation.findings import Disjunct, Explanation, Layer
from verifier.explanation.layers import layers
from verifier.explanation.left import Left, everything, left_by
from verifier.explanation.radius import largest
from verifier.explanation.region import remainder
from verifier.explanation.words import Words
from verifier.graph.precision import full_precision
from verifier.options import Options
from verifier.progress import ProgressCallback, display
from verifier.results import Counterexample, Result, Status
from verifier.specs.compile import Compiled, compile_query
from verifier.specs.normalise import normalise
from verifier.specs.property import Property
from verifier.specs.query import Query
from verifier.strategy import device_of, examine

SHARES = {"search": 0.5, "bounds": 0.2, "attack": 0.08, "layers": 0.08, "smaller set": 0.14}
"""What part of the time a phase may take."""
PATIENCE = 0.6
"""The part of what the bounds have that inner neurons may take."""
ATTACKED = 64
"""Open disjuncts, at most, that are attacked one by one: the worst."""


def explain(
    model: api.Model | Mapping[str, api.Model],
    spec: str | Path | Query | Property,
    timeout: float | None = None,
    options: Options = Options(timeout=60.0),
    progress: ProgressCallback | None = None,
    partly: Callable[[Explanation], None] | None = None,
) -> Explanation:
    """Why a query is undecided, and what to try. Arguments are those of `verify`.

    Half of the `timeout` (seconds, finite) belongs to the search that `verify` makes; what this leaves open is then
    measured: bounds and attacks per disjunct, the layers where bounds get loose, the part of the input set that is
    left, and a smaller set for which bounds alone prove the property. Each phase does what it can in its part of the
    time. Where search or measuring decide the query, the result says so, and nothing more is measured. `partly` is
    called with what is known when a phase ends, for those who cannot wait for a step that takes longer than its part.

    Raises VerifierError for bad input, as `verify` does.
    """
    began = time.monotonic()
    limit = options.seconds if timeout is None else timeout
    if not math.isfinite(limit):
        raise OptionsError(
            "explain needs a finite timeout: half of it belongs to the search, half to measuring."
        )
    if options.progress and progress is None:
        with display() as shown:
            return explain(model, spec, timeout, replace(options, progress=False), shown, partly)
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    api.check_device(options)
    query, networks = api.prepare_query(model, spec)
    problem = normalise(query)
    compiled = compile_query(query, networks, problem)
    clock = _Clock(began, limit)
    clock.done("load")
    with full_precision():
        result, search = examine(query, networks, compiled, options, clock.until("search"), progress)
        clock.done("search")
        result = _finished(result)
        if result.holds is None:
            judge = None if not options.attack else Judge(query, networks)
            measuring = _Measuring(compiled, Words(query, problem), options, clock, judge, partly or _ignored)
            found = measuring.of(result, search)
        else:
            found = Explanation(result, phases=clock.seconds)
    return replace(found, hints=hints(found, options))


def _finished(result: Result) -> Result:
    stats = replace(result.stats, peak_memory_mb=peak_memory_mb())
    return replace(result, stats=stats, versions=versions())


@dataclass
class _Clock:
    """Seconds per phase, of `limit` since `began`."""

    began: float
    limit: float
    seconds: dict[str, float] = field(default_factory=dict)

    def until(self, phase: str) -> float:
        """When a phase that begins now has to end, in the time of `time.monotonic`."""
        names = list(SHARES)
        before = sum(SHARES[name] for name in names[: names.index(phase)])
        start = min(time.monotonic(), self.began + before * self.limit)
        return start + SHARES[phase] * self.limit

    def done(self, phase: str) -> None:
        """What passed since the last phase was this one."""
        self.seconds[phase] = time.monotonic() - self.began - sum(self.seconds.values())


@dataclass(frozen=True, eq=False)
class _Worst:
    """One subdomain, the box of the worst open disjunct, and its bounds."""

    domain: Domains
    bounded: Bounded


class _Measuring:
    """Measures what a search left of one query."""

    def __init__(
        self,
        compiled: Compiled,
        words: Words,
        options: Options,
        clock: _Clock,
        judge: Judge | None,
        partly: Callable[[Explanation], None],
    ) -> None:
        self.partly = partly
        self.compiled, self.words = compiled, words
        self.options, self.clock, self.judge = options, clock, judge
        self.device = device_of(options)
        dtype = torch.float64 if options.dtype == "float64" else torch.float32
        asked = options.max_memory_gb
        memory = int(asked * 2**30) if asked else free_memory(self.device)
        settings = BoundOptions(memory=memory // 4)
        self.bounder = Bounder(compiled, self.device, dtype, settings)

    def of(self, result: Result, search: BranchAndBound | None) -> Explanation:
        total = len(everything(self.compiled))
        left = left_by(self.compiled, search)
        found = Explanation(result, total, len(left), phases=self.clock.seconds)
        self._tell(found)
        left, worst = self._bounds(left)
        self.clock.done("bounds")
        if not len(left):
            return self._decided(Result(Status.UNSAT, None, stats=result.stats), total)
        left = left.worst_first()
        some = left.index(torch.arange(min(ATTACKED, len(left))))
        unknown = torch.full((len(left),), torch.nan, dtype=torch.float64)
        found = replace(found, open=len(left), disjuncts=self._disjuncts(left, unknown[: len(some)], unknown))
        self._tell(found)
        attacked, points, counterexample = self._attack(some)
        self.clock.done("attack")
        if counterexample is not None:
            return self._decided(Result(Status.SAT, None, counterexample, stats=result.stats), total)
        found = replace(found, disjuncts=self._disjuncts(left, attacked, unknown))
        self._tell(found)
        if search is not None and not search.stuck and len(search):
            region, shares = remainder(
                self.compiled, search, left, self.words.inputs(self.compiled.ties), self.options.seed
            )
            found = replace(found, region=region, disjuncts=self._disjuncts(left, attacked, shares))
        self.clock.done("region")
        self._tell(found)
        found = replace(found, layers=self._layers(worst, points))
        self.clock.done("layers")
        self._tell(found)
        radius = largest(
            self.bounder, left.domains(self.compiled, self.device), self.clock.until("smaller set")
        )
        self.clock.done("smaller set")
        return replace(found, radius=radius)

    def _tell(self, found: Explanation) -> None:
        self.partly(
            replace(
                found, phases=dict(self.clock.seconds), hints=hints(found, self.options) if found.open else ()
            )
        )

    def _decided(self, result: Result, total: int) -> Explanation:
        return Explanation(_finished(result), total, phases=self.clock.seconds)

    def _bounds(self, left: Left) -> tuple[Left, _Worst | None]:
        """The open disjuncts that bounds of their whole boxes do not refute, with the better bound of each, and the
        worst box with its bounds. Boxes that time or memory do not suffice for stay as they are."""
        now, until = time.monotonic(), self.clock.until("bounds")
        limits = replace(
            self.bounder.options,
            gaps=True,
            ascent=AscentOptions(steps=0),  # the search has done better where it could
            patience=now + PATIENCE * (until - now),
            deadline=until,
        )
        bounder, worst = self.bounder.with_options(limits), None
        domains = left.domains(self.compiled, self.device)
        table = torch.full(self.compiled.clauses.shape[:2], -torch.inf, dtype=torch.float64)
        refuted = torch.zeros_like(table, dtype=torch.bool)
        try:
            with torch.no_grad():
                for rows in torch.arange(len(domains)).split(step_size(bounder)):
                    part = domains.index(rows)
                    bounded = bounder.bound(part)
                    case = part.case.cpu()
                    table[case] = torch.where(part.open, bounded.disjunct, -torch.inf).cpu()
                    refuted[case] = (bounded.refuted & part.open).cpu()
                    worst = worst or _worst(part, bounded)
        except OutOfTime:
            pass
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
        own = table[left.case, left.number]
        better = replace(left, bound=torch.maximum(left.bound, torch.where(own.isnan(), -torch.inf, own)))
        return better.index(~refuted[left.case, left.number]), worst

    def _attack(self, left: Left) -> tuple[Tensor, Tensor, Counterexample | None]:
        """The smallest margin [P] seen of each disjunct, the inputs [P, n_in] where, and a counterexample."""
        alone = left.alone(self.compiled)
        nothing = torch.full((len(left),), torch.inf, dtype=torch.float64)
        if self.judge is None:
            return nothing, alone.lower[:0], None
        attack = Search(alone, AttackOptions(seed=self.options.seed + 1), self.clock.until("attack"))
        for found in attack.rounds():
            for point in self.compiled.inputs(found.points[found.scores <= 0].cpu().numpy()):
                counterexample = self.judge.confirm(point)
                if counterexample is not None:
                    return nothing, alone.lower[:0], counterexample
        points, scores = attack.best_points()
        return scores.double().cpu(), points, None

    def _layers(self, worst: _Worst | None, points: Tensor) -> tuple[Layer, ...]:
        if worst is None:
            return ()
        inside = (points >= worst.domain.lower.cpu()) & (points <= worst.domain.upper.cpu())
        points = points[inside.all(1)].to(self.device)
        until = self.clock.until("layers")
        return layers(self.bounder, worst.domain, worst.bounded, points, until, self.options.seed)

    def _disjuncts(self, left: Left, attacked: Tensor, shares: Tensor) -> tuple[Disjunct, ...]:
        """The rows of the worst ones, as many as were attacked."""
        count = min(ATTACKED, len(left))
        some = left.index(torch.arange(count))
        clauses = self.compiled.clauses[some.case, some.number]
        middle = (self.compiled.lower[some.case] + self.compiled.upper[some.case]) / 2
        graph = self.compiled.graph_on(torch.float64, torch.device("cpu"))
        with torch.no_grad():
            margins = graph.evaluate([middle])[0]
        margins = margins.gather(1, clauses.clamp(min=0))
        margins = torch.where(clauses >= 0, margins, -torch.inf).amax(1)
        rows = zip(
            some.case.tolist(),
            some.number.tolist(),
            clauses.tolist(),
            *[[_known(v) for v in t.tolist()] for t in (some.bound, attacked, margins, shares[:count])],
            some.subdomains.tolist(),
            strict=True,
        )
        return tuple(
            Disjunct(
                case,
                number,
                self.words.conjunction([k for k in atoms if k >= 0]),
                bound,
                attack,
                start,
                count or None,
                share,
            )
            for case, number, atoms, bound, attack, start, share, count in rows
        )


def _ignored(_: Explanation) -> None:
    """Nobody waits for parts."""


def _worst(part: Domains, bounded: Bounded) -> _Worst:
    """The first subdomain, which is that of the worst disjunct."""
    first = torch.arange(1, device=part.lower.device)
    return _Worst(part.index(first), bounded.index(first))


def _known(value: float) -> float | None:
    return value if math.isfinite(value) else None
