"""Splitting the arguments of nonlinear operators, chosen by what their relaxations cost and by trying the best few."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from verifier.bounds.final import AscentOptions
from verifier.branching.bounding import Bounded, Bounder
from verifier.branching.domains import Domains
from verifier.branching.input_split import InputBrancher
from verifier.graph import Elementwise, Interval
from verifier.specs.compile import Compiled


@dataclass(frozen=True, eq=False)
class ActivationBrancher:
    """Filtered branching (in the manner of FSB, De Palma et al. 2021): of the `candidates` neurons whose relaxations
    cost the bound most, the one is split whose worse half has the best bound when both halves are bounded for real
    (one plain final pass each). A subdomain without an unstable neuron is halved along an input."""

    bounder: Bounder
    candidates: int = 3

    def branch(self, domains: Domains, bounded: Bounded) -> tuple[Domains, Tensor]:
        """Both halves of every subdomain, and a mask [M] of subdomains that have nothing to split."""
        nodes = [i for i in self.bounder.split_nodes if i in bounded.gaps]
        if not nodes:
            return InputBrancher(self.bounder).branch(domains, bounded)
        gaps = torch.cat([bounded.gaps[i].flatten(1) for i in nodes], 1)
        values, places = gaps.topk(min(self.candidates, gaps.shape[1]), dim=1)
        ready = values[:, 0] > 0
        stuck = torch.zeros_like(ready)
        parts: list[Domains] = []
        if bool(ready.any()):
            mine, part = domains.index(ready), bounded.index(ready)
            best = self._choose(mine, part, nodes, values[ready], places[ready])
            parts += self._halves(mine, part, nodes, best)
        if not bool(ready.all()):
            halves, unsplit = InputBrancher(self.bounder).branch(domains.index(~ready), bounded.index(~ready))
            parts.append(halves)
            stuck[~ready] = unsplit
        return Domains.cat(parts), stuck

    def _choose(
        self, domains: Domains, bounded: Bounded, nodes: list[int], values: Tensor, places: Tensor
    ) -> Tensor:
        """The place [M] of the best candidate."""
        count = places.shape[1]
        if count == 1:
            return places[:, 0]
        quick = self.bounder.with_options(
            replace(
                self.bounder.options, ascent=AscentOptions(steps=0), gaps=False, refine=False, inherit=True
            )
        )
        trial = Domains.cat(
            [half for k in range(count) for half in self._halves(domains, bounded, nodes, places[:, k])]
        )
        found = quick.bound(trial)
        score = torch.where(found.refuted.all(1), 0.0, found.score).clamp(max=0)
        halves = score.view(count, 2, len(domains))
        gain = halves.amin(1) + 1e-3 * halves.amax(1)
        gain = torch.where((values > 0).T, gain, -torch.inf)
        return places.gather(1, gain.argmax(0).unsqueeze(1)).squeeze(1)

    def _halves(
        self, domains: Domains, bounded: Bounded, nodes: list[int], places: Tensor
    ) -> tuple[Domains, Domains]:
        """The subdomains with x <= point and with x >= point for the neuron at `places` [M] among all of `nodes`."""
        low: dict[int, Interval] = dict(domains.cuts)
        high: dict[int, Interval] = dict(domains.cuts)
        start = 0
        for i in nodes:
            size = self.bounder.graph.nodes[i].numel
            mine = ((places >= start) & (places < start + size)).nonzero()[:, 0]
            if len(mine):
                points = self._points(i, bounded, len(domains)).flatten(1)
                column = places[mine] - start
                point = points[mine, column]
                cut = domains.cuts.get(i) or _free(points, self.bounder.graph.nodes[i].shape)
                upper, lower = cut.upper.flatten(1).clone(), cut.lower.flatten(1).clone()
                upper[mine, column] = torch.minimum(upper[mine, column], point)
                lower[mine, column] = torch.maximum(lower[mine, column], point)
                low[i] = Interval(cut.lower, upper.view_as(cut.upper))
                high[i] = Interval(lower.view_as(cut.lower), cut.upper)
            start += size
        return replace(domains, cuts=low), replace(domains, cuts=high)

    def _points(self, node: int, bounded: Bounded, batch: int) -> Tensor:
        """The branching points [M, *shape] of the first operator that reads the node."""
        graph = self.bounder.graph
        for i in self.bounder.elementwise:
            op, inputs = graph.nodes[i].op, graph.nodes[i].inputs
            if node in inputs and isinstance(op, Elementwise):
                boxes = [bounded.bounds[j].expand(batch) for j in inputs]
                return op.branching_point(inputs.index(node), *boxes)
        raise KeyError(f"No elementwise operator reads node {node}.")


def _free(points: Tensor, shape: tuple[int, ...]) -> Interval:
    end = torch.full((points.shape[0], *shape), torch.inf, dtype=points.dtype, device=points.device)
    return Interval(-end, end)


def by_disjunct(compiled: Compiled, domains: Domains) -> tuple[Compiled, Domains, Tensor]:
    """The query with every open disjunct of `domains` as a case of its own, so that every search has one thing to
    refute; the subdomains in these terms, and the case [P] that each new case comes from."""
    rows, disjuncts = domains.open.nonzero(as_tuple=True)
    alone = domains.index(rows)
    old = alone.case
    clauses = compiled.clauses.to(old.device)[old, disjuncts].unsqueeze(1)
    cases = old.cpu()
    single = replace(
        compiled, lower=compiled.lower[cases], upper=compiled.upper[cases], clauses=clauses.cpu()
    )
    fresh = torch.arange(len(rows), device=old.device)
    return single, replace(alone, case=fresh, open=torch.ones_like(alone.open[:, :1])), old
