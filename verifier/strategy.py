"""What to do with a query: attack, bounds, branching, in which order and with how much of the time."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from verifier.attack.falsify import falsify
from verifier.attack.gradient import AttackOptions
from verifier.attack.replay import Judge, Networks
from verifier.bounds.alpha import AlphaOptions
from verifier.bounds.backward import OutOfTime
from verifier.bounds.defined import conditions, somewhere_negative
from verifier.bounds.final import AscentOptions
from verifier.bounds.undefined import first_undefined
from verifier.branching.activation_split import HEURISTICS, ActivationBrancher
from verifier.branching.bounding import Bounder, BoundOptions
from verifier.branching.domains import Domains
from verifier.branching.first_look import STEP, first_look, forward
from verifier.branching.input_split import InputBrancher
from verifier.branching.root import Root, below, by_decisions, condensed, root, root_cuts, root_planes
from verifier.branching.search import FIRST, Outcome, Search, SearchOptions
from verifier.branching.sizes import (
    FREE,
    FREE_WORK,
    INPUT_DIMENSIONS,
    INPUT_WORK,
    INPUTS_TRIED,
    cases,
    free_memory,
    step_size,
    wide_step_size,
    work,
)
from verifier.errors import is_out_of_memory
from verifier.graph import Interval, Univariate
from verifier.ops.gated import Gated
from verifier.options import Options
from verifier.results import Counterexample, Progress, Reason, Result, Stats, Status
from verifier.solvers.solve import LinearSearch, linear_search
from verifier.specs.compile import TYPICAL, Compiled
from verifier.specs.query import Query
from verifier.transforms.composites import write_out
from verifier.transforms.fold import fold
from verifier.transforms.prepare import prepare

PATIENCE = 0.6
"""The part of the first bounds' time that inner neurons may take; those left over keep intervals, so that something
comes out."""
QUICK_ROUNDS = 2
"""Rounds of the attack before any bound,"""
QUICK_SHARE = 0.03
"""and the part of the time that they may take (at least a second)."""
SLICE = 2.0
"""Seconds of branch and bound before the attack gets another turn; each turn of both is longer by half."""
ATTACK_SHARE = 0.25
LINEAR_SHARES = (4.0, 1.0)
"""Linear programs get this many times the time of the search, in their first turn and later: what suits them is often
decided in the first."""
LINEAR_INPUTS, LINEAR_FEW = 8, 0.25
"""With fewer varying inputs than this, where halving boxes is often quicker, they get this part of it; likewise where
their bounds are flat."""
TRIES_PER_STEP = 4
SMOOTH_DIMENSIONS = 128
"""The same as INPUT_DIMENSIONS for networks with smooth operators, of which no single one decides much (tables in
docs/benchmarks.md), but without gates: those are clipped where a property is violated."""
PLANES = 1 << 27
"""Numbers that the linear forms of undecided neurons may have."""
CUTS_SHARE = 0.1
"""The part of the time left that cuts may take."""
ROOT_ITERATIONS = 60
ROOT_LEAST, ROOT_GAIN, ROOT_SHARE = 5, 0.003, 0.04
"""Optimising the root takes at most so many iterations, at least ROOT_LEAST; it ends when an iteration gains less than
ROOT_GAIN of what is missing, or with ROOT_SHARE of the time gone."""
GATED_SHARE = 0.2
"""The same where gates multiply, whose iterations take longer and gain more."""

ProgressCallback = Callable[[Progress], None]


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
    progress: ProgressCallback | None = None,
) -> Result:
    """Decide a compiled query by `deadline` (of `time.monotonic`); never raises for a limit that is reached."""
    return _Run(query, networks, compiled, options, deadline, progress).result()


def examine(
    query: Query,
    networks: Networks,
    compiled: Compiled,
    options: Options,
    deadline: float,
    progress: ProgressCallback | None = None,
) -> tuple[Result, Search | None]:
    """As `solve`, and the search as it ended, for what it left open; None where none began."""
    run = _Run(query, networks, compiled, options, deadline, progress)
    return run.result(), run.search


def refuted(
    query: Query, networks: Networks, compiled: Compiled, options: Options, deadline: float
) -> Tensor:
    """Bool [N]: the cases that the bounds which a search starts with refute, all cases in one batch."""
    return _Run(query, networks, compiled, options, deadline, None).refuted()


class _Run:
    """One query. The attack and branch and bound take turns until one of them is done."""

    def __init__(
        self,
        query: Query,
        networks: Networks,
        compiled: Compiled,
        options: Options,
        deadline: float,
        progress: ProgressCallback | None,
    ) -> None:
        self.query, self.networks, self.compiled = query, networks, compiled
        self.options, self.deadline, self.progress = options, deadline, progress
        self.device = device_of(options)
        self.dtype = torch.float64 if options.dtype == "float64" else torch.float32
        self.memory = self._memory(self.device)
        self.clock = Clock()
        self.margin = math.inf
        self.attacks = 0
        self.unconfirmed = False
        self.turns = 0
        self.search: Search | None = None

    def _memory(self, device: torch.device) -> int:
        """Bytes that may be used there."""
        asked = self.options.max_memory_gb
        return int(asked * 2**30) if asked else free_memory(device)

    def result(self) -> Result:
        """As the function: what has no solution is only proved where the network has a value, too."""
        found = self._decided()
        if found.status is not Status.UNSAT or found.reason is Reason.EMPTY_INPUT_SET:
            return found
        asked = _undefined(self.compiled)
        if asked is None:
            return found
        lower, upper = asked.lower, asked.upper
        if not somewhere_negative(asked.graph, lower, upper):
            options = replace(self.options, attack=False)
            run = _Run(self.query, self.networks, asked, options, self.deadline, self.progress)
            defined = run._decided()
            if defined.status in (Status.UNSAT, Status.SAT):  # the latter are confirmed for the query itself
                return found if defined.status is Status.UNSAT else defined
            if defined.status is Status.TIMEOUT:
                return replace(found, status=Status.TIMEOUT, bound=None, detail=defined.detail)
        assert self.compiled.plain is not None
        detail = first_undefined(write_out(self.compiled.plain), Interval(lower[:1], upper[:1]))
        return replace(found, status=Status.UNKNOWN, bound=None, reason=Reason.UNDEFINED, detail=detail)

    def _decided(self) -> Result:
        if self.compiled.empty_reason is not None:
            return self._result(
                Outcome(Status.UNSAT, Reason.EMPTY_INPUT_SET, math.inf, 0, 0), self.compiled.empty_reason
            )
        quick = time.monotonic() + max(1.0, QUICK_SHARE * (self.deadline - time.monotonic()))
        found = self._attack(min(self.deadline, quick), QUICK_ROUNDS)
        if found is not None:
            return self._result(Outcome(Status.SAT, Reason.NONE, -math.inf, 0, 0, found))
        try:
            search = self._search()
        except OutOfTime:
            search = self._without_bounds()
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            search = Outcome(Status.UNKNOWN, Reason.MEMORY, -math.inf, 0, 0)
        self.clock.phase("root")
        if isinstance(search, Outcome):
            return self._result(search)
        self.search = search
        share = SLICE
        linear: LinearSearch | None = None
        suited = self._linear_suits()
        while True:
            turns = self.options.attack or suited
            outcome = search.run(time.monotonic() + share if turns else math.inf)
            self.clock.phase("branch and bound")
            if outcome is not None:
                return self._result(outcome)
            if suited:
                linear = linear or self._linear()
                outcome = None if linear is None else self._turn(linear, share, search)
                self.clock.phase("linear programs")
                if outcome is not None:
                    return self._result(outcome)
                suited = linear is not None and not linear.finished
            found = self._attack(min(self.deadline, time.monotonic() + ATTACK_SHARE * share), None)
            if found is not None:
                return self._result(
                    Outcome(Status.SAT, Reason.NONE, -math.inf, search.domains, search.branches, found)
                )
            share *= 1.5

    def refuted(self) -> Tensor:
        """As the function. Nothing is refuted where time or memory do not suffice."""
        closed = torch.zeros(len(self.compiled.lower), dtype=torch.bool)
        if _undefined(self.compiled) is not None:
            return closed
        try:
            with torch.no_grad():
                left = self._first()
        except OutOfTime:
            return closed
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            return closed
        closed[:] = True
        closed[left.case.cpu()] = False
        return closed

    def _first(self) -> Domains:
        """The cases that the first bounds leave open."""
        linear = self.options.method != "interval"
        bounder = Bounder(self.compiled, self.device, self.dtype, self._settings(linear))
        look = first_look(bounder, cases(self.compiled, self.device), self.memory // 4)
        left, forwards = look.left, look.forward
        if not len(left):
            return left
        bounder = bounder.with_options(forward(bounder.options)) if forwards else bounder
        parts = [
            left.index(rows) for rows in torch.arange(len(left), device=self.device).split(step_size(bounder))
        ]
        return Domains.cat([part.index(~bounder.bound(part).refuted.all(1)) for part in parts])

    def _settings(self, linear: bool) -> BoundOptions:
        steps = 0 if self.options.method in ("crown", "interval") else AscentOptions.steps
        return BoundOptions(
            linear=linear, ascent=AscentOptions(steps), memory=self.memory // 4, deadline=self.deadline
        )

    def _without_bounds(self) -> Outcome:
        """The first bounds take too long: intervals' are reported, what time is left belongs to the attack."""
        settings = BoundOptions(linear=False)
        bounder = Bounder(self.compiled, self.device, self.dtype, settings)
        start, batch = cases(self.compiled, self.device), step_size(bounder)
        with torch.no_grad():
            rows = torch.arange(len(start), device=self.device).split(batch)
            bound = min(float(bounder.bound(start.index(r)).score.amin()) for r in rows)
        self.clock.phase("root")
        found = self._attack(self.deadline, None)
        if found is not None:
            return Outcome(Status.SAT, Reason.NONE, -math.inf, 0, 0, found)
        return Outcome(Status.TIMEOUT, Reason.NONE, bound, 0, 0)

    def _linear_suits(self) -> bool:
        """Whether nothing was asked for that linear programs would ignore."""
        o = self.options
        return o.method in ("auto", "alpha-crown") and o.branching == "auto" and o.max_domains is None

    def _linear(self) -> LinearSearch | None:
        attempt = _Attempt(self.query, self.networks, self.compiled, torch.device("cpu"))
        return linear_search(self.compiled, attempt, self.deadline, self.memory // 4, self.options.lp)

    def _turn(self, linear: LinearSearch, share: float, search: Search) -> Outcome | None:
        """Some time for the linear programs; an Outcome where they decide."""
        until = time.monotonic() + LINEAR_SHARES[min(self.turns, 1)] * share
        self.turns += 1
        found = linear.start(until)
        few = self.compiled.varying < LINEAR_INPUTS
        if found is None:
            left = until - time.monotonic()
            found = linear.run(time.monotonic() + (LINEAR_FEW if few or linear.flat else 1.0) * left)
        domains = search.domains + linear.leaves
        if found is not None:
            return Outcome(Status.SAT, Reason.NONE, -math.inf, domains, search.branches, found)
        return Outcome(Status.UNSAT, Reason.NONE, 0.0, domains, search.branches) if linear.proved else None

    def _attack(self, deadline: float, rounds: int | None) -> Counterexample | None:
        if not self.options.attack:
            return None
        settings = AttackOptions(seed=self.options.seed + self.attacks)
        self.attacks += 1
        found = falsify(self.compiled, self.query, self.networks, deadline, settings, rounds, self.progress)
        self.clock.phase("attack")
        self.margin = min(self.margin, found.margin)
        self.unconfirmed |= found.unconfirmed
        return found.counterexample

    def _search(self) -> Search | Outcome:
        """Branch and bound, ready to run; an Outcome when the root bounds already decide."""
        compiled = self.compiled
        linear = self.options.method != "interval"
        settings = self._settings(linear)
        bounder = Bounder(compiled, self.device, self.dtype, settings)
        look = first_look(bounder, cases(compiled, self.device), self.memory // 4)
        start, settled = look.left, look.closed
        if not len(start):
            return Outcome(Status.UNSAT, Reason.NONE, settled, len(compiled.lower), 0)
        if look.points:  # then a look at each is as good as any bound
            found = self._attack(self.deadline, QUICK_ROUNDS)
            if found is not None:
                return Outcome(Status.SAT, Reason.NONE, -math.inf, 0, 0, found)
        if look.forward:
            bounder = bounder.with_options(forward(settings))
        elif linear:
            with torch.no_grad():
                bounder, start = by_decisions(bounder, start)
        free = FREE if self.device.type == "cuda" else int(min(FREE_WORK / work(bounder.graph), FREE))
        brancher, batch, closed = InputBrancher(bounder, free), step_size(bounder), math.inf
        batch = max(batch, STEP) if look.forward else batch
        if linear and not look.forward and self._splits_activations(bounder):
            now = time.monotonic()
            share = 1 - ATTACK_SHARE if self.options.attack else 1.0
            until = now + share * (self.deadline - now)
            limits = replace(settings, deadline=until, patience=now + PATIENCE * (until - now))
            bounder = bounder.with_options(limits)
            with torch.no_grad():
                found = self._root(bounder, start)
            if not len(found.start):
                closed = min(settled, found.closed)
                return Outcome(Status.UNSAT, Reason.NONE, closed, len(compiled.lower), 0)
            start, closed = found.start, found.closed
            bounder = below(found, bounder, settings)
            if self.options.method != "crown":
                bounder = self._with_cuts(bounder, start)
            heuristic = HEURISTICS.get(self.options.branching, HEURISTICS["fsb"])
            batch = wide_step_size(bounder)
            few = compiled.varying <= INPUT_DIMENSIONS
            tried = INPUTS_TRIED if few and self.options.branching == "auto" else 0
            free = min(batch, FREE) if self.device.type == "cuda" else 0
            brancher = ActivationBrancher(bounder, heuristic, free, tried)
        limits = SearchOptions(
            deadline=self.deadline,
            batch=self.options.batch_size or batch,
            first=max(FIRST, free) if self.device.type == "cpu" else FREE,
            max_domains=self.options.max_domains,
            memory=self.memory // 2,
            host=0 if self.device.type == "cpu" else self._memory(torch.device("cpu")) // 2,
            closed=min(settled, closed),
        )
        whole = replace(bounder.compiled, graph=compiled.graph, _cast={})
        attempt = _Attempt(self.query, self.networks, whole, self.device)
        return Search(bounder, brancher, start, attempt, limits, self.progress)

    def _with_cuts(self, bounder: Bounder, start: Domains) -> Bounder:
        now = time.monotonic()
        cuts = planes = None
        with torch.no_grad(), suppress(OutOfTime):
            cuts = root_cuts(bounder, start, now + CUTS_SHARE * (self.deadline - now))
            planes = root_planes(bounder, start, min(self.memory // 64, PLANES))
        return bounder.with_facts(replace(bounder.facts, cuts=cuts, planes=planes))

    def _splits_activations(self, bounder: Bounder) -> bool:
        if self.options.branching != "auto":
            return self.options.branching != "input"
        ops = [bounder.graph.nodes[i].op for i in bounder.elementwise]
        smooth = any(isinstance(op, Univariate) and op.smooth for op in ops)
        most = SMOOTH_DIMENSIONS if smooth and not _gated(bounder) else INPUT_DIMENSIONS
        large = self.compiled.varying > most or work(bounder.graph) > INPUT_WORK
        return bool(bounder.elementwise) and large

    def _root(self, bounder: Bounder, start: Domains) -> Root:
        """Optimised bounds of every case, and what is left to refute, by disjunct."""
        alpha = AlphaOptions(
            iterations=0 if self.options.method == "crown" else ROOT_ITERATIONS,
            memory=self.memory // 8,
            stop=_Patience(self.deadline, GATED_SHARE if _gated(bounder) else ROOT_SHARE),
            deadline=bounder.options.deadline,
        )
        found = root(bounder, start, alpha, step_size(bounder))
        return condensed(bounder, found, self.memory // 64)

    def _result(self, outcome: Outcome, detail: str = "") -> Result:
        reason = outcome.reason
        if outcome.status is Status.UNKNOWN and self.unconfirmed:
            reason = Reason.UNCONFIRMED
        stats = Stats(
            domains=outcome.domains,
            branches=outcome.branches,
            seconds=self.clock.seconds,
            device=str(self.device),
            dtype=str(self.dtype).removeprefix("torch."),
            attack_margin=self.margin if math.isfinite(self.margin) else None,
        )
        bound = outcome.bound if math.isfinite(outcome.bound) else None
        if outcome.status in (Status.UNKNOWN, Status.TIMEOUT) and not detail:
            detail = first_undefined(
                self.compiled.graph, Interval(self.compiled.lower[:1], self.compiled.upper[:1])
            )
        return Result(outcome.status, bound, outcome.counterexample, reason, detail, stats)


def _undefined(compiled: Compiled) -> Compiled | None:
    """The question whether the network has no value at some input of the cases; None where it has one at all."""
    if compiled.plain is None:
        return None
    hull = Interval(compiled.lower.amin(0, keepdim=True), compiled.upper.amax(0, keepdim=True))
    graph = conditions(compiled.plain, hull)
    if graph is None:
        return None
    middle = compiled.lower / 2 + compiled.upper / 2
    graph = fold(prepare(graph, [middle[:TYPICAL]]))
    count = graph.nodes[graph.outputs[0]].numel
    clauses = torch.arange(count).view(1, count, 1).expand(len(middle), -1, -1)
    strict = torch.ones(count, dtype=torch.bool)
    return Compiled(graph, compiled.lower, compiled.upper, clauses, strict, ties=compiled.ties)


def _gated(bounder: Bounder) -> bool:
    """Whether functions multiply one another, as in recurrences with gates."""
    return any(isinstance(bounder.graph.nodes[i].op, Gated) for i in bounder.elementwise)


class _Patience:
    """Ends the root's optimisation: instances whose rows are all refuted, and all of them when the last iterations
    gained little or, after a few, when its share of the time is gone."""

    def __init__(self, deadline: float, share: float) -> None:
        self._until = time.monotonic() + share * (deadline - time.monotonic())
        self._calls = 0
        self._before: Tensor | None = None

    def __call__(self, lower: Tensor) -> Tensor:
        self._calls += 1
        done = (lower > 0).all(1)
        if self._calls > ROOT_LEAST:
            done = done | (time.monotonic() > self._until)
        if self._before is None or self._calls % ROOT_LEAST == 0:
            open_ = lower <= 0
            if self._before is not None and self._before.shape == lower.shape:
                gain = (lower - self._before)[open_] / -self._before[open_].clamp(max=-1e-9)
                done = done | bool(gain.mean() < ROOT_LEAST * ROOT_GAIN)
            self._before = lower
        return done


class _Attempt:
    """Evaluates points in float64 and has the promising ones replayed."""

    def __init__(self, query: Query, networks: Networks, compiled: Compiled, device: torch.device) -> None:
        self._judge, self._inputs = Judge(query, networks), compiled.inputs
        self._graph = compiled.graph.to(torch.float64, device)
        self._clauses = compiled.clauses.to(device)

    def __call__(self, points: Tensor, cases: Tensor) -> Counterexample | None:
        margins = self._graph.evaluate([points])[0].expand(len(points), -1)  # constant ones have a batch of 1
        table = self._clauses[cases]
        values = margins.gather(1, table.clamp(min=0).flatten(1)).view(table.shape)
        worst = torch.where(table >= 0, values, -torch.inf).amax(2)
        worst = torch.where((table >= 0).any(2), worst, torch.inf)
        score = worst.amin(1)
        order = score.argsort()[:TRIES_PER_STEP]
        for point in points[order[score[order] <= 0]]:
            found = self._judge.confirm(self._inputs(point.cpu().numpy()))
            if found is not None:
                return found
        return None


def device_of(options: Options) -> torch.device:
    """`auto` takes CUDA when there is one, and never anything else but the CPU."""
    if options.device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return torch.device(options.device)
