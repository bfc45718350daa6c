"""Computing only what is read, and what a long recurrence reads token by token as one node per token.

A property often asks for few elements of a large output; bounding the others takes the time and the memory that those
which count could have. Here elements that nothing reads are left out, back to the inputs.

Recurrent networks compute keys, values and gates of all tokens at once, and step t reads its part. A backward pass
from a state then carries rows over all tokens through nodes of which it needs a few, and the work grows with the square
of their number. Here every such value is split into its smallest parts that are read, too.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from verifier.graph import Builder, Constant, Elementwise, Graph, Input, Node, Op, Value
from verifier.graph.graph import MANY
from verifier.graph.op import Affine, Shape
from verifier.ops.arithmetic import Add, ScaleShift
from verifier.ops.convolution import Conv
from verifier.ops.linear import Linear
from verifier.ops.movement import Concat, Take, reshape
from verifier.ops.reduction import Sum

MOST_READ = 0.75
"""Elements of elementwise operators that nothing reads are left out where these are no more than so many of them."""


class Part(NamedTuple):
    """One part of a node's value: the flat positions that it reads of some arguments, sorted and different, and how it
    is made, flat, of flat values of these."""

    reads: Mapping[int, Tensor]
    make: Callable[[Builder, Sequence[Value]], Value]


def unbatch(graph: Graph) -> Graph:
    """An equal graph, with nodes in parts where more than MANY steps read different ones; the same graph where it is no
    long recurrence. Graph inputs and outputs keep their places."""
    if not graph.long:
        return graph
    parts = _partition(graph, apart=True)
    return _Assembly(graph, parts).graph() if any(p for p in parts if p) else graph


def leave_out_unread(graph: Graph) -> Graph:
    """An equal graph without the elements that nothing reads, where that are many; the same graph otherwise. Graph
    inputs and outputs keep their places."""
    parts = _partition(graph, apart=False)
    read = whole = 0
    for node, own in zip(graph.nodes, parts, strict=True):
        if isinstance(node.op, Elementwise):
            whole += node.numel
            read += 0 if own is None else sum(len(index) for index, _ in own) if own else node.numel
    return graph if not whole or read > MOST_READ * whole else _Assembly(graph, parts).graph()


class _Labels:
    """Which part of a value each element is in: elements that all requests so far treat alike have one label, and all
    that are read where parts are not kept `apart`."""

    def __init__(self, size: int, apart: bool) -> None:
        self.of = torch.zeros(size, dtype=torch.int64)
        self.asked = torch.zeros(size, dtype=torch.bool)
        self._apart, self._next = apart, 1

    def ask(self, index: Tensor) -> None:
        if self._apart and len(index) < len(self.of):
            found, inverse = self.of[index].unique(return_inverse=True)
            self.of[index] = inverse + self._next
            self._next += len(found)
        self.asked[index] = True

    def parts(self) -> list[Tensor]:
        """Sorted positions of each part that was asked for."""
        index = self.asked.nonzero().flatten()
        found, count = self.of[index].unique(return_counts=True)
        order = self.of[index].argsort(stable=True)
        return list(index[order].split(count.tolist())) if len(found) else []


Parts = list[tuple[Tensor, Part]]


def _partition(graph: Graph, apart: bool) -> list[Parts | None]:
    """Per node its parts, or one of all that is read where these are not kept `apart`: where they are and how they are
    made; none where it stays whole, None where nothing reads it."""
    labels = [_Labels(node.numel, apart) for node in graph.nodes]
    found: list[Parts | None] = [None for _ in graph.nodes]
    for i in graph.outputs:
        labels[i].ask(torch.arange(graph.nodes[i].numel))
    for i in range(len(graph.nodes) - 1, -1, -1):
        node, wanted = graph.nodes[i], labels[i].parts()
        if not wanted:
            continue
        found[i] = []
        if isinstance(node.op, Input) and len(wanted) > MANY:
            found[i] = [(index, _own(index)) for index in wanted]
        if isinstance(node.op, Input | Constant):
            continue
        if len(wanted) <= MANY and (i in graph.outputs or sum(len(w) for w in wanted) == node.numel):
            wanted = [torch.arange(node.numel)]
        moves = isinstance(node.op, Affine) and node.op.exact and not node.op.elementwise
        picks = moves if apart else isinstance(node.op, Take)
        made = _split(graph, node, wanted) if len(wanted[0]) < node.numel or picks else None
        if made is None:
            for j in node.inputs:
                labels[j].ask(torch.arange(graph.nodes[j].numel))
            continue
        found[i] = list(zip(wanted, made, strict=True))
        for part in made:
            for k, index in part.reads.items():
                labels[node.inputs[k]].ask(index)
    return found


class _Assembly:
    """The new graph under construction. `_whole` has nodes that are in one piece, `_parts` values of the others' parts
    and, per element, which part it is in."""

    def __init__(self, graph: Graph, parts: Sequence[Parts | None]) -> None:
        self._graph, self._builder = graph, Builder()
        self._whole: dict[int, Value] = {}
        self._parts: dict[int, tuple[list[Value], list[Tensor], Tensor]] = {}
        self._pieces: dict[tuple[int, bytes], Value] = {}
        for i, own in enumerate(parts):
            if own is not None or i in graph.inputs:
                self._place(i, own or [])

    def graph(self) -> Graph:
        return self._builder.graph(*[self._in_one(i) for i in self._graph.outputs])

    def _place(self, i: int, parts: Parts) -> None:
        node, builder = self._graph.nodes[i], self._builder.at(self._graph.nodes[i].source)
        if isinstance(node.op, Input):
            self._whole[i] = builder.input(node.name, node.shape)
            if parts:
                self._keep(i, [part.make(builder, [self._whole[i]]) for _, part in parts], parts)
        elif isinstance(node.op, Constant):
            self._whole[i] = builder.constant(node.op.value, node.name)
        elif not parts:
            inputs = [self._in_one(j) for j in node.inputs]
            self._whole[i] = builder.add(node.op, *inputs, name=node.name)
        else:
            values = []
            for _, part in parts:
                read = [self._piece(node.inputs[j], at) for j, at in part.reads.items()]
                values.append(builder.rename(part.make(builder, read), f"{node.name}_part"))
            self._keep(i, values, parts)

    def _keep(self, i: int, values: list[Value], parts: Parts) -> None:
        owner = torch.full((self._graph.nodes[i].numel,), -1)
        for k, (index, _) in enumerate(parts):
            owner[index] = k
        self._parts[i] = (values, [index for index, _ in parts], owner)

    def _in_one(self, i: int) -> Value:
        """A node's whole value."""
        if i not in self._whole:
            node = self._graph.nodes[i]
            self._whole[i] = reshape(self._builder, self._piece(i, torch.arange(node.numel)), node.shape)
        return self._whole[i]

    def _piece(self, i: int, index: Tensor) -> Value:
        """The elements of a node at sorted positions, flat: a part, or several together."""
        key = (i, index.numpy().tobytes())
        if key not in self._pieces:
            self._pieces[key] = self._assembled(i, index)
        return self._pieces[key]

    def _assembled(self, i: int, index: Tensor) -> Value:
        if i not in self._parts:
            return _taken(self._builder, self._whole[i], index)
        values, places, owner = self._parts[i]
        which = owner[index].unique().tolist()
        found = values[which[0]]
        if len(which) > 1:
            found = self._builder.add(Concat(0), *[values[k] for k in which])
        position, order = torch.cat([places[k] for k in which]).sort()
        return _taken(self._builder, found, order[torch.searchsorted(position, index.contiguous())])


def _taken(builder: Builder, x: Value, index: Tensor, *shape: int) -> Value:
    """The elements of x at flat positions, under `shape`, or flat."""
    size, shape = math.prod(builder.shape(x)), shape or (len(index),)
    if len(index) == size and bool((index == torch.arange(size)).all()):
        return reshape(builder, x, shape)
    return builder.add(Take(index, shape), x)


def _split(graph: Graph, node: Node, wanted: Sequence[Tensor]) -> list[Part] | None:
    """Parts of a node's value at the flat positions `wanted`; None where its operator cannot be split so."""
    op, shapes = node.op, [graph.nodes[j].shape for j in node.inputs]
    parts: Sequence[Part | None]
    if isinstance(op, Elementwise | ScaleShift | Add):
        parts = [_alike(op, index, node.shape, len(shapes)) for index in wanted]
    elif isinstance(op, Linear):
        parts = [_linear(op, index) for index in wanted]
    elif isinstance(op, Sum):
        table = torch.arange(math.prod(shapes[0])).view(shapes[0])
        table = table.movedim(op.axes, tuple(range(-len(op.axes), 0))).reshape(node.numel, -1)
        parts = [_sum(table[index]) for index in wanted]
    elif isinstance(op, Conv):
        parts = [_conv(op, index, shapes[0], node.shape) for index in wanted]
    elif isinstance(op, Affine) and op.exact:
        parts = _moved(op, wanted, shapes, graph.dtype)
    else:
        return None
    made = [part for part in parts if part is not None]
    return made if len(made) == len(wanted) else None


def _own(index: Tensor) -> Part:
    """Of an input. What reads several of its parts at once then reads those that others read one by one, and passes can
    end there (`Graph.pieces`)."""
    return Part({0: index}, lambda builder, xs: _taken(builder, xs[0], index))


def _alike(op: Op, index: Tensor, shape: Shape, arguments: int) -> Part | None:
    """Of what takes every element to the same place."""
    if isinstance(op, Elementwise):
        try:
            own: Op = op.restrict(index, shape)
        except NotImplementedError:
            return None
    elif isinstance(op, ScaleShift):
        tensors = (op.scale, op.shift, op.doubt)
        own = ScaleShift(
            *[
                t if t is None or t.numel() == 1 else t.expand(shape).flatten()[index.to(t.device)]
                for t in tensors
            ]
        )
    else:
        own = op
    return Part(dict.fromkeys(range(arguments), index), lambda builder, xs: builder.add(own, *xs))


def _linear(op: Linear, index: Tensor) -> Part | None:
    """Some columns of some rows."""
    outputs, inputs = op.weight.shape
    rows, columns = (index // outputs).unique(), (index % outputs).unique()
    if len(rows) * len(columns) != len(index):
        return None
    own, chosen = op, columns.to(op.weight.device)
    if len(columns) < outputs:
        bias, doubt = (None if t is None else t[chosen] for t in (op.bias, op.doubt))
        own = Linear(op.weight[chosen], bias, doubt)

    def make(builder: Builder, xs: Sequence[Value]) -> Value:
        return reshape(builder, builder.add(own, reshape(builder, xs[0], (len(rows), inputs))), (len(index),))

    return Part({0: (rows.unsqueeze(1) * inputs + torch.arange(inputs)).flatten()}, make)


def _sum(table: Tensor) -> Part:
    """`table` [n, k]: the positions of what is summed for each element."""
    reads, order = table.flatten().sort()

    def make(builder: Builder, xs: Sequence[Value]) -> Value:
        terms = _taken(builder, xs[0], order.argsort(), *table.shape)
        return reshape(builder, builder.add(Sum((1,)), terms), (len(table),))

    return Part({0: reads}, make)


def _conv(op: Conv, index: Tensor, shape: Shape, result: Shape) -> Part | None:
    """All channels of a box of places, from the box that these look at."""
    places = torch.stack(torch.unravel_index(index, result))
    low, high = places.amin(1).tolist(), places.amax(1).tolist()
    counts = [b - a + 1 for a, b in zip(low, high, strict=True)]
    if result[0] != 1 or math.prod(counts) != len(index) or counts[1] != result[1]:
        return None
    w, size = op.window, shape[2:]
    first = [n * s - b for n, s, b in zip(low[2:], w.stride, w.before, strict=True)]
    last = [n * s - b + e - 1 for n, s, b, e in zip(high[2:], w.stride, w.before, w.extent, strict=True)]
    start = [max(f, 0) for f in first]
    stop = [min(at + 1, n) for at, n in zip(last, size, strict=True)]
    if any(a >= b for a, b in zip(start, stop, strict=True)):
        return None
    before = tuple(s - f for s, f in zip(start, first, strict=True))
    after = tuple(at + 1 - s for at, s in zip(last, stop, strict=True))
    seen = (shape[1], *[b - a for a, b in zip(start, stop, strict=True)])
    own = replace(op, window=replace(w, before=before, after=after))
    table = torch.arange(math.prod(shape)).view(shape[1:])
    reads = table[(slice(None), *[slice(a, b) for a, b in zip(start, stop, strict=True)])].flatten()

    def make(builder: Builder, xs: Sequence[Value]) -> Value:
        return reshape(builder, builder.add(own, reshape(builder, xs[0], (1, *seen))), (len(index),))

    return Part({0: reads}, make)


def _moved(op: Affine, wanted: Sequence[Tensor], shapes: Sequence[Shape], dtype: torch.dtype) -> list[Part]:
    """Of what only moves elements or fills constants: positions, as values, show where they go."""
    starts = [0, *itertools.accumulate(math.prod(s) for s in shapes)]
    if isinstance(op, Take):
        source, fill = op.index.cpu() + 1, torch.zeros(1, dtype=dtype).expand(len(op.index))
    else:
        exact = op.to(torch.float64)
        fill = exact.forward(*[torch.zeros(1, *s, dtype=torch.float64) for s in shapes]).flatten()
        whole = torch.arange(1, starts[-1] + 1, dtype=torch.float64)
        places = [
            p.view(1, *s) for p, s in zip(whole.split([math.prod(s) for s in shapes]), shapes, strict=True)
        ]
        source = torch.where(fill.isfinite(), exact.forward(*places).flatten() - fill, 0).long()
    return [_gathered(source[index], fill[index].to(dtype), torch.tensor(starts)) for index in wanted]


def _gathered(source: Tensor, fill: Tensor, starts: Tensor) -> Part:
    """What comes from elements `source`, less one, of all arguments one after the other, which begin at `starts`; where
    that is 0, from `fill`."""
    read = source[source > 0].unique() - 1
    of = torch.searchsorted(starts, read, right=True) - 1
    arguments, counts = of.unique_consecutive(return_counts=True)
    reads = {int(k): part - starts[k] for k, part in zip(arguments, read.split(counts.tolist()), strict=True)}
    index = torch.searchsorted(read, source - 1)
    values, constants = fill[source == 0].unique(return_inverse=True)
    index[source == 0] = len(read) + constants

    def make(builder: Builder, xs: Sequence[Value]) -> Value:
        pool = [*xs, builder.constant(values)] if len(values) else list(xs)
        return _taken(builder, builder.add(Concat(0), *pool) if len(pool) > 1 else pool[0], index)

    return Part(reads, make)
