"""Float32 bounds hold for the numbers that exact arithmetic gives."""

from __future__ import annotations

import pytest
import torch

from verifier.bounds.crown import inner_bounds
from verifier.graph import Builder, Graph
from verifier.ops.arithmetic import Add, scale_shift
from verifier.ops.extremum import maximum
from verifier.ops.linear import Linear
from verifier.ops.movement import Take
from verifier.ops.piecewise_linear import relu
from verifier.sets import Box


def wide(builder: Builder, size: int) -> Graph:
    """Fan-out: many products in one element of a transpose, of which the forward direction knows nothing."""
    x = builder.input("x", (1,))
    many = builder.add(Linear(torch.rand(size, 1) + 0.5), x)
    return builder.graph(builder.add(Linear(torch.rand(1, size) + 0.5), relu(builder, many)))


def popular(builder: Builder, size: int) -> Graph:
    """The same by taking one element often."""
    x = builder.input("x", (1,))
    many = builder.add(Take(torch.zeros(size, dtype=torch.int64), (size,)), x)
    return builder.graph(builder.add(Linear(torch.rand(1, size) + 0.5), many))


def cancelling(builder: Builder, size: int) -> Graph:
    """Coefficients that are summed at one node, and cancel there."""
    x = builder.input("x", (1,))
    y = relu(builder, scale_shift(builder, x, shift=10.0))
    total = y
    for k in range(size):
        total = builder.add(Add(), total, scale_shift(builder, y, scale=(-1) ** k * (1e4 + k / 7)))
    return builder.graph(total)


def deep(builder: Builder, size: int) -> Graph:
    """Many constants in turn."""
    value = builder.input("x", (1,))
    for k in range(size):
        value = relu(builder, scale_shift(builder, value, scale=1.0, shift=1 + 0.1 * (-1) ** k))
    return builder.graph(value)


@pytest.mark.parametrize("make", [wide, popular, cancelling, deep])
@pytest.mark.parametrize("size", [3, 40, 3000])
def test_rounding_is_covered(make, size: int) -> None:
    if make in (cancelling, deep):
        size = min(size, 200)
    torch.manual_seed(size)
    exact = make(Builder(), size).to(torch.float64)
    graph = exact.to(torch.float32)
    points = (torch.rand(6, 1) * 2 - 0.5).double()
    box = Box(points.float() - 1e-7, points.float() + 1e-7)
    values = exact.evaluate([(box.lower + box.upper).double() / 2])[0]
    bounds = inner_bounds(graph, [box], graph.outputs)[graph.outputs[0]]
    assert (bounds.lower.double() <= values).all() and (values <= bounds.upper.double()).all()


def test_a_constant_beside_many_boxes() -> None:
    """Enclosures of constants are shared by all subdomains."""
    builder = Builder()
    x = builder.input("x", (2,))
    constant = builder.constant(torch.tensor([0.3, -0.2], dtype=torch.float64), "c")
    y = builder.add(Add(), relu(builder, x), constant)
    z = maximum(builder, y, constant)
    graph = builder.graph(builder.add(Linear(torch.ones(1, 2, dtype=torch.float64)), z))
    lower = torch.randn(5, 2).double()
    bounds = inner_bounds(graph, [Box(lower, lower + 0.5)], graph.outputs)[graph.outputs[0]]
    for part in torch.linspace(0, 1, 5):
        value = graph.evaluate([lower + 0.5 * part])[0]
        assert (bounds.lower <= value).all() and (value <= bounds.upper).all()
