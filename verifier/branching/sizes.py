"""How many subdomains make a step, and how much memory there is."""

from __future__ import annotations

import math

import torch

from verifier.branching.bounding import Bounder
from verifier.branching.domains import Domains
from verifier.graph import Elementwise, Graph
from verifier.graph.op import Input
from verifier.specs.compile import Compiled

STEP_WORK = 3e8
"""Coefficients in one step of branch and bound, about."""
ROW_WORK = 4e6
"""Coefficients of single rows in one step, about, on a CPU."""
FREE = 256
"""Subdomains that a GPU bounds in the time of one."""
FREE_WORK = 2e6
"""Coefficients that a CPU meets in the time that starting the operations of a step takes, about."""
INPUT_DIMENSIONS = 48
"""Up to this many inputs that vary, boxes are split; above, neurons are. Splitting boxes bounds all unstable
neurons anew for every part, so a network of at most INPUT_WORK coefficients per pass is asked for, too."""
INPUT_WORK = 5e6
INPUTS_TRIED = 2
"""Coordinates whose halves are compared with those of neurons, in a box of few that vary."""


def cases(compiled: Compiled, device: torch.device) -> Domains:
    """Every case as one subdomain."""
    count = len(compiled.lower)
    return Domains(
        compiled.lower.to(device),
        compiled.upper.to(device),
        torch.arange(count, device=device),
        (compiled.clauses >= 0).any(2).to(device),
        torch.full((count,), -math.inf, dtype=torch.float64, device=device),
    )


def step_size(bounder: Bounder) -> int:
    """How many subdomains make a step of reasonable work."""
    each = work(bounder.graph)
    if bounder.device.type != "cpu":
        return int(min(max(16 * STEP_WORK / each, 16), 1 << 14))
    return int(min(max(STEP_WORK / each, 16), max(1024, min(FREE_WORK / each, 8192))))


def wide_step_size(bounder: Bounder) -> int:
    """The same where one row per subdomain goes backwards and inner bounds are inherited."""
    graph = bounder.graph
    numbers = sum(n.numel for n in graph.nodes if isinstance(n.op, (Elementwise, Input)))
    step = ROW_WORK if bounder.device.type == "cpu" else 16 * ROW_WORK
    return int(min(max(step / numbers, 16), 4096))


def work(graph: Graph) -> float:
    """Coefficients that the passes of one subdomain meet, about."""
    sizes = [n.numel for n in graph.nodes if isinstance(n.op, Elementwise)] or [1]
    return float(sum(sizes) * max(sizes))


def free_memory(device: torch.device) -> int:
    """Half of what is free on the device, in bytes."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0] // 2
    import psutil

    return psutil.virtual_memory().available // 2
