"""Coefficients of linear forms on one node, kept structured for as long as their structure lasts.

A coefficient object stands for a tensor [B, R, *shape]: R linear forms ("rows") for each of B subdomains or
instances, over a node of the given shape. B is 1 while the forms do not depend on the subdomain.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor


class Coefficients(ABC):
    """The interface that the backward pass needs of every kind."""

    @abstractmethod
    def dense(self) -> Tensor:
        """The full tensor [B, R, *shape]."""

    @abstractmethod
    def multiply(self, factor: Tensor) -> Coefficients:
        """Scale elementwise by `factor` [B, *shape] or [*shape] with a leading dimension of 1."""

    def contract(self, x: Tensor, absolute: bool = False) -> Tensor:
        """The forms' values at x [B or 1, *shape], or those of their absolute values: [B, R]."""
        dense = self.dense()
        return contract(dense.abs() if absolute else dense, x)

    def add(self, other: Coefficients) -> Coefficients:
        """The sum of two coefficient objects on the same node."""
        return Dense(self.dense() + other.dense())


@dataclass(frozen=True, eq=False)
class Dense(Coefficients):
    """Nothing is known of the structure."""

    values: Tensor

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

    def dense(self) -> Tensor:
        batch, rows = self.index.shape
        flat = self.scale.new_zeros(batch, rows, int(torch.Size(self.shape).numel()))
        flat.scatter_(2, self.index.unsqueeze(2), self.scale.expand(batch, rows).unsqueeze(2))
        return flat.view(batch, rows, *self.shape)

    def multiply(self, factor: Tensor) -> Coefficients:
        flat = factor.reshape(factor.shape[0], -1)
        batch = max(flat.shape[0], self.index.shape[0])
        index = self.index.expand(batch, -1)
        picked = flat.expand(batch, -1).gather(1, index)
        return Rows(index, self.scale * picked, self.shape)

    def contract(self, x: Tensor, absolute: bool = False) -> Tensor:
        flat = x.flatten(1)
        batch = max(flat.shape[0], self.index.shape[0])
        picked = flat.expand(batch, -1).gather(1, self.index.expand(batch, -1))
        return (self.scale.abs() if absolute else self.scale) * picked

    def add(self, other: Coefficients) -> Coefficients:
        """Kinds defined elsewhere know how to take single entries in."""
        known = isinstance(other, (Dense, Rows, Diagonal))
        return super().add(other) if known else other.add(self)


@dataclass(frozen=True, eq=False)
class Diagonal(Coefficients):
    """Row r is `values[b, r]` times element r of the node: R equals the node's size. `values` is [B, *shape]."""

    values: Tensor

    def dense(self) -> Tensor:
        batch, *shape = self.values.shape
        return torch.diag_embed(self.values.reshape(batch, -1)).view(batch, -1, *shape)

    def multiply(self, factor: Tensor) -> Coefficients:
        return Diagonal(self.values * factor)

    def contract(self, x: Tensor, absolute: bool = False) -> Tensor:
        return ((self.values.abs() if absolute else self.values) * x).flatten(1)


def identity(shape: tuple[int, ...], like: Tensor) -> Diagonal:
    """One row per element of a node of `shape`, in the dtype and on the device of `like`."""
    return Diagonal(torch.ones((1, *shape), dtype=like.dtype, device=like.device))


def contract(coefficients: Tensor, x: Tensor) -> Tensor:
    """Sum over the node's elements of [B or 1, R, *shape] times [B or 1, *shape]: [B, R]."""
    a, v = coefficients.flatten(2), x.flatten(1)
    if a.shape[0] == 1:
        return v @ a[0].T
    if v.shape[0] == 1:
        return a @ v[0]
    return torch.bmm(a, v.unsqueeze(2)).squeeze(2)
