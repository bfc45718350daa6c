"""Neurons equal up to a sign: the function stays, the neurons go."""

from __future__ import annotations

import pytest
import torch

from verifier.graph import Builder, Graph
from verifier.ops.linear import Linear
from verifier.ops.piecewise_linear import Relu, relu
from verifier.transforms.fold import fold
from verifier.transforms.opposite import share_opposite_neurons


def network(first: Linear, second: Linear) -> Graph:
    builder = Builder()
    x = builder.input("x", (first.weight.shape[1],))
    y = builder.add(second, relu(builder, builder.add(first, x, name="z")), name="y")
    return builder.graph(
        builder.add(Linear(torch.eye(second.weight.shape[0]).double()), relu(builder, y), name="out")
    )


def neurons(graph: Graph) -> int:
    return sum(n.numel for n in graph.nodes if isinstance(n.op, Relu))


def assert_equal(a: Graph, b: Graph) -> None:
    x = 3 * torch.randn(200, *a.nodes[0].shape, dtype=torch.float64)
    torch.testing.assert_close(a.evaluate([x])[0], b.evaluate([x])[0], rtol=1e-12, atol=1e-12)


def test_a_maximum_with_four_neurons_becomes_one() -> None:
    signs = torch.tensor([[1.0, 1], [-1, -1], [1, -1], [-1, 1]], dtype=torch.float64)
    graph = network(Linear(signs), Linear(torch.tensor([[0.5, -0.5, 0.5, 0.5]], dtype=torch.float64)))
    shared = fold(share_opposite_neurons(graph))
    assert neurons(graph) == 5 and neurons(shared) == 2
    around = shared.nodes[shared.by_name["y_around"]].op
    assert isinstance(around, Linear) and sorted(around.weight[0].tolist()) == [0, 1]  # b + relu(a - b)
    assert_equal(graph, shared)


@pytest.mark.parametrize("seed", range(20))
def test_random_duplicates(seed: int) -> None:
    """Rows repeated with random signs, neurons without weights, with and without biases."""
    torch.manual_seed(seed)
    size = int(torch.randint(1, 5, ()))
    pick = torch.randint(size, (9,))
    sign = torch.randint(0, 2, (9, 1)).double() * 2 - 1
    weight, bias = (
        torch.randn(size, 3).half().double()[pick] * sign,
        torch.randn(size).half().double()[pick] * sign.squeeze(1),
    )
    weight[7] = 0
    first = Linear(weight, bias if seed % 2 else None)
    second = Linear(torch.randn(4, 9).half().double(), torch.randn(4).half().double() if seed % 3 else None)
    graph = network(first, second)
    shared = share_opposite_neurons(graph)
    assert neurons(shared) <= size + 4
    assert_equal(graph, shared)


def test_constant_neurons_go_into_the_bias() -> None:
    torch.manual_seed(0)
    weight = torch.randn(6, 3).double()
    weight[[1, 4]] = 0
    graph = network(Linear(weight, torch.randn(6).double()), Linear(torch.randn(2, 6).double()))
    shared = fold(share_opposite_neurons(graph))
    assert len(shared.nodes) == len(graph.nodes) and neurons(shared) == 6
    assert_equal(graph, shared)


def test_nothing_happens_without_duplicates_or_where_others_look() -> None:
    graph = network(Linear(torch.randn(5, 3).double()), Linear(torch.randn(2, 5).double()))
    assert share_opposite_neurons(graph) is graph
    builder = Builder()
    x = builder.input("x", (2,))
    z = builder.add(Linear(torch.tensor([[1.0, 2], [-1, -2]]).double()), x)
    hidden = relu(builder, z)
    graph = builder.graph(builder.add(Linear(torch.randn(2, 2).double()), hidden), hidden)
    assert share_opposite_neurons(graph) is graph
