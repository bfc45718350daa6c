"""What a loss takes for the perturbations of an example."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from verifier.graph import Graph
from verifier.sets import Box, InputSet
from verifier.training.enclosures import Enclosure

Radius = float | Tensor


class Neighbourhood(ABC):
    """Which inputs around x [B, *shape] count, for a radius `eps` in the units of x."""

    @abstractmethod
    def around(self, x: Tensor, eps: Radius) -> InputSet:
        """The sets, with the module's batch of 1: [B, 1, *shape]."""

    def start(self, graph: Graph, inputs: InputSet, eps: Radius) -> Mapping[int, Enclosure]:
        """What is known before intervals are propagated: the input's enclosure, and of other nodes what is tighter."""
        return {graph.inputs[0]: Enclosure(inputs.box())}

    def perturbed(self, graph: Graph, inputs: InputSet, eps: Radius) -> Graph:
        """The graph that intervals are propagated through."""
        return graph


@dataclass(frozen=True)
class Linf(Neighbourhood):
    """All points within `eps` in the maximum norm, cut to `clip`, the range of the data.

    `eps` is a number, or a tensor that broadcasts to x: [B, 1, ...] for a radius per example, [C, 1, 1] per channel.
    """

    clip: tuple[float, float] | None = None

    def around(self, x: Tensor, eps: Radius) -> Box:
        lower, upper = x - eps, x + eps
        if self.clip is not None:
            lower, upper = lower.clamp(*self.clip), upper.clamp(*self.clip)
        return Box(lower.unsqueeze(1), upper.unsqueeze(1))


def scaled(eps: Radius, factor: float) -> Radius:
    """The radius times a number."""
    return eps * factor
