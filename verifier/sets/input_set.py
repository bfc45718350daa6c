"""What the engines ask of a set of inputs."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Self

import torch
from torch import Tensor

from verifier.graph.coefficients import Coefficients
from verifier.graph.interval import Interval


class InputSet(ABC):
    """B sets of tensors of one shape, one per instance or subdomain."""

    @abstractmethod
    def box(self) -> Interval:
        """The smallest box around each set: an Interval of [B, *shape]."""

    @abstractmethod
    def minimum(self, coefficients: Tensor) -> Tensor:
        """A lower bound of each linear form over its set: [B or 1, R, *shape] to [B, R]; exact where it can be."""

    def minimum_of(self, coefficients: Coefficients) -> Tensor:
        """`minimum` for coefficients of any kind; a set that need not make them dense says how."""
        return self.minimum(coefficients.dense())

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
