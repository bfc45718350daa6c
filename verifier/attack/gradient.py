"""Batched gradient search for points that violate a property.

A search goes in rounds of growing effort: sampled points, short descents from the best of them, then longer
descents from random points, corners and points of diverse outputs. Everything runs in the unit cube that a
case's box is mapped to, so that coordinates of different width move alike and those of no width stay.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from verifier.attack.objective import Compiled, Loss, Objective
from verifier.attack.surrogate import gradient_at
from verifier.errors import OptionsError
from verifier.progress import ProgressCallback
from verifier.results import Progress

_THIN = 1e-3
"""A box narrower than this, relative to its distance from zero, is searched in float64."""
_CHEAP = 3e5
"""Below this many operations per point, float64 costs little more than float32 does."""
_STEP_WORK = 1e9
"""Operations in one step of one batch: a small part of a second, so that a deadline is kept."""
_RATE = 0.5
"""The first step's length in the unit cube; a descent ends at a fiftieth of it."""
_GRACE = 4
"""Steps that go on after the first hit, to get beyond what rounding can take back."""


@dataclass(frozen=True)
class AttackOptions:
    """How to search. `restarts` and `steps` are those of the first long round; later rounds double the restarts
    up to 64 times. `keep` points are reported per round. Raises OptionsError for impossible values."""

    seed: int = 0
    restarts: int = 16
    steps: int = 40
    keep: int = 16
    memory_mb: float = 512.0

    def __post_init__(self) -> None:
        for name in ("restarts", "steps", "keep", "memory_mb"):
            if not getattr(self, name) > 0:
                raise OptionsError(f"{name} must be positive, not {getattr(self, name)!r}.")


@dataclass(frozen=True, eq=False)
class Candidates:
    """The best points of a search, by rising score: float64 `points` [M, n_in], `cases` int64 [M], `scores` [M].

    A score is the worst margin of the point's best disjunct; at most zero, it may be a counterexample. `best` is
    the smallest score of the whole search (inf before any point).
    """

    points: Tensor
    cases: Tensor
    scores: Tensor
    best: float

    @property
    def hit(self) -> bool:
        """Whether some point looks like a counterexample."""
        return len(self.scores) > 0 and bool(self.scores[0] <= 0)


@dataclass(frozen=True, eq=False)
class Start:
    """Where B descents begin: unit coordinates [B, n_in], their cases and disjuncts int64 [B].

    A disjunct of -1 means the one that is nearest at each step. `rate` [B] is the first step's length.
    """

    unit: Tensor
    cases: Tensor
    disjuncts: Tensor
    rate: Tensor

    def __getitem__(self, rows: slice | Tensor) -> Start:
        return Start(self.unit[rows], self.cases[rows], self.disjuncts[rows], self.rate[rows])

    def __len__(self) -> int:
        return len(self.cases)


@dataclass(frozen=True, eq=False)
class _Elite:
    """The best points seen: unit coordinates, cases and rising scores."""

    unit: Tensor
    cases: Tensor
    scores: Tensor

    def joined(self, unit: Tensor, cases: Tensor, scores: Tensor, limit: int) -> _Elite:
        both = (torch.cat(pair) for pair in ((self.unit, unit), (self.cases, cases), (self.scores, scores)))
        unit, cases, scores = both
        top = _distinct_best(unit, scores, limit)
        return _Elite(unit[top], cases[top], scores[top])


def search(
    compiled: Compiled,
    seconds: float,
    options: AttackOptions | None = None,
    callback: ProgressCallback | None = None,
) -> Candidates:
    """Search until a point has a score of at most zero, or for `seconds`; the candidates are the last round's."""
    run = Search(compiled, options or AttackOptions(), time.monotonic() + seconds, callback)
    found = run.nothing()
    for found in run.rounds():
        if found.hit:
            break
    return found


class Search:
    """One search; what it has seen lives here. `deadline` is a time of `time.monotonic`."""

    def __init__(
        self,
        compiled: Compiled,
        options: AttackOptions,
        deadline: float = math.inf,
        callback: ProgressCallback | None = None,
    ) -> None:
        self.options = options
        self.deadline = deadline
        self.callback = callback
        self.begin = time.monotonic()
        self.limits = (compiled.lower, compiled.upper)
        self.random = torch.Generator().manual_seed(options.seed)
        self._exact = Objective.of(compiled, torch.float64)
        self._use(self._exact if _needs_double(self._exact) else self._exact.to(torch.float32))
        self.best = math.inf
        self.best_unit = torch.full_like(self.lower, 0.5)  # per case
        self.best_score = self.lower.new_full((len(self.lower),), torch.inf)
        none = torch.zeros(0, dtype=torch.int64, device=self.lower.device)
        self.elite = _Elite(self.lower[:0], none, self.lower.new_zeros(0))

    def _use(self, objective: Objective) -> None:
        """Search on `objective` from now on."""
        self.objective = objective
        self.lower, self.width = objective.lower, objective.upper - objective.lower
        fit = int(self.options.memory_mb * 1e6 / objective.memory())
        self.batch = max(1, min(int(_STEP_WORK / (3 * objective.cost())), fit, 4096))
        self.dead = self.alive = 0  # gradients that were zero, and others

    def _refine(self) -> None:
        """Go on in float64 where most gradients have underflowed, as behind a saturated softmax."""
        if self.lower.dtype == torch.float32 and self.dead > self.alive:
            self._use(self._exact.scaled(self.objective.scale.double()))
            self.best_unit, self.best_score = self.best_unit.double(), self.best_score.double()
            self.elite = _Elite(self.elite.unit.double(), self.elite.cases, self.elite.scores.double())

    @property
    def late(self) -> bool:
        return time.monotonic() >= self.deadline

    def best_points(self) -> tuple[Tensor, Tensor]:
        """The best point of each case so far, float64 [N, n_in], and its score [N]; infinite before any."""
        every = torch.arange(len(self.lower), device=self.lower.device)
        points = self._point(self.best_unit, every).double()
        return torch.minimum(torch.maximum(points, self.limits[0]), self.limits[1]), self.best_score

    def nothing(self) -> Candidates:
        """No candidates, with the best score so far."""
        points = self.limits[0][:0]
        return Candidates(points, torch.zeros(0, dtype=torch.int64), points.new_zeros(0), self.best)

    def rounds(self) -> Iterator[Candidates]:
        """Rounds of growing effort, until the deadline; a round with a hit may be cut short."""
        if not len(self.lower):
            return
        yield self.sample()
        if self.late or not self.objective.graph.variable[self.objective.graph.outputs[0]]:
            return
        yield self.descend(self._first_starts(), max(8, self.options.steps // 3), Loss.WORST)
        restarts = self.options.restarts
        for k in range(1 << 30):
            if self.late:
                return
            self._refine()
            loss = Loss.HINGE if k % 2 == 0 else Loss.WORST
            steps = self.options.steps * (1 + min(k, 4) // 2)
            yield self.descend(self._random_starts(restarts), steps, loss)
            restarts = min(restarts * 2, self.options.restarts * 64)

    # --- sampling

    def sample(self) -> Candidates:
        """Centres, corners and uniform points of every case, as many as are cheap; sets the atoms' scale."""
        cases, free = self.lower.shape
        wanted = min(int(0.05 * _STEP_WORK / self.objective.cost()), 2048)
        each = max(1, wanted // cases)
        units = [torch.full((cases, 1, free), 0.5, dtype=self.lower.dtype)]
        corners = self._corners(each // 2)
        if len(corners):
            units.append(corners.expand(cases, -1, -1))
        rest = each - 1 - len(corners)
        if rest > 0:
            units.append(self._uniform((cases, rest, free)))
        unit = torch.cat(units, 1).flatten(0, 1).to(self.lower.device)
        owner = torch.arange(cases, device=self.lower.device).repeat_interleave(len(unit) // cases)
        kept: list[Candidates] = []
        margins: list[Tensor] = []
        for a in range(0, len(unit), min(self.batch, 512)):
            part = slice(a, a + min(self.batch, 512))
            with torch.no_grad():
                values = self.objective.margins(self._point(unit[part], owner[part]))
                scores = self.objective.scores(values, owner[part]).amin(1)
            if sum(map(len, margins)) < 1024:
                margins.append(values)
            kept.append(self._keep(unit[part], owner[part], scores))
            if self.late or kept[-1].hit:
                break
        if self.objective.scale.numel():
            self.objective = self.objective.scaled(_spread(torch.cat(margins)))
        return self._merge(kept)

    def _corners(self, limit: int) -> Tensor:
        """Corners of the unit cube over the coordinates that have width: all if there are few, else random ones."""
        free = self.lower.shape[1]
        wide = (self.width > 0).any(0).nonzero().squeeze(1).cpu()
        if len(wide) <= 20 and 1 << len(wide) <= limit:
            bits = torch.arange(1 << len(wide)).unsqueeze(1) >> torch.arange(len(wide)) & 1
            corners = torch.zeros(len(bits), free, dtype=self.lower.dtype)
            corners[:, wide] = bits.to(self.lower.dtype)
            return corners
        return self._uniform((limit // 4, free)).round()

    # --- starts

    def _first_starts(self) -> Start:
        """From the best sample of each case: the nearest disjunct, and the next ones while there is room."""
        cases = self._case_order()
        disjuncts = self.objective.absent.shape[1]
        each = max(1, min(1 + min(disjuncts, 15), 2 * self.batch // len(cases)))
        picked = self._ranked(cases, self.best_unit[cases], each - 1)
        auto = torch.full((len(cases), 1), -1, dtype=torch.int64, device=cases.device)
        picked = torch.cat([auto, picked], 1)
        owner = cases.repeat_interleave(picked.shape[1])
        return Start(self.best_unit[owner], owner, picked.flatten(), self._rates(len(owner)))

    def _random_starts(self, restarts: int) -> Start:
        """Random starts for the most promising cases; half of them aim at one disjunct from beginning to end."""
        cases = self._case_order()
        if len(cases) > 1:  # few restarts everywhere, then all effort where it is nearest
            cases = cases[: max(1, min(len(cases), 8 * self.batch // restarts))]
        owner = cases.repeat_interleave(restarts)
        ranked = self._ranked(cases, self.best_unit[cases], (restarts + 1) // 2)
        cycle = torch.arange(restarts, device=owner.device)
        aims = torch.where(cycle % 2 == 0, -1, ranked[:, (cycle // 2) % ranked.shape[1]]).flatten()
        unit = self._uniform((len(owner), self.lower.shape[1])).to(self.lower.device)
        rates = self._rates(len(owner))
        kind = cycle.repeat(len(cases)) // 2 % 4
        unit = torch.where((kind == 1).unsqueeze(1), unit.round(), unit)
        diverse = (kind == 2).nonzero().squeeze(1)
        for a in range(0, len(diverse), self.batch):
            rows = diverse[a : a + self.batch]
            unit[rows] = self._diversify(unit[rows], owner[rows])
        local = (kind == 3).nonzero().squeeze(1)
        source = torch.arange(len(local), device=owner.device) % len(self.elite.cases)
        # near and far alike, since nobody knows the scale
        reach = 10.0 ** (-3 * self._uniform((len(local),))).to(unit.device)
        around = self.elite.unit[source] + reach.unsqueeze(1) * (unit[local] - 0.5)
        unit[local], owner[local], aims[local] = around.clamp(0, 1), self.elite.cases[source], -1
        rates[local] = reach / 2
        return Start(unit, owner, aims, rates)

    def _rates(self, count: int) -> Tensor:
        return self.lower.new_full((count,), _RATE)

    def _case_order(self) -> Tensor:
        """The cases, most promising first."""
        return torch.argsort(self.best_score, stable=True)

    def _ranked(self, cases: Tensor, unit: Tensor, count: int) -> Tensor:
        """[len(cases), min(count, D)]: each case's disjuncts that are nearest at `unit`; -1 for absent ones."""
        parts = []
        for a in range(0, len(cases), self.batch):
            part = slice(a, a + self.batch)
            with torch.no_grad():
                margins = self.objective.margins(self._point(unit[part], cases[part]))
                losses = self.objective.losses(margins, cases[part], Loss.WORST, 0.0)
            best = losses.topk(min(count, losses.shape[1]), largest=False)
            parts.append(torch.where(best.values == torch.inf, -1, best.indices))
        return torch.cat(parts)

    def _diversify(self, unit: Tensor, cases: Tensor) -> Tensor:
        """Two steps along the gradient of a random combination of the margins, for starts far apart."""
        weights = torch.randn(len(unit), len(self.objective.scale), generator=self.random, dtype=unit.dtype)
        weights = weights.to(unit.device) / self.objective.scale
        for _ in range(2):
            unit = unit.detach().requires_grad_(True)
            with torch.enable_grad():
                margins = self.objective.margins(self._point(unit, cases))
                total = (margins.nan_to_num(posinf=0.0, neginf=0.0) * weights).sum()
            gradient = gradient_at(total, unit)
            unit = (unit.detach() + 0.3 * gradient.sign()).clamp(0, 1)
        return unit

    # --- descent

    def descend(self, start: Start, steps: int, loss: Loss, target: float = 0.01) -> Candidates:
        """Descend from every start, in batches, until a batch has hits or the deadline comes."""
        kept: list[Candidates] = []
        for a in range(0, len(start), self.batch):
            part = start[a : a + self.batch]
            unit, scores = self._descend(part, steps, loss, target)
            kept.append(self._keep(unit, part.cases, scores))
            if kept[-1].hit or self.late:
                break
        return self._merge(kept)

    def _descend(self, start: Start, steps: int, loss: Loss, target: float) -> tuple[Tensor, Tensor]:
        """The best point of each descent, in unit coordinates, and its score.

        Half of the descents take steps of the gradient's sign, half normalise by running moments; which is
        better depends on the problem.
        """
        unit, cases = start.unit, start.cases
        best_unit, best = unit, unit.new_full((len(unit),), torch.inf)
        first, second = torch.zeros_like(unit), torch.zeros_like(unit)
        signed = (torch.arange(len(unit), device=unit.device) % 2 == 0).unsqueeze(1)
        grace = _GRACE
        for t in range(steps + 1):
            unit = unit.detach().requires_grad_(True)
            with torch.enable_grad():
                margins = self.objective.margins(self._point(unit, cases))
                aims, scores = self._aim(margins.detach(), start, loss, target)
                value = self.objective.loss(margins, cases, aims, loss, target).sum()
            better = scores < best
            best = torch.where(better, scores, best)
            best_unit = torch.where(better.unsqueeze(1), unit.detach(), best_unit)
            grace -= bool((best <= 0).any())
            if t == steps or grace <= 0 or self.late:
                break
            gradient = gradient_at(value, unit)
            gradient = self._lively(gradient.nan_to_num(0.0, 0.0, 0.0))
            first = 0.8 * first + 0.2 * gradient
            second = 0.95 * second + 0.05 * gradient.square()
            moment = first / (1 - 0.8 ** (t + 1))
            moment = moment / ((second / (1 - 0.95 ** (t + 1))).sqrt() + torch.finfo(unit.dtype).tiny)
            rate = (start.rate * 0.02 ** (t / max(steps - 1, 1))).unsqueeze(1)
            move = torch.where(signed, gradient.sign() * rate, moment * (rate / 2))
            unit = (unit.detach() - move).clamp(0, 1)
        return best_unit, best

    def _aim(self, margins: Tensor, start: Start, loss: Loss, target: float) -> tuple[Tensor, Tensor]:
        """Which disjunct each descent follows at this step, and the points' scores."""
        scores = self.objective.scores(margins, start.cases).amin(1)
        nearest = self.objective.losses(margins, start.cases, loss, target).argmin(1)
        return torch.where(start.disjuncts < 0, nearest, start.disjuncts), scores

    def _lively(self, gradient: Tensor) -> Tensor:
        """Scaled to a largest entry of one; a random direction where it vanishes, to get off a plateau."""
        size = gradient.abs().amax(1, keepdim=True)
        dead = size == 0
        count = int(dead.sum())
        self.dead, self.alive = self.dead + count, self.alive + len(dead) - count
        gradient = gradient / torch.where(dead, 1.0, size)  # so that squares do not underflow
        if not count:
            return gradient
        other = torch.randn(gradient.shape, generator=self.random, dtype=gradient.dtype)
        return torch.where(dead, other.to(gradient.device), gradient)

    # --- points

    def unit(self, points: Tensor, cases: Tensor) -> Tensor:
        """Unit coordinates [B, n_in] of points [B, n_in]; the inverse of how points are reported."""
        width = self.width[cases]
        unit = (points.to(self.lower.dtype) - self.lower[cases]) / torch.where(width > 0, width, 1.0)
        return unit.clamp(0, 1)

    def _point(self, unit: Tensor, cases: Tensor) -> Tensor:
        """Points [B, n_in]."""
        return self.lower[cases] + unit * self.width[cases]

    def _uniform(self, shape: tuple[int, ...]) -> Tensor:
        return torch.rand(shape, generator=self.random, dtype=self.lower.dtype)

    def _keep(self, unit: Tensor, cases: Tensor, scores: Tensor) -> Candidates:
        """Remember the best point of each case, and report the best points of all."""
        order = torch.argsort(scores, stable=True)
        owners = cases[order]
        grouped = torch.argsort(owners, stable=True)
        owners = owners[grouped]
        first = torch.ones_like(owners, dtype=torch.bool)
        first[1:] = owners[1:] != owners[:-1]
        wins = order[grouped[first]]  # each case's best point here
        wins = wins[scores[wins] < self.best_score[cases[wins]]]
        self.best_score[cases[wins]] = scores[wins]
        self.best_unit[cases[wins]] = unit[wins]
        top = _distinct_best(unit, scores, self.options.keep)
        self.elite = self.elite.joined(unit[top], cases[top], scores[top], 2 * self.options.keep)
        points = self._point(unit[top], cases[top]).double()
        points = torch.minimum(torch.maximum(points, self.limits[0][cases[top]]), self.limits[1][cases[top]])
        return Candidates(points, cases[top], scores[top].double(), self.best)

    def _merge(self, parts: list[Candidates]) -> Candidates:
        """The best of all parts; tells the callback."""
        if not parts:
            return self.nothing()
        points, cases, scores = (
            torch.cat([getattr(p, name) for p in parts]) for name in ("points", "cases", "scores")
        )
        top = _distinct_best(points, scores, self.options.keep)
        self.best = min(self.best, float(scores[top[0]]))
        if self.callback is not None:
            self.callback(Progress(best_attack_margin=self.best, seconds=time.monotonic() - self.begin))
        return Candidates(points[top], cases[top], scores[top], self.best)


def _needs_double(objective: Objective) -> bool:
    """Whether to search in float64: where that is cheap, or where float32 is too coarse for a box."""
    size = torch.maximum(objective.lower.abs(), objective.upper.abs())
    width = objective.upper - objective.lower
    return objective.cost() < _CHEAP or bool(((width > 0) & (width < _THIN * size)).any())


def _distinct_best(points: Tensor, scores: Tensor, limit: int) -> Tensor:
    """Indices of the points with the smallest scores, without the repetitions that meeting descents leave."""
    order = torch.argsort(scores, stable=True)[: 4 * limit]
    new = torch.ones_like(order, dtype=torch.bool)
    new[1:] = (points[order[1:]] != points[order[:-1]]).any(1)
    return order[new][:limit]


def _spread(margins: Tensor) -> Tensor:
    """[K]: the standard deviation of each atom's margin, or its size where there is nothing to tell it from."""
    finite = margins.nan_to_num(posinf=0.0, neginf=0.0)
    spread = finite.std(0) if len(finite) > 1 else torch.zeros_like(finite[0])
    typical = finite.abs().mean(0)
    spread = torch.where(spread > 1e-6 * typical, spread, typical)
    return torch.where(spread > 0, spread, 1.0)
