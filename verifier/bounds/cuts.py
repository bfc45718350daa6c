"""Cutting planes: linear inequalities between values of a network that enter a bound with multipliers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from verifier.graph import Interval
from verifier.graph.op import negligible


class Entries(NamedTuple):
    """Terms of C inequalities in one node: term e of inequality `owner[e]` is `values[..., e]` times the node's flat
    element `column[e]`; int64 [E], int64 [E], [B, R, E]."""

    owner: Tensor
    column: Tensor
    values: Tensor


@dataclass(frozen=True, eq=False)
class Cuts:
    """Per instance and row C inequalities, the sum of all nodes' terms >= `least` [B, R, C].

    With a multiplier m >= 0 the form m (least - terms) is not positive wherever they hold and may be added to a lower
    bound (GCP-CROWN, Zhang et al. 2022). Every row has inequalities of its own.
    """

    terms: Mapping[int, Entries]
    least: Tensor

    @property
    def count(self) -> int:
        return self.least.shape[2]

    def index(self, rows: Tensor) -> Cuts:
        """Those of some instances, in the order of `rows`."""
        terms = {i: e._replace(values=e.values[rows]) for i, e in self.terms.items()}
        return Cuts(terms, self.least[rows])

    def to(self, dtype: torch.dtype, device: torch.device) -> Cuts:
        """A narrowing cast rounds; `enter` counts that."""
        terms = {
            i: Entries(e.owner.to(device), e.column.to(device), e.values.to(device, dtype))
            for i, e in self.terms.items()
        }
        return Cuts(terms, self.least.to(device, dtype))

    def enter(
        self, factor: Tensor, bounds: Mapping[int, Interval]
    ) -> tuple[dict[int, Tensor], Tensor, Tensor]:
        """What multipliers `factor` [B, R, C] add to the coefficients of each node, flat [B, R, N], and to the constant
        [B, R], and what that may be wrong by [B, R], the cast of terms and ends included. `bounds` encloses the
        nodes."""
        shift = factor * self.least
        size = shift.detach().abs().sum(2)
        parts: dict[int, Tensor] = {}
        tiny = negligible(factor.dtype)
        for i, (owner, column, values) in self.terms.items():
            magnitude = bounds[i].magnitude.flatten(1)
            part = factor[:, :, owner] * values
            whole = part.new_zeros(*part.shape[:2], magnitude.shape[1])
            parts[i] = whole.index_add(2, column, -part)
            reach = magnitude[:, column].unsqueeze(1)
            size = size + ((part.detach().abs() + tiny * factor.detach()[:, :, owner]) * (reach + tiny)).sum(
                2
            )
        units = self.count + max(len(e.owner) for e in self.terms.values()) + 8
        return parts, shift.sum(2), units * torch.finfo(size.dtype).eps * size
