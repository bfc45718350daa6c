"""Splitting the arguments of nonlinear operators, chosen by what their relaxations cost and by trying the best few."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from verifier.bounds.crown import OutOfTime
from verifier.bounds.final import AscentOptions
from verifier.branching.bounded import Bounded
from verifier.branching.bounding import Bounder
from verifier.branching.domains import Domains
from verifier.branching.input_split import InputBrancher
from verifier.branching.multipliers import add_multipliers, split_multipliers
from verifier.branching.scores import Argument, shortcut
from verifier.graph import Elementwise, Interval

LEAST_GAIN = 0.01
"""What a half gains at least, of what is missing: products of gains tell splits apart that leave one half as it is."""
TRIALS, TRIAL_NUMBERS = 4096, 1 << 25
"""Halves bounded at a time when candidates are tried, and numbers in their enclosures, at most."""


@dataclass(frozen=True)
class Heuristic:
    """How to choose a neuron: of the `candidates` whose relaxations cost the bound most, the `shortcuts` that a linear
    shortcut estimates to gain most (all where it is None), and of these the one whose halves, both bounded for real
    where `trials` says so, gain most."""

    candidates: int
    shortcuts: int | None = None
    trials: bool = False


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
    more than one, and every level that is skipped saves a step.
    """

    bounder: Bounder
    heuristic: Heuristic = HEURISTICS["fsb"]
    free: int = 0

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
            best = self._choose(mine, part, nodes, values[ready], places[ready])
            parts.append(self._split(mine, part, nodes, best))
        if not bool(ready.all()):
            halves, unsplit = InputBrancher(self.bounder).branch(domains.index(~ready), bounded.index(~ready))
            parts.append(self.bounder.tightened(halves))
            stuck[~ready] = unsplit
        return Domains.cat(parts), stuck

    def _split(self, domains: Domains, bounded: Bounded, nodes: list[int], best: Tensor) -> Domains:
        """All parts by the first of the neurons `best` [M, k] that leave no more parts than are free, or by one."""
        for level in range(best.shape[1]):
            if level and 2 * len(domains) > self.free:
                break
            copies = torch.arange(len(best), device=best.device).repeat(2**level)
            whole = bounded.index(copies) if level else bounded
            domains = Domains.cat(self._halves(domains, whole, nodes, best[copies, level]))
        return domains

    def _choose(
        self, domains: Domains, bounded: Bounded, nodes: list[int], values: Tensor, places: Tensor
    ) -> Tensor:
        """The places [M, k] of the best candidates in order, as many as all subdomains have."""
        keep, wanted = self.heuristic.shortcuts, max(1, (self.free // len(places)).bit_length() - 1)
        count = min(wanted, int((values > 0).sum(1).amin()))
        if keep is not None and keep < places.shape[1] and self.bounder.facts.planes is not None:
            score = self._shortcuts(domains, bounded, nodes, places)
            best = _gain(score, domains.bound, values).topk(max(keep, count), dim=1).indices
            values, places = values.gather(1, best), places.gather(1, best)
        if places.shape[1] == 1 or not self.heuristic.trials:
            return places[:, :count]
        ascent = AscentOptions(steps=1, rate=0.1)
        options = replace(self.bounder.options, ascent=ascent, gaps=False, refine=False, inherit=True)
        quick = self.bounder.with_options(options)
        numbers = sum(node.numel for node in self.bounder.graph.nodes)
        together = max(1, min(TRIALS, TRIAL_NUMBERS // numbers) // (2 * places.shape[1]))
        best = []
        for rows in torch.arange(len(domains), device=places.device).split(together):
            if time.monotonic() > options.deadline:
                raise OutOfTime
            part = domains.index(rows), bounded.index(rows)
            gain = self._try(quick, *part, nodes, values[rows], places[rows])
            best.append(places[rows].gather(1, gain.topk(count, dim=1).indices))
        return torch.cat(best)

    def _try(
        self,
        quick: Bounder,
        domains: Domains,
        bounded: Bounded,
        nodes: list[int],
        values: Tensor,
        places: Tensor,
    ) -> Tensor:
        """What every candidate gains [m, K], by bounds of both halves."""
        count = places.shape[1]
        copies = torch.arange(len(domains), device=places.device).repeat_interleave(count)
        trial = self._halves(domains.index(copies), bounded.index(copies), nodes, places.flatten())
        score = quick.estimate(Domains.cat(trial)).view(2, len(domains), count)
        return _gain(score.permute(1, 2, 0), domains.bound, values)

    def _shortcuts(self, domains: Domains, bounded: Bounded, nodes: list[int], places: Tensor) -> Tensor:
        """Estimated scores [M, K, 2] of both halves of every candidate."""
        bounder, planes = self.bounder, self.bounder.facts.planes
        assert planes is not None
        score = places.new_zeros(*places.shape, 2, dtype=torch.float64)
        start = 0
        for i in nodes:
            size = bounder.graph.nodes[i].numel
            rows, k = ((places >= start) & (places < start + size)).nonzero(as_tuple=True)
            column = places[rows, k] - start
            ends = [t.flatten(1)[rows, column] for t in bounded.bounds[i].expand(len(domains))]
            point = self._points(i, bounded, len(domains)).flatten(1)[rows, column]
            for high, half in enumerate((Interval(ends[0], point), Interval(point, ends[1]))):
                argument = Argument(rows, column, half)
                score[rows, k, high] = shortcut(
                    bounder.graph, bounder.target, bounded, planes, i, argument, bool(high)
                )
            start += size
        return score

    def _halves(
        self, domains: Domains, bounded: Bounded, nodes: list[int], places: Tensor
    ) -> tuple[Domains, Domains]:
        """The subdomains with x <= point and with x >= point for the neuron at `places` [M] among all of `nodes`."""
        halves = [(dict(domains.splits), {k: dict(own) for k, own in domains.warm.items()}) for _ in range(2)]
        start = 0
        for i in nodes:
            shape = self.bounder.graph.nodes[i].shape
            size = self.bounder.graph.nodes[i].numel
            mine = ((places >= start) & (places < start + size)).nonzero()[:, 0]
            if len(mine):
                column = places[mine] - start
                point = self._points(i, bounded, len(domains)).flatten(1)[mine, column]
                whole = bounded.bounds[i].expand(len(domains)).index(mine)
                for high, (splits, warm) in enumerate(halves):
                    half = _half(whole, column, point, bool(high))
                    splits[i] = _constrained(
                        domains.splits.get(i) or Interval.everything(len(domains), half.lower),
                        half,
                        mine,
                        column,
                    )
                    if domains.warm:
                        values = split_multipliers(self.bounder, bounded, i, half, mine, column)
                        like = half.lower.new_empty(len(domains), 1, values[0].shape[1], *shape)
                        key = (self.bounder.target, i)
                        add_multipliers(warm, key, values, (mine, column), like)
            start += size
        first, second = [replace(domains, splits=splits, warm=warm) for splits, warm in halves]
        return first, second

    def _points(self, node: int, bounded: Bounded, batch: int) -> Tensor:
        """The branching points [M, *shape] of the first operator that reads the node."""
        graph = self.bounder.graph
        for i in self.bounder.elementwise:
            op, inputs = graph.nodes[i].op, graph.nodes[i].inputs
            if node in inputs and isinstance(op, Elementwise):
                boxes = [bounded.bounds[j].expand(batch) for j in inputs]
                return op.branching_point(inputs.index(node), *boxes)
        raise KeyError(f"No elementwise operator reads node {node}.")


def _gain(score: Tensor, whole: Tensor, values: Tensor) -> Tensor:
    """The product of the gains of two halves' scores [M, K, 2] over those of the wholes [M]; none where there is
    nothing to split. Between equal ones the wider gap `values` [M, K] decides."""
    before = whole.clamp(max=0)[:, None, None]
    gain = (score.clamp(max=0) - before).clamp(min=0) - LEAST_GAIN * before
    wide = 1 + 1e-3 * values / values.amax(1, keepdim=True).clamp(min=1e-30)
    return torch.where(values > 0, gain.prod(2) * wide, -torch.inf)


def _half(whole: Interval, column: Tensor, point: Tensor, high: bool) -> Interval:
    """`whole` [m, *shape] with element `column` [m] of each cut at `point` [m]."""
    end = whole.lower if high else whole.upper
    moved = end.flatten(1).scatter(1, column.unsqueeze(1), point.unsqueeze(1)).view(end.shape)
    return Interval(moved, whole.upper) if high else Interval(whole.lower, moved)


def _constrained(splits: Interval, half: Interval, rows: Tensor, column: Tensor) -> Interval:
    """The constraints `splits` [M, *shape] with those of one more element, both of its ends: the other end held before
    the split too, and its multiplier takes the place of the line that the split makes exact."""
    every = torch.arange(len(rows), device=rows.device)
    ends = [end.flatten(1)[every, column] for end in half]
    lower, upper = splits.lower.flatten(1).clone(), splits.upper.flatten(1).clone()
    lower[rows, column] = torch.maximum(lower[rows, column], ends[0])
    upper[rows, column] = torch.minimum(upper[rows, column], ends[1])
    return Interval(lower.view_as(splits.lower), upper.view_as(splits.upper))
