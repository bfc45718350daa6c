"""Branch and bound of a router's selections."""

from __future__ import annotations

import math

import pytest
import torch

from verifier.bounds.alpha import AlphaOptions
from verifier.branching.activation_split import ActivationBrancher
from verifier.branching.bounded import Facts
from verifier.branching.bounding import Bounder, BoundOptions
from verifier.branching.domains import Domains
from verifier.branching.input_split import InputBrancher
from verifier.branching.root import by_decisions, condensed, root
from verifier.branching.search import Search, SearchOptions
from verifier.graph import Builder
from verifier.ops.arithmetic import scale_shift
from verifier.ops.largest import largest_mask
from verifier.ops.linear import Linear
from verifier.ops.piecewise_linear import relu
from verifier.ops.product import Product
from verifier.ops.reduction import total
from verifier.results import Status
from verifier.specs.compile import Compiled


def problem(shift: float) -> tuple[Compiled, Domains]:
    """The sum of the two largest of four numbers' experts, lifted; which of the first two is second is open."""
    b = Builder()
    x = b.input("x", (4,))
    weight = torch.tensor([[0.0, 0, 1, 0], [0, 0, -1, 0], [1, -1, 2, 0], [0, 0, 1, 4]]).double()
    experts = relu(b, b.add(Linear(weight, torch.tensor([1.0, 3.0, 0.0, 0.0]).double()), x))
    y = total(b, b.add(Product(), largest_mask(b, x, 0, 2), experts), [0], keep=True)
    graph = b.graph(scale_shift(b, y, shift=shift))
    center, radius = torch.tensor([[0.0, 0.01, 1.0, -1.0]]).double(), 0.05
    table, strict = torch.zeros(1, 1, 1, dtype=torch.int64), torch.tensor([False])
    made = Compiled(graph, center - radius, center + radius, table, strict)
    every = torch.ones(1, 1, dtype=torch.bool)
    bound = torch.full((1,), -math.inf, dtype=torch.float64)
    return made, Domains(made.lower, made.upper, torch.zeros(1, dtype=torch.int64), every, bound)


@pytest.mark.parametrize("kind", ["inputs", "activations"])
@pytest.mark.parametrize("shift", [-3.7, -3.9])
def test_selections_are_decided_before_the_search(kind: str, shift: float) -> None:
    """Experts are about 2, 2, 2 and 0, so that a selection has at least 3.84; the relaxed mask allows for 2."""
    made, start = problem(shift)
    cpu = torch.device("cpu")
    bounder, start = by_decisions(Bounder(made, cpu, torch.float64), start)
    assert len(start) == 3
    with torch.no_grad():
        plain = Bounder(made, cpu, torch.float64).bound(problem(shift)[1])
        assert float(plain.score) < -1
        if kind == "activations":
            found = condensed(bounder, root(bounder, start, AlphaOptions(iterations=5), 8), 1 << 20)
            assert len(found.start) == 0 if shift > -3.8 else len(found.start) > 0
            options = BoundOptions(gaps=True, refine=False, inherit=True)
            bounder = Bounder(found.compiled, cpu, torch.float64, options, Facts(found.enclosures))
            start, brancher = found.start, ActivationBrancher(bounder)
        else:
            brancher = InputBrancher(bounder)
    options = SearchOptions(deadline=math.inf, batch=64, max_domains=300)
    outcome = Search(bounder, brancher, start, lambda points, cases: None, options).run()
    assert outcome is not None
    assert (outcome.status is Status.UNSAT) == (shift > -3.8)
