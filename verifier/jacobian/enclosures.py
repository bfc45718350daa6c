"""How much to do for bounds of derivatives, and the first bounds: enclosures of an objective's values on one set."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum

import torch
from torch import Tensor

from verifier.bounds.alpha import AlphaOptions
from verifier.bounds.compute import compute_bounds
from verifier.graph import Interval
from verifier.jacobian.objective import Objective
from verifier.options import BoundMethod
from verifier.sets import Box, InputSet

ROWS = 256
"""Seeds bounded at a time."""


class Method(Enum):
    """How an upper bound was found, from cheap to tight."""

    PRODUCT = "product-of-norms"
    INTERVAL = "interval"
    CROWN = "crown"
    OPTIMISED = "alpha-crown"
    SEMIDEFINITE = "semidefinite"
    SEARCH = "branch-and-bound"

    @property
    def text(self) -> str:
        """What it is, in words."""
        return _TEXT[self]


_TEXT = {
    Method.PRODUCT: "the layers' norms and slopes multiplied, or layer-wise ellipsoids (chains only)",
    Method.INTERVAL: "intervals of the Jacobian's entries",
    Method.CROWN: "linear bounds of the norm through the backward pass",
    Method.OPTIMISED: "the same with optimised slopes",
    Method.SEMIDEFINITE: "a semidefinite programme over the layers (chains only; extra sdp)",
    Method.SEARCH: "linear bounds on parts of the set",
}

BOUNDS: dict[Method, BoundMethod] = {
    Method.INTERVAL: "interval",
    Method.CROWN: "crown",
    Method.OPTIMISED: "alpha-crown",
}


@dataclass(frozen=True)
class Effort:
    """`methods` in their order; `deadline` of `time.monotonic`; `gap` the ratio at which the search ends."""

    methods: Sequence[Method] = tuple(Method)
    deadline: float = math.inf
    gap: float = 1e-6
    memory: int = 1 << 30
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    dtype: torch.dtype = torch.float32
    seed: int = 0


def alpha_options(effort: Effort) -> AlphaOptions:
    return AlphaOptions(memory=effort.memory // 4, deadline=effort.deadline)


@torch.no_grad()
def root_intervals(question: Objective, sets: Sequence[InputSet], method: Method, effort: Effort) -> Interval:
    """Enclosures of an objective's values for every seed on one instance, [S, K], float64."""
    boxes = [s.to(effort.dtype, effort.device) for s in sets]
    seeds = question.seeds.to(effort.dtype).to(effort.device)
    graph = question.graph.to(effort.dtype, effort.device)
    parts = []
    for rows in torch.arange(len(seeds), device=effort.device).split(ROWS):
        seed = seeds[rows]
        many = [s.index(torch.zeros(len(seed), dtype=torch.int64, device=effort.device)) for s in boxes]
        parts.append(
            compute_bounds(
                graph, [*many, Box(seed, seed)], BOUNDS[method], (), alpha_options(effort)
            ).outputs[0]
        )
    found = Interval.cat([p.map(lambda t: t.flatten(1).double()) for p in parts])
    return found.map(Tensor.detach).sanitise()


def root_values(question: Objective, sets: Sequence[InputSet], method: Method, effort: Effort) -> Tensor:
    """Upper bounds of an objective's values for every seed on one instance, [S, K], float64."""
    return root_intervals(question, sets, method, effort).upper


def raised(value: float, power: int) -> float:
    """The root of a bound, rounded up."""
    return value if power == 1 else math.sqrt(max(value, 0.0)) * (1 + 1e-15)
