"""Factors that the boxes fix."""

from __future__ import annotations

import torch

from verifier.graph import Builder, Graph
from verifier.ops.gated import Gated
from verifier.ops.movement import reshape, take
from verifier.ops.piecewise_linear import Relu, relu
from verifier.ops.product import Product, multiply
from verifier.transforms.fixed import scale_by_fixed


def network() -> Graph:
    b = Builder()
    x = b.input("x", (6,))
    first, second = take(b, x, lambda t: t[:3]), reshape(b, take(b, x, lambda t: t[3:]), (3,))
    gated = b.add(Gated(Relu()), first, second)
    return b.graph(gated, multiply(b, second, relu(b, first)))


def kinds(graph: Graph) -> list[str]:
    return sorted(type(n.op).__name__ for n in graph.nodes if isinstance(n.op, Gated | Product))


def check(lower: torch.Tensor, upper: torch.Tensor, left: list[str]) -> None:
    graph = network()
    changed = scale_by_fixed(graph, lower, upper)
    assert kinds(changed) == left
    x = lower + torch.rand(7, *lower.shape, dtype=torch.float64) * (upper - lower)
    for a, b in zip(graph.evaluate([x.flatten(0, 1)]), changed.evaluate([x.flatten(0, 1)]), strict=True):
        torch.testing.assert_close(a, b)


def test_one_number_in_all_boxes_scales() -> None:
    lower = torch.randn(4, 6, dtype=torch.float64)
    lower[:, 3:] = torch.tensor([0.5, -2.0, 0.0], dtype=torch.float64)
    upper = lower.clone()
    upper[:, :3] += 1
    check(lower, upper, [])


def test_one_number_in_each_box_needs_no_joint_planes() -> None:
    lower = torch.randn(4, 6, dtype=torch.float64)
    upper = lower.clone()
    upper[:, :3] += 1
    check(lower, upper, ["Product", "Product"])


def test_what_varies_stays() -> None:
    lower = torch.randn(4, 6, dtype=torch.float64)
    upper = lower.clone()
    upper[2, 4] += 1e-9
    check(lower, upper, ["Gated", "Product"])
    graph = network()
    assert scale_by_fixed(graph, lower[:0], upper[:0]) is graph
