"""The immutable, topologically ordered graph."""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from verifier.graph.op import Affine, Constant, Elementwise, Input, Op, Shape, Transposed, Univariate

STAGES, MANY = 16, 8
"""A recurrence is long where more than STAGES nodes lie above one another that elementwise nodes read, and there are
more than MANY alike."""


@dataclass(frozen=True)
class Node:
    """One value of the network.

    `shape` is the value's own shape; the engine's batch dimension is not part of it. `inputs` are positions in
    `Graph.nodes`, all smaller than the node's own. `name` is unique; `source` names what the node was made from.
    """

    name: str
    op: Op
    inputs: tuple[int, ...]
    shape: Shape
    source: str = ""

    @property
    def numel(self) -> int:
        return int(torch.Size(self.shape).numel())


class Origin(NamedTuple):
    """Where the elements of a node come from that are functions of single elements of another, `node`.

    Element j is a function of element `index[j]` of that node (flat positions): copied, moved, scaled, shifted, or
    passed through univariate operators. `sign[j]` is 0 where it is constant, and where only affine steps lie between,
    says whether the function increases (1) or decreases (-1). Both are [numel of the node described].
    """

    node: int
    index: Tensor
    sign: Tensor


class Window(NamedTuple):
    """Nodes that a pass visits, and those among them at whose enclosures it ends."""

    nodes: frozenset[int]
    ends: frozenset[int] = frozenset()


@dataclass(frozen=True)
class Graph:
    """Nodes in topological order, with the positions of inputs and outputs. Nothing about bounds is stored here."""

    nodes: tuple[Node, ...]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]

    @cached_property
    def users(self) -> tuple[tuple[int, ...], ...]:
        """For every node the positions of the nodes that consume it."""
        users: list[list[int]] = [[] for _ in self.nodes]
        for i, node in enumerate(self.nodes):
            for j in node.inputs:
                users[j].append(i)
        return tuple(tuple(u) for u in users)

    @cached_property
    def by_name(self) -> Mapping[str, int]:
        """Positions by node name, and by the name in the model where no node is called so."""
        sources = {node.source: i for i, node in enumerate(self.nodes) if node.source}
        return sources | {node.name: i for i, node in enumerate(self.nodes)}

    @cached_property
    def dtype(self) -> torch.dtype:
        """The floating dtype of the constants (float64 for a graph that holds none)."""
        for node in self.nodes:
            for tensor in node.op.tensors():
                if tensor.is_floating_point():
                    return tensor.dtype
        return torch.float64

    @cached_property
    def _ancestors(self) -> dict[int, frozenset[int]]:
        return {}

    def ancestors(self, target: int) -> frozenset[int]:
        """Positions of all nodes that `target` depends on, itself included."""
        known = self._ancestors.get(target)
        if known is None:
            seen = {target}
            for i in range(target, -1, -1):
                if i in seen:
                    seen.update(self.nodes[i].inputs)
            known = self._ancestors[target] = frozenset(seen)
        return known

    @cached_property
    def relaxed(self) -> tuple[bool, ...]:
        """Which nodes some elementwise node reads that is not a copy, or aside."""
        curved = [
            isinstance(node.op, Elementwise) and not node.op.copies and i not in self.aside
            for i, node in enumerate(self.nodes)
        ]
        return tuple(any(curved[k] for k in users) for users in self.users)

    def heard(self, position: int) -> tuple[int, ...]:
        """A node's arguments without the silent ones."""
        op, inputs = self.nodes[position].op, self.nodes[position].inputs
        return inputs[: len(inputs) - op.silent] if isinstance(op, Elementwise) else inputs

    @cached_property
    def aside(self) -> frozenset[int]:
        """Nodes of which only intervals count: what is read as a silent argument, and what only such nodes read."""
        found = {i for i, users in enumerate(self.users) if users and i not in self.outputs}
        for i in range(len(self.nodes) - 1, -1, -1):
            if i not in found:
                found.difference_update(self.heard(i))
        return frozenset(found)

    @cached_property
    def stages(self) -> tuple[int, ...]:
        """Per node, the most nodes on a way up to it that elementwise nodes read, itself included."""
        found: list[int] = []
        for i, own in enumerate(self.relaxed):
            found.append(max((found[j] for j in self.heard(i)), default=0) + own)
        return tuple(found)

    @cached_property
    def repeats(self) -> tuple[int, ...]:
        """Per node, how many look like it and have the same around them, as the steps of a recurrence do."""
        kinds: list[object] = [(type(node.op), node.shape) for node in self.nodes]
        for _ in range(2):
            around = zip(self.nodes, self.users, kinds, strict=True)
            kinds = [
                hash((own, *[kinds[j] for j in node.inputs], frozenset(kinds[k] for k in users)))
                for node, users, own in around
            ]
        count = Counter(kinds)
        return tuple(count[kind] for kind in kinds)

    @cached_property
    def height(self) -> int:
        """The most of `stages`."""
        return max(self.stages, default=0)

    @cached_property
    def long(self) -> bool:
        """Whether this is a recurrence of many steps."""
        return self.height > STAGES and max(self.repeats) > MANY

    @cached_property
    def pieces(self) -> frozenset[int]:
        """Nodes that are elements of an input which nothing else reads, as all that reads that input is."""
        found = set()
        for i in self.inputs:
            takes = [self._taken(k) for k in self.users[i]]
            known = [t for t in takes if t is not None]
            if (
                takes
                and len(known) == len(takes)
                and torch.cat(known).unique().numel() == sum(map(len, known))
            ):
                found.update(self.users[i])
        return frozenset(found)

    def _taken(self, position: int) -> Tensor | None:
        """The flat positions of its argument's elements that a node is, or None where it is something else."""
        origin = self.origin(position)
        moves = isinstance(op := self.nodes[position].op, Affine) and op.exact
        return origin.index if origin is not None and moves and bool(origin.sign.all()) else None

    def window(self, target: int, depth: int | None, pieces: bool = False) -> Window:
        """The nodes that a pass from `target` visits which ends at the `depth`-th node on its way that elementwise
        nodes read, unless no more than that many lead from there to the inputs, and where asked for, at the inputs'
        `pieces`; all ancestors without a depth."""
        cut = self.pieces if pieces else frozenset()
        key = (target, depth, bool(cut))
        known = self._windows.get(key)
        if known is None:
            plain = depth is None and not cut
            known = (
                Window(self.ancestors(target)) if plain else self._cut(target, depth or len(self.nodes), cut)
            )
            self._windows[key] = known
        return known

    def state_window(self, target: int) -> Window | None:
        """A window that ends at one state, and at `pieces` that this does not depend on, where every element of the
        target depends on one of the state's: with boxes as input sets a pass loses nothing there. None where there is
        no such window."""
        free: list[int] = []
        way = [target]
        while way[-1] == target or not self.relaxed[way[-1]]:
            inputs = self.nodes[way[-1]].inputs
            if not inputs or not self._keeps_apart(way[-1]):
                return None
            largest = max(inputs, key=lambda j: self._depends[j].bit_count())
            rest = list(inputs)
            rest.remove(largest)
            way.append(largest)
            free += rest
        if any(self._depends[j] & self._depends[way[-1]] for j in free):
            return None
        nodes, queue = {*way, *free}, free
        while queue:
            i = queue.pop()
            fresh = set() if i in self.pieces else set(self.nodes[i].inputs) - nodes
            nodes |= fresh
            queue += fresh
        return Window(frozenset(nodes), frozenset([way[-1], *self.pieces & nodes]))

    def _keeps_apart(self, position: int) -> bool:
        """Whether every element of a node depends on one element of each argument."""
        node = self.nodes[position]
        if isinstance(node.op, Affine):
            return node.op.fan_in(*[self.nodes[j].shape for j in node.inputs]) <= len(node.inputs)
        return isinstance(node.op, Elementwise)

    @cached_property
    def _depends(self) -> tuple[int, ...]:
        """Per node, which inputs or `pieces` it depends on, as bits."""
        found: list[int] = []
        count = 0
        for i, node in enumerate(self.nodes):
            if i in self.pieces or (
                isinstance(node.op, Input) and not self.pieces.intersection(self.users[i])
            ):
                found.append(1 << count)
                count += 1
            else:
                found.append(0)
                for j in node.inputs:
                    found[i] |= found[j]
        return tuple(found)

    @cached_property
    def _windows(self) -> dict[tuple[int, int | None, bool], Window]:
        return {}

    def _cut(self, target: int, depth: int, cut: frozenset[int]) -> Window:
        """Nodes in falling order, each with the fewest such nodes on a way to it."""
        distance = {target: 0}
        queue, ends = [-target], set()
        while queue:
            i = -heapq.heappop(queue)
            if i in cut or (distance[i] >= depth < self.stages[i] and self.relaxed[i]):
                ends.add(i)
                continue
            for j in self.heard(i):
                if j not in distance:
                    heapq.heappush(queue, -j)
                beyond = distance[i] + self.relaxed[j]
                distance[j] = min(beyond, distance.get(j, beyond))
        return Window(frozenset(distance), frozenset(ends))

    @cached_property
    def device(self) -> torch.device:
        """Where the constants are."""
        return next((t.device for n in self.nodes for t in n.op.tensors()), torch.device("cpu"))

    @cached_property
    def _origins(self) -> dict[int, Origin | None]:
        return {}

    def origin(self, position: int) -> Origin | None:
        """Where the elements of a node come from, as far back as there is one such node; None where it is no copy."""
        if position not in self._origins:
            self._origins[position] = self._find_origin(position)
        return self._origins[position]

    def copies(self, position: int) -> Sequence[int]:
        """The nodes whose origin a node is, in order."""
        return self._copies.get(position, ())

    @cached_property
    def _copies(self) -> dict[int, list[int]]:
        found: dict[int, list[int]] = {}
        for i in range(len(self.nodes)):
            origin = self.origin(i)
            if origin is not None:
                found.setdefault(origin.node, []).append(i)
        return found

    def _find_origin(self, position: int) -> Origin | None:
        node = self.nodes[position]
        op = node.op
        plain = isinstance(op, Affine) and (op.exact or op.elementwise)
        copies = isinstance(op, Elementwise) and op.copies
        if not copies and (not (plain or isinstance(op, Univariate)) or len(node.inputs) != 1):
            return None
        source = node.inputs[0]
        shape = self.nodes[source].shape
        size = self.nodes[source].numel
        like = torch.arange(1, size + 1, dtype=self.dtype, device=self.device)
        if size + 1 > 1 / torch.finfo(like.dtype).eps:  # positions must be exact numbers
            return None
        if isinstance(op, Univariate) or copies:
            index, sign = torch.arange(size, device=self.device), torch.ones_like(like).long()
        elif isinstance(op, Affine) and op.exact:
            moved = op.forward(like.view(1, *shape)) - op.forward(torch.zeros_like(like).view(1, *shape))
            index = moved.flatten().long()  # 0: filled, not moved
            sign = index.sign()
            index = (index - 1).clamp(min=0)
        else:
            ones = torch.ones_like(like).view(1, *shape)
            sign = (op.forward(ones) - op.forward(-ones)).flatten().sign().long()
            index = torch.arange(size, device=self.device)
        below = self.origin(source)
        if below is None:
            return Origin(source, index, sign)
        return Origin(below.node, below.index[index], below.sign[index] * sign)

    @cached_property
    def _relevant(self) -> dict[frozenset[int], dict[int, Tensor]]:
        return {}

    def relevant(self, targets: Iterable[int]) -> Mapping[int, Tensor]:
        """Which elements of the nodes below `targets` these depend on, boolean [*shape], by what the operators connect;
        nodes all of whose elements count are left out.

        For choosing what to look at, not for proofs: a weight so small that it is flushed to zero connects nothing.
        """
        chosen = frozenset(targets)
        if chosen not in self._relevant:
            self._relevant[chosen] = self._find_relevant(chosen)
        return self._relevant[chosen]

    def _find_relevant(self, targets: frozenset[int]) -> dict[int, Tensor]:
        marks: dict[int, Tensor | None] = dict.fromkeys(targets)  # None: all of them
        for i in range(max(targets, default=-1), -1, -1):
            if i not in marks:
                continue
            node, mark = self.nodes[i], marks[i]
            for k, j in enumerate(node.inputs):
                below = self._connected(node, k, mark)
                if j in marks:
                    met = marks[j]
                    below = None if below is None or met is None else below | met
                marks[j] = below
        return {i: m for i, m in marks.items() if m is not None and not bool(m.all())}

    def _connected(self, node: Node, index: int, mark: Tensor | None) -> Tensor | None:
        """The elements of an argument that the marked elements of a node read; None for all."""
        op, shapes = node.op, tuple(self.nodes[j].shape for j in node.inputs)
        if isinstance(op, Elementwise):
            return mark
        if not isinstance(op, Affine) or (mark is None and not op.exact):
            return None  # only what moves elements leaves some out on purpose
        like = torch.ones(node.shape, dtype=self.dtype, device=self.device)
        marked = like if mark is None else mark.to(like)
        below = Transposed(op, index, shapes).absolute(marked.unsqueeze(0))[0].detach() > 0
        return None if bool(below.all()) else below

    @cached_property
    def variable(self) -> tuple[bool, ...]:
        """Whether each node depends on an input; the others are constants."""
        flags: list[bool] = []
        for node in self.nodes:
            flags.append(isinstance(node.op, Input) or any(flags[j] for j in node.inputs))
        return tuple(flags)

    def to(self, dtype: torch.dtype | None = None, device: torch.device | str | None = None) -> Graph:
        """The same graph with its floating constants in another dtype or on another device."""
        cast = {id(n.op): n.op.to(dtype, device) for n in self.nodes}  # copies of a network stay one
        return replace(self, nodes=tuple(replace(n, op=cast[id(n.op)]) for n in self.nodes))

    def evaluate(self, inputs: Sequence[Tensor], keep: Sequence[int] | None = None) -> list[Tensor]:
        """Values of the nodes in `keep` (the outputs by default), each [B, *shape].

        `inputs` holds one tensor [B, *shape] per graph input, in order.
        """
        wanted = tuple(self.outputs if keep is None else keep)
        last_use = {j: i for i, node in enumerate(self.nodes) for j in node.inputs}
        last_use.update(dict.fromkeys(wanted, len(self.nodes)))
        values: dict[int, Tensor] = {}
        feed = dict(zip(self.inputs, inputs, strict=True))
        top = max(wanted, default=-1)
        for i, node in enumerate(self.nodes[: top + 1]):
            if i not in last_use:
                continue
            values[i] = feed[i] if i in feed else node.op.forward(*[values[j] for j in node.inputs])
            for j in set(node.inputs):
                if last_use[j] == i:
                    del values[j]
        return [values[i] for i in wanted]

    def constant(self, position: int) -> Tensor | None:
        """The tensor of a Constant node, or None."""
        op = self.nodes[position].op
        return op.value if isinstance(op, Constant) else None
