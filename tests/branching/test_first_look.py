"""What cheap bounds settle of many cases."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from verifier.bounds.alpha import AlphaOptions
from verifier.branching.bounding import Bounder, BoundOptions, few_inputs
from verifier.branching.domains import Domains
from verifier.branching.first_look import MANY, first_look, forward
from verifier.branching.root import root
from verifier.graph import Builder, Graph
from verifier.ops.linear import Linear
from verifier.ops.piecewise_linear import absolute, relu
from verifier.specs.compile import Compiled


def deep(generator: torch.Generator) -> Graph:
    b = Builder()
    x = b.input("x", (20,))
    for _ in range(2):
        weight = torch.randn(20, 20, generator=generator, dtype=torch.float64) / 4
        x = relu(b, b.add(Linear(weight), x))
    return b.graph(
        b.add(Linear(torch.randn(1, 20, generator=generator, dtype=torch.float64)), absolute(b, x))
    )


def cases(count: int, width: float) -> tuple[Compiled, Domains]:
    """Boxes of which two elements vary, the property that the output is at most 0."""
    generator = torch.Generator().manual_seed(4)
    lower = torch.randn(count, 20, generator=generator, dtype=torch.float64)
    upper = lower.clone()
    upper[:, :2] += width
    clauses = torch.zeros(count, 1, 1, dtype=torch.int64)
    compiled = Compiled(deep(generator), lower, upper, clauses, torch.zeros(1, dtype=torch.bool))
    start = Domains(
        lower,
        upper,
        torch.arange(count),
        torch.ones(count, 1, dtype=torch.bool),
        torch.full((count,), -math.inf, dtype=torch.float64),
    )
    return compiled, start


@pytest.mark.parametrize(("count", "width"), [(2 * MANY, 0.3), (2 * MANY, 0.0), (5, 0.0)])
def test_what_is_left_out_is_proved(count: int, width: float) -> None:
    compiled, start = cases(count, width)
    bounder = Bounder(compiled, torch.device("cpu"), torch.float32, BoundOptions())
    look = first_look(bounder, start, 1 << 24)
    left = set(look.left.case.tolist())
    gone = [n for n in range(count) if n not in left]
    assert gone and look.closed >= 0
    corners = torch.rand(200, len(gone), 20, dtype=torch.float64).round()
    x = compiled.lower[gone] + corners * (compiled.upper - compiled.lower)[gone]
    (margin,) = compiled.graph.evaluate([x.flatten(0, 1)])
    assert (margin >= look.closed - 1e-9).all() and (margin > 0).all()
    if width == 0:
        assert (compiled.graph.evaluate([look.left.lower])[0] <= 1e-9).all()


def test_few_wide_cases_are_left_alone() -> None:
    compiled, start = cases(5, 0.3)
    bounder = Bounder(compiled, torch.device("cpu"), torch.float32, BoundOptions())
    assert first_look(bounder, start, 1 << 24).left is start


def test_forward_bounds_are_bounds() -> None:
    compiled, start = cases(40, 0.3)
    assert few_inputs(start) == 2
    options = forward(BoundOptions())
    scores = [
        Bounder(compiled, torch.device("cpu"), torch.float64, o).bound(start).score
        for o in (options, BoundOptions())
    ]
    x = compiled.lower + torch.rand(500, 40, 20, dtype=torch.float64) * (compiled.upper - compiled.lower)
    least = compiled.graph.evaluate([x.flatten(0, 1)])[0].view(500, 40).amin(0)
    for score in scores:
        assert (score <= least + 1e-9).all()


def test_what_the_root_knows_of_a_case_is_of_that_case() -> None:
    """Also when the first look has taken some away."""
    compiled, start = cases(20, 2.0)
    bounder = Bounder(compiled, torch.device("cpu"), torch.float64, BoundOptions())
    some = (~bounder.bound(start).refuted[:, 0]).nonzero()[1:, 0]
    found = root(bounder, start.index(some), AlphaOptions(iterations=0), 2)
    middle = (found.start.lower + found.start.upper) / 2
    assert len(middle) >= 2 and found.enclosures
    for i, enclosure in found.enclosures.items():
        (value,) = replace(compiled.graph, outputs=(i,)).evaluate([middle])
        assert (enclosure.lower <= value + 1e-9).all() and (value <= enclosure.upper + 1e-9).all()
