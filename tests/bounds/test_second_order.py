"""Products bounded together through their quadratic form."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from verifier.bounds.crown import inner_bounds
from verifier.bounds.final import Ascent, FinalPass
from verifier.bounds.second_order import INPUTS, curved, second_order
from verifier.graph import Builder, Graph, Value
from verifier.graph.coefficients import identity
from verifier.ops.arithmetic import add, scale_shift
from verifier.ops.linear import Linear
from verifier.ops.piecewise_linear import relu
from verifier.ops.product import multiply, square
from verifier.ops.trigonometric import Sine
from verifier.sets import Box

SIZE = 4


def sine(b: Builder, x: Value) -> Value:
    return b.add(Sine(), x)


def matrix(rows: int, columns: int, generator: torch.Generator) -> Tensor:
    return torch.randn(rows, columns, generator=generator, dtype=torch.float64) / columns**0.5


def forms(seed: int, activation=relu) -> Graph:
    """x' P x for a definite P and for its negative, a product of hidden values, and the change of x' P x along a step
    that a small network controls."""
    generator = torch.Generator().manual_seed(seed)
    root = matrix(SIZE, SIZE, generator)
    definite = root.mT @ root + 0.1 * torch.eye(SIZE, dtype=torch.float64)
    b = Builder()
    x = b.input("x", (SIZE,))
    ones = torch.ones(1, SIZE, dtype=torch.float64)
    value = b.add(Linear(ones), multiply(b, x, b.add(Linear(definite), x)))
    hidden = activation(b, b.add(Linear(matrix(6, SIZE, generator)), x))
    control = b.add(Linear(matrix(SIZE, 6, generator)), hidden)
    step = scale_shift(b, add(b, b.add(Linear(matrix(SIZE, SIZE, generator)), x), control), scale=0.1)
    twice = add(b, add(b, x, x), step)
    change = b.add(Linear(ones), multiply(b, step, b.add(Linear(definite), twice)))
    squares = b.add(Linear(matrix(1, SIZE, generator)), square(b, control))
    outputs = [value, scale_shift(b, value, scale=-1.0), change, scale_shift(b, change, scale=-1.0), squares]
    total = None
    for k, y in enumerate(outputs):
        place = torch.zeros(len(outputs), 1, dtype=torch.float64)
        place[k] = 1
        part = b.add(Linear(place), y)
        total = part if total is None else add(b, total, part)
    assert total is not None
    return b.graph(total)


def bounded(graph: Graph, box: Box) -> tuple[FinalPass, Ascent]:
    target = graph.outputs[0]
    bounds = inner_bounds(graph, [box], [target])
    rows = identity(graph.nodes[target].shape, box.lower)
    final = FinalPass(graph, [box], target, rows, graph.nodes[target].numel, bounds)
    with torch.no_grad():
        return final, second_order(final, curved(graph, target))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("activation", [relu, sine])
@pytest.mark.parametrize("size", [1e-4, 0.3, 30.0])
def test_planes_lie_below(dtype: torch.dtype, activation, size: float) -> None:
    for seed in range(2):
        exact = forms(seed, activation)
        graph = exact.to(dtype)
        torch.manual_seed(seed)
        center = torch.randn(5, SIZE, dtype=torch.float64)
        radius = size * torch.rand(5, SIZE, dtype=torch.float64)
        radius[0, 0] = 0  # an input that does not vary
        box = Box((center - radius).to(dtype), (center + radius).to(dtype))
        _, found = bounded(graph, box)
        low, high = box.lower.double(), box.upper.double()
        points = low.unsqueeze(1) + torch.rand(5, 500, SIZE, dtype=torch.float64) * (high - low).unsqueeze(1)
        points[:, :16] = torch.where(torch.rand(5, 16, SIZE) < 0.5, low.unsqueeze(1), high.unsqueeze(1))
        values = exact.evaluate([points.flatten(0, 1)])[0].unflatten(0, (5, -1))
        plane = found.plane
        assert plane.error is not None
        lines = points @ plane.coefficients[graph.inputs[0]].double().mT
        lines = lines + (plane.constant.double() - plane.error.double()).unsqueeze(1)
        assert (lines <= values).all()
        assert (found.lower.double().unsqueeze(1) <= values).all()
        assert found.lower.isfinite().all()


def test_a_convex_form_is_exact() -> None:
    """What products one by one miss: the least value of x' P x."""
    graph = forms(0)
    center = torch.tensor([[0.3, -0.2, 0.1, 0.4], [0.0, 0.0, 0.0, 0.0]], dtype=torch.float64)
    box = Box(center - 0.5, center + 0.5)
    final, found = bounded(graph, box)
    at = center.clone().requires_grad_()
    for _ in range(2000):  # projected gradients
        (slope,) = torch.autograd.grad(graph.evaluate([at])[0][:, 0].sum(), at)
        at = (at - 0.05 * slope).detach().clamp(box.lower, box.upper).requires_grad_()
    least = graph.evaluate([at])[0][:, 0].detach()
    plain = final.run({}, rounding=True)[1]
    assert (found.lower[:, 0] > least - 0.01).all() and (plain[:, 0] < least - 0.1).all()


def test_gaps_shrink_faster_than_those_of_single_products() -> None:
    """Where no neuron changes its mind the change of a quadratic function has the gap of its concave part alone."""
    ratios = []
    for seed in range(4):
        graph = forms(seed)
        torch.manual_seed(seed)
        center = 1.5 * torch.randn(8, SIZE, dtype=torch.float64)
        box = Box(center - 0.05, center + 0.05)
        final, found = bounded(graph, box)
        points = center.unsqueeze(1) + 0.05 * (2 * torch.rand(8, 2000, SIZE, dtype=torch.float64) - 1)
        values = graph.evaluate([points.flatten(0, 1)])[0].unflatten(0, (8, -1)).amin(1)
        plain = final.run({}, rounding=True)[1]
        ratios.append(((values - found.lower)[:, 2:4] / (values - plain)[:, 2:4]).mean())
    assert torch.stack(ratios).mean() < 0.85


def test_what_overflows_is_no_bound() -> None:
    graph = forms(0).to(torch.float32)
    center = torch.full((1, SIZE), 1e25)
    _, found = bounded(graph, Box(center - 1e24, center + 1e24))
    assert not found.lower.isnan().any() and not (found.lower == torch.inf).any()


def test_large_graphs_are_left_alone() -> None:
    b = Builder()
    x = b.input("x", (INPUTS + 1,))
    y = multiply(b, x, b.add(Linear(torch.eye(INPUTS + 1)), x))
    graph = b.graph(y)
    assert curved(graph, graph.outputs[0]) == []
    graph = forms(0)
    assert len(curved(graph, graph.outputs[0])) == 3
