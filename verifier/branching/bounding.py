"""Bounds of a batch of subdomains: scores, planes and inner enclosures, with a recheck in float64."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from verifier.bounds.backward import LinearBound
from verifier.bounds.crown import Effort, inner_bounds, specification_bound
from verifier.bounds.final import ascend, pick_better
from verifier.bounds.interval import Bounds
from verifier.branching.domains import Domains
from verifier.graph import Elementwise, Graph, Interval
from verifier.graph.coefficients import Rows
from verifier.sets import Box
from verifier.specs.compile import Compiled


@dataclass(frozen=True, eq=False)
class Bounded:
    """What bounding M subdomains gives.

    `score` float64 [M]: a proved lower bound of min over open disjuncts of max over atoms of the margins.
    `disjunct` float64 [M, D]: the same per disjunct (infinite for one that is absent or was refuted before), and
    `refuted` bool [M, D] those that no point of the subdomain satisfies. `planes` float64 [M, D, C, n_in] and
    `constants` [M, D, C]: linear forms below the margins, rounding included; for padding 0 and -inf.
    `bounds` encloses inner nodes.
    """

    score: Tensor
    disjunct: Tensor
    refuted: Tensor
    planes: Tensor
    constants: Tensor
    bounds: Bounds


class CrownBounder:
    """Backward bounds with intermediate refinement (CROWN) for input boxes."""

    def __init__(
        self,
        compiled: Compiled,
        device: torch.device,
        dtype: torch.dtype,
        memory: int = 1 << 30,
        steps: int = 4,
    ) -> None:
        """`steps` of ascent on the final slopes follow where the plain bound refutes too little."""
        self._compiled = compiled
        self._steps = steps
        self._device, self._dtype = device, dtype
        self._memory = memory
        self._graphs: dict[torch.dtype, Graph] = {}
        self.strict = compiled.strict.to(device)
        self.clauses = compiled.clauses.to(device)
        self.graph = self._graph(dtype)
        self.target = self.graph.outputs[0]
        self.elementwise = [
            i
            for i in sorted(self.graph.ancestors(self.target))
            if isinstance(self.graph.nodes[i].op, Elementwise)
        ]
        self.split_nodes = sorted({j for i in self.elementwise for j in self.graph.nodes[i].inputs})

    def _graph(self, dtype: torch.dtype) -> Graph:
        if dtype not in self._graphs:
            self._graphs[dtype] = self._compiled.graph.to(dtype, self._device)
        return self._graphs[dtype]

    def bound(self, domains: Domains) -> Bounded:
        """Bounds of all subdomains. What a float32 pass would settle but for rounding is redone in float64."""
        result, doubtful = self._pass(domains, self._dtype)
        if self._dtype != torch.float64 and bool(doubtful.any()):
            rows = doubtful.nonzero()[:, 0]
            exact, _ = self._pass(domains.index(rows), torch.float64)
            result = _replace(result, exact, rows)
        return result

    def known(self, bounded: Bounded) -> dict[int, Interval]:
        """The inner enclosures worth handing down to parts of the subdomains."""
        count = len(bounded.score)
        return {i: bounded.bounds[i].expand(count) for i in self.split_nodes if i in bounded.bounds}

    def _pass(self, domains: Domains, dtype: torch.dtype) -> tuple[Bounded, Tensor]:
        graph = self._graph(dtype)
        box = Interval(domains.lower, domains.upper).narrow(dtype)
        sets = [Box(box.lower, box.upper)]
        known = {i: b.narrow(dtype) for i, b in domains.known.items()}
        effort = Effort(memory=self._memory)
        below = graph.nodes[self.target].inputs or (self.target,)
        bounds = inner_bounds(graph, sets, below, known, effort=effort)
        bounds[self.target] = graph.nodes[self.target].op.interval(*[bounds[j] for j in below])
        table = self.clauses[domains.case]
        present = (table >= 0).any(2) & domains.open
        atoms, owner = _packed(table, present)
        rows = Rows(
            atoms.clamp(min=0),
            torch.ones(atoms.shape, dtype=dtype, device=self._device),
            graph.nodes[self.target].shape,
        )
        plane = specification_bound(graph, sets, self.target, rows, bounds)
        lower = plane.minimum(graph, sets).expand(len(domains), -1)
        if self._steps:
            plane, lower = self._improve(graph, sets, rows, bounds, plane, lower, atoms)
        lower = lower.double()
        coefficients = plane.coefficients.get(graph.inputs[0])
        if coefficients is None:
            coefficients = lower.new_zeros(len(domains), atoms.shape[1], graph.nodes[graph.inputs[0]].numel)
        error = torch.zeros_like(plane.constant) if plane.error is None else plane.error
        return self._gather(
            domains,
            table,
            present,
            owner,
            lower.expand(len(domains), -1),
            coefficients.double().expand(len(domains), -1, -1),
            plane.constant.double().expand(len(domains), -1),
            error.double().expand(len(domains), -1),
            bounds,
        )

    def _improve(
        self,
        graph: Graph,
        sets: list[Box],
        rows: Rows,
        bounds: Bounds,
        plane: LinearBound,
        lower: Tensor,
        atoms: Tensor,
    ) -> tuple[LinearBound, Tensor]:
        """The final pass with optimised slopes for the subdomains that have an atom left to refute."""
        width = self.clauses.shape[2]
        margins = torch.where(atoms >= 0, lower, -torch.inf).unflatten(1, (-1, width)).amax(2)
        absent = (atoms < 0).unflatten(1, (-1, width)).all(2)
        doubtful = ((margins <= 0) & ~absent).any(1).nonzero()[:, 0]
        if not len(doubtful):
            return plane, lower
        part = [s.index(doubtful) for s in sets]
        some = {i: b.index(doubtful) for i, b in bounds.items()}
        own = Rows(rows.index[doubtful], rows.scale[doubtful], rows.shape)
        better = ascend(graph, part, self.target, own, some, rows.index.shape[1], self._steps)
        found = better.minimum(graph, part)
        old = pick_better(plane, plane, torch.zeros_like(lower, dtype=torch.bool))
        chosen = pick_better(old.index(doubtful), better, found > lower[doubtful])
        error = None
        if old.error is not None and chosen.error is not None:
            error = old.error.index_copy(0, doubtful, chosen.error)
        merged = LinearBound(
            {i: c.index_copy(0, doubtful, chosen.coefficients[i]) for i, c in old.coefficients.items()},
            old.constant.index_copy(0, doubtful, chosen.constant),
            error,
        )
        return merged, lower.index_copy(0, doubtful, torch.maximum(found, lower[doubtful]))

    def _gather(
        self,
        domains: Domains,
        table: Tensor,
        present: Tensor,
        owner: Tensor,
        lower: Tensor,
        coefficients: Tensor,
        constant: Tensor,
        error: Tensor,
        bounds: Bounds,
    ) -> tuple[Bounded, Tensor]:
        """Rows of a batch back to their places [M, D, C] in the clauses."""
        batch, disjuncts, width = table.shape
        used = (table >= 0) & present.unsqueeze(2)
        strict = self.strict[table.clamp(min=0)]
        place = owner.view(batch, disjuncts, 1) * width + torch.arange(width, device=owner.device)
        place = place.clamp(max=lower.shape[1] - 1).view(batch, -1)

        def back(t: Tensor) -> Tensor:
            return t.gather(1, place).view(batch, disjuncts, width)

        margin = torch.where(used, back(lower), -torch.inf)
        closed = used & ((margin > 0) | (strict & (margin >= 0)))
        hopeful = used & (back(lower + 2 * error) > 0) & ~closed
        absent = ~present
        refuted = closed.any(2) | absent
        disjunct = torch.where(absent, torch.inf, margin.amax(2))
        picked = place.unsqueeze(2).expand(-1, -1, coefficients.shape[2])
        planes = coefficients.gather(1, picked).view(batch, disjuncts, width, -1) * used.unsqueeze(3)
        constants = torch.where(used, back(constant - error), -torch.inf)
        doubtful = (hopeful.any(2) & ~refuted).any(1)
        score = torch.where(refuted, torch.inf, disjunct).amin(1)
        score = torch.where(
            refuted.all(1), torch.where(absent, torch.inf, disjunct).amin(1).clamp(min=0), score
        )
        return Bounded(score, disjunct, refuted, planes, constants, bounds), doubtful


def _packed(table: Tensor, present: Tensor) -> tuple[Tensor, Tensor]:
    """The atoms [M, P * C] of each subdomain's present disjuncts, P the most that any has, and the place of every
    disjunct among them [M, D]."""
    count = max(1, int(present.sum(1).amax()))
    owner = (present.long().cumsum(1) - 1).clamp(min=0)
    if count == table.shape[1]:
        owner = torch.arange(count, device=table.device).expand_as(owner)
        return table.flatten(1), owner
    chosen = present.to(torch.uint8).topk(count, dim=1, sorted=False).indices.sort(1).values
    order = present.gather(1, chosen).to(torch.uint8).argsort(dim=1, descending=True, stable=True)
    chosen = chosen.gather(1, order)
    return table.gather(1, chosen.unsqueeze(2).expand(-1, -1, table.shape[2])).flatten(1), owner


def _replace(result: Bounded, exact: Bounded, rows: Tensor) -> Bounded:
    """The float64 results in the places of the float32 ones; inner enclosures stay."""
    fields = ("score", "disjunct", "refuted", "planes", "constants")
    merged = {name: getattr(result, name).index_copy(0, rows, getattr(exact, name)) for name in fields}
    return Bounded(bounds=result.bounds, **merged)
