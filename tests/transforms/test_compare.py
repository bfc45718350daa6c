"""Comparisons before and after a softmax: the same answers, and none where values themselves are asked for."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import verifier
from verifier.graph import Builder, Graph, Value
from verifier.ops.arithmetic import add
from verifier.ops.exponential import Exp
from verifier.ops.linear import Linear
from verifier.ops.movement import permute, reshape, take
from verifier.ops.softmax import Softmax
from verifier.transforms.compare import compare_earlier

ROWS = torch.tensor([[1.0, -1, 0, 0], [0, 0.5, 0, -0.5], [0, 0, 0, 0]], dtype=torch.float64)
BIAS = torch.tensor([0.0, 0.0, -1.0], dtype=torch.float64)


def network(
    rows: Tensor = ROWS, bias: Tensor | None = BIAS, between: Callable[[Builder, Value], Value] | None = None
) -> Graph:
    """Rows of a softmax of four logits of five inputs."""
    builder = Builder()
    logits = builder.add(
        Linear(torch.randn(4, 5, dtype=torch.float64)), builder.input("x", (5,)), name="logits"
    )
    y = builder.add(Softmax(0), logits)
    if between is not None:
        y = between(builder, y)
    return builder.graph(builder.add(Linear(rows, bias), y))


def kinds(graph: Graph) -> list[str]:
    return [type(n.op).__name__ for n in graph.nodes]


def assert_same_answers(a: Graph, b: Graph) -> None:
    x = torch.randn(500, 5, dtype=torch.float64)
    assert torch.equal(a.evaluate([x])[0].sign(), b.evaluate([x])[0].sign())


def shuffled(builder: Builder, y: Value) -> Value:
    y = permute(builder, reshape(builder, y, (2, 2)), (1, 0))
    return take(builder, reshape(builder, y, (4,)), lambda t: t[[3, 1, 1, 0]])


@pytest.mark.parametrize("between", [None, shuffled])
def test_a_softmax_that_is_only_compared_is_left_out(between: Callable | None) -> None:
    graph = network(between=between)
    earlier = compare_earlier(graph)
    assert "Softmax" in kinds(graph) and "Softmax" not in kinds(earlier)
    assert_same_answers(graph, earlier)


def test_several_of_them() -> None:
    def again(builder: Builder, y: Value) -> Value:
        return builder.add(Exp(), y)

    graph = network(between=again)
    assert kinds(compare_earlier(graph)) == ["Input", "Linear", "Linear"]
    assert_same_answers(graph, compare_earlier(graph))


@pytest.mark.parametrize(
    ("rows", "bias"),
    [
        (ROWS, torch.tensor([0.0, -1e-9, -1.0], dtype=torch.float64)),  # a margin
        (torch.tensor([[1.0, 0, 0, 0]], dtype=torch.float64), None),  # a value
        (torch.tensor([[1.0, -1 + 1e-12, 0, 0]], dtype=torch.float64), None),
        (torch.tensor([[1.0, -1, 0, 0], [2.0, -1, -1, 0]], dtype=torch.float64), None),  # two against one
        (torch.tensor([[1.0, 1, 0, 0]], dtype=torch.float64), None),
        (torch.zeros(1, 4, dtype=torch.float64), None),  # nothing
    ],
)
def test_where_more_than_the_order_matters_nothing_changes(rows: Tensor, bias: Tensor | None) -> None:
    graph = network(rows, bias)
    assert compare_earlier(graph) is graph


def test_elements_of_different_sums_do_not_compare() -> None:
    builder = Builder()
    y = builder.add(Softmax(1), builder.input("x", (2, 2)))
    graph = builder.graph(builder.add(Linear(ROWS, BIAS), reshape(builder, y, (4,))))
    assert compare_earlier(graph) is graph
    inside = torch.tensor([[1.0, -1, 0, 0], [0, 0, 3, -3]], dtype=torch.float64)
    graph = builder.graph(builder.add(Linear(inside), reshape(builder, y, (4,))))
    assert "Softmax" not in kinds(compare_earlier(graph))


def test_a_softmax_that_something_else_needs_stays() -> None:
    def twice(builder: Builder, y: Value) -> Value:
        return add(builder, y, shuffled(builder, y))

    graph = network(between=twice)
    assert compare_earlier(graph) is graph


@pytest.mark.parametrize(("floor", "holds"), [(0.4, True), (0.5, False)])
def test_verdicts(floor: float, holds: bool) -> None:
    """The second element is always larger than the first, and its smallest value 0.45."""
    x = torch.zeros(1, 3)
    model = verifier.trace(torch.nn.Softmax(1), x)
    box = verifier.Box(torch.tensor([[-1.0, 1.5, 0.0]]), torch.tensor([[1.0, 2.0, 1.0]]))
    y = verifier.Y
    proved = verifier.verify(model, verifier.Property(inputs=box, ensures=y[1] > y[0]), timeout=20)
    assert proved.status is verifier.Status.UNSAT and proved.stats.domains == 1
    spec = verifier.Property(inputs=box, ensures=(y[1] > y[0]) & (y[1] > floor))
    assert verifier.verify(model, spec, timeout=20).holds is holds
