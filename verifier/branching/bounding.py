"""Bounds of a batch of subdomains: scores, planes and inner enclosures, with a recheck in float64."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from verifier.bounds.ascent import index_leaves
from verifier.bounds.backward import LinearBound
from verifier.bounds.crown import Effort, inner_bounds
from verifier.bounds.final import Ascent, AscentOptions, FinalPass
from verifier.bounds.forward import forward_bounds
from verifier.bounds.interval import Bounds
from verifier.bounds.second_order import curved, second_order
from verifier.branching.bounded import Bounded, Facts
from verifier.branching.domains import Domains
from verifier.branching.scores import gaps
from verifier.graph import Elementwise, Graph, Interval
from verifier.graph.coefficients import Rows
from verifier.sets import Box, InputSet
from verifier.specs.compile import Compiled


@dataclass(frozen=True)
class BoundOptions:
    """`refine` bounds unstable neurons of a subdomain backwards (otherwise intervals are propagated and
    intersected with what is handed down; with `inherit` not even that),
    `forward` has forward functions of the inputs that vary in place of backward passes, where these are few (FEW),
    `linear` uses linear bounds at all, `ascent` optimises the final pass, `gaps` measures every neuron's part in
    the looseness and hands the optimised parameters down, as splitting neurons needs. `memory` is in bytes; after
    `deadline` (of `time.monotonic`) OutOfTime is raised, after `patience` neurons keep what intervals say of them."""

    refine: bool = True
    inherit: bool = False
    forward: bool = False
    linear: bool = True
    ascent: AscentOptions = AscentOptions()
    gaps: bool = False
    memory: int = 1 << 30
    deadline: float = math.inf
    patience: float = math.inf


FEW = 8
"""Inputs that vary, at most, of an instance of which forward functions are made."""
CLOSE = 0.1
"""Inner enclosures are bounded again in float64 too where less is missing than this part of the final pass's rounding
in float32."""
NEAR = 0.3
"""Inner enclosures are clipped where less than this part of what the plane varies by is missing."""
CLIPS, AGAIN = 3, 0.25
"""That is done at most so often, each time where the last gained this part of what was missing."""


def few_inputs(domains: Domains) -> int | None:
    """In how many inputs a box is wider than a little rounding makes it, at most; None if in more than FEW."""
    varying = Interval(domains.lower, domains.upper).narrow(torch.float32).wide
    count = int(varying.sum(1).amax()) if len(domains) else 0
    return max(count, 1) if count <= FEW else None


class _Packed(NamedTuple):
    """The atoms [M, P * C] of each subdomain's present disjuncts, P the most that any has; the place of every
    disjunct among them [M, D]; the clauses [M, D, C]; and which disjuncts are present [M, D]."""

    atoms: Tensor
    owner: Tensor
    table: Tensor
    present: Tensor


class Bounder:
    """Bounds subdomains of one compiled query, whose cases' boxes `facts` are about."""

    def __init__(
        self,
        compiled: Compiled,
        device: torch.device,
        dtype: torch.dtype,
        options: BoundOptions = BoundOptions(),
        facts: Facts = Facts(),
    ) -> None:
        self.compiled, self.options = compiled, options
        self.device, self.dtype = device, dtype
        self.facts = facts
        self.strict = compiled.strict.to(device)
        self.clauses = compiled.clauses.to(device)
        self.graph = self._graph(dtype)
        self.target = self.graph.outputs[0]
        self.elementwise = [
            i
            for i in sorted(self.graph.ancestors(self.target))
            if isinstance(self.graph.nodes[i].op, Elementwise)
        ]
        self.curved = [] if options.gaps else curved(self.graph, self.target)
        self.split_nodes = sorted({j for i in self.elementwise for j in self.graph.nodes[i].inputs})

    def _graph(self, dtype: torch.dtype) -> Graph:
        return self.compiled.graph_on(dtype, self.device)

    def with_options(self, options: BoundOptions) -> Bounder:
        """The same query with other options."""
        return Bounder(self.compiled, self.device, self.dtype, options, self.facts)

    def with_facts(self, facts: Facts) -> Bounder:
        """The same query with more knowledge."""
        return Bounder(self.compiled, self.device, self.dtype, self.options, facts)

    def bound(self, domains: Domains) -> Bounded:
        """Bounds of all subdomains. Where little is missing, the inner enclosures are clipped to where the property is
        violated and the subdomain is bounded again; a positive score then says no more than that. What gains much is
        clipped once more, by the better plane."""
        result = self._settled(domains)
        planes = self.facts.planes
        if planes is None or not result.gaps:
            return result
        rows = torch.arange(len(domains), device=self.device)
        plane, constant = result.worst_plane(planes.least)
        least, width = planes.least(plane, constant), planes.width(plane)
        for _ in range(CLIPS):
            keep = (least > -NEAR * width) & ~result.refuted[rows].all(1)
            rows, plane, constant, before = rows[keep], plane[keep], constant[keep], least[keep]
            if not len(rows):
                break
            part, mine = result.index(rows), domains.index(rows)
            known = {i: part.bounds[i].expand(len(rows)) for i in planes.columns}
            known = planes.clip(known, part.gaps, plane, constant)
            again = self._settled(replace(mine, known={**mine.known, **known}, warm=part.warm))
            again = replace(again, score=again.score.clamp(max=0), disjunct=again.disjunct.clamp(max=0))
            result = result.replaced(rows, again)
            plane, constant = again.worst_plane(planes.least)
            least, width = planes.least(plane, constant), planes.width(plane)
            gained = least - before > AGAIN * -before
            rows, plane, constant, least, width = (t[gained] for t in (rows, plane, constant, least, width))
        return result

    def _settled(self, domains: Domains) -> Bounded:
        """What a float32 pass would settle but for rounding is redone in float64, at the parameters found: the final
        pass on the same inner enclosures, and where next to nothing is missing then, everything."""
        result, error = self._pass(domains, self.dtype)
        doubtful = error > 0
        if self.dtype == torch.float64 or not bool(doubtful.any()):
            return result
        rows = doubtful.nonzero()[:, 0]
        options = replace(self.options, gaps=False)
        part = domains.index(rows)
        if result.warm:
            leaves = index_leaves(result.warm, rows)
            warm = {k: {n: t.double() for n, t in own.items()} for k, own in leaves.items()}
            options = replace(options, ascent=AscentOptions(steps=0))
            part = replace(part, warm=warm)
        inherit = replace(options, refine=False, inherit=True, forward=False)
        known = {i: b.index(rows).expand(len(rows)) for i, b in result.bounds.items()}
        exact, _ = self.with_options(inherit)._pass(replace(part, known=known), torch.float64)
        result = result.with_margins(rows, exact)
        if not self.options.linear or self.options.inherit:
            return result
        close = (exact.score <= 0) & (exact.score > -CLOSE * error[rows])
        if bool(close.any()):
            left = close.nonzero()[:, 0]
            exact, _ = self.with_options(options)._pass(part.index(left), torch.float64)
            result = result.with_margins(rows[left], exact)
        return result

    def tightened(self, domains: Domains) -> Domains:
        """With inner enclosures of their own, from their boxes: worth it where all that is left to split is inputs."""
        options = replace(self.options, refine=True, inherit=False)
        bounds = self.with_options(options)._inner(domains, self.dtype)[1]
        count = len(domains)
        return replace(domains, known={i: bounds[i].expand(count) for i in self.split_nodes})

    def known(self, bounded: Bounded) -> dict[int, Interval]:
        """The inner enclosures worth handing down to parts of the subdomains."""
        count = len(bounded.score)
        return {i: bounded.bounds[i].expand(count) for i in self.split_nodes if i in bounded.bounds}

    def _enclosures(self, domains: Domains, dtype: torch.dtype) -> tuple[dict[int, Interval], Tensor]:
        """What is known of inner nodes, split constraints included, and which subdomains [M] the splits leave empty."""
        known = {i: b.index(domains.case).narrow(dtype) for i, b in self.facts.enclosures.items()}
        for i, b in domains.known.items():
            own = b.narrow(dtype)
            known[i] = own.intersect(known[i]) if i in known else own
        empty = torch.zeros(len(domains), dtype=torch.bool, device=self.device)
        for i, split in domains.splits.items():
            ends = split.to(dtype)
            if i in known:
                empty |= ((ends.lower > known[i].upper) | (ends.upper < known[i].lower)).flatten(1).any(1)
                known[i] = known[i].intersect(ends)
            else:
                known[i] = ends
        return known, empty

    def estimate(self, domains: Domains) -> Tensor:
        """Scores float64 [M] up to rounding, at least 0 for what seems refuted: to compare splits by."""
        final, packed, empty = self._final(domains, self.dtype)
        lower = final.values(self.options.ascent)
        used = (packed.atoms >= 0).unflatten(1, (-1, packed.table.shape[2]))
        margin = torch.where(used, lower.unflatten(1, used.shape[1:]), -torch.inf).amax(2)
        margin = torch.where(used.any(2), margin, torch.inf).amin(1)
        return torch.where(empty, torch.inf, margin).double()

    def _inner(self, domains: Domains, dtype: torch.dtype) -> tuple[list[InputSet], Bounds, Tensor]:
        """The boxes, enclosures of all nodes below the target, and which subdomains [M] the splits leave empty."""
        graph, options = self._graph(dtype), self.options
        box = Interval(domains.lower, domains.upper).narrow(dtype)
        sets: list[InputSet] = [Box(box.lower, box.upper)]
        known, empty = self._enclosures(domains, dtype)
        below = graph.nodes[self.target].inputs or (self.target,)
        few = few_inputs(domains) if options.forward and options.linear else None
        if few is not None:
            return sets, forward_bounds(graph, sets, known, few=few)[0], empty
        refine = options.refine and options.linear
        effort = Effort(refine, options.inherit, True, options.memory, options.deadline, options.patience)
        return sets, inner_bounds(graph, sets, below, known, effort=effort), empty

    def _final(self, domains: Domains, dtype: torch.dtype) -> tuple[FinalPass, _Packed, Tensor]:
        """The final pass on the inner enclosures, its rows, and which subdomains [M] the splits leave empty."""
        graph = self._graph(dtype)
        last = graph.nodes[self.target]
        sets, bounds, empty = self._inner(domains, dtype)
        bounds[self.target] = last.op.interval(*[bounds[j] for j in last.inputs or (self.target,)])
        packed = self._pack(domains)
        scale = torch.ones(packed.atoms.shape, dtype=dtype, device=self.device)
        rows = Rows(packed.atoms.clamp(min=0), scale, last.shape)
        splits = {i: _binding(c.to(dtype), bounds.get(i)) for i, c in domains.splits.items()}
        cuts = self.facts.cuts
        cuts = None if cuts is None else cuts.index(domains.case).to(dtype, self.device)
        count = packed.atoms.shape[1]
        deadline = self.options.deadline
        final = FinalPass(graph, sets, self.target, rows, count, bounds, splits, cuts, deadline, domains.warm)
        return final, packed, empty

    def _pass(self, domains: Domains, dtype: torch.dtype) -> tuple[Bounded, Tensor]:
        final, packed, empty = self._final(domains, dtype)
        if not self.options.linear:
            return self._from_intervals(domains, packed, final.bounds, empty)
        record = self.elementwise if self.options.gaps else []
        found = self._improve(final, packed, record)
        result, doubt = self._gather(domains, packed, found.plane, found.lower, final.bounds, empty)
        if record:
            batch = len(domains)
            arrived = {i: t.expand(batch, *t.shape[1:]) for i, t in found.coefficients.items()}
            row = self._row(found, result, packed)
            result = replace(result, warm=found.leaves, arrived=arrived, row=row)
            result = replace(result, gaps=gaps(self._graph(dtype), self.target, result))
        return result, doubt.masked_fill(empty, 0)

    def _improve(self, final: FinalPass, packed: _Packed, record: list[int]) -> Ascent:
        """The plain bound; where it refutes too little, products are bounded together, and where that gains nothing and
        nothing was optimised before, it is the optimised one."""
        if final.splits or final.warm:
            return final.ascend(self.options.ascent, record)
        if self.curved:
            plain = Ascent(*final.run({}, rounding=True), {})
            rows = _open_rows(packed, plain.lower)
            if len(rows):
                better = second_order(final, self.curved)
                gained = (better.lower > plain.lower).any(1)
                plain = plain.merged(better, torch.arange(final.batch, device=rows.device))
                rows = _open_rows(packed, plain.lower)
                rows = rows[~gained[rows]]
        else:
            plain = final.ascend(AscentOptions(steps=0), record=record)
            rows = _open_rows(packed, plain.lower)
        if not len(rows) or not self.options.ascent.steps:
            return plain
        return plain.merged(_part(final, packed, rows).ascend(self.options.ascent, record=record), rows)

    def _from_intervals(
        self, domains: Domains, packed: _Packed, bounds: Bounds, empty: Tensor
    ) -> tuple[Bounded, Tensor]:
        lower = bounds[self.target].lower.expand(len(domains), -1).gather(1, packed.atoms.clamp(min=0))
        size = domains.lower.shape[1]
        plane = LinearBound(
            {self.graph.inputs[0]: lower.new_zeros(*lower.shape, size)}, lower, torch.zeros_like(lower)
        )
        return self._gather(domains, packed, plane, lower, bounds, empty)

    def _pack(self, domains: Domains) -> _Packed:
        table = self.clauses[domains.case]
        present = (table >= 0).any(2) & domains.open
        count = max(1, int(present.sum(1).amax()))
        if count == table.shape[1]:
            owner = torch.arange(count, device=table.device).expand(len(table), -1)
            return _Packed(table.flatten(1), owner, table, present)
        owner = (present.long().cumsum(1) - 1).clamp(min=0)
        chosen = present.to(torch.uint8).argsort(dim=1, descending=True, stable=True)[:, :count]
        atoms = table.gather(1, chosen.unsqueeze(2).expand(-1, -1, table.shape[2])).flatten(1)
        return _Packed(atoms, owner, table, present)

    def _gather(
        self,
        domains: Domains,
        packed: _Packed,
        plane: LinearBound,
        lower: Tensor,
        bounds: Bounds,
        empty: Tensor,
    ) -> tuple[Bounded, Tensor]:
        """Rows of a batch back to their places [M, D, C] in the clauses, where intervals say more than their bounds met
        with these."""
        batch, disjuncts, width = packed.table.shape
        own = bounds[self.target].lower.flatten(1).expand(batch, -1)
        atoms = packed.atoms.clamp(min=0).expand(batch, -1)[:, : lower.shape[1]]
        lower = torch.fmax(lower.expand(batch, -1), own.gather(1, atoms).to(lower.dtype))
        used = (packed.table >= 0) & packed.present.unsqueeze(2)
        strict = self.strict[packed.table.clamp(min=0)]
        place = packed.owner.unsqueeze(2) * width + torch.arange(width, device=lower.device)
        place = place.clamp(max=lower.shape[1] - 1).reshape(batch, -1)

        def back(t: Tensor) -> Tensor:
            return t.double().expand(batch, -1).gather(1, place).view(batch, disjuncts, width)

        error = torch.zeros_like(plane.constant) if plane.error is None else plane.error
        margin = torch.where(used, back(lower), -torch.inf)
        closed = used & ((margin > 0) | (strict & (margin >= 0)))
        # Not a number where the error overflowed, which float64 may settle.
        hopeful = used & ~(back(lower) + 2 * back(error) <= 0) & ~closed
        absent = ~packed.present
        refuted = closed.any(2) | absent | empty.unsqueeze(1)
        disjunct = torch.where(absent, torch.inf, margin.amax(2))
        planes = plane.coefficients.get(self.graph.inputs[0])
        size = domains.lower.shape[1]
        if planes is None:
            planes = lower.new_zeros(batch, lower.shape[1], size)
        planes = planes.flatten(2).double().expand(batch, -1, -1)
        planes = planes.gather(1, place.unsqueeze(2).expand(-1, -1, size)).view(batch, disjuncts, width, size)
        constants = torch.where(used, back(plane.constant) - back(error), -torch.inf)
        proved = torch.where(absent, torch.inf, disjunct).amin(1).clamp(min=0)
        score = torch.where(refuted.all(1), proved, torch.where(refuted, torch.inf, disjunct).amin(1))
        doubt = torch.where(hopeful & ~refuted.unsqueeze(2), back(error), 0).flatten(1).amax(1)
        result = Bounded(score, disjunct, refuted, planes * used.unsqueeze(3), constants, bounds)
        return result, torch.nan_to_num(doubt, nan=torch.inf)

    def _row(self, found: Ascent, result: Bounded, packed: _Packed) -> Tensor:
        """The row [M] of each subdomain's best atom of its least refuted disjunct."""
        width = packed.table.shape[2]
        worst = torch.where(result.refuted, torch.inf, result.disjunct).argmin(1)
        place = packed.owner.gather(1, worst.unsqueeze(1)) * width
        candidates = (place + torch.arange(width, device=place.device)).clamp(max=found.lower.shape[1] - 1)
        values = torch.where(
            packed.atoms.gather(1, candidates) >= 0, found.lower.gather(1, candidates), -torch.inf
        )
        return candidates.gather(1, values.argmax(1, keepdim=True)).squeeze(1)


def _open_rows(packed: _Packed, lower: Tensor) -> Tensor:
    """The subdomains of which some disjunct is not refuted by the rows' bounds [M, P * C]."""
    width = packed.table.shape[2]
    margins = torch.where(packed.atoms >= 0, lower, -torch.inf).unflatten(1, (-1, width)).amax(2)
    absent = (packed.atoms < 0).unflatten(1, (-1, width)).all(2)
    return ((margins <= 0) & ~absent).any(1).nonzero()[:, 0]


def _part(final: FinalPass, packed: _Packed, rows: Tensor) -> FinalPass:
    """The final pass of some subdomains."""
    atoms = packed.atoms.clamp(min=0)[rows]
    ones = torch.ones(atoms.shape, dtype=final.bounds[final.target].lower.dtype, device=atoms.device)
    return replace(
        final,
        sets=[s.index(rows) for s in final.sets],
        rows=Rows(atoms, ones, final.graph.nodes[final.target].shape),
        bounds={i: b.index(rows) for i, b in final.bounds.items()},
        cuts=None if final.cuts is None else final.cuts.index(rows),
    )


def _binding(splits: Interval, enclosure: Interval | None) -> Interval:
    """Without the constraints that hold with room to spare: their multipliers could only do harm."""
    if enclosure is None:
        return splits
    return Interval(
        torch.where(enclosure.lower > splits.lower, -torch.inf, splits.lower),
        torch.where(enclosure.upper < splits.upper, torch.inf, splits.upper),
    )
