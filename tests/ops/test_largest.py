"""Masks of the largest elements, and the largest in order."""

from __future__ import annotations

import pytest
import torch

from verifier.bounds.compute import compute_bounds
from verifier.graph import Builder, Graph
from verifier.graph.registry import Unsupported
from verifier.ops.largest import largest_mask
from verifier.ops.sorting import MOST, in_order
from verifier.sets import Box
from verifier.transforms.composites import write_out


def graph(count: int, shape: tuple[int, ...] = (3, 5), axis: int = 1) -> Graph:
    b = Builder()
    x = b.input("x", shape)
    return write_out(b.graph(largest_mask(b, x, axis, count), in_order(b, x, axis, count)))


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("count", [1, 2, 3])
def test_values(count: int, axis: int) -> None:
    x = torch.randn(200, 3, 5, dtype=torch.float64)
    mask, values = graph(count, axis=axis).evaluate([x])
    found = x.topk(count, dim=axis + 1)
    torch.testing.assert_close(values, found.values)
    assert torch.equal(mask, torch.zeros_like(x).scatter(axis + 1, found.indices, 1.0))


@pytest.mark.parametrize("method", ["interval", "crown"])
@pytest.mark.parametrize("count", [1, 2, 4])
def test_bounds_hold_and_are_exact_where_the_order_is_known(count: int, method) -> None:
    generator = torch.Generator().manual_seed(0)
    center = torch.randn(300, 3, 5, generator=generator, dtype=torch.float64)
    radius = 10 ** (3 * torch.rand(300, 1, 1, generator=generator, dtype=torch.float64) - 3)
    net = graph(count)
    mask, values = compute_bounds(net, [Box(center - radius, center + radius)], method).outputs
    for _ in range(20):
        share = torch.rand(center.shape, generator=generator, dtype=torch.float64).mul(2).sub(1)
        a, b = net.evaluate([center + share * radius])
        assert (mask.lower <= a).all() and (a <= mask.upper).all()
        assert (values.lower <= b + 1e-12).all() and (b <= values.upper + 1e-12).all()
    gaps = center.sort(2).values.diff(dim=2).amin(2)
    known = gaps > 2.5 * radius.squeeze(2)
    assert known.any() and (mask.lower == mask.upper)[known].all()
    assert (mask.upper - mask.lower <= 1).all() and not (mask.lower == mask.upper).all()


def test_all_of_them_and_too_many() -> None:
    b = Builder()
    x = b.input("x", (5,))
    (ones,) = b.graph(largest_mask(b, x, 0, 5)).evaluate([torch.randn(4, 5)])
    assert bool((ones == 1).all())
    with pytest.raises(Unsupported, match="order"):
        in_order(b, b.input("y", (MOST + 1,)), 0, 2)
