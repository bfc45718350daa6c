"""Gated recurrences written out in plain operators, read without their states.

In S_t = a_t * S_(t-1) + k_t v_t with gates that do not depend on the state, what a query reads of it,
o_t = sum over d of q_td S_td, is sum over s <= t of (sum over d of q_td k_sd (product of a_rd over r in (s, t])) v_s.
For gates with a known logarithm the product is one exp of an affine function of them, where the recurrence relaxes a
product per step, each of what the last one relaxed. The two are equal in exact arithmetic.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import NamedTuple

import torch
from torch import Tensor

from verifier.graph import Builder, Graph, Value
from verifier.graph.builder import rewritten
from verifier.ops.alternatives import Alternatives
from verifier.ops.arithmetic import scale_shift
from verifier.ops.exponential import Exp
from verifier.ops.linear import Linear
from verifier.ops.movement import Concat, Permute, Reshape, Take, reshape
from verifier.ops.product import Product, multiply
from verifier.ops.reduction import Sum
from verifier.transforms.chains import Chain, Make, chains, logarithm, moved

MORE = 2
"""Products in a parallel form, as multiples of the recurrence's. Their number grows with the square of the steps, and
where a score serves one value only, as in Mamba, they cost more than they gain."""
LARGEST = 1 << 22
"""Products of a query and a state that are looked at, counted for every step before."""
FAINT = Fraction(1, 10**30)
"""Products of constant gates nearer to zero, and not zero, could underflow in float32."""


def parallel(graph: Graph) -> Graph:
    """An equal graph in which linear readings of gated recurrences have their parallel form where that takes few enough
    products; `graph` itself where there are none, or where it has alternatives already. A chain of which anything
    else reads a state stays."""
    readings: dict[int, _Reading] = {}
    if any(isinstance(node.op, Alternatives) for node in graph.nodes):
        return graph
    for chain in chains(graph):
        for reading in _readings(graph, chain) or ():
            readings[reading.node] = reading
    if not readings:
        return graph

    def replacement(builder: Builder, i: int, values: Mapping[int, Value]) -> Value | None:
        if i not in readings:
            return None
        found = readings[i].write(builder, values)
        return builder.rename(reshape(builder, found, graph.nodes[i].shape), graph.nodes[i].name)

    return rewritten(graph, replacement)


class _Pool:
    """Elements of several nodes, functions of them perhaps, as one flat value."""

    def __init__(self) -> None:
        self._start: dict[tuple[int, Hashable], int] = {}
        self._make: list[tuple[int, Make | None]] = []
        self.size = 0

    def places(
        self, graph: Graph, node: int, index: Tensor, kind: Hashable = None, make: Make | None = None
    ) -> Tensor:
        """Where elements of a node are in this."""
        if (node, kind) not in self._start:
            self._start[node, kind] = self.size
            self._make.append((node, make))
            self.size += graph.nodes[node].numel
        return self._start[node, kind] + index

    def value(self, builder: Builder, values: Mapping[int, Value]) -> Value:
        parts = [values[node] if make is None else make(builder, values[node]) for node, make in self._make]
        flat = [reshape(builder, part, (-1,)) for part in parts]
        return flat[0] if len(flat) == 1 else builder.add(Concat(0), *flat)


class _Decays(NamedTuple):
    """The gates of a chain of T states of n elements: places [T - 1, n] of their logarithms in `pool`, -1 where a gate
    is constant, and the constant ones, `scales` [T - 1, n], 1 elsewhere."""

    pool: _Pool
    places: Tensor
    scales: Tensor

    def between(self, pairs: _Pairs) -> Tensor | None:
        """Products of the constant gates after one state up to another, for pairs of these: [P, n], each rounded once;
        None where one is too small or too large to be rounded well."""
        columns, kind = self.scales.unique(dim=1, return_inverse=True) if len(self.scales) else (None, None)
        if columns is None or kind is None or bool((columns == 1).all()):
            return torch.ones(len(pairs.early), self.scales.shape[1], dtype=self.scales.dtype)
        exact = [[Fraction(a) for a in column] for column in columns.T.tolist()]
        spans = list(zip(pairs.early.tolist(), pairs.late.tolist(), strict=True))
        found = [[math.prod(column[s:t], start=Fraction(1)) for column in exact] for s, t in spans]
        if any(p != 0 and not FAINT < abs(p) < 1 / FAINT for row in found for p in row):
            return None
        return torch.tensor([[float(p) for p in row] for row in found], dtype=self.scales.dtype)[:, kind]


def _decays(graph: Graph, chain: Chain) -> _Decays | None:
    size = graph.nodes[chain.states[0]].numel
    pool, places, scales = _Pool(), [torch.empty(0, size).long()], [torch.empty(0, size, dtype=graph.dtype)]
    for gate in chain.gates:
        place, scale = torch.full((size,), -1), torch.ones(size, dtype=graph.dtype)
        if isinstance(gate, Tensor):
            scale = gate.to(graph.dtype)
        elif gate is not None:
            node, index = moved(graph, gate)
            known = logarithm(graph, node)
            if known is None:
                return None
            source, at = moved(graph, known[0])
            place = pool.places(graph, source, at[index], *known[1:])
        places.append(place[None])
        scales.append(scale[None])
    return _Decays(pool, torch.cat(places), torch.cat(scales))


class _Writes(NamedTuple):
    """What is written at every step, as products of elements of two pools [T, n]; `factors` has one where they are no
    products."""

    pool: _Pool
    factors: tuple[Tensor, ...]


def _writes(graph: Graph, chain: Chain) -> _Writes:
    pool, found = _Pool(), []
    sources = [moved(graph, i) for i in chain.writes]
    if all(isinstance(graph.nodes[i].op, Product) for i, _ in sources):
        for node, index in sources:
            pairs = [(moved(graph, j)) for j in graph.nodes[node].inputs]
            found.append([pool.places(graph, j, at[index]) for j, at in pairs])
    else:
        found = [[pool.places(graph, *source)] for source in sources]
    return _Writes(pool, tuple(torch.stack(rows) for rows in zip(*found, strict=True)))


def _readings(graph: Graph, chain: Chain) -> list[_Reading] | None:
    """All that reads the states outside of the chain; None where some of it is no sum of products with something, or
    where these take too many products."""
    size = graph.nodes[chain.states[0]].numel
    labels = {
        state: torch.arange(t * size, (t + 1) * size, dtype=torch.float64)
        for t, state in enumerate(chain.states)
    }
    products: list[tuple[int, int]] = []
    for i in range(chain.states[0] + 1, len(graph.nodes)):
        node = graph.nodes[i]
        carried = [j in labels for j in node.inputs]
        if i in chain.inner or not any(carried):
            continue
        if isinstance(node.op, Reshape | Permute | Take | Concat) and all(carried):
            values = [labels[j].view(1, *graph.nodes[j].shape) for j in node.inputs]
            labels[i] = node.op.forward(*values).flatten()
        elif isinstance(node.op, Product) and carried.count(True) == 1:
            products.append((i, carried.index(True)))
        else:
            return None
    if any(i in labels for i in graph.outputs) or not products:
        return None
    found: list[_Reading] = []
    for product, k in products:
        users = graph.users[product]
        sums = [i for i in users if isinstance(graph.nodes[i].op, Sum)]
        if len(sums) != len(users) or product in graph.outputs:
            return None
        at, other = (graph.nodes[product].inputs[j] for j in (k, 1 - k))
        for i in sums:
            reading = _reading(graph, chain, i, (labels[at].long(), *moved(graph, other)))
            if reading is None:
                return None
            found.append(reading)
    replaced = {*chain.inner, *[i for i, _ in products], *[moved(graph, i)[0] for i in chain.writes]}
    known = sum(graph.nodes[i].numel for i in replaced if isinstance(graph.nodes[i].op, Product))
    return found if sum(reading.products for reading in found) <= MORE * known else None


@dataclass(frozen=True)
class _Reading:
    """A sum `node` of products of queries and states in parallel form: U scores of D products each, [U, D], from R
    different products of queries and keys and E decays; and where scores [X, P] and values [X, P] are, which are
    summed over P with `sums` [T, P] to what `order` takes the result from."""

    node: int
    queries: _Pool
    writes: _Pool
    logs: _Pool
    pairs: tuple[Tensor, Tensor, Tensor]
    decays: tuple[Tensor, Tensor, Tensor] | None
    scale: Tensor | None
    scores: Tensor
    values: Tensor | None
    sums: Tensor
    order: Tensor

    @property
    def products(self) -> int:
        scores, terms = self.pairs[2].shape
        decays = 0 if self.decays is None else scores * (1 if _alike(self.decays[2]) else terms)
        return len(self.pairs[0]) + decays + (0 if self.values is None else self.values.numel())

    def write(self, builder: Builder, values: Mapping[int, Value]) -> Value:
        query, written = self.queries.value(builder, values), self.writes.value(builder, values)
        q, k, index = self.pairs
        terms = _take(builder, multiply(builder, _take(builder, query, q), _take(builder, written, k)), index)
        if self.scale is not None:
            terms = scale_shift(builder, terms, scale=self.scale)
        if self.decays is not None:
            at, weight, index = self.decays
            logs = _take(builder, self.logs.value(builder, values), at)
            decay = builder.add(Exp(), builder.add(Linear(weight), logs))
            if _alike(index):
                index, terms = index[:, :1], builder.add(Sum((1,)), terms)
            terms = multiply(builder, terms, _take(builder, decay, index))
        if builder.shape(terms)[1] > 1:
            terms = builder.add(Sum((1,)), terms)
        scores = _take(builder, terms, self.scores)
        if self.values is not None:
            scores = multiply(builder, scores, _take(builder, written, self.values))
        return _take(builder, builder.add(Linear(self.sums), scores), self.order)


def _alike(index: Tensor) -> bool:
    """Whether the elements of a sum have one decay."""
    return bool((index == index[:, :1]).all())


def _take(builder: Builder, x: Value, index: Tensor) -> Value:
    return builder.add(Take(index.flatten(), tuple(index.shape)), x)


def _reading(graph: Graph, chain: Chain, node: int, read: tuple[Tensor, int, Tensor]) -> _Reading | None:
    """`read` has the labels of what the products take of the states, and the node and places of what these meet."""
    labels, source, index = read
    product = graph.nodes[node].inputs[0]
    axes = graph.nodes[node].op.axes  # pyright: ignore[reportAttributeAccessIssue]
    table = torch.arange(graph.nodes[product].numel).view(graph.nodes[product].shape)
    table = table.movedim(axes, tuple(range(-len(axes), 0))).reshape(graph.nodes[node].numel, -1)  # [O, D]
    size = graph.nodes[chain.states[0]].numel
    late, element = labels[table] // size, labels[table] % size
    if bool((late != late[:, :1]).any()):
        return None
    chain = chain.until(int(late.max()))
    decays, writes, pairs = _decays(graph, chain), _writes(graph, chain), _arranged(late[:, 0])
    if decays is None or pairs is None or pairs.outputs.numel() * table.shape[1] > LARGEST:
        return None
    queries = _Pool()
    q = queries.places(graph, source, index[table])[pairs.outputs]  # [X, P, D]
    element, early = element[pairs.outputs], pairs.early[:, None]
    keys, values = _parted([factor[early, element] for factor in writes.factors])
    if keys is None:
        return None
    steps = len(decays.scales)
    scale = decays.between(pairs)
    if scale is None:
        return None
    scale = scale[torch.arange(len(early))[:, None], element]
    gated = bool((decays.places >= 0).any())
    columns, kind = decays.places, torch.zeros(size).long()
    if gated:
        columns, kind = columns.unique(dim=1, return_inverse=True)  # [T - 1, C], [n]
    decay = kind[element] * len(early) + torch.arange(len(early))[:, None] if gated else torch.zeros_like(q)
    constants, scaled = scale.unique(return_inverse=True)
    rows = torch.stack([q, keys, decay, scaled], -1).flatten(2).flatten(0, 1)
    unique, scores = rows.unique(dim=0, return_inverse=True)
    own_q, own_k, own_decay, own_scale = unique.unflatten(1, (-1, 4)).unbind(-1)  # [U, D]
    both, at = (own_q * writes.pool.size + own_k).unique(return_inverse=True)
    between = (torch.arange(steps) >= pairs.early[:, None]) & (torch.arange(steps) < pairs.late[:, None])
    written = None
    if gated:
        used = (columns >= 0).any(1)
        if bool((columns[used] < 0).any()):
            return None
        written = columns[used].T, between[:, used].to(graph.dtype), own_decay
    return _Reading(
        node,
        queries,
        writes.pool,
        decays.pool,
        (both // writes.pool.size, both % writes.pool.size, at),
        written,
        None if bool((constants == 1).all()) else constants[own_scale],
        scores.view(q.shape[:2]),
        values,
        pairs.sums.to(graph.dtype),
        pairs.order,
    )


class _Pairs(NamedTuple):
    """Which sums there are: [X, P] outputs, by pairs of an early and a late step [P]; `sums` [T, P] has the pairs of
    each late step, `order` [outputs] where these are in [X, T]."""

    outputs: Tensor
    early: Tensor
    late: Tensor
    sums: Tensor
    order: Tensor


def _arranged(steps: Tensor) -> _Pairs | None:
    """For outputs at steps [O]; None where not every step has as many."""
    times, which, count = steps.unique(return_inverse=True, return_counts=True)
    if bool((count != count[0]).any()):
        return None
    grid = which.argsort(stable=True).view(len(times), -1).T  # [X, T]
    at = torch.repeat_interleave(torch.arange(len(times)), times + 1)  # [P]
    early = torch.cat([torch.arange(int(t) + 1) for t in times])
    sums = torch.arange(len(times))[:, None] == at
    return _Pairs(grid[:, at], early, times[at], sums, grid.flatten().argsort())


def _parted(factors: Sequence[Tensor]) -> tuple[Tensor | None, Tensor | None]:
    """The factor [X, P, D] of what is written that a sum over D is over, and the other one [X, P], if any."""
    if len(factors) == 1:
        return factors[0], None
    for keys, values in (factors, factors[::-1]):
        if bool((values == values[..., :1]).all()):
            return keys, values[..., 0]
    return None, None
