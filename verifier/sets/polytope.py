"""Boxes cut by half-spaces."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from verifier.graph.coefficients import roundings
from verifier.graph.interval import Interval
from verifier.sets.box import Box
from verifier.sets.input_set import InputSet


@dataclass(frozen=True, eq=False)
class Polytope(InputSet):
    """{x in a box : matrix x <= bound}; `matrix` [B, M, *shape], `bound` [B, M].

    Linear forms are bounded through multipliers lambda >= 0, min over the box of (c + lambda G) x - lambda h,
    each multiplier maximised exactly in turn for `sweeps` rounds. Any multiplier is sound, so a set that is
    empty gives bounds that are true of nothing, never wrong ones.
    """

    base: Box
    matrix: Tensor
    bound: Tensor
    sweeps: int = 3

    def box(self) -> Interval:
        return self.base.box()

    def multipliers(self, coefficients: Tensor) -> Tensor:
        """Good multipliers for each form: [B, R, M], not negative."""
        flat = coefficients.detach().flatten(2).expand(self.base.batch, -1, -1)
        matrix = self.matrix.flatten(2)
        chosen = flat.new_zeros(*flat.shape[:2], matrix.shape[1])
        center, radius = (
            (self.base.lower + self.base.upper).flatten(1) / 2,
            (self.base.upper - self.base.lower).flatten(1) / 2,
        )
        for _ in range(self.sweeps):
            for k in range(matrix.shape[1]):
                row = matrix[:, k]
                rest = (
                    flat + torch.einsum("brm,bmn->brn", chosen, matrix) - chosen[:, :, k, None] * row[:, None]
                )
                best = line_multiplier(rest, row, self.bound[:, k], center, radius)
                chosen = torch.cat([chosen[:, :, :k], best.unsqueeze(2), chosen[:, :, k + 1 :]], dim=2)
        return chosen

    def minimum(self, coefficients: Tensor) -> Tensor:
        chosen = self.multipliers(coefficients)
        shift = torch.einsum("brm,bmn->brn", chosen, self.matrix.flatten(2)).view(
            *chosen.shape[:2], *self.shape
        )
        with_constraints = self.base.minimum(coefficients + shift) - torch.einsum(
            "brm,bm->br", chosen, self.bound
        )
        # The engine counts the rounding of forms as large as `coefficients`; the multipliers may be larger.
        reach = torch.einsum("bmn,bn->bm", self.matrix.abs().flatten(2), self.box().magnitude.flatten(1))
        size = torch.einsum("brm,bm->br", chosen, reach + self.bound.abs())
        units = self.matrix.shape[1] + roundings(math.prod(self.shape)) + 8
        with_constraints = with_constraints - units * torch.finfo(size.dtype).eps * size
        return torch.maximum(with_constraints, self.base.minimum(coefficients))

    def minimiser(self, coefficients: Tensor) -> Tensor:
        chosen = self.multipliers(coefficients)
        shift = torch.einsum("brm,bmn->brn", chosen, self.matrix.flatten(2)).view(
            *chosen.shape[:2], *self.shape
        )
        return self.project(self.base.minimiser(coefficients + shift))

    def project(self, points: Tensor) -> Tensor:
        """Alternating projections on the half-spaces and the box; the result may stay outside by a little."""
        extra = points.dim() - self.base.lower.dim()
        view = (self.base.batch, *([1] * extra), -1)
        points = self.base.project(points)
        for _ in range(10 * self.sweeps):
            for k in range(self.matrix.shape[1]):
                flat, row = points.flatten(extra + 1), self.matrix[:, k].flatten(1).view(view)
                excess = (flat * row).sum(-1) - self.bound[:, k].view(view[:-1])
                length = row.square().sum(-1).clamp(min=torch.finfo(flat.dtype).tiny)
                flat = flat - (excess.clamp(min=0) / length).unsqueeze(-1) * row
                points = self.base.project(flat.view(points.shape))
        return points

    def index(self, rows: Tensor) -> Polytope:
        return Polytope(self.base.index(rows), self.matrix[rows], self.bound[rows], self.sweeps)

    def to(self, dtype: torch.dtype | None = None, device: torch.device | str | None = None) -> Polytope:
        """Narrowing the half-spaces is paid for in the bound, by the most that it can matter inside the box."""
        matrix = self.matrix.to(dtype=dtype, device=device)
        moved = (matrix.to(self.matrix) - self.matrix).abs().flatten(2)
        reach = self.box().magnitude.flatten(1)
        slack = torch.einsum("bmn,bn->bm", moved, reach)
        bound = (self.bound + slack).to(dtype=dtype, device=device)
        if dtype is not None and dtype != self.bound.dtype:
            bound = bound + 4 * torch.finfo(dtype).eps * bound.abs()
        return Polytope(self.base.to(dtype, device), matrix, bound, self.sweeps)


def line_multiplier(form: Tensor, row: Tensor, bound: Tensor, center: Tensor, radius: Tensor) -> Tensor:
    """The lambda >= 0 that maximises min over the box of (form + lambda row) x - lambda bound.

    form [B, R, n], row [B, n], bound [B], center and radius [B, n]; returns [B, R]. The function is concave and
    piecewise linear with kinks where an element of form + lambda row changes sign; its slope falls by
    2 |row_i| radius_i at each, so the best kink is found by sorting them. Where it grows forever (the set is
    empty), the last kink is taken.
    """
    row, center, radius = row.unsqueeze(1), center.unsqueeze(1), radius.unsqueeze(1)
    sign = torch.where(form == 0, row.sign(), form.sign())
    slope = (row * center - sign * row * radius).sum(2) - bound.unsqueeze(1)
    kinks = torch.where(row == 0, torch.inf, -form / row)
    ahead = kinks > 0
    kinks = torch.where(ahead, kinks, torch.inf)
    drops = torch.where(ahead & kinks.isfinite(), 2 * (row * radius).abs(), 0.0)
    ordered, order = kinks.sort(dim=2)
    slopes = slope.unsqueeze(2) - drops.gather(2, order).cumsum(2)
    finite = ordered.isfinite()
    reached = (slopes <= 0) & finite
    first = torch.where(reached.any(2), reached.float().argmax(2), (finite.sum(2) - 1).clamp(min=0))
    best = ordered.gather(2, first.unsqueeze(2)).squeeze(2)
    return torch.where((slope > 0) & best.isfinite(), best, 0.0)
