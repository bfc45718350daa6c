"""What share of the input set branch and bound left, and where it lies."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from verifier.branching.domains import Domains
from verifier.branching.search import Search
from verifier.explanation.findings import InputRange, Region
from verifier.explanation.left import Left, gathered, origins
from verifier.specs.compile import Compiled

SAMPLES = 512
"""Random inputs per box, of which the open subdomains hold a share."""
BOXES = 64
"""Boxes with open subdomains, at most, that are looked at: the worst."""
STEP = 512
"""Subdomains that are looked at together."""
COMPARED = 4e8
"""Comparisons of a sample's value with an end of a subdomain, at most; where there are more, some subdomains stand for
all."""
ROOM = 1 << 24
"""Numbers that may be compared at once."""
SHOWN = 8


@dataclass(frozen=True, eq=False)
class _Columns:
    """What subdomains are told from one another by: inputs and, per node, elements that splits constrain (masks)."""

    inputs: Tensor
    nodes: dict[int, Tensor]

    @property
    def plain(self) -> bool:
        """Whether only inputs were split."""
        return not self.nodes

    def ends(self, part: Domains) -> tuple[Tensor, Tensor]:
        """The subdomains' ends [M, U] at all columns."""
        lower, upper = [part.lower[:, self.inputs]], [part.upper[:, self.inputs]]
        for i, mask in self.nodes.items():
            free = part.lower.new_full((len(part), int(mask.sum())), torch.inf)
            own = part.splits.get(i)
            lower.append(-free if own is None else own.lower.flatten(1)[:, mask].double())
            upper.append(free if own is None else own.upper.flatten(1)[:, mask].double())
        return torch.cat(lower, 1), torch.cat(upper, 1)


def remainder(
    compiled: Compiled, search: Search, left: Left, names: list[str], seed: int
) -> tuple[Region, Tensor]:
    """What is left of the input set, and of the box of each open disjunct [P] (NaN where it was not looked at). `names`
    are those of the input elements."""
    origin = origins(compiled, search.bounder.compiled)
    width = compiled.clauses.shape[1]
    case_of = origin.amax(1) // width
    flat = left.case * width + left.number
    worst = left.worst_first()
    cases = torch.tensor(list(dict.fromkeys(worst.case.tolist()))[:BOXES])
    columns, split = _columns(compiled, search, case_of)
    values = None if columns.plain else _values(compiled, search, cases, columns, seed)
    total = int(columns.inputs.sum()) + sum(int(m.sum()) for m in columns.nodes.values())
    stride = 1 if values is None else max(1, round(len(search) * SAMPLES * total / COMPARED))
    row = torch.full((len(compiled.lower),), -1)
    row[cases] = torch.arange(len(cases))
    shares = torch.zeros(compiled.clauses[..., 0].numel(), dtype=torch.float64)
    focus = int(worst.case[0] * width + worst.number[0])
    hull = [torch.full_like(compiled.lower[0], torch.inf), torch.full_like(compiled.lower[0], -torch.inf)]
    for part in gathered(search, STEP):
        part = replace(part.map(lambda t: t.cpu()), bound=part.bound.cpu())
        rows, numbers = part.open.nonzero(as_tuple=True)
        place = origin[part.case[rows], numbers]
        mine = rows[place == focus]
        if len(mine):
            hull[0] = torch.minimum(hull[0], part.lower[mine].amin(0))
            hull[1] = torch.maximum(hull[1], part.upper[mine].amax(0))
        some = part.index(slice(0, None, stride))
        case = case_of[some.case]
        share = _volume(compiled, some, case) if values is None else _held(some, row[case], columns, values)
        full = torch.zeros(len(part), dtype=torch.float64)
        full[::stride] = share * (len(part) / len(some))
        shares.index_add_(0, place, full[rows])
    looked = row[left.case] >= 0 if values is not None else torch.ones_like(left.case, dtype=torch.bool)
    own = torch.where(looked, shares[flat].clamp(max=1), torch.nan)
    questions = int((compiled.clauses >= 0).any(2).sum())
    region = Region(
        bounded=search.domains,
        open=len(search),
        cases=len(left.case.unique()),
        left=float(own.nan_to_num(nan=1.0).sum()) / questions,
        samples=None if columns.plain else SAMPLES,
        ranges=_ranges(compiled, int(worst.case[0]), hull, names),
        layers=split,
    )
    return region, own


def _columns(compiled: Compiled, search: Search, case_of: Tensor) -> tuple[_Columns, dict[str, int]]:
    """What tells the open subdomains apart, and how often neurons of each layer were split."""
    inputs = torch.zeros(compiled.lower.shape[1], dtype=torch.bool)
    nodes: dict[int, Tensor] = {}
    split: dict[str, int] = {}
    graph = search.bounder.graph
    for part in gathered(search, STEP):
        case = case_of[part.case.cpu()]
        inputs |= (part.lower.cpu() > compiled.lower[case]).any(0)
        inputs |= (part.upper.cpu() < compiled.upper[case]).any(0)
        for i, ends in part.splits.items():
            mask = (ends.lower.isfinite() | ends.upper.isfinite()).flatten(1).cpu()
            if bool(mask.any()):
                nodes[i] = mask.any(0) | nodes.get(i, torch.zeros_like(mask[0]))
                name = graph.nodes[i].source or graph.nodes[i].name
                split[name] = split.get(name, 0) + int(mask.sum())
    return _Columns(inputs, nodes), split


def _volume(compiled: Compiled, part: Domains, case: Tensor) -> Tensor:
    """The share [M] of its case's box that each subdomain's box is."""
    whole = compiled.upper[case] - compiled.lower[case]
    own = part.upper - part.lower
    return torch.where(whole > 0, own / torch.where(whole > 0, whole, 1.0), 1.0).log().sum(1).exp()


def _values(compiled: Compiled, search: Search, cases: Tensor, columns: _Columns, seed: int) -> Tensor:
    """The columns' values at random inputs of the boxes of `cases`: [len(cases), SAMPLES, U]."""
    derived = search.bounder.compiled
    random = torch.Generator().manual_seed(seed)
    graph = derived.graph_on(torch.float64, torch.device("cpu"))
    found = []
    for case in cases.tolist():
        unit = torch.rand(SAMPLES, compiled.lower.shape[1], generator=random, dtype=torch.float64)
        some = compiled.lower[case] + unit * (compiled.upper[case] - compiled.lower[case])
        with torch.no_grad():
            kept = graph.evaluate([some], list(columns.nodes))
        chosen = [v.flatten(1)[:, m] for v, m in zip(kept, columns.nodes.values(), strict=True)]
        found.append(torch.cat([some[:, columns.inputs], *chosen], 1))
    return torch.stack(found)


def _held(part: Domains, row: Tensor, columns: _Columns, values: Tensor) -> Tensor:
    """The share [M] of the samples of its box that each subdomain holds; 0 for boxes that have none."""
    lower, upper = columns.ends(part)
    step = max(1, ROOM // max(values[0].numel(), 1))
    found = []
    for rows in torch.arange(len(part)).split(step):
        v = values[row[rows].clamp(min=0)]
        inside = (v >= lower[rows].unsqueeze(1)) & (v <= upper[rows].unsqueeze(1))
        found.append(inside.all(2).double().mean(1) * (row[rows] >= 0))
    return torch.cat(found)


def _ranges(compiled: Compiled, case: int, hull: list[Tensor], names: list[str]) -> tuple[InputRange, ...]:
    """The inputs of which the open subdomains span least, if any is narrower than the box."""
    lower, upper = hull
    whole = compiled.upper[case] - compiled.lower[case]
    share = torch.where(whole > 0, (upper - lower) / torch.where(whole > 0, whole, 1.0), 1.0)
    narrow = [int(j) for j in share.argsort(stable=True)[:SHOWN] if share[j] < 1 - 1e-9]
    return tuple(InputRange(names[j], float(lower[j]), float(upper[j]), float(share[j])) for j in narrow)
