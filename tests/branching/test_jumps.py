"""Splitting the arguments of operators that jump: the halves are open, and the point of a jump belongs to somebody."""

from __future__ import annotations

import math

import pytest
import torch

from verifier.branching.activation_split import HEURISTICS, ActivationBrancher
from verifier.branching.bounding import Bounder, BoundOptions
from verifier.branching.domains import Domains
from verifier.branching.search import Outcome, Search, SearchOptions
from verifier.graph import Builder, Graph
from verifier.ops.linear import Linear
from verifier.ops.sign import Sign
from verifier.results import Status
from verifier.specs.compile import Compiled

Clauses = list[list[list[int]]]
ONE = [[[0]]]
JUMPS = torch.tensor([-0.75, -0.25, 0.0, 0.5, 0.625], dtype=torch.float64)


def staircase(seed: int, at_zero: float, shift: float) -> Graph:
    """sum a_i sign(x - t_i) + shift for the points `JUMPS` and random weights of both signs."""
    weights = torch.randn(1, 5, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    builder = Builder()
    h = builder.add(Linear(torch.ones(5, 1, dtype=torch.float64), -JUMPS), builder.input("x", (1,)))
    h = builder.add(Sign(at_zero), h)
    return builder.graph(builder.add(Linear(weights, torch.tensor([shift], dtype=torch.float64)), h))


def least(graph: Graph) -> float:
    """The smallest value on [-1, 1]."""
    ends = torch.cat([JUMPS.new_tensor([-1.0]), JUMPS, JUMPS.new_tensor([1.0])])
    between = graph.evaluate([((ends[1:] + ends[:-1]) / 2).unsqueeze(1)])[0]
    points = graph.evaluate([JUMPS.unsqueeze(1)])[0]
    return float(torch.cat([between, points]).min())


def search(graph: Graph, dtype: torch.dtype, free: int, clauses: Clauses = ONE) -> Outcome:
    one = torch.ones(1, 1, dtype=torch.float64)
    strict = torch.zeros(graph.nodes[graph.outputs[0]].numel, dtype=torch.bool)
    problem = Compiled(graph, -one, one, torch.tensor(clauses), strict)
    domains = Domains(-one, one, torch.tensor([0]), torch.ones(1, 1, dtype=torch.bool), -torch.inf * one[0])
    bounder = Bounder(problem, torch.device("cpu"), dtype, BoundOptions(gaps=True))
    brancher = ActivationBrancher(bounder, HEURISTICS["fsb"], free)
    found = Search(bounder, brancher, domains, lambda x, c: None, SearchOptions(math.inf, 64, 800)).run()
    assert found is not None
    return found


@pytest.mark.parametrize("at_zero", [-1.0, 0.0, 1.0])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("free", [0, 16])
def test_splitting_neurons_decides_staircases(at_zero: float, dtype: torch.dtype, free: int) -> None:
    for seed in range(4):
        lowest = least(staircase(seed, at_zero, 0.0))
        proved = search(staircase(seed, at_zero, 1e-3 - lowest), dtype, free)
        assert proved.status is Status.UNSAT, seed
        assert search(staircase(seed, at_zero, -1e-3 - lowest), dtype, free).status is Status.UNKNOWN, seed


def test_a_solution_at_the_jump_alone_is_not_lost() -> None:
    """|sign(x)| <= 1/2 holds at 0 and nowhere else."""
    builder = Builder()
    h = builder.add(Sign(0.0), builder.input("x", (1,)))
    weight = torch.tensor([[1.0], [-1.0]], dtype=torch.float64)
    graph = builder.graph(builder.add(Linear(weight, torch.full((2,), -0.5, dtype=torch.float64)), h))
    assert search(graph, torch.float64, 0, [[[0, 1]]]).status is Status.UNKNOWN
    low = builder.graph(builder.add(Linear(weight, torch.full((2,), 0.5, dtype=torch.float64)), h))
    assert search(low, torch.float64, 0, [[[0, 1]]]).status is Status.UNSAT
