"""Activations that keep lengths: GroupSort, MaxMin and Householder reflections (reference modules)."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class GroupSort(nn.Module):
    """Groups of `size` adjacent elements of the last dimension, each sorted upwards (Anil, Lucas, Grosse, ICML
    2019)."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size

    def forward(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (-1, self.size)).sort(-1).values.flatten(-2)


class MaxMin(nn.Module):
    """The larger elements of the two halves of the last dimension, then the smaller ones: GroupSort of pairs."""

    def forward(self, x: Tensor) -> Tensor:
        a, b = x.chunk(2, -1)
        return torch.cat([torch.maximum(a, b), torch.minimum(a, b)], -1)


class Householder(nn.Module):
    """Groups of `size` adjacent elements of the last dimension [n], each reflected at the hyperplane orthogonal to a
    learned direction v where it lies behind it: x - 2 v min(v'x, 0) (Singla, Singla, Feizi, ICLR 2022).

    Written so it is continuous for any v, whatever its length is after rounding; a choice between x and its reflection
    is not.
    """

    def __init__(self, n: int, size: int = 2) -> None:
        super().__init__()
        self.size = size
        self.direction = nn.Parameter(torch.randn(n // size, size))

    def forward(self, x: Tensor) -> Tensor:
        v = nn.functional.normalize(self.direction, dim=1)
        groups = x.unflatten(-1, (-1, self.size))
        behind = torch.relu(-(groups * v).sum(-1, keepdim=True))
        return (groups + 2 * behind * v).flatten(-2)
