"""Coefficients of linear forms on one node, kept structured for as long as their structure lasts.

A coefficient object stands for a tensor [B, R, *shape]: R linear forms ("rows") for each of B subdomains or
instances, over a node of the given shape. B is 1 while the forms do not depend on the subdomain.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

FEW = 16
"""Blocks of a sum, at most: as many columns of a matrix product cost hardly more than one."""


class Coefficients(ABC):
    """The interface that the backward pass needs of every kind."""

    @abstractmethod
    def dense(self) -> Tensor:
        """The full tensor [B, R, *shape]."""

    @abstractmethod
    def multiply(self, factor: Tensor) -> Coefficients:
        """Scale elementwise by `factor` [B, *shape] or [*shape] with a leading dimension of 1."""

    @property
    @abstractmethod
    def roundings(self) -> int:
        """How many roundings a term of `contract` meets in its sum, at most, that of its product included."""

    def contract(self, x: Tensor, absolute: bool = False) -> Tensor:
        """The forms' values at x [B or 1, *shape], or those of their absolute values: [B, R].

        The latter are for error bounds, of which a part of a thousand is enough: up to 2^14 terms they are one sum.
        """
        dense = rows(self.dense(), 2)
        if absolute:
            size = dense.abs()
            return plain_dot(size, rows(x)) if size.shape[2] <= 1 << 14 else dot(size, rows(x))
        return dot(dense, rows(x))

    def add(self, other: Coefficients) -> Coefficients:
        """The sum of two coefficient objects on the same node."""
        return Dense(self.dense() + other.dense())


@dataclass(frozen=True, eq=False)
class Dense(Coefficients):
    """Nothing is known of the structure."""

    values: Tensor

    @property
    def roundings(self) -> int:
        return roundings(math.prod(self.values.shape[2:]))

    def dense(self) -> Tensor:
        return self.values

    def multiply(self, factor: Tensor) -> Coefficients:
        return Dense(self.values * factor.unsqueeze(1))


@dataclass(frozen=True, eq=False)
class Rows(Coefficients):
    """Row r of subdomain b has one entry: `scale[b, r]` at flat position `index[b, r]` of the node.

    `index` int64 [B, R], `scale` [B, R] (a dtype carrier as well), `shape` the node's.
    """

    index: Tensor
    scale: Tensor
    shape: tuple[int, ...]

    @property
    def roundings(self) -> int:
        return 1

    def dense(self) -> Tensor:
        batch, rows = self.index.shape
        flat = self.scale.new_zeros(batch, rows, int(torch.Size(self.shape).numel()))
        flat.scatter_(2, self.index.unsqueeze(2), self.scale.expand(batch, rows).unsqueeze(2))
        return flat.view(batch, rows, *self.shape)

    def multiply(self, factor: Tensor) -> Rows:
        flat = factor.reshape(factor.shape[0], -1)
        batch = max(flat.shape[0], self.index.shape[0])
        index = self.index.expand(batch, -1)
        picked = flat.expand(batch, -1).gather(1, index)
        return Rows(index, self.scale * picked, self.shape)

    def contract(self, x: Tensor, absolute: bool = False) -> Tensor:
        flat = rows(x)
        batch = max(flat.shape[0], self.index.shape[0])
        picked = flat.expand(batch, -1).gather(1, self.index.expand(batch, -1))
        return (self.scale.abs() if absolute else self.scale) * picked

    @property
    def shared(self) -> bool:
        """Whether all subdomains are known to have the same index."""
        return len(self.index) == 1 or self.index.stride(0) == 0

    def scattered(self) -> Scattered:
        """The same as lists of one entry, where the index is shared."""
        return Scattered(self.index[0].unsqueeze(1), self.scale.unsqueeze(2), self.shape)

    def add(self, other: Coefficients) -> Coefficients:
        """Kinds defined elsewhere know how to take single entries in."""
        if isinstance(other, Rows):
            return Several((self, other))
        known = isinstance(other, (Dense, Diagonal))
        return super().add(other) if known else other.add(self)


@dataclass(frozen=True, eq=False)
class Scattered(Coefficients):
    """Row r has the entries `values[b, r, e]` at flat positions `index[r, e]` of the node, and zeros elsewhere. A row's
    positions are different, but for entries that are zero.

    Where an element depends on a few elements of every state (a column of one head), rows of states are of this kind.
    `values` [B, R, E], `index` int64 [R, E], `shape` the node's.
    """

    index: Tensor
    values: Tensor
    shape: tuple[int, ...]

    @property
    def roundings(self) -> int:
        return roundings(self.values.shape[2])

    def dense(self) -> Tensor:
        flat = self.values.new_zeros(*self.values.shape[:2], math.prod(self.shape))
        flat = flat.scatter_add(2, self.index.expand_as(self.values), self.values)
        return flat.view(*flat.shape[:2], *self.shape)

    def pick(self, x: Tensor) -> Tensor:
        """The numbers of x [B, *shape], or [B, G, *shape] for groups of consecutive rows, that the entries meet:
        [B, R, E]."""
        if x.dim() == len(self.shape) + 1 or x.shape[1] == 1:
            return rows(x)[:, self.index]
        groups = rows(x, 2)
        index = self.index.reshape(1, groups.shape[1], -1).expand(len(groups), -1, -1)
        return groups.gather(2, index).view(len(groups), *self.index.shape)

    def multiply(self, factor: Tensor) -> Scattered:
        return Scattered(self.index, self.values * self.pick(factor), self.shape)

    def contract(self, x: Tensor, absolute: bool = False) -> Tensor:
        return summed((self.values.abs() if absolute else self.values) * self.pick(x))

    def add(self, other: Coefficients) -> Coefficients:
        if isinstance(other, Rows) and other.shared:
            other = other.scattered()
        if not isinstance(other, Scattered):
            return super().add(other)
        if self.index is other.index or torch.equal(self.index, other.index):
            return Scattered(self.index, self.values + other.values, self.shape)
        batch = max(len(self.values), len(other.values))
        values = torch.cat([t.expand(batch, -1, -1) for t in (self.values, other.values)], 2)
        return Scattered(torch.cat([self.index, other.index], 1), values, self.shape).merged()

    def merged(self) -> Coefficients:
        """With entries at one position added up; dense where there are too many."""
        index, order = self.index.sort(1)
        fresh = torch.ones_like(index, dtype=torch.bool)
        fresh[:, 1:] = index[:, 1:] != index[:, :-1]
        place = fresh.cumsum(1) - 1
        count = int(place.amax()) + 1 if place.numel() else 0
        if count * SPARSE > math.prod(self.shape):
            return Dense(self.dense())
        if bool(fresh.all()):
            return self
        values = self.values.new_zeros(*self.values.shape[:2], count)
        place = torch.empty_like(place).scatter_(1, order, place)
        values = values.scatter_add(2, place.expand_as(self.values), self.values)
        own = index.new_zeros(len(index), count).scatter_(1, place, self.index)
        return Scattered(own, values, self.shape)

    def moved(self, table: Tensor, shape: tuple[int, ...]) -> Coefficients:
        """The coefficients of a node of `shape` that this node's element i adds up `table[i]` of, int64 [numel] or
        [numel, K]."""
        if table.dim() == 1:
            return Scattered(table[self.index], self.values, shape).merged()
        index = table[self.index].flatten(1)
        if table.shape[1] * self.values.shape[2] * SPARSE > math.prod(shape):
            return Dense(Scattered(index, self.values.repeat_interleave(table.shape[1], 2), shape).dense())
        return Scattered(index, self.values.repeat_interleave(table.shape[1], 2), shape).merged()


SPARSE = 4
"""Rows of a node with fewer entries than this part of its elements are kept as entries."""


@dataclass(frozen=True, eq=False)
class Several(Coefficients):
    """The sum of a few coefficients of single entries, kept apart: differences of elements are such. Operators may
    take it part by part."""

    parts: tuple[Rows, ...]

    @property
    def roundings(self) -> int:
        return len(self.parts)

    def dense(self) -> Tensor:
        total = self.parts[0].dense()
        for part in self.parts[1:]:
            total = total + part.dense()
        return total

    def multiply(self, factor: Tensor) -> Coefficients:
        return Several(tuple(p.multiply(factor) for p in self.parts))

    def contract(self, x: Tensor, absolute: bool = False) -> Tensor:
        """Of absolute values: of those of the parts, which is no less."""
        return torch.stack(torch.broadcast_tensors(*[p.contract(x, absolute) for p in self.parts])).sum(0)

    def add(self, other: Coefficients) -> Coefficients:
        if isinstance(other, Rows) and len(self.parts) < FEW:
            return Several((*self.parts, other))
        return super().add(other)


@dataclass(frozen=True, eq=False)
class Diagonal(Coefficients):
    """Row r is `values[b, r]` times element r of the node: R equals the node's size. `values` is [B, *shape]."""

    values: Tensor

    @property
    def roundings(self) -> int:
        return 1

    def dense(self) -> Tensor:
        batch, *shape = self.values.shape
        return torch.diag_embed(self.values.reshape(batch, -1)).view(batch, -1, *shape)

    def multiply(self, factor: Tensor) -> Coefficients:
        return Diagonal(self.values * factor)

    def contract(self, x: Tensor, absolute: bool = False) -> Tensor:
        return rows((self.values.abs() if absolute else self.values) * x)


@dataclass(frozen=True, eq=False)
class Factored(Coefficients):
    """A sum of products: `rows` [B, R, *narrow], of size 1 in the dimensions that the node's sums run over, times
    `common` [B or 1, *shape], which all rows share (None for 1). Those of a matrix product of two values are
    of this kind, so that their passes are matrix products too, and nothing of the size of all scalar products times
    all rows is ever made."""

    terms: tuple[tuple[Tensor, Tensor | None], ...]
    shape: tuple[int, ...]

    @property
    def repeated(self) -> tuple[int, ...]:
        """The dimensions of the node in which `rows` have size 1 and the node has not."""
        narrow = self.terms[0][0].shape[2:]
        return tuple(k for k, (n, m) in enumerate(zip(narrow, self.shape, strict=True)) if n != m)

    @property
    def roundings(self) -> int:
        narrow = self.terms[0][0].shape[2:]
        return (
            1
            + math.prod(self.shape) // max(math.prod(narrow), 1)
            + roundings(math.prod(narrow))
            + len(self.terms)
        )

    def dense(self) -> Tensor:
        parts = [r if c is None else r * c.unsqueeze(1) for r, c in self.terms]
        whole = sum(parts[1:], parts[0])
        return whole.expand(*whole.shape[:2], *self.shape)

    def multiply(self, factor: Tensor) -> Coefficients:
        terms = [(r, factor if c is None else c * factor) for r, c in self.terms]
        return Factored(tuple(terms), self.shape)

    def contract(self, x: Tensor, absolute: bool = False) -> Tensor:
        """With `absolute` the parts' values are added, which is no less than that of their sum."""
        total: Tensor | float = 0.0
        for row, common in self.terms:
            part = x if common is None else (common.abs() if absolute else common) * x
            part = self.gathered(part)
            part = plain_dot(rows(row.abs(), 2), rows(part)) if absolute else contract(row, part)
            total = total + part
        return torch.as_tensor(total)

    def gathered(self, x: Tensor) -> Tensor:
        """x [B or 1, *shape] summed over the repeated dimensions: [B or 1, *narrow]."""
        axes = [k + 1 for k in self.repeated]
        return x.expand(x.shape[0], *self.shape).sum(axes, keepdim=True) if axes else x

    def summed(self, axes: Sequence[int]) -> Tensor:
        """The sum over some dimensions of the node, which stay with size 1: [B, R, *shape]."""
        dims = range(2, 2 + len(self.shape))  # in the notation of torch.einsum: 0 is B, 1 is R
        kept = [d for d in dims if d - 2 not in axes]
        total: Tensor | float = 0.0
        for row, common in self.terms:
            own = [d for d in dims if row.shape[d] > 1]
            given = row.reshape(*row.shape[:2], *[row.shape[d] for d in own])
            shared = row.new_ones(1) if common is None else common
            shared = shared.expand(shared.shape[0], *self.shape)
            if len(shared) == 1:
                part = torch.einsum(given, [0, 1, *own], shared[0], list(dims), [0, 1, *kept])
            else:
                part = torch.einsum(given, [0, 1, *own], shared, [0, *dims], [0, 1, *kept])
            total = total + part
        whole = torch.as_tensor(total)
        return whole.reshape(*whole.shape[:2], *[1 if k in axes else n for k, n in enumerate(self.shape)])


def identity(shape: tuple[int, ...], like: Tensor) -> Diagonal:
    """One row per element of a node of `shape`, in the dtype and on the device of `like`."""
    return Diagonal(torch.ones((1, *shape), dtype=like.dtype, device=like.device))


def rows(x: Tensor, leading: int = 1) -> Tensor:
    """x with all but the first dimensions as one, of one element where there are none (`flatten` refuses that)."""
    return x.reshape(*x.shape[:leading], -1)


SHORT = 64
"""Terms up to which one sum is exact enough."""


@cache
def blocks(size: int) -> int:
    """Into how many sums of equal length a sum of `size` terms is split: a divisor of it, at most FEW; short sums stay
    whole."""
    return max(k for k in range(1, FEW + 1) if size % k == 0) if size > SHORT else 1


def roundings(size: int) -> int:
    """How many roundings a term meets in `dot` over `size` terms, at most: its product, its block, the blocks' sum.
    In whatever order a sum of n terms is evaluated, each meets at most n - 1 (Higham 2002, section 4.2)."""
    return size // blocks(size) + blocks(size) - 1


def plain_dot(a: Tensor, x: Tensor) -> Tensor:
    """The sum over N of a [B or 1, R, N] times x [B or 1, N] in any order: [B, R]."""
    if a.shape[0] == 1:
        return x @ a[0].mT
    return a @ x[0] if x.shape[0] == 1 else torch.bmm(a, x.unsqueeze(2)).squeeze(2)


def dot(a: Tensor, x: Tensor) -> Tensor:
    """The sum over N of a [B or 1, R, N] times x [B or 1, N]: [B, R].

    In two steps, over blocks and over their sums, because one long sum has a rounding error that grows with its
    length. For many rows the blocks are columns of one matrix product, whose other entries are exact zeros.
    """
    count = blocks(a.shape[2])
    if count == 1:
        return plain_dot(a, x)
    if a.shape[1] < 2 * count:
        return summed(a * x.unsqueeze(1))
    return torch.matmul(a, columns(x)).sum(2)


def summed(terms: Tensor) -> Tensor:
    """The sum over the last dimension, in blocks."""
    return terms.unflatten(-1, (blocks(terms.shape[-1]), -1)).sum(-1).sum(-1)


def columns(x: Tensor) -> Tensor:
    """x [..., N] as a matrix [..., N, K] that sums K blocks of N apart."""
    count = blocks(x.shape[-1])
    own = torch.eye(count, dtype=x.dtype, device=x.device).unsqueeze(1)
    return (x.unflatten(-1, (count, -1)).unsqueeze(-1) * own).flatten(-3, -2)


def contract(coefficients: Tensor, x: Tensor) -> Tensor:
    """Sum over the node's elements of [B or 1, R, *shape] times [B or 1, *shape]: [B, R]."""
    return dot(rows(coefficients, 2), rows(x))
