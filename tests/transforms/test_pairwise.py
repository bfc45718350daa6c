"""Maxima of many as maxima of two: the same function, made of Relus."""

from __future__ import annotations

import pytest
import torch

from verifier.graph import Builder
from verifier.ops.linear import Linear
from verifier.ops.maximum import Maximum
from verifier.ops.piecewise_linear import Relu
from verifier.transforms.pairwise import pairwise


@pytest.mark.parametrize("count", [1, 3, 4, 7])
def test_the_function_stays(count: int) -> None:
    """One argument twice and a constant among them, and the maximum's result used twice."""
    generator = torch.Generator().manual_seed(count)
    builder = Builder()
    x = builder.input("x", (5,))
    weights = [torch.randn(4, 5, generator=generator, dtype=torch.float64) for _ in range(count)]
    values = [builder.add(Linear(w), x) for w in weights]
    fixed = builder.constant(torch.randn(4, generator=generator, dtype=torch.float64))
    first = builder.add(Maximum(count + 2), *values, values[0], fixed, name="largest")
    again = builder.add(Maximum(3), first, values[0], first)
    graph = builder.graph(first, again)
    written = pairwise(graph)
    assert not any(isinstance(n.op, Maximum) for n in written.nodes)
    assert sum(n.numel for n in written.nodes if isinstance(n.op, Relu)) == 4 * (count + 3)
    points = torch.randn(500, 5, generator=generator, dtype=torch.float64)
    for a, b in zip(graph.evaluate([points]), written.evaluate([points]), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-14, atol=1e-14)


def test_nothing_to_do() -> None:
    builder = Builder()
    x = builder.input("x", (5,))
    graph = builder.graph(builder.add(Relu(), x))
    assert pairwise(graph) is graph
