"""Which disjuncts a search left open, and how much of their boxes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from verifier.branching.domains import Domains
from verifier.branching.search import Search
from verifier.specs.compile import Compiled


@dataclass(frozen=True, eq=False)
class Left:
    """P open disjuncts of a compiled query: the case and the number of each [P], a proved lower bound of its margin
    [P] (negative infinity where none is known), and how many subdomains of the search are open for it [P]."""

    case: Tensor
    number: Tensor
    bound: Tensor
    subdomains: Tensor

    def __len__(self) -> int:
        return len(self.case)

    def index(self, rows: Tensor) -> Left:
        """Some of them, in the order of `rows` (positions or a mask)."""
        return Left(self.case[rows], self.number[rows], self.bound[rows], self.subdomains[rows])

    def worst_first(self) -> Left:
        """By rising bound."""
        return self.index(self.bound.argsort(stable=True))

    def alone(self, compiled: Compiled) -> Compiled:
        """The query with each of them as a case of its own."""
        clauses = compiled.clauses[self.case, self.number].unsqueeze(1)
        return replace(
            compiled, lower=compiled.lower[self.case], upper=compiled.upper[self.case], clauses=clauses
        )

    def domains(self, compiled: Compiled, device: torch.device) -> Domains:
        """The boxes of their cases, one subdomain each, with them open and nothing else; worst first."""
        worst = torch.full((len(compiled.lower),), torch.inf, dtype=torch.float64)
        worst.scatter_reduce_(0, self.case, self.bound, "amin")
        cases = self.case.unique()
        cases = cases[worst[cases].argsort(stable=True)]
        open_ = torch.zeros(compiled.clauses.shape[:2], dtype=torch.bool)
        open_[self.case, self.number] = True
        return Domains(
            compiled.lower[cases].to(device),
            compiled.upper[cases].to(device),
            cases.to(device),
            open_[cases].to(device),
            torch.full((len(cases),), -torch.inf, dtype=torch.float64, device=device),
        )


def everything(compiled: Compiled) -> Left:
    """All disjuncts, of which nothing is known."""
    case, number = (compiled.clauses >= 0).any(2).nonzero(as_tuple=True)
    unknown = torch.full((len(case),), -torch.inf, dtype=torch.float64)
    return Left(case, number, unknown, torch.zeros_like(case))


def left_by(compiled: Compiled, search: Search | None) -> Left:
    """What a search left. Where that has subdomains that nothing splits further, it does not keep them, so all
    disjuncts count as open."""
    if search is None or search.stuck:
        return everything(compiled)
    origin = origins(compiled, search.bounder.compiled)
    flat = torch.full((compiled.clauses[..., 0].numel(),), torch.inf, dtype=torch.float64)
    count = torch.zeros(len(flat), dtype=torch.int64)
    for part in search.parts():
        rows, numbers = part.open.cpu().nonzero(as_tuple=True)
        place = origin[part.case.cpu()[rows], numbers]
        flat.scatter_reduce_(0, place, part.bound.cpu()[rows], "amin")
        count += place.bincount(minlength=len(count))
    places = count.nonzero()[:, 0]
    width = compiled.clauses.shape[1]
    return Left(places // width, places % width, flat[places], count[places])


def origins(compiled: Compiled, derived: Compiled) -> Tensor:
    """For the disjuncts [N', D'] of a query made from `compiled` (cases in parts, or disjuncts as cases of their own),
    which of `compiled` each is, by place in [N * D]: the one that asks the same of the same box; -1 for padding."""
    boxes = [torch.cat([c.lower, c.upper], 1) for c in (compiled, derived)]
    box = torch.cat(boxes).unique(dim=0, return_inverse=True)[1].split([len(b) for b in boxes])
    tables = [c.clauses.flatten(0, 1) for c in (compiled, derived)]
    clause = torch.cat(tables).unique(dim=0, return_inverse=True)[1].split([len(t) for t in tables])
    most = int(max(c.max() for c in clause)) + 1
    keys = [
        b.repeat_interleave(c.clauses.shape[1]) * most + k
        for b, c, k in zip(box, (compiled, derived), clause, strict=True)
    ]
    order = keys[0].argsort(stable=True)
    place = torch.searchsorted(keys[0][order], keys[1]).clamp(max=len(order) - 1)
    found = order[place]
    present = (tables[1] >= 0).any(1)
    if bool((keys[0][found] != keys[1])[present].any()):
        raise ValueError("The second query has a disjunct that the first has not.")
    return torch.where(present, found, -1).view(derived.clauses.shape[:2])


def gathered(search: Search, size: int) -> Iterator[Domains]:
    """The open subdomains in parts of about `size`."""
    parts: list[Domains] = []
    for part in search.parts():
        parts.append(part)
        if sum(map(len, parts)) >= size:
            yield Domains.cat(parts)
            parts = []
    if parts:
        yield Domains.cat(parts)
