"""Branch and bound over many boxes at once, each with the sign of one derivative to prove."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from torch import Tensor

from verifier.bounds.backward import OutOfTime
from verifier.bounds.interval import interval_bounds
from verifier.branching.bounded import Bounded
from verifier.branching.domains import Domains
from verifier.branching.plan import Limits, Plan, plan
from verifier.branching.search import Brancher
from verifier.branching.sizes import INPUT_DIMENSIONS, INPUT_WORK, work
from verifier.graph import Builder, Graph, Interval
from verifier.jacobian.objective import Objective
from verifier.ops.arithmetic import negate
from verifier.ops.select import concat
from verifier.results import Counterexample, Status
from verifier.specs.compile import Compiled
from verifier.transforms.fold import fold

NEITHER = 3
SAMPLES = 64
"""Points of a box at which signs are looked for first."""
CHUNK = 1 << 22
"""Numbers of one batch of points, about."""
FIRST, MORE = 32, 4
"""Branchings of a box in the first round, and how many times as many there are in the next."""
FEW = 2
"""With so many inputs that vary, at most, boxes of any network are halved, not neurons; those of a small network, where
very many parts are bounded at once, with as many as elsewhere where nothing switches."""


def decide(
    asked: Objective, box: Interval, place: Tensor, signs: Tensor, limits: Limits, seed: int = 0
) -> Tensor:
    """`signs` int8 [P] with the open ones (0) decided as far as the time goes, all in one search.

    Pair p asks for the sign of element `place[p]` of `asked`'s values (for its only seed) on box p of `box` [P, n_in],
    float64: 1 where it is proved to be nowhere negative, -1 nowhere positive, NEITHER where points of both signs were
    found (their rounding counted), 0 where the time, the memory or the precision did not suffice.
    """
    run = _Run(asked, box, place, signs, limits)
    run.sample(seed)
    try:
        while run.turn():
            pass
    except OutOfTime:
        pass
    return run.signs()


class _Run:
    """`rises`, `falls` [P]: that the value was seen to be positive, and negative, somewhere."""

    def __init__(self, asked: Objective, box: Interval, place: Tensor, signs: Tensor, limits: Limits) -> None:
        self._limits, self._known = limits, signs.clone()
        device = limits.device
        held = asked.seeds[:1].double().flatten(1).to(device)
        self._box = box.map(lambda t: torch.cat([t.to(device), held.expand(len(t), -1)], 1))
        self._place = place.to(device)
        self._graph = _both_signs(asked.flat)
        self._plain = asked.flat.to(torch.float64, device)
        self.rises, self.falls = (torch.zeros(len(signs), dtype=torch.bool, device=device) for _ in range(2))
        self._asked = torch.zeros(len(signs), 2, dtype=torch.bool)  # to be nowhere negative, nowhere positive
        self._proved = torch.zeros(len(signs), dtype=torch.int8)

    def signs(self) -> Tensor:
        found = torch.where(self._known != 0, self._known, self._proved)
        return found.masked_fill((found == 0) & (self.rises & self.falls).cpu(), NEITHER)

    def sample(self, seed: int) -> None:
        """Signs at random points of the open pairs' boxes, and at their corners."""
        generator = torch.Generator(device=self._box.lower.device).manual_seed(seed)
        open_ = (self._known == 0).nonzero()[:, 0].to(self._box.lower.device)
        size = sum(n.numel for n in self._plain.nodes)
        for rows in open_.split(max(1, CHUNK // (size * SAMPLES))):
            if not len(rows) or time.monotonic() > self._limits.deadline:
                return
            low, high = (t[rows].unsqueeze(1) for t in self._box)
            shape = (len(rows), SAMPLES, low.shape[2])
            part = torch.rand(shape, generator=generator, dtype=torch.float64, device=low.device)
            part[:, ::4] = part[:, ::4].round()
            self._look((low + part * (high - low)).flatten(0, 1), rows.repeat_interleave(SAMPLES))

    def turn(self) -> bool:
        """Ask for the signs that nothing speaks against; whether another turn may say more."""
        wanted = torch.stack([~self.falls, ~self.rises], 1).cpu() & ~self._asked
        wanted &= ((self._known == 0) & (self._proved == 0)).unsqueeze(1)
        wanted[:, 1] &= ~wanted[:, 0]
        pairs = wanted.any(1).nonzero()[:, 0]
        if not len(pairs) or time.monotonic() > self._limits.deadline:
            return False
        down = wanted[pairs, 1]
        self._asked[pairs, down.long()] = True
        ends = self._box.map(lambda t: t[pairs.to(t.device)].cpu())
        atoms = self._graph.nodes[self._graph.outputs[0]].numel
        clauses = (self._place[pairs].cpu() + down.long() * (atoms // 2)).view(-1, 1, 1)
        strict = torch.ones(atoms, dtype=torch.bool)
        few = INPUT_DIMENSIONS if work(self._graph) <= INPUT_WORK else FEW
        way = plan(Compiled(self._graph, ends.lower, ends.upper, clauses, strict), self._limits, few)
        search = _Rounds(self, way, pairs, down)
        closed = search.run()
        self._proved[pairs[closed]] = torch.where(down[closed], -1, 1).to(torch.int8)
        return not search.late

    def refuted(self, pairs: Tensor, down: Tensor) -> Tensor:
        """Where what was seen speaks against the sign that is asked for."""
        return torch.where(down, self.rises[pairs], self.falls[pairs])

    def _look(self, points: Tensor, pairs: Tensor) -> None:
        """Remember the signs of points [M, n_in] of pairs [M]: where they seem new, with their rounding."""
        value = self._plain.evaluate([points])[0].flatten(1).gather(1, self._place[pairs].unsqueeze(1))[:, 0]
        for seen, sign in ((self.rises, 1.0), (self.falls, -1.0)):
            best = torch.full((len(seen),), -torch.inf, dtype=torch.float64, device=value.device)
            best.scatter_reduce_(0, pairs, torch.nan_to_num(sign * value, nan=-torch.inf), "amax")
            news = (sign * value > 0) & (sign * value == best[pairs]) & ~seen[pairs]
            if not bool(news.any()):
                continue
            at, mine = points[news], pairs[news]
            ends = interval_bounds(self._plain, [Interval(at, at)])[self._plain.outputs[0]]
            ends = ends.map(lambda t, mine=mine: t.flatten(1).gather(1, self._place[mine].unsqueeze(1))[:, 0])
            sure = ends.lower > 0 if sign > 0 else ends.upper < 0
            seen[mine[sure]] = True

    def look(self, points: Tensor, pairs: Tensor) -> Counterexample | None:
        """What a search calls; no point ends one of many boxes."""
        with torch.no_grad():
            self._look(points.double(), pairs)
        return None


class _Rounds:
    """One search: every pair is branched as often as all others before any is branched more, so that those without an
    answer do not keep the others waiting. `late` when the time or the memory ended it."""

    def __init__(self, run: _Run, way: Plan, pairs: Tensor, down: Tensor) -> None:
        self._run, self._way = run, way
        self._pairs, self._down = pairs.to(way.origin.device), down.to(way.origin.device)
        self._open = torch.zeros(len(pairs), dtype=torch.bool, device=way.origin.device)
        self.late = False

    def run(self) -> Tensor:
        """Bool [P']: the pairs that are proved."""
        left, limit = self._way.start, FIRST
        branched = torch.zeros(len(self._way.origin), dtype=torch.int64, device=self._way.origin.device)
        while len(left) and not self.late:
            memory = self._way.options.memory // 2
            brancher = _Fair(self._way.brancher, limit, branched, self._refuted, memory)
            search = self._way.search(self._look, left, brancher)
            outcome = search.run()
            self.late = outcome is not None and outcome.status is Status.TIMEOUT
            self.late |= len(search) > 0  # memory
            for part in search.parts():
                self._mark(part.case)
            for case in brancher.stuck:
                self._mark(case)
            left = Domains.cat(brancher.aside) if brancher.aside else left.index(slice(0, 0))
            if self.late:
                self._mark(left.case)
            limit *= MORE
        proved = ~self._open & ~self._run.refuted(self._pairs, self._down)
        return proved.cpu()

    def _mark(self, case: Tensor) -> None:
        self._open[self._way.origin[case]] = True

    def _refuted(self, case: Tensor) -> Tensor:
        rows = self._way.origin[case]
        return self._run.refuted(self._pairs[rows], self._down[rows])

    def _look(self, points: Tensor, case: Tensor) -> Counterexample | None:
        return self._run.look(points, self._pairs[self._way.origin[case]])


class _Fair:
    """A brancher that drops the parts of refuted cases, and puts those `aside` of cases branched `limit` times."""

    def __init__(
        self,
        inner: Brancher,
        limit: int,
        branched: Tensor,
        refuted: Callable[[Tensor], Tensor],
        memory: int,
    ) -> None:
        self._inner, self._limit, self._refuted = inner, limit, refuted
        self._branched, self._memory, self._kept = branched, memory, 0
        self.aside: list[Domains] = []
        self.stuck: list[Tensor] = []

    def branch(self, domains: Domains, bounded: Bounded) -> tuple[Domains, Tensor]:
        done = self._refuted(domains.case)
        late = self._branched[domains.case] >= self._limit
        going = ~done & ~late
        if bool((late & ~done).any()):
            part = domains.index(late & ~done)
            self._kept += part.bytes
            self.aside.append(part if self._kept < self._memory else part.forget())
        stuck = torch.zeros_like(going)
        if not bool(going.any()):
            return domains.index(slice(0, 0)), stuck
        mine = domains.index(going)
        self._branched += mine.case.bincount(minlength=len(self._branched))
        parts, stuck[going] = self._inner.branch(mine, bounded.index(going))
        self.stuck.append(domains.case[stuck])
        return parts, stuck


def _both_signs(flat: Graph) -> Graph:
    """The values, and their negatives behind them: margins that hold where a value is negative, or positive."""
    builder = Builder()
    (source,) = flat.inputs
    x = builder.input("x", flat.nodes[source].shape)
    (values,) = builder.include(flat, {source: x})
    return fold(builder.graph(concat(builder, [values, negate(builder, values)], 0)))
