"""Two forms of one network, bounded as alternatives."""

from __future__ import annotations

import pytest
import torch

from verifier.bounds.alpha import AlphaOptions
from verifier.bounds.compute import compute_bounds
from verifier.graph import Builder, Graph
from verifier.ops.arithmetic import add, scale_shift
from verifier.ops.product import multiply, square
from verifier.ops.sigmoid import sigmoid
from verifier.sets import Box
from verifier.transforms.either import either


def _forms() -> tuple[Graph, Graph]:
    """sigmoid(x) (x - 1)^2, as a product and multiplied out."""
    b = Builder()
    x = b.input("x", (4,))
    first = b.graph(multiply(b, sigmoid(b, x), square(b, scale_shift(b, x, shift=-1.0))))
    b = Builder()
    x = b.input("y", (4,))
    gate = sigmoid(b, x)
    rest = multiply(b, gate, scale_shift(b, x, scale=-2.0, shift=1.0))
    return first, b.graph(add(b, multiply(b, gate, square(b, x)), rest))


def test_it_is_at_least_as_tight_as_each() -> None:
    first, second = _forms()
    both = either(second, first)
    generator = torch.Generator().manual_seed(0)
    box = Box.around(2 * torch.randn(20, 4, generator=generator, dtype=torch.float64), 0.4)
    points = (
        box.lower + (box.upper - box.lower) * torch.linspace(0, 1, 201, dtype=torch.float64)[:, None, None]
    )
    values = both.evaluate([points.flatten(0, 1)])[0].view(201, 20, 4)
    torch.testing.assert_close(values.flatten(0, 1), first.evaluate([points.flatten(0, 1)])[0])
    options = AlphaOptions(iterations=40)
    found, *apart = [
        compute_bounds(g, [box], "alpha-crown", options=options).outputs[0] for g in (both, first, second)
    ]
    assert (found.lower <= values).all() and (values <= found.upper).all()
    widths = [b.upper - b.lower for b in apart]
    best = torch.minimum(*widths)
    assert ((found.upper - found.lower) <= 1.02 * best).float().mean() > 0.95
    assert (best < 0.9 * widths[1]).any(), "both forms are as good"


def test_networks_of_different_shapes_are_refused() -> None:
    b = Builder()
    other = b.graph(sigmoid(b, b.input("x", (5,))))
    with pytest.raises(ValueError, match="cannot compute the same"):
        either(_forms()[0], other)
