"""Splitting the arguments of nonlinear operators, chosen by what their relaxations cost and by trying the best few."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from verifier.bounds.backward import OutOfTime
from verifier.bounds.final import AscentOptions
from verifier.branching.bounded import Bounded
from verifier.branching.bounding import Bounder
from verifier.branching.domains import Domains
from verifier.branching.input_split import InputBrancher, halves
from verifier.branching.parts import Side, all_parts, by_node, cuts_at, one_part, points_at, spread_points
from verifier.branching.scores import Argument, shortcut
from verifier.graph import Interval

LEAST_GAIN = 0.01
"""What a half gains at least, of what is missing: products of gains tell splits apart that leave one half as it is."""
TRIALS, TRIAL_NUMBERS = 4096, 1 << 25
"""Halves bounded at a time when candidates are tried, and numbers in their enclosures, at most."""


SHORTCUT = "shortcut"


@dataclass(frozen=True)
class Heuristic:
    """How to choose a neuron: of the `candidates` whose relaxations cost the bound most, the `shortcuts` that a linear
    shortcut estimates to gain most (all where it is None), and of these the one whose halves, both bounded for real
    where `trials` says so, gain most. `points` names a rule of `points.RULES` for where to cut; SHORTCUT has the linear
    shortcut choose among the table's and others."""

    candidates: int
    shortcuts: int | None = None
    trials: bool = False
    points: str = "table"


HEURISTICS = {
    "babsr": Heuristic(candidates=1),
    "bbps": Heuristic(candidates=64, shortcuts=1),
    "fsb": Heuristic(candidates=16, trials=True),
}
"""BaBSR (Bunel et al. 2020) and BBPS (Shi et al. 2025) by scores alone, FSB (De Palma et al. 2021) by trials."""


@dataclass(frozen=True, eq=False)
class ActivationBrancher:
    """Splits the neuron that `heuristic` chooses. Gains of two halves count by their product, as in branching on
    integers (Achterberg 2007): the least gain alone would pass over a split that decides one half. Trials take one step
    of ascent from the whole's parameters. A subdomain without an unstable neuron is halved along an input.

    Where fewer than `free` subdomains come out, each is split at the next best neurons, too: on a GPU so many cost no
    more than one, and every level that is skipped saves a step. The best `inputs` coordinates of the box are tried as
    well, with inner enclosures of the halves' own, and halved where that gains more.
    """

    bounder: Bounder
    heuristic: Heuristic = HEURISTICS["fsb"]
    free: int = 0
    inputs: int = 0

    def branch(self, domains: Domains, bounded: Bounded) -> tuple[Domains, Tensor]:
        """All parts of every subdomain, and a mask [M] of subdomains that have nothing to split."""
        nodes = [i for i in self.bounder.split_nodes if i in bounded.gaps]
        if not nodes:
            return InputBrancher(self.bounder).branch(domains, bounded)
        gaps = torch.cat([bounded.gaps[i].flatten(1) for i in nodes], 1)
        values, places = gaps.topk(min(self.heuristic.candidates, gaps.shape[1]), dim=1)
        ready = values[:, 0] > 0
        stuck = torch.zeros_like(ready)
        parts: list[Domains] = []
        if bool(ready.any()):
            mine, part = domains.index(ready), bounded.index(ready)
            best, points, gain = self._choose(mine, part, nodes, values[ready], places[ready])
            if self.inputs:
                boxes, chosen = self._halved(mine, part, gain)
                parts.append(boxes)
                mine, part = mine.index(~chosen), part.index(~chosen)
                best, points = best[~chosen], points[~chosen]
            if len(best):
                parts.append(self._split(mine, part, nodes, best, points))
        if not bool(ready.all()):
            boxes, unsplit = InputBrancher(self.bounder).branch(domains.index(~ready), bounded.index(~ready))
            if len(boxes) or not parts:
                parts.append(self.bounder.tightened(boxes) if len(boxes) else boxes)
            stuck[~ready] = unsplit
        return Domains.cat(parts), stuck

    def _halved(self, domains: Domains, bounded: Bounded, gain: Tensor) -> tuple[Domains, Tensor]:
        """Halves of the boxes of those subdomains where that gains more than `gain` [M], and which these are."""
        score = InputBrancher(self.bounder).scores(domains, bounded)
        values, best = score.topk(min(self.inputs, score.shape[1]), dim=1)
        count = best.shape[1]
        copies = torch.arange(len(domains), device=best.device).repeat_interleave(count)
        trial = self.bounder.tightened(Domains.cat(halves(domains.index(copies), best.flatten())))
        found = self._quick().estimate(trial).view(2, len(domains), count)
        most, place = _gain(found.permute(1, 2, 0), domains.bound, values).max(1)
        chosen = most > gain
        rows = chosen.nonzero()[:, 0]
        at = rows * count + place[rows]
        return trial.index(torch.cat([at, at + len(copies)])), chosen

    def _split(
        self, domains: Domains, bounded: Bounded, nodes: list[int], best: Tensor, points: Tensor
    ) -> Domains:
        """All parts by the first of the neurons `best` [M, k], cut at `points` [M, k], that leave no more parts than
        are free, or by one."""
        for level in range(best.shape[1]):
            if level and 2 * len(domains) > self.free:
                break
            cuts = cuts_at(self.bounder, bounded, nodes, best[:, level], points[:, level])
            domains, rows = all_parts(self.bounder, domains, bounded, cuts)
            bounded, best, points = bounded.index(rows), best[rows], points[rows]
        return domains

    def _quick(self) -> Bounder:
        """Bounds to compare splits by."""
        ascent = AscentOptions(steps=1, rate=0.1)
        return self.bounder.with_options(
            replace(self.bounder.options, ascent=ascent, gaps=False, refine=False, inherit=True)
        )

    def _choose(
        self, domains: Domains, bounded: Bounded, nodes: list[int], values: Tensor, places: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The places [M, k] of the best candidates in order, as many as all subdomains have, where to cut them [M, k],
        and what the best one gains [M], where that is asked for."""
        keep, wanted = self.heuristic.shortcuts, max(1, (self.free // len(places)).bit_length() - 1)
        count = min(wanted, int((values > 0).sum(1).amin()))
        few = keep is not None and keep < places.shape[1] and self.bounder.facts.planes is not None
        points, score = self._points(domains, bounded, nodes, values, places, few)
        if score is not None and few and keep is not None:
            best = score.topk(max(keep, count), dim=1).indices
            values, places, points = (t.gather(1, best) for t in (values, places, points))
        if not self.inputs and (places.shape[1] == 1 or not self.heuristic.trials):
            return places[:, :count], points[:, :count], domains.bound
        if not self.heuristic.trials:
            values, places, points = (t[:, :count] for t in (values, places, points))
        quick = self._quick()
        numbers = sum(node.numel for node in self.bounder.graph.nodes)
        together = max(1, min(TRIALS, TRIAL_NUMBERS // numbers) // (2 * places.shape[1]))
        best, gains = [], []
        for rows in torch.arange(len(domains), device=places.device).split(together):
            if time.monotonic() > self.bounder.options.deadline:
                raise OutOfTime
            candidates = values[rows], places[rows], points[rows]
            gain, order = self._try(quick, domains.index(rows), bounded.index(rows), nodes, candidates).topk(
                count, dim=1
            )
            best.append(order)
            gains.append(gain[:, 0])
        order = torch.cat(best)
        return places.gather(1, order), points.gather(1, order), torch.cat(gains)

    def _points(
        self,
        domains: Domains,
        bounded: Bounded,
        nodes: list[int],
        values: Tensor,
        places: Tensor,
        asked: bool,
    ) -> tuple[Tensor, Tensor | None]:
        """Where to cut each candidate [M, K], and by the shortcut what that gains [M, K], where points are chosen by it
        or that is `asked` for."""
        choose = self.heuristic.points == SHORTCUT
        rule = "table" if choose else self.heuristic.points
        points = points_at(self.bounder, bounded, nodes, places, rule)
        if self.bounder.facts.planes is None or not (choose or asked):
            return points, None
        options = points.unsqueeze(2)
        if choose:
            options = spread_points(self.bounder, bounded, nodes, places, points)
            if bool((options == options[:, :, :1]).all()):
                if not asked:
                    return points, None
                options = options[:, :, :1]
        wide = options.shape[2]
        many = [t.repeat_interleave(wide, 1) for t in (values, places)]
        score = self._shortcuts(domains, bounded, nodes, many[1], options.flatten(1))
        gain, best = _gain(score, domains.bound, many[0]).view(options.shape).max(2)
        return options.gather(2, best.unsqueeze(2)).squeeze(2), gain

    def _try(
        self,
        quick: Bounder,
        domains: Domains,
        bounded: Bounded,
        nodes: list[int],
        candidates: tuple[Tensor, Tensor, Tensor],
    ) -> Tensor:
        """What every candidate (gaps, places and points [m, K]) gains [m, K], by bounds of both halves."""
        values, places, points = candidates
        count = places.shape[1]
        copies = torch.arange(len(domains), device=places.device).repeat_interleave(count)
        mine, whole = domains.index(copies), bounded.index(copies)
        cuts = cuts_at(self.bounder, whole, nodes, places.flatten(), points.flatten())
        trial = [one_part(self.bounder, mine, whole, cuts, side) for side in (Side.LOW, Side.HIGH)]
        score = quick.estimate(Domains.cat(trial)).view(2, len(domains), count)
        return _gain(score.permute(1, 2, 0), domains.bound, values)

    def _shortcuts(
        self, domains: Domains, bounded: Bounded, nodes: list[int], places: Tensor, points: Tensor
    ) -> Tensor:
        """Estimated scores [M, K, 2] of both halves of every candidate, cut at `points` [M, K]."""
        bounder, planes = self.bounder, self.bounder.facts.planes
        assert planes is not None
        score = places.new_zeros(*places.shape, 2, dtype=torch.float64)
        for i, (rows, k), column in by_node(bounder.graph, nodes, places):
            ends = [t.flatten(1)[rows, column] for t in bounded.bounds[i].expand(len(domains))]
            point = points[rows, k]
            for high, half in enumerate((Interval(ends[0], point), Interval(point, ends[1]))):
                argument = Argument(rows, column, half)
                score[rows, k, high] = shortcut(
                    bounder.graph, bounder.target, bounded, planes, i, argument, bool(high)
                )
        return score


def _gain(score: Tensor, whole: Tensor, values: Tensor) -> Tensor:
    """The product of the gains of two halves' scores [M, K, 2] over those of the wholes [M]; none where there is
    nothing to split. Between equal ones the wider gap `values` [M, K] decides."""
    before = whole.clamp(max=0)[:, None, None]
    gain = (score.clamp(max=0) - before).clamp(min=0) - LEAST_GAIN * before
    wide = 1 + 1e-3 * values / values.amax(1, keepdim=True).clamp(min=1e-30)
    return torch.where(values > 0, gain.prod(2) * wide, -torch.inf)
