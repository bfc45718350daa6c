"""Which neurons read about the same inputs: profiles of what they read, and pairs of nearest ones."""

from __future__ import annotations

import torch
from torch import Tensor

_PROJECTION = 64
"""Dimensions in which the inputs that neurons read are compared."""


def profiles(size: Tensor, place: Tensor, inputs: int) -> Tensor:
    """What each of n neurons reads, [n, d]: the inputs `place` [n, m], below `inputs`, as much as `size` [n, m] says.
    Random projections, whose inner products are about those of all sizes (Johnson and Lindenstrauss 1984)."""
    generator = torch.Generator().manual_seed(0)
    random = torch.randn(inputs, _PROJECTION, generator=generator).to(size)
    parts = zip(size.split(256), place.split(256), strict=True)
    return normalised(torch.cat([torch.einsum("nm,nmd->nd", s, random[p]) for s, p in parts]))


def normalised(rows: Tensor) -> Tensor:
    """Rows of norm 1, or 0."""
    return rows / rows.norm(dim=1, keepdim=True).clamp(min=1e-30)


def nearest_pairs(profiles: Tensor) -> tuple[Tensor, Tensor]:
    """Positions of rows that are each other's nearest left, again and again; one alone is paired with the place
    behind the last."""
    count = len(profiles)
    near = profiles @ profiles.T
    near.fill_diagonal_(-torch.inf)
    every = torch.arange(count, device=profiles.device)
    left = torch.ones(count, dtype=torch.bool, device=profiles.device)
    firsts, seconds = [], []
    while int(left.sum()) > 1:
        best = near.argmax(1)
        mutual = (left & (best[best] == every) & (every < best)).nonzero()[:, 0]
        if not len(mutual):  # rows that are equally near to several
            some = left.nonzero()[:2, 0]
            mutual, best[some[0]] = some[:1], some[1]
        other = best[mutual]
        firsts.append(mutual)
        seconds.append(other)
        gone = torch.cat([mutual, other])
        left[gone] = False
        near[gone] = -torch.inf
        near[:, gone] = -torch.inf
    alone = left.nonzero()[:, 0]
    return torch.cat([*firsts, alone]), torch.cat([*seconds, torch.full_like(alone, count)])
