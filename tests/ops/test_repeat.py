"""Loops: values, intervals, and writing them out."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from verifier.bounds.compute import compute_bounds
from verifier.graph import Builder, Graph, Interval
from verifier.ops.arithmetic import add
from verifier.ops.linear import Linear
from verifier.ops.piecewise_linear import relu
from verifier.ops.repeat import Repeat, repeat
from verifier.sets import Box
from verifier.transforms.unroll import unroll

TRIPS = 4


def randn(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)), dtype=torch.float64)


W, U, V, BIAS = randn(3, 3), randn(3, 2), randn(1, 3), randn(3)


def cell() -> Graph:
    """h' = relu(W h + U x + b + c), emitting V h'."""
    b = Builder()
    h, x, c = b.input("h", (3,)), b.input("x", (2,)), b.input("c", (3,))
    total = add(b, add(b, b.add(Linear(W, BIAS), h), b.add(Linear(U), x)), c)
    after = relu(b, total)
    return b.graph(after, b.add(Linear(V), after))


def network() -> Graph:
    b = Builder()
    h, xs, c = b.input("h", (3,)), b.input("xs", (TRIPS, 2)), b.input("c", (3,))
    last, emitted = repeat(b, cell(), TRIPS, 1, h, xs, c)
    return b.graph(last, emitted)


def by_hand(h: Tensor, xs: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    emitted = []
    for step in range(TRIPS):
        h = (h @ W.T + BIAS + xs[:, step] @ U.T + c).clamp(min=0)
        emitted.append(h @ V.T)
    return h, torch.stack(emitted, 1)


def inputs(batch: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(9)
    return [
        torch.randn(batch, *s, generator=generator, dtype=torch.float64) for s in ((3,), (TRIPS, 2), (3,))
    ]


def test_values() -> None:
    graph = network()
    assert [graph.nodes[i].shape for i in graph.outputs] == [(3,), (TRIPS, 1)]
    x = inputs(5)
    for got, expected in zip(graph.evaluate(x), by_hand(*x), strict=True):
        assert torch.allclose(got, expected)


def test_written_out_it_is_the_same() -> None:
    graph = network()
    flat = unroll(graph)
    assert not any(isinstance(n.op, Repeat) for n in flat.nodes)
    assert unroll(flat) is flat
    assert (
        sum(isinstance(n.op, Linear) and n.op.weight is W for n in flat.nodes) == TRIPS
    )  # shared by both results
    x = inputs(5)
    for got, expected in zip(flat.evaluate(x), graph.evaluate(x), strict=True):
        assert torch.allclose(got, expected)


def test_loop_in_a_loop() -> None:
    b = Builder()
    h, xs, c = b.input("h", (3,)), b.input("xs", (TRIPS, 2)), b.input("c", (3,))
    outer_body = b.graph(repeat(b, cell(), TRIPS, 1, h, xs, c)[0])
    b = Builder()
    h, xs, c = b.input("h", (3,)), b.input("xs", (TRIPS, 2)), b.input("c", (3,))
    graph = b.graph(repeat(b, outer_body, 2, 1, h, xs, c)[0])
    x = inputs(3)
    expected = by_hand(by_hand(*x)[0], *x[1:])[0]
    assert torch.allclose(graph.evaluate(x)[0], expected)
    assert torch.allclose(unroll(graph).evaluate(x)[0], expected)


def test_intervals_and_bounds() -> None:
    graph = network()
    sets = [Box.around(x, 0.1) for x in inputs(2)]
    flat = unroll(graph)
    loose = [graph.nodes[i].op.interval(*[s.box() for s in sets]) for i in graph.outputs]
    assert all(isinstance(x, Interval) for x in loose)
    tight = compute_bounds(flat, sets, "crown")
    generator = torch.Generator().manual_seed(2)
    at = [
        s.lower.unsqueeze(1)
        + torch.rand(2, 500, *s.shape, generator=generator, dtype=torch.float64)
        * (s.upper - s.lower).unsqueeze(1)
        for s in sets
    ]
    values = graph.evaluate([x.flatten(0, 1) for x in at])
    for value, wide, narrow in zip(values, loose, tight.outputs, strict=True):
        value = value.view(2, 500, *value.shape[1:])
        for box in (wide, narrow):
            assert (value >= box.lower.unsqueeze(1)).all() and (value <= box.upper.unsqueeze(1)).all()
        assert (narrow.upper - narrow.lower).mean() < 0.9 * (wide.upper - wide.lower).mean()


def test_casts_reach_the_body() -> None:
    graph = network().to(torch.float32)
    assert graph.evaluate([x.float() for x in inputs(1)])[0].dtype == torch.float32


def test_arguments_that_do_not_fit() -> None:
    b = Builder()
    h, xs, c = b.input("h", (3,)), b.input("xs", (TRIPS, 5)), b.input("c", (3,))
    with pytest.raises(ValueError, match="its body asks for"):
        repeat(b, cell(), TRIPS, 1, h, xs, c)
    with pytest.raises(ValueError, match="at least one round"):
        b.add(Repeat(cell(), 0, 1, 1, 0), h, xs, c)
