"""How near to a sequence another class is found, by many gradient descents."""

from __future__ import annotations

import torch
from torch import Tensor, nn

RADII = torch.tensor([0.0005 * 1.1**k for k in range(80)])
"""What radii are chosen from: up to 0.93."""


def descend(
    module: nn.Module, x: Tensor, labels: Tensor, radius: Tensor, steps: int = 40, restarts: int = 3
) -> tuple[Tensor, Tensor]:
    """The least margin (score of the label less another's) found for each x [N, T, F] within `radius` [N, T, 1], cut
    to 0..1, and where: [N], [N, T, F].

    One descent per other class from x and each of `restarts` - 1 random points.
    """
    with torch.no_grad():
        classes = module(x[:1]).shape[1]
    each = (classes - 1) * restarts
    others = torch.arange(classes).expand(len(x), -1)
    others = others[others != labels[:, None]].view(len(x), -1).repeat(1, restarts).flatten()
    own = labels.repeat_interleave(each)
    lower, upper = (x - radius).clamp(min=0), (x + radius).clamp(max=1)
    lower, upper, step = (t.repeat_interleave(each, 0) for t in (lower, upper, radius / 3))
    random = torch.rand(lower.shape, generator=torch.Generator().manual_seed(0))
    points = lower + random * (upper - lower)
    first = (torch.arange(len(points)) % each < classes - 1)[:, None, None]
    points = torch.where(first, x.repeat_interleave(each, 0), points)
    rows = torch.arange(len(points))
    best, at = torch.full((len(points),), torch.inf), points
    for k in range(steps + 1):
        points = points.detach().requires_grad_()
        scores = module(points)
        margin = scores[rows, own] - scores[rows, others]
        gradient = torch.autograd.grad(margin.sum(), points)[0]
        margin = margin.detach()
        at = torch.where((margin < best)[:, None, None], points.detach(), at)
        best = torch.minimum(best, margin)
        moved = points.detach() - step * (1 - k / (steps + 1)) * gradient.sign()
        points = torch.minimum(torch.maximum(moved, lower), upper)
    least = best.view(len(x), each).min(1)
    return least.values, at.view(len(x), each, *x.shape[1:])[torch.arange(len(x)), least.indices]


def attacked_radii(module: nn.Module, x: Tensor, labels: Tensor, moving: Tensor) -> Tensor:
    """Per sequence the least radius of `RADII`, found by halving, at which a descent reaches another class while only
    the tokens `moving` [T] move; infinity where the largest does not suffice."""
    low, high = torch.zeros(len(x), dtype=torch.long), torch.full((len(x),), len(RADII))
    while bool((low < high).any()):
        middle = (low + high) // 2
        radius = RADII[middle.clamp(max=len(RADII) - 1)][:, None, None] * moving[None, :, None]
        found = descend(module, x, labels, radius, restarts=1)[0] < 0
        high = torch.where(found, middle, high)
        low = torch.where(found | (low >= high), low, middle + 1)
    return torch.cat([RADII, torch.tensor([torch.inf])])[high]
