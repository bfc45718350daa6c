"""What a loss takes for the perturbations of an example."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from verifier.graph import Graph, Interval
from verifier.ops.convolution import Conv
from verifier.ops.linear import Linear
from verifier.sets import Ball, Box, InputSet
from verifier.training.enclosures import Enclosure

Radius = float | Tensor


class Neighbourhood(ABC):
    """Which inputs around x [B, *shape] count, for a radius `eps` in the units of x."""

    weights: float = 0.0
    """By how much of its size every entry of every trained parameter may change, at once with the input; only intervals
    count that, and attacks leave the parameters as they are."""

    @abstractmethod
    def around(self, x: Tensor, eps: Radius) -> InputSet:
        """The sets, with the module's batch of 1: [B, 1, *shape]."""

    def start(self, graph: Graph, inputs: InputSet) -> dict[int, Enclosure]:
        """What is known before intervals are propagated: the input's enclosure, and of other nodes what is tighter."""
        return {graph.inputs[0]: Enclosure(inputs.box())}


@dataclass(frozen=True)
class Linf(Neighbourhood):
    """All points within `eps` in the maximum norm, cut to `clip`, the range of the data; with `weights` above 0 all
    networks whose trained parameters (those that require gradients) differ by that part of each entry, too: matrices,
    kernels, recurrent weights, biases, scales of normalisations, learned positions. Statistics and
    frozen parameters stay. ModelError where a parameter is not read as it is (a sum of two, its exponential).

    `eps` is a number, or a tensor that broadcasts to x: [B, 1, ...] for a radius per example, [C, 1, 1] per channel,
    [B, T, 1] per token of a sequence of embeddings (see `token_radius`).
    """

    clip: tuple[float, float] | None = None
    weights: float = 0.0

    def around(self, x: Tensor, eps: Radius) -> Box:
        lower, upper = x - eps, x + eps
        if self.clip is not None:
            lower, upper = lower.clamp(*self.clip), upper.clamp(*self.clip)
        return Box(lower.unsqueeze(1), upper.unsqueeze(1))


@dataclass(frozen=True)
class Lp(Neighbourhood):
    """All points within `eps` in the l2 (`p` = 2) or l1 norm (`p` = 1) of the whole example, cut to `clip`.

    Backward passes take the dual norm of their coefficients. Intervals take that of the rows of the linear layer or
    convolution that reads the input, and the smallest box around the set elsewhere. `eps` is a number or [B].
    """

    p: Literal[1, 2]
    clip: tuple[float, float] | None = None

    def around(self, x: Tensor, eps: Radius) -> Ball:
        center = x.unsqueeze(1)
        radius = torch.as_tensor(eps, dtype=x.dtype, device=x.device).expand(len(x))
        ends = None if self.clip is None else tuple(torch.full_like(center, end) for end in self.clip)
        return Ball(center, radius, self.p, ends)  # pyright: ignore[reportArgumentType]

    def start(self, graph: Graph, inputs: InputSet) -> dict[int, Enclosure]:
        found = super().start(graph, inputs)
        if not isinstance(inputs, Ball):
            return found
        reading = {graph.inputs[0]: inputs.center}  # nodes that hold the input, moved to another shape
        for i, node in enumerate(graph.nodes):
            if len(node.inputs) != 1 or node.inputs[0] not in reading:
                continue
            value = node.op.forward(reading[node.inputs[0]])
            if getattr(node.op, "exact", False):
                reading[i] = value
            elif isinstance(node.op, Linear | Conv):
                radius = inputs.radius.view(-1, *[1] * len(node.shape)) * _row_norms(
                    node.op, self.p, len(node.shape)
                )
                found[i] = Enclosure(Interval(value - radius, value + radius))
        return found


def _row_norms(op: Linear | Conv, p: int, rank: int) -> Tensor:
    """The dual norm of each row, as it broadcasts to a result with `rank` dimensions; of a convolution that of the
    whole kernel, although the padding leaves out parts of it."""
    norms = torch.linalg.vector_norm(op.weight.flatten(1), 2 if p == 2 else torch.inf, dim=1)
    return norms if isinstance(op, Linear) else norms.view(-1, *[1] * (rank - 2))


def token_radius(mask: Tensor, eps: float) -> Tensor:
    """A radius of `eps` for the tokens where `mask` [B, T] is true and 0 for others (padding, say), for embeddings
    [B, T, D]: [B, T, 1]."""
    return eps * mask.to(torch.get_default_dtype()).unsqueeze(-1)


def scaled(eps: Radius, factor: float) -> Radius:
    """The radius times a number."""
    return eps * factor
