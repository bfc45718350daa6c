"""Elementwise intervals of tensors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

ROUNDED = 256
"""Units of rounding that an interval may be wide and count as a point where it is asked what is worth refining."""


class Interval(NamedTuple):
    """All tensors between `lower` and `upper`, elementwise; both of shape [B, *shape], B possibly 1."""

    lower: Tensor
    upper: Tensor

    @property
    def center(self) -> Tensor:
        return (self.lower + self.upper) / 2

    @property
    def radius(self) -> Tensor:
        return (self.upper - self.lower) / 2

    @property
    def magnitude(self) -> Tensor:
        """Elementwise largest absolute value."""
        return torch.maximum(self.lower.abs(), self.upper.abs())

    @property
    def wide(self) -> Tensor:
        """Where the ends differ by more than a little rounding makes them: elsewhere relaxations may take the interval
        for a point that need not be known better."""
        size = self.magnitude
        return (self.upper - self.lower > ROUNDED * torch.finfo(self.lower.dtype).eps * size) | size.isinf()

    def intersect(self, other: Interval) -> Interval:
        """The intersection. Two sound intervals of one value always meet in exact arithmetic, so where rounding
        lets them cross (lower > upper), both ends are ordered again: the hull of the two is still sound."""
        lower = torch.maximum(self.lower, other.lower)
        upper = torch.minimum(self.upper, other.upper)
        return Interval(torch.minimum(lower, upper), torch.maximum(lower, upper))

    def widen(self, amount: Tensor | float) -> Interval:
        return Interval(self.lower - amount, self.upper + amount)

    def sanitise(self) -> Interval:
        """NaN, the trace of inf - inf or 0 * inf, means that nothing is known."""
        return Interval(
            torch.nan_to_num(self.lower, nan=-torch.inf, posinf=torch.inf, neginf=-torch.inf),
            torch.nan_to_num(self.upper, nan=torch.inf, posinf=torch.inf, neginf=-torch.inf),
        )

    def map(self, f) -> Interval:
        """Apply a non-decreasing tensor function to both ends."""
        return Interval(f(self.lower), f(self.upper))

    def detach(self) -> Interval:
        return Interval(self.lower.detach(), self.upper.detach())

    def to(self, *args, **kwargs) -> Interval:
        """Change device, or to a wider dtype (a narrowing cast would need outward rounding: see `narrow`)."""
        return Interval(self.lower.to(*args, **kwargs), self.upper.to(*args, **kwargs))

    def narrow(self, dtype: torch.dtype) -> Interval:
        """Cast to `dtype`, rounding outward."""
        if dtype == self.lower.dtype or torch.finfo(dtype).eps < torch.finfo(self.lower.dtype).eps:
            return self.to(dtype)
        lower, upper = self.lower.to(dtype), self.upper.to(dtype)
        down = torch.full_like(lower, -torch.inf)
        lower = torch.where(lower.to(self.lower.dtype) > self.lower, torch.nextafter(lower, down), lower)
        upper = torch.where(upper.to(self.upper.dtype) < self.upper, torch.nextafter(upper, -down), upper)
        return Interval(lower, upper)

    def expand(self, batch: int) -> Interval:
        """Broadcast the leading dimension to `batch`."""
        return Interval(
            self.lower.expand(batch, *self.lower.shape[1:]), self.upper.expand(batch, *self.upper.shape[1:])
        )

    @staticmethod
    def cat(parts: Sequence[Interval]) -> Interval:
        """The batches of all parts one after another."""
        return Interval(torch.cat([p.lower for p in parts]), torch.cat([p.upper for p in parts]))

    @staticmethod
    def everything(batch: int, like: Tensor) -> Interval:
        """No constraint on `batch` tensors of the shape of each of `like` [B, *shape]."""
        end = torch.full((batch, *like.shape[1:]), torch.inf, dtype=like.dtype, device=like.device)
        return Interval(-end, end)

    def index(self, rows: Tensor | slice) -> Interval:
        """Select along the leading dimension; an interval with B = 1 is shared and stays as it is."""
        if self.lower.shape[0] == 1:
            return self
        return Interval(self.lower[rows], self.upper[rows])
