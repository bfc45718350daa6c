"""Steps of delta rules, S = S' + b k (v - S'^T k)^T with |k| <= 1 and b in [0, 2], in graphs of plain operators.

S' is any value; columns of it are corrected by themselves. With such k and b the linear part of a step, I - b k k^T, is
symmetric with eigenvalues in [-1, 1] and makes no column's Euclidean norm larger.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from verifier.graph import Graph
from verifier.ops.arithmetic import Add, ScaleShift
from verifier.ops.product import Product
from verifier.ops.reduction import Sum
from verifier.ops.sigmoid import Sigmoid
from verifier.transforms.chains import moved
from verifier.transforms.quotients import norm_of


class Part(NamedTuple):
    """Elements of a node, by their flat positions."""

    node: int
    index: Tensor

    def at(self, places: Tensor) -> Part:
        return Part(self.node, self.index[places])


class Read(NamedTuple):
    """Sums of products of a state's elements and those of another value: `error` = something - the sums, made by the
    nodes `way` from the `product` on, whose argument number `state` is the state. Element i of what is made is of the
    state's elements `members[i]` and of the elements `keys[i]` of the node `key`."""

    error: int
    product: int
    state: int
    way: tuple[int, ...]
    members: Tensor
    key: int
    keys: Tensor


class DeltaStep(NamedTuple):
    """State `node` = `before` + the products of `factors` and of elements of `read.error`. `direction` is the product
    of the factors where the graph has it.

    Columns are counted by the elements of the error that they meet, `errors` [n], in order; `members` [n, K] has the
    flat positions of each column's elements, `before` being in the same order as the node.
    """

    node: int
    before: int
    read: Read
    factors: tuple[Part, ...]
    direction: Part | None
    errors: Tensor
    members: Tensor

    @property
    def columns(self) -> Tensor:
        """Per element the number of its column."""
        found = torch.empty(self.members.numel(), dtype=torch.int64)
        found[self.members.flatten()] = torch.arange(len(self.members)).repeat_interleave(
            self.members.shape[1]
        )
        return found


def delta_step(graph: Graph, i: int) -> DeltaStep | None:
    """The step that a sum makes, where it is one of a delta rule."""
    if not isinstance(graph.nodes[i].op, Add):
        return None
    for before, write in (graph.nodes[i].inputs, graph.nodes[i].inputs[::-1]):
        leaves = _leaves(graph, write)
        for k, leaf in enumerate(leaves):
            read = _read(graph, leaf.node, before)
            if read is not None:
                step = _step(graph, i, before, read, leaf, (*leaves[:k], *leaves[k + 1 :]))
                if step is not None:
                    return step._replace(direction=_other(graph, write, leaf.node))
    return None


def _other(graph: Graph, write: int, error: int) -> Part | None:
    """What a product multiplies an error by."""
    top = Part(*moved(graph, write))
    parts = [Part(*moved(graph, j)).at(top.index) for j in graph.nodes[top.node].inputs]
    return next((b for a, b in (parts, parts[::-1]) if a.node == error), None)


def _leaves(graph: Graph, i: int) -> list[Part]:
    """What is multiplied to make a node's elements; at most four factors."""
    if not isinstance(graph.nodes[moved(graph, i)[0]].op, Product):
        return []
    found = [Part(*moved(graph, i))]
    while len(found) < 4:
        for k, part in enumerate(found):
            if isinstance(graph.nodes[part.node].op, Product) and norm_of(graph, part.node) is None:
                inner = [Part(*moved(graph, j)).at(part.index) for j in graph.nodes[part.node].inputs]
                found[k : k + 1] = inner
                break
        else:
            break
    return found


def _read(graph: Graph, error: int, before: int) -> Read | None:
    """What an error, a sum, reads of a state."""
    if not isinstance(graph.nodes[error].op, Add):
        return None
    for end in graph.nodes[error].inputs:
        way, index, sign = [error], torch.arange(graph.nodes[error].numel), 1
        while True:
            way += _moves(graph, end)
            end, places = moved(graph, end)
            index, op = places[index], graph.nodes[end].op
            if not (isinstance(op, ScaleShift) and _negates(op)):
                break
            way.append(end)
            sign, end = -sign, graph.nodes[end].inputs[0]
        if isinstance(graph.nodes[end].op, Sum) and sign < 0:
            way.append(end)
            product = graph.nodes[end].inputs[0]
            for k in (0, 1) if isinstance(graph.nodes[product].op, Product) else ():
                read = _sums(graph, end, product, k, before)
                if read is not None:
                    members, key, keys = read
                    return Read(error, product, k, tuple(reversed(way)), members[index], key, keys[index])
    return None


def _moves(graph: Graph, i: int) -> list[int]:
    """The nodes that `moved` looks through."""
    source, found = moved(graph, i)[0], []
    while i != source:
        found.append(i)
        if len(graph.nodes[i].inputs) != 1:
            return found  # a sum with zeros: the way is not a row of nodes of one argument
        i = graph.nodes[i].inputs[0]
    return found


def _negates(op: ScaleShift) -> bool:
    return op.scale is not None and bool((op.scale == -1).all()) and op.shift is None and op.doubt is None


def _sums(
    graph: Graph, total: int, product: int, state: int, before: int
) -> tuple[Tensor, int, Tensor] | None:
    """Which elements [numel, K] of `before`, and of what else, a sum of products adds up."""
    arguments = graph.nodes[product].inputs
    own, known = Part(*moved(graph, arguments[state])), Part(*moved(graph, before))
    if own.node != known.node:
        return None
    place = torch.full((graph.nodes[known.node].numel,), -1)
    place[known.index] = torch.arange(len(known.index))
    if len(known.index.unique()) < len(known.index):
        return None
    axes = graph.nodes[total].op.axes  # pyright: ignore[reportAttributeAccessIssue]
    table = torch.arange(graph.nodes[product].numel).view(graph.nodes[product].shape)
    table = table.movedim(axes, tuple(range(-len(axes), 0))).reshape(graph.nodes[total].numel, -1)
    key = Part(*moved(graph, arguments[1 - state]))
    members = place[own.index[table]]
    return None if bool((members < 0).any()) else (members, key.node, key.index[table])


def _step(
    graph: Graph, i: int, before: int, read: Read, leaf: Part, factors: Sequence[Part]
) -> DeltaStep | None:
    """Checks that the columns which are read are those which are written, along the same keys."""
    errors = leaf.index.unique()
    members = read.members[errors]  # [n, K]
    if members.numel() != graph.nodes[i].numel or members.unique().numel() != members.numel():
        return None
    if bool((leaf.index[members] != errors[:, None]).any()):
        return None
    keys, rest = read.keys[errors], []
    met = False
    for part in factors:
        if not met and part.node == read.key and torch.equal(part.index[members], keys):
            met = True
        else:
            rest.append(part)
    norm = norm_of(graph, read.key)
    if not met or norm is None or any(len(row.unique()) < len(row) for row in keys):
        return None
    most = _most(graph, (part.at(members) for part in rest))
    groups = norm.groups[keys]
    if bool((groups != groups[:, :1]).any()) or most is None or not most * norm.most**2 <= 2:
        return None
    return DeltaStep(i, before, read, tuple(factors), None, errors, members)


def _most(graph: Graph, parts: Iterable[Part]) -> float | None:
    """What the product of factors, the same along each row and never negative, does not exceed."""
    total = 1.0
    for part in parts:
        most = _limit(graph, part.node)
        if most is None or bool((part.index != part.index[:, :1]).any()):
            return None
        total *= most
    return total


def _limit(graph: Graph, i: int) -> float | None:
    """What a node in [0, c] does not exceed for any input; None where that is not known."""
    op, inputs = graph.nodes[i].op, graph.nodes[i].inputs
    constant = graph.constant(i)
    if constant is not None:
        return float(constant.max()) if bool((constant >= 0).all()) else None
    if isinstance(op, Sigmoid):
        return 1.0
    if isinstance(op, ScaleShift) and op.shift is None and op.doubt is None and op.scale is not None:
        below = _limit(graph, moved(graph, inputs[0])[0])
        return None if below is None or bool((op.scale < 0).any()) else below * float(op.scale.max())
    return None
