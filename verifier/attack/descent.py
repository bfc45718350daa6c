"""Projected gradient descent on the margins of many instances at once."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from verifier.attack.surrogate import gradient_at
from verifier.graph import Graph
from verifier.sets import InputSet


@dataclass(frozen=True)
class DescentOptions:
    """`steps` of each of `starts` (the first in the middle, the others at random), `seed` of the random ones."""

    steps: int = 40
    starts: int = 4
    seed: int = 0


def descend(
    graph: Graph, inputs: InputSet, rows: Tensor, options: DescentOptions = DescentOptions()
) -> tuple[Tensor, Tensor]:
    """Points [B, *shape] of the sets where the least of the linear forms `rows` [B, R, K] of the flattened output is
    small, and these least values [B].

    Steps go along the signs of gradients and are projected (Madry et al. 2018, arXiv 1706.06083), at a length that
    falls from a quarter of the set's width to nothing; the best point of every path counts. Nothing is claimed of them.
    """
    lower, upper = inputs.box()
    generator = torch.Generator().manual_seed(options.seed)
    shares = torch.rand((len(lower), options.starts, *lower.shape[1:]), generator=generator).to(lower)
    shares[:, 0] = 0.5
    x = inputs.project(lower.unsqueeze(1) + shares * (upper - lower).unsqueeze(1))
    best, least = x.clone(), x.new_full(x.shape[:2], torch.inf)
    for k in range(options.steps + 1):
        last = k == options.steps  # its gradient would lead nowhere
        with torch.set_grad_enabled(not last):
            x = x.detach().requires_grad_(not last)
            scores = graph.evaluate([x.flatten(0, 1)])[0].flatten(1).expand(x.shape[:2].numel(), -1)
            scores = scores.unflatten(0, x.shape[:2])
            margin = torch.einsum("brk,bsk->bsr", rows.to(scores), scores).amin(2)
            gradient = None if last else gradient_at(margin.sum(), x)
        better = margin.detach() < least
        least = torch.where(better, margin.detach(), least)
        best = torch.where(better.view(*better.shape, *([1] * (x.dim() - 2))), x.detach(), best)
        if gradient is not None:
            step = (upper - lower).unsqueeze(1) * (0.25 * (1 - k / (options.steps + 1)))
            x = inputs.project(x.detach() - step * gradient.sign())
    chosen = least.argmin(1)
    return best[torch.arange(len(best)), chosen], least.amin(1)
