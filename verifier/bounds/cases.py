"""Cases of comparisons that a set leaves open: in each these are decided, and masks made of them are constant.

A router takes the k likeliest of its experts, so the network is another one on either side of a tie, and no line
through both is any good. Where few comparisons that matter are open, each is split into less, equal and greater.
Comparisons of the same two values, whichever way round, are one: the cases are orders of the values compared, hence
selections of the right size (of another one only at ties), not patterns of signs. Together the cases cover the set.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from verifier.bounds.crown import Effort, inner_bounds
from verifier.bounds.interval import Bounds
from verifier.graph import Affine, Graph, Interval, Node, Univariate
from verifier.ops.arithmetic import Add, ScaleShift
from verifier.ops.linear import Linear
from verifier.ops.step import Step
from verifier.sets import InputSet

MOST = 27
"""Cases of one set, at most."""
COMPARED = 1024
"""Elements of a node that is looked at, at most."""
ORDERED = 32
"""Comparisons of a node of which threes are looked at, at most."""


@dataclass(frozen=True, eq=False)
class Cases:
    """P cases of B sets: the set [P] that each is a part of; enclosures [P, *shape] of the nodes that were split, which
    hold in the case; and its half-spaces, infinite where there is none.

    An enclosure ends next to a jump, which is at the end of the half-space: in between the operators that read the node
    have the values that they have there.
    """

    owner: Tensor
    known: dict[int, Interval]
    splits: dict[int, Interval]

    def index(self, bounds: Mapping[int, Interval]) -> dict[int, Interval]:
        """Enclosures of the sets, as ones of the cases, with what these know."""
        found = {i: b.index(self.owner) for i, b in bounds.items()}
        return found | {i: b.intersect(found[i]) if i in found else b for i, b in self.known.items()}

    def sets(self, sets: Sequence[InputSet]) -> list[InputSet]:
        """The set of every case."""
        shared = max(s.batch for s in sets) > 1
        return [s if shared and s.batch == 1 else s.index(self.owner) for s in sets]

    def then(self, parts: Cases) -> Cases:
        """`parts` of these cases, as cases of the sets."""
        mine = ({i: _rows(b, parts.owner) for i, b in own.items()} for own in (self.known, self.splits))
        known, splits = mine
        return Cases(self.owner[parts.owner], known | parts.known, splits | parts.splits)

    def least(self, lower: Tensor, batch: int) -> Tensor:
        """The least value [B, ...] of the cases' [P, ...] for every set."""
        index = self.owner.view(-1, *([1] * (lower.dim() - 1))).expand_as(lower)
        start = torch.full_like(lower[:1], torch.inf).repeat(batch, *([1] * (lower.dim() - 1)))
        return start.scatter_reduce(0, index, lower, "amin")

    def hull(self, bounds: Interval, batch: int) -> Interval:
        """What all cases' intervals of a set lie in."""
        whole = bounds.expand(len(self.owner))
        return Interval(self.least(whole.lower, batch), -self.least(-whole.upper, batch))


def decision_cases(
    graph: Graph,
    sets: Sequence[InputSet],
    targets: Iterable[int],
    known: Mapping[int, Interval] | None = None,
    effort: Effort = Effort(),
    most: int = MOST,
) -> Cases | None:
    """The cases of `sets` by the comparisons that `targets` depend on and enclosures leave open; None where there are
    none. Comparisons of a node that would make more than `most` cases of a set stay open."""
    targets = list(targets)
    below = set().union(*[graph.ancestors(t) for t in targets])
    batch = max(s.batch for s in sets)
    found = Cases(torch.arange(batch, device=graph.device), {}, {})
    bounds = dict(known or {})
    for node in sorted(below):
        jumps = _readers(graph, node)
        if not jumps or graph.nodes[node].numel > COMPARED or not _compares(graph, node):
            continue
        behind = _behind(graph, jumps)
        bounds = inner_bounds(graph, found.sets(sets), [*jumps, *behind], bounds, effort=effort)
        effort = replace(effort, inherit=True)  # what is bounded now is not bounded again
        matters = _matters(graph, jumps, behind, bounds, graph.relevant(targets))
        new = _split(graph, node, jumps, bounds, matters, found.owner, most)
        if new is not None:
            found = found.then(new)
            bounds = new.index({i: b for i, b in bounds.items() if i <= node})
        else:
            bounds = {i: b for i, b in bounds.items() if i <= node}
    return found if found.splits else None


def _readers(graph: Graph, node: int) -> list[int]:
    """All readers of a node, where they jump: to others the next number is not the point."""
    users = list(graph.users[node])
    ops = [graph.nodes[i].op for i in users]
    return users if users and all(isinstance(op, Univariate) and op.jumps for op in ops) else []


@dataclass(frozen=True, eq=False)
class _Jumps:
    """Elements `column` [K] of a node, each of which jumps once, at `point` [K]. Its low part ends at `last`, its high
    part begins at `first`, and `pin` stands for the point. `group` [K] numbers the values that are compared, `sign` [K]
    says which way round."""

    column: Tensor
    point: Tensor
    last: Tensor
    pin: Tensor
    first: Tensor
    group: Tensor
    sign: Tensor
    alone: Tensor
    """Of every group [G], whether the point is a part of its own."""


def _split(
    graph: Graph,
    node: int,
    jumps: Sequence[int],
    bounds: Bounds,
    matters: Tensor | bool,
    owner: Tensor,
    most: int,
) -> Cases | None:
    """Cases of cases [P], those of sets `owner` [P], by the jumps of one node."""
    count = len(owner)
    box = bounds[node].expand(count).map(lambda t: t.flatten(1))
    open_ = _open(graph, jumps, bounds[node].expand(count)) & matters
    column = open_.any(0).nonzero()[:, 0]
    if not len(column):
        return None
    forms = _forms(graph, node, column)
    some = (forms != 0).any(1)
    column, forms = column[some], forms[some]
    found, fits = _jumps(graph, jumps, box, column, forms) if len(column) else (None, open_)
    if found is None:
        return None
    groups = len(found.alone)
    member = torch.nn.functional.one_hot(found.group, groups).bool()  # [K, G]
    todo = (open_[:, column].unsqueeze(2) & member).any(1)
    parts = torch.where(todo, 2.0 + found.alone.double(), 1.0).prod(1)
    total = torch.zeros(int(owner.max()) + 1, dtype=torch.float64, device=parts.device)
    total = total.index_add(0, owner, parts)
    todo = todo & (fits & (total <= most)[owner]).unsqueeze(1)
    if not bool(todo.any()):
        return None
    rows, ends, limits = _parts(found, member, box.map(lambda t: t[:, column]), todo)
    real = _ordered(found, member, forms, limits)
    rows, ends, limits = rows[real], _rows(ends, real), _rows(limits, real)
    shape = graph.nodes[node].shape
    known = _rows(box, rows)
    free = Interval.everything(len(rows), known.lower)
    known, split = (
        Interval(*[a.index_copy(1, column, b).view(-1, *shape) for a, b in zip(old, new, strict=True)])
        for old, new in ((known, ends), (free, limits))
    )
    return Cases(rows, {node: known}, {node: split})


def _rows(box: Interval, rows: Tensor) -> Interval:
    return box.map(lambda t: t[rows])


def _behind(graph: Graph, jumps: Sequence[int]) -> list[int]:
    """The jumps that read what affine operators make of the results of `jumps`, where nothing else does."""
    found, seen, left = set[int](), set(jumps), list(jumps)
    while left:
        i = left.pop()
        if i in graph.outputs:
            return []
        for k in set(graph.users[i]) - seen:
            op = graph.nodes[k].op
            if isinstance(op, Univariate) and op.jumps:
                found.add(k)
            elif isinstance(op, Affine):
                left.append(k)
                seen.add(k)
            else:
                return []
    return sorted(found)


def _matters(
    graph: Graph,
    jumps: Sequence[int],
    behind: Sequence[int],
    bounds: Bounds,
    relevant: Mapping[int, Tensor],
) -> Tensor | bool:
    """Which elements [B or 1, numel] of what `jumps` read make a difference: of those in the middle of others' order a
    selection does not depend. For choosing what to split, not for proofs."""
    if not behind:
        marks = [relevant[j].flatten() for j in jumps if j in relevant]
        return torch.stack(marks).any(0) if len(marks) == len(jumps) else True
    found: Tensor | bool = False
    for k in behind:
        source = graph.nodes[k].inputs[0]
        open_ = _open(graph, [k], bounds[source])
        column = open_.any(0).nonzero()[:, 0]
        if not len(column):
            continue
        ones = torch.nn.functional.one_hot(column, open_.shape[1]).to(bounds[source].lower)
        arrived = {source: ones.view(1, len(column), *graph.nodes[source].shape)}
        for i in range(source, min(jumps), -1):
            op, inputs = graph.nodes[i].op, graph.nodes[i].inputs
            if i not in arrived or i in jumps or not isinstance(op, Affine):
                continue
            own, shapes = arrived.pop(i), [graph.nodes[j].shape for j in inputs]
            for n, j in enumerate(inputs):
                part = op.transpose(own, n, *shapes)
                arrived[j] = arrived[j] + part if j in arrived else part
        for j in set(jumps) & arrived.keys():
            tied = (arrived[j].flatten(2)[0] != 0).to(ones)
            found = ((open_[:, column].to(ones) @ tied) > 0) | found
    return found


def _open(graph: Graph, jumps: Sequence[int], box: Interval) -> Tensor:
    """Which elements [B, numel] of a node leave one of its readers more than one value."""
    ends = [graph.nodes[j].op.interval(box) for j in jumps]
    return torch.stack([(e.lower < e.upper).flatten(1) for e in ends]).any(0)


def _jumps(
    graph: Graph, jumps: Sequence[int], box: Interval, column: Tensor, forms: Tensor
) -> tuple[_Jumps | None, Tensor]:
    """Where the elements `column` [K] jump, and which cases [P] have no second jump; None where all have one."""
    shape = graph.nodes[jumps[0]].shape
    whole = Interval(box.lower.amin(0, keepdim=True), box.upper.amax(0, keepdim=True))
    first_op = graph.nodes[jumps[0]].op
    assert isinstance(first_op, Univariate)
    middle = first_op.branching_point(0, whole.map(lambda t: t.view(1, *shape))).flatten(1)
    below = torch.nextafter(middle, torch.full_like(middle, -torch.inf))
    above = torch.nextafter(middle, torch.full_like(middle, torch.inf))

    def values(op: Univariate, low: Tensor, high: Tensor) -> Interval:
        found = op.interval(Interval(low, high).map(lambda t: t.view(-1, *shape)))
        return found.map(lambda t: t.flatten(1)[:, column])

    one = torch.ones(len(box.lower), dtype=torch.bool, device=column.device)
    low = high = torch.ones(len(column), dtype=torch.bool, device=column.device)
    ops = [graph.nodes[j].op for j in jumps]
    chosen = all(isinstance(op, Step) and op.chosen for op in ops)
    for j in jumps:
        op = graph.nodes[j].op
        assert isinstance(op, Univariate)
        at, left, right = (values(op, t, t) for t in (middle, below, above))
        at = left if chosen else at  # on either side of a tie one may have been chosen
        low = low & ((at.lower == left.lower) & (at.upper == left.upper))[0]
        high = high & ((at.lower == right.lower) & (at.upper == right.upper))[0]
        sides = (
            values(op, torch.minimum(box.lower, below), below.expand_as(box.lower)),
            values(op, above.expand_as(box.upper), torch.maximum(box.upper, above)),
        )
        for part in (*sides, at):
            one = one & (part.lower == part.upper).all(1)
    if not bool(one.any()):
        return None, one
    point, below, above = (t[0, column] for t in (middle, below, above))
    lead = forms.gather(1, (forms != 0).to(torch.uint8).argmax(1, keepdim=True))[:, 0]
    sign = torch.where(lead < 0, -1.0, 1.0)
    key = torch.cat([forms, point.double().unsqueeze(1)], 1) * sign.unsqueeze(1) + 0.0
    group = torch.unique(key, dim=0, return_inverse=True)[1]
    size = torch.bincount(group)
    settled = torch.zeros_like(size).index_add(0, group, (low | high).long()) == size
    alone = ~settled | (size > 1)
    pin, last = (below, below) if chosen else (point, torch.where(low, point, below))
    first = torch.where(high & ~low, point, above)
    return _Jumps(column, point, last, pin, first, group, sign.to(point), alone), one


def _parts(found: _Jumps, member: Tensor, box: Interval, todo: Tensor) -> tuple[Tensor, Interval, Interval]:
    """All parts: the case [Q] that each is a part of, enclosures of the elements [Q, K], and half-spaces of them, where
    the first of a group speaks for it."""
    rows = torch.arange(len(todo), device=todo.device)
    limits = Interval.everything(len(rows), box.lower)
    speaks = torch.zeros_like(found.group, dtype=torch.bool)
    speaks[member.to(torch.uint8).argmax(0)] = True
    while bool(todo.any()):
        active, group = todo.any(1), todo.to(torch.uint8).argmax(1)
        mine = member.T[group]
        pieces = [(rows[~active], todo[~active], _rows(box, ~active), _rows(limits, ~active))]
        rest = todo & ~torch.nn.functional.one_hot(group, todo.shape[1]).bool()
        for part in (-1.0, 0.0, 1.0):
            some = active if part else active & found.alone[group]
            side, here = part * found.sign, mine[some]
            low, high = _rows(box, some)
            inner = Interval(
                torch.where(here & (side > 0), found.first, torch.where(here & (side == 0), found.pin, low)),
                torch.where(here & (side < 0), found.last, torch.where(here & (side == 0), found.pin, high)),
            )
            # where the enclosure ends before the point already the part is empty, and anything is true of it
            inner = Interval(inner.lower, torch.maximum(inner.lower, inner.upper))
            low, high = _rows(limits, some)
            here = here & speaks
            half = Interval(
                torch.where(here & (side >= 0), found.point, low),
                torch.where(here & (side <= 0), found.point, high),
            )
            pieces.append((rows[some], rest[some], inner, half))
        rows, todo = torch.cat([p[0] for p in pieces]), torch.cat([p[1] for p in pieces])
        box, limits = Interval.cat([p[2] for p in pieces]), Interval.cat([p[3] for p in pieces])
    return rows, box, limits


def _ordered(found: _Jumps, member: Tensor, forms: Tensor, limits: Interval) -> Tensor:
    """Which parts [Q] are not against some order: of three differences that add up to nothing, a - b, b - c and c - a,
    none can be positive where no other is negative. `forms` [K, N] are the elements' own."""
    speaks = member.to(torch.uint8).argmax(0)
    low, high = (t[:, speaks].isfinite() for t in limits)
    side = (low.double() - high.double()) * found.sign[speaks].double()
    told = (low | high) & found.alone & (found.point[speaks] == 0)
    real = torch.ones_like(low[:, 0])
    if not 3 <= len(speaks) <= ORDERED:
        return real
    forms = forms[speaks] * found.sign[speaks].double().unsqueeze(1)
    three = torch.combinations(torch.arange(len(speaks), device=speaks.device), 3)
    for signs in ((1.0, 1.0, 1.0), (1.0, 1.0, -1.0), (1.0, -1.0, 1.0), (1.0, -1.0, -1.0)):
        turn = forms.new_tensor(signs)
        mine = three[((forms[three] * turn.view(-1, 1)).sum(1) == 0).all(1)]
        signed, known = side[:, mine] * turn, told[:, mine].all(2)  # [Q, T, 3]
        up, down = (signed > 0).any(2), (signed < 0).any(2)
        real = real & ~(known & (up != down)).any(1)
    return real


def _forms(graph: Graph, node: int, column: Tensor) -> Tensor:
    """Linear forms [K, N] that the elements `column` [K] are, in exact arithmetic, of the elements of other nodes: back
    through copies, sums and changes of sign, all of which numbers this small do without rounding."""
    size = graph.nodes[node].numel
    start = torch.zeros(1, len(column), size, dtype=torch.float64, device=column.device)
    start[0, torch.arange(len(column), device=column.device), column] = 1.0
    arrived = {node: start.view(1, len(column), *graph.nodes[node].shape)}
    ends: list[Tensor] = []
    graph = graph.to(torch.float64)
    for i in range(node, -1, -1):
        if i not in arrived:
            continue
        mine, own = graph.nodes[i], arrived.pop(i)
        if not _keeps(graph, mine):
            ends.append(own.flatten(2)[0])
            continue
        shapes = [graph.nodes[j].shape for j in mine.inputs]
        for k, j in enumerate(mine.inputs):
            assert isinstance(mine.op, Affine)
            part = mine.op.transpose(own, k, *shapes)
            arrived[j] = arrived[j] + part if j in arrived else part
    return torch.cat(ends, 1)


def _compares(graph: Graph, node: int) -> bool:
    """Whether a node holds sums or differences of other nodes' elements, or values both ways round, but for copies."""
    mine = graph.nodes[node]
    while len(mine.inputs) == 1 and _keeps(graph, mine):
        scale = mine.op.scale if isinstance(mine.op, ScaleShift) else None
        if isinstance(mine.op, Linear) or (scale is not None and bool((scale != scale.flatten()[0]).any())):
            return True
        mine = graph.nodes[mine.inputs[0]]
    return isinstance(mine.op, Add)


def _keeps(graph: Graph, node: Node) -> bool:
    """Whether a node's elements are copies, sums or negatives of elements of other nodes."""
    op = node.op
    if isinstance(op, ScaleShift):
        plain = op.shift is None and op.doubt is None
        return plain and (op.scale is None or bool((op.scale.abs() == 1).all()))
    if isinstance(op, Linear):
        weight = op.weight
        plain = op.bias is None and op.doubt is None and bool((weight.abs() == weight * weight).all())
        return plain and bool((weight != 0).sum(1).amax() <= 2)
    if isinstance(op, Affine) and op.exact:
        return op.offset(*[graph.nodes[j].shape for j in node.inputs]) is None
    return isinstance(op, Add)
