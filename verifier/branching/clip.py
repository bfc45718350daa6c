"""Shrinking input boxes with the planes of a bound: domain clipping."""

from __future__ import annotations

import torch
from torch import Tensor


def clip(
    lower: Tensor, upper: Tensor, planes: Tensor, constants: Tensor, sweeps: int = 3
) -> tuple[Tensor, Tensor, Tensor]:
    """The smallest box found around {x in the box : planes x + constants <= 0 for every plane}.

    `lower`, `upper` [M, n]; `planes` [M, C, n], `constants` [M, C], all float64. Returns the new ends and a mask
    [M] of boxes in which nothing satisfies all planes. For one plane the box is the exact hull,
    x_i <= (-constant - sum over j != i of the least a_j x_j) / a_i for a_i > 0; several planes are swept in turn.
    Every new end is moved outward by a bound on the rounding of its computation.
    """
    unit = (planes.shape[2] + 8) * torch.finfo(planes.dtype).eps
    empty = torch.zeros(lower.shape[0], dtype=torch.bool, device=lower.device)
    for _ in range(sweeps):
        for c in range(planes.shape[1]):
            a, b = planes[:, c], constants[:, c]
            least = torch.minimum(a * lower, a * upper)
            total = least.sum(1) + b
            size = (a.abs() * torch.maximum(lower.abs(), upper.abs())).sum(1) + b.abs()
            empty |= total > unit * size
            room = -(total.unsqueeze(1) - least)
            slack = 2 * unit * size.unsqueeze(1)
            divisor = torch.where(a == 0, torch.ones_like(a), a)
            limit = (room + slack) / divisor.abs()
            limit = limit + 4 * unit * limit.abs()
            upper = torch.where((a > 0) & (limit < upper), limit, upper)
            lower = torch.where((a < 0) & (-limit > lower), -limit, lower)
        empty |= (lower > upper).any(1)
        upper = torch.where(empty.unsqueeze(1), torch.maximum(lower, upper), upper)
    return lower, upper, empty
