"""Forward functions of the few elements that vary, others per instance."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from verifier.bounds.forward import forward_bounds
from verifier.graph import Builder, Graph
from verifier.ops.arithmetic import scale_shift
from verifier.ops.linear import Linear
from verifier.ops.movement import reshape, take
from verifier.ops.piecewise_linear import relu
from verifier.ops.product import multiply
from verifier.sets import Box


def network(generator: torch.Generator) -> Graph:
    def layer(rows: int, columns: int) -> Linear:
        weight = torch.randn(rows, columns, generator=generator, dtype=torch.float64)
        return Linear(weight, torch.randn(rows, generator=generator, dtype=torch.float64))

    b = Builder()
    x = b.input("x", (12,))
    hidden = relu(b, b.add(layer(20, 12), x))
    gate = take(b, x, lambda t: t[:1].expand(20))
    mixed = multiply(b, relu(b, b.add(layer(20, 20), hidden)), gate)
    return b.graph(scale_shift(b, b.add(layer(3, 20), reshape(b, mixed, (20,))), shift=1.0))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("few", [1, 3, 12])
def test_values_lie_inside_whatever_varies(dtype: torch.dtype, few: int) -> None:
    """Also where more elements vary than there are coordinates."""
    generator = torch.Generator().manual_seed(few)
    graph = network(generator)
    center = torch.randn(30, 12, generator=generator, dtype=torch.float64)
    radius = 10 ** (3 * torch.rand(30, 12, generator=generator, dtype=torch.float64) - 3)
    radius *= torch.rand(30, 12, generator=generator) < 0.25
    lower, upper = (center - radius).to(dtype), (center + radius).to(dtype)
    bounds, _ = forward_bounds(graph.to(dtype), [Box(lower, upper)], few=few)
    for _ in range(30):
        part = torch.rand(30, 12, generator=generator, dtype=torch.float64)
        x = lower.double() + part * (upper.double() - lower.double())
        for i, value in enumerate(graph.to(dtype).to(torch.float64).evaluate([x], range(len(graph.nodes)))):
            low, high = bounds[i].lower.double(), bounds[i].upper.double()
            assert (value >= low).all() and (value <= high).all()


def test_as_tight_as_functions_of_all_elements() -> None:
    generator = torch.Generator().manual_seed(1)
    graph = network(generator)
    center = torch.randn(10, 12, generator=generator, dtype=torch.float64)
    radius = torch.zeros(10, 12, dtype=torch.float64)
    for b in range(10):
        radius[b, [b, (b + 5) % 12]] = 0.3
    box = [Box(center - radius, center + radius)]
    every, some = (forward_bounds(graph, box, few=few)[0] for few in (None, 2))

    def width(bounds: dict) -> Tensor:
        return bounds[graph.outputs[0]].upper - bounds[graph.outputs[0]].lower

    torch.testing.assert_close(width(some), width(every), rtol=1e-9, atol=1e-9)
