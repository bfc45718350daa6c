"""Branch and bound over the cases of a question about derivatives, ready to run."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from verifier.bounds.alpha import AlphaOptions
from verifier.branching.activation_split import HEURISTICS, ActivationBrancher
from verifier.branching.bounding import Bounder, BoundOptions
from verifier.branching.domains import Domains
from verifier.branching.input_split import InputBrancher
from verifier.branching.root import below, root
from verifier.branching.search import Brancher, Search, SearchOptions, Try
from verifier.branching.sizes import INPUT_DIMENSIONS, INPUTS_TRIED, cases, step_size, wide_step_size
from verifier.ops.switched import Switched
from verifier.specs.compile import Compiled

ROOT_ITERATIONS = 20


@dataclass(frozen=True)
class Limits:
    """`deadline` is a time of `time.monotonic`, `gap` the ratio of bounds at which the search ends, `memory` bytes."""

    deadline: float
    gap: float = 1e-6
    memory: int = 1 << 30
    device: torch.device = torch.device("cpu")
    dtype: torch.dtype = torch.float32


@dataclass(frozen=True, eq=False)
class Plan:
    """How to search: `start` is what the first bounds leave open (nothing, perhaps), with `origin` [P] the question's
    own case behind each of the search's; `closed` is the least score that they prove of what they settle, `first` how
    many subdomains they bounded."""

    bounder: Bounder
    brancher: Brancher
    start: Domains
    options: SearchOptions
    origin: Tensor
    closed: float
    first: int

    def search(self, look: Try, start: Domains | None = None, brancher: Brancher | None = None) -> Search:
        """A run over `start`, or over a part of it."""
        begin = self.start if start is None else start
        return Search(self.bounder, brancher or self.brancher, begin, look, self.options)


def plan(compiled: Compiled, limits: Limits, few: int = 0) -> Plan:
    """Boxes are halved where no more than `few` inputs vary, or not very many and nothing switches; otherwise neurons
    are split, below the first bounds of all cases. Raises OutOfTime."""
    settings = BoundOptions(memory=limits.memory // 4, deadline=limits.deadline)
    bounder = Bounder(compiled, limits.device, limits.dtype, settings)
    start = cases(compiled, limits.device)
    switched = any(isinstance(n.op, Switched) for n in bounder.graph.nodes)
    if compiled.varying <= (few if switched else INPUT_DIMENSIONS):
        options = SearchOptions(limits.deadline, batch=step_size(bounder), memory=limits.memory // 2)
        return Plan(bounder, InputBrancher(bounder), start, options, start.case, math.inf, len(start))
    alpha = AlphaOptions(ROOT_ITERATIONS, memory=limits.memory // 8, deadline=limits.deadline)
    with torch.no_grad():
        found = root(bounder, start, alpha, step_size(bounder))
    inner = below(found, bounder, settings) if len(found.start) else bounder
    tried = INPUTS_TRIED if compiled.varying <= INPUT_DIMENSIONS else 0
    brancher = ActivationBrancher(inner, HEURISTICS["fsb"], 0, tried)
    options = SearchOptions(
        limits.deadline, batch=wide_step_size(inner), memory=limits.memory // 2, closed=found.closed
    )
    return Plan(inner, brancher, found.start, options, found.origin, found.closed, len(start))
