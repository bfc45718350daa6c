"""States of a GRU never leave what they start with and [-1, 1]."""

from __future__ import annotations

import pytest
import torch

from verifier.bounds.compute import compute_bounds
from verifier.bounds.interval import interval_bounds
from verifier.graph import Builder, Graph
from verifier.ops.near import Near
from verifier.ops.piecewise_linear import relu
from verifier.ops.recurrent import Activation, Gru, run
from verifier.ops.sigmoid import sigmoid, tanh
from verifier.sets import Box
from verifier.transforms.prepare import prepare
from verifier.transforms.unroll import unroll

STEPS, FEATURES, UNITS = 6, 3, 4


def randn(*shape: int, seed: int) -> torch.Tensor:
    return 3 * torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def network(start: torch.Tensor | None, activations: tuple[Activation, ...] = (sigmoid, tanh)) -> Graph:
    """The last state, from a constant one or from an input."""
    builder = Builder()
    x = builder.input("x", (STEPS, 1, FEATURES))
    first = builder.input("h", (1, UNITS)) if start is None else builder.constant(start)
    weights = randn(3 * UNITS, FEATURES, seed=1), randn(3 * UNITS, UNITS, seed=2)
    cell = Gru(*weights, activations=activations, order="zrn")
    return builder.graph(run(builder, cell, x, [first])[1][0])


@pytest.mark.parametrize("start", [0.0, 2.5])
def test_bounds_hold_and_stay_small(start: float) -> None:
    first = torch.tensor([[start, -start, 0.5, 0.0]], dtype=torch.float64)
    graph = unroll(network(first))
    states = [i for i, node in enumerate(graph.nodes) if isinstance(node.op, Near)]
    assert len(states) == STEPS
    box = Box.around(torch.zeros(1, STEPS, 1, FEATURES, dtype=torch.float64), 2.0)
    points = 2 * (2 * torch.rand(2000, STEPS, 1, FEATURES, dtype=torch.float64) - 1).sign()
    bounds = interval_bounds(graph, [box.box()])
    limit = first.abs().clamp(min=1.0)
    for i, state in zip(states, graph.evaluate([points], states), strict=True):
        assert (bounds[i].lower <= state).all() and (state <= bounds[i].upper).all()
        assert (bounds[i].magnitude <= limit * (1 + 1e-9)).all()
        assert state.abs().max() > 0.9
    value = graph.evaluate([points])[0]
    for method in ("crown", "alpha-crown"):
        found = compute_bounds(prepare(graph), [box], method=method)
        assert isinstance(found.lower, torch.Tensor) and isinstance(found.upper, torch.Tensor)
        assert (found.lower <= value).all() and (value <= found.upper).all()


def test_nothing_is_said_of_other_starts_and_functions() -> None:
    for graph in (network(None), network(torch.zeros(1, UNITS, dtype=torch.float64), (sigmoid, relu))):
        assert not any(isinstance(node.op, Near) for node in unroll(graph).nodes)
