"""Gradient ascent on relaxation parameters: the optimiser, and the memory of the best values."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

Key = tuple[int, int]
Leaves = dict[Key, dict[str, Tensor]]
"""Free parameters, laid out as `crown.Slopes` describes; changed in place."""


class Adam:
    """Adam (Kingma and Ba 2015) upwards with Nesterov's momentum (Dozat 2016), which is worth two of ten steps; steps
    are in units of each parameter's range (`scales`, which broadcast).

    Nothing here waits for the device: what is not finite is replaced unasked.
    """

    def __init__(
        self, parameters: Sequence[Tensor], scales: Sequence[Tensor], rate: float, decay: float
    ) -> None:
        self._parameters, self._scales = list(parameters), list(scales)
        self._first = [torch.zeros_like(t) for t in parameters]
        # Not zero: denormal numbers are many times slower.
        self._second = [torch.full_like(t, 1e-30) for t in parameters]
        self._rate, self._decay, self._steps = rate, decay, 0

    @torch.no_grad()
    def step(self, gradients: Sequence[Tensor | None]) -> None:
        """One step; entries of a gradient that are not finite count as zero, and so does one that is None."""
        self._steps += 1
        rate = self._rate * self._decay ** (self._steps - 1) / (1 - 0.9 ** (self._steps + 1))
        root = (1 - 0.999**self._steps) ** -0.5
        for k, gradient in enumerate(gradients):
            if gradient is None:
                continue
            gradient = torch.nan_to_num(gradient, nan=0.0, posinf=0.0, neginf=0.0)
            first, second = self._first[k], self._second[k]
            first.lerp_(gradient, 0.1)
            second.mul_(0.999).addcmul_(gradient, gradient, value=0.001)
            step = second.sqrt().mul_(root).add_(1e-12).reciprocal_().mul_(first.lerp(gradient, 0.1))
            self._parameters[k].addcmul_(step, self._scales[k], value=rate)

    def index(self, chosen: Tensor, parameters: Sequence[Tensor]) -> None:
        """Go on with the instances `chosen` [b] only, whose parameters these are."""
        self._parameters = list(parameters)
        self._scales = [pick(t, chosen) for t in self._scales]
        self._first = [pick(t, chosen) for t in self._first]
        self._second = [pick(t, chosen) for t in self._second]


@dataclass(frozen=True)
class Free:
    """A free parameter `name` of R rows of B instances: its starting `value` [B or 1, 1, R or 1, *shape], its range
    `low`, `high` and the `scale` of its steps, [B or 1, 1, 1, *shape] or broadcast to that."""

    key: Key
    name: str
    value: Tensor
    low: Tensor
    high: Tensor
    scale: Tensor


class Pool:
    """All free parameters of a final pass side by side, `values` [B, R, N]: on a GPU the number of operations is what
    a step costs, and one long tensor takes as many as one short one."""

    def __init__(self, free: Sequence[Free], batch: int, rows: int) -> None:
        sizes = [math.prod(f.value.shape[3:]) for f in free]
        ends = list(itertools.accumulate(sizes, initial=0))
        self._shapes = [tuple(f.value.shape[3:]) for f in free]
        self._names = [(f.key, f.name) for f in free]
        self._slices = [slice(a, b) for a, b in itertools.pairwise(ends)]

        def together(tensors: Sequence[Tensor], count: int) -> Tensor:
            wide = [t.expand(batch, 1, count, *shape) for t, shape in zip(tensors, self._shapes, strict=True)]
            return torch.cat([t.reshape(batch, count, -1) for t in wide], 2)

        self.values = together([f.value.detach() for f in free], rows)
        self.low, self.high = together([f.low for f in free], 1), together([f.high for f in free], 1)
        self.scale = together([f.scale for f in free], 1)
        self.project()

    def project(self) -> None:
        """Back into the ranges."""
        torch.clamp(self.values, self.low, self.high, out=self.values)

    def parts(self, values: Tensor) -> list[Tensor]:
        """`values` [B, R, N] as one view [B, 1, R, *shape] per parameter."""
        return [
            values[:, :, s].view(*values.shape[:2], *shape).unsqueeze(1)
            for s, shape in zip(self._slices, self._shapes, strict=True)
        ]

    def leaves(self, parts: Sequence[Tensor]) -> Leaves:
        """The parameters by key and name."""
        found: Leaves = {}
        for (key, name), tensor in zip(self._names, parts, strict=True):
            found.setdefault(key, {})[name] = tensor
        return found

    def joined(self, gradients: Sequence[Tensor | None]) -> Tensor:
        """The gradients of all parts as one tensor [B, R, N]."""
        batch, rows = self.values.shape[:2]
        return torch.cat(
            [
                self.values.new_zeros(batch, rows, s.stop - s.start)
                if g is None
                else g.reshape(batch, rows, -1)
                for g, s in zip(gradients, self._slices, strict=True)
            ],
            2,
        )


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
                old = self.slopes[i, j][name]
                wins = wins.view(*wins.shape, *[1] * (tensor.dim() - 3))
                old[chosen] = torch.where(wins, tensor, old[chosen])


def index_leaves(leaves: Mapping[Key, Mapping[str, Tensor]], chosen: Tensor) -> Leaves:
    """The chosen instances of every tensor; leaves of a gradient stay leaves."""
    return {
        key: {n: pick(t.detach(), chosen).requires_grad_(t.requires_grad) for n, t in own.items()}
        for key, own in leaves.items()
    }


def pick(tensor: Tensor, chosen: Tensor) -> Tensor:
    """Select along the leading dimension unless it is shared (of size 1)."""
    return tensor if tensor.shape[0] == 1 else tensor[chosen]
