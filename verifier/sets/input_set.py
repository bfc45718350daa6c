"""What the engines ask of a set of inputs."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Self

import torch
from torch import Tensor

from verifier.graph.interval import Interval


class InputSet(ABC):
    """B sets of tensors of one shape, one per instance or subdomain."""

    @abstractmethod
    def box(self) -> Interval:
        """The smallest box around each set: an Interval of [B, *shape]."""

    @abstractmethod
    def minimum(self, coefficients: Tensor) -> Tensor:
        """A lower bound of each linear form over its set: [B or 1, R, *shape] to [B, R]; exact where it can be."""

    @abstractmethod
    def minimiser(self, coefficients: Tensor) -> Tensor:
        """A point of the set where each form is least, or nearly so: [B, R, *shape]."""

    @abstractmethod
    def project(self, points: Tensor) -> Tensor:
        """Points [B, ..., *shape] moved into their set (nearest point, or a near one)."""

    @abstractmethod
    def index(self, rows: Tensor) -> Self:
        """Select along the batch dimension."""

    @abstractmethod
    def to(self, dtype: torch.dtype | None = None, device: torch.device | str | None = None) -> Self:
        """Cast, outward where the dtype narrows, and move."""

    @property
    def batch(self) -> int:
        return self.box().lower.shape[0]

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.box().lower.shape[1:])


def contract(coefficients: Tensor, x: Tensor) -> Tensor:
    """Sum over the node's elements of [B or 1, R, *shape] times [B or 1, *shape]: [B, R]."""
    a, v = coefficients.flatten(2), x.flatten(1)
    if a.shape[0] == 1:
        return v @ a[0].T
    if v.shape[0] == 1:
        return a @ v[0]
    return torch.bmm(a, v.unsqueeze(2)).squeeze(2)
