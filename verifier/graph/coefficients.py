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


@dataclass(frozen=True, eq=False)
class Diagonal(Coefficients):
    """Row r is `values[b, r]` times element r of the node: R equals the node's size. `values` is [B, *shape]."""

    values: Tensor

    def dense(self) -> Tensor:
        batch, *shape = self.values.shape
        return torch.diag_embed(self.values.reshape(batch, -1)).view(batch, -1, *shape)

    def multiply(self, factor: Tensor) -> Coefficients:
        return Diagonal(self.values * factor)


def identity(shape: tuple[int, ...], like: Tensor) -> Diagonal:
    """One row per element of a node of `shape`, in the dtype and on the device of `like`."""
    return Diagonal(torch.ones((1, *shape), dtype=like.dtype, device=like.device))
