"""Gradient ascent on relaxation parameters: the optimiser, and the memory of the best values."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

Key = tuple[int, int]
Leaves = dict[Key, dict[str, Tensor]]
"""Free parameters, laid out as `crown.Slopes` describes; changed in place."""


class Adam:
    """Adam (Kingma and Ba 2015) upwards, with steps in units of each parameter's range (`scales`)."""

    def __init__(self, leaves: Leaves, scales: Leaves, rate: float, decay: float) -> None:
        self._scales, self._rate, self._decay, self._steps = scales, rate, decay, 0
        self._first = {key: {n: torch.zeros_like(t) for n, t in own.items()} for key, own in leaves.items()}
        floor = 1e-30  # not zero: denormal numbers are many times slower
        self._second = {
            key: {n: torch.full_like(t, floor) for n, t in own.items()} for key, own in leaves.items()
        }

    @torch.no_grad()
    def step(self, leaves: Leaves, gradients: Mapping[tuple[Key, str], Tensor]) -> None:
        """One step; entries of a gradient that are not finite count as zero."""
        self._steps += 1
        rate = self._rate * self._decay ** (self._steps - 1) / (1 - 0.9**self._steps)
        root = (1 - 0.999**self._steps) ** -0.5
        for (key, name), gradient in gradients.items():
            if not math.isfinite(float(gradient.sum())):
                gradient = torch.nan_to_num(gradient, nan=0.0, posinf=0.0, neginf=0.0)
            first, second = self._first[key][name], self._second[key][name]
            first.lerp_(gradient, 0.1)
            second.mul_(0.999).addcmul_(gradient, gradient, value=0.001)
            step = second.sqrt().mul_(root).add_(1e-12).reciprocal_().mul_(first)
            leaves[key][name].addcmul_(step, self._scales[key][name], value=rate)

    def index(self, chosen: Tensor) -> None:
        """Go on with the instances `chosen` [b] only."""
        self._scales = index_leaves(self._scales, chosen)
        self._first = index_leaves(self._first, chosen)
        self._second = index_leaves(self._second, chosen)


class Best:
    """The largest values so far of every bounded row, [B, G, K] per bounded node, and the slopes that gave
    them."""

    def __init__(self, slopes: Leaves, values: Mapping[int, Tensor]) -> None:
        self.slopes = {key: {n: t.detach().clone() for n, t in own.items()} for key, own in slopes.items()}
        self.values = {i: value.clone() for i, value in values.items()}

    @torch.no_grad()
    def update(self, chosen: Tensor, slopes: Leaves, values: Mapping[int, Tensor]) -> None:
        """`slopes` and `values` belong to the instances `chosen` [b], in order."""
        better: dict[int, Tensor] = {}
        for i, value in values.items():
            old = self.values[i][chosen]
            better[i] = value > old
            self.values[i][chosen] = torch.maximum(value, old)
        for (i, j), own in slopes.items():
            for name, tensor in own.items():
                wins = better[i]
                if tensor.shape[2] != wins.shape[2]:  # one slope for all rows: a majority decides
                    wins = 2 * wins.sum(2, keepdim=True) > wins.shape[2]
                b, g, k = wins.nonzero(as_tuple=True)
                self.slopes[i, j][name][chosen[b], g, k] = tensor[b, g, k]


def index_leaves(leaves: Mapping[Key, Mapping[str, Tensor]], chosen: Tensor) -> Leaves:
    """The chosen instances of every tensor; leaves of a gradient stay leaves."""
    return {
        key: {n: pick(t.detach(), chosen).requires_grad_(t.requires_grad) for n, t in own.items()}
        for key, own in leaves.items()
    }


def pick(tensor: Tensor, chosen: Tensor) -> Tensor:
    """Select along the leading dimension unless it is shared (of size 1)."""
    return tensor if tensor.shape[0] == 1 else tensor[chosen]
