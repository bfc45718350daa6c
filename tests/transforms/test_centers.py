"""Means weighted by shares are counted from a typical value: the same function, and an offset costs nothing."""

from __future__ import annotations

import pytest
import torch

from verifier.bounds.compute import compute_bounds
from verifier.graph import Builder, Graph
from verifier.ops.arithmetic import scale_shift
from verifier.ops.linear import Linear
from verifier.ops.matmul import WeightedMean, matmul
from verifier.ops.movement import permute, reshape
from verifier.ops.softmax import softmax
from verifier.sets import Box
from verifier.transforms.centers import center_means
from verifier.transforms.prepare import prepare


def network(offset: float, rank: int = 2) -> Graph:
    """One head of attention over three tokens of four numbers, values off by `offset`."""
    generator = torch.Generator().manual_seed(0)
    b = Builder()
    x = b.input("x", (3, 4))
    q, k, v = (
        b.add(Linear(torch.randn(2, 4, generator=generator, dtype=torch.float64)), x) for _ in range(3)
    )
    shares = softmax(b, matmul(b, q, permute(b, k, (1, 0))), -1)
    values = scale_shift(b, v, shift=offset)
    if rank == 1:
        shares = softmax(b, reshape(b, x, (12,)), -1)
        values = reshape(b, x, (12, 1))
    return b.graph(matmul(b, shares, values))


@pytest.mark.parametrize("rank", [1, 2])
def test_the_function_stays(rank: int) -> None:
    graph = network(5.0, rank)
    points = torch.randn(20, 3, 4, dtype=torch.float64)
    centered = center_means(graph, [points])
    assert next(n.op.center for n in centered.nodes if isinstance(n.op, WeightedMean)) is not None
    for other in (centered, prepare(graph), prepare(graph, [points])):
        torch.testing.assert_close(other.evaluate([points]), graph.evaluate([points]))


def test_an_offset_of_the_values_costs_nothing() -> None:
    point = torch.randn(1, 3, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    box = Box.around(point, 0.1)
    widths = []
    for offset, points in ((0.0, [point]), (5.0, [point]), (5.0, [])):
        found = compute_bounds(prepare(network(offset), points), [box], "crown").outputs[0]
        widths.append(float((found.upper - found.lower).mean()))
    assert widths[1] == pytest.approx(widths[0], rel=0.02)
    assert widths[2] > 2 * widths[0]


def test_points_where_values_are_not_finite_are_no_use() -> None:
    graph = network(0.0)
    assert center_means(graph, [torch.full((1, 3, 4), torch.inf, dtype=torch.float64)]) is graph
    b = Builder()
    plain = b.graph(b.add(Linear(torch.eye(2, dtype=torch.float64)), b.input("x", (2,))))
    assert center_means(plain, [torch.zeros(1, 2, dtype=torch.float64)]) is plain
