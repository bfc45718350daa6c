"""Values without dimensions become vectors, and nothing else changes."""

from __future__ import annotations

import torch

from verifier.bounds.compute import compute_bounds
from verifier.graph import Builder
from verifier.ops.arithmetic import add, negate, scale_shift
from verifier.ops.einsum import einsum
from verifier.ops.movement import broadcast, reshape, take
from verifier.ops.piecewise_linear import absolute
from verifier.ops.product import multiply
from verifier.ops.reduction import total
from verifier.sets import Box
from verifier.transforms.scalars import scalars_as_vectors


def test_scalars_become_vectors_of_one_element() -> None:
    b = Builder()
    x, s = b.input("x", (2, 3)), b.input("s", ())
    first = take(b, x, lambda t: t[1, 2])
    mixed = add(b, multiply(b, first, absolute(b, s)), total(b, x, (0, 1), keep=False))
    grown = add(b, broadcast(b, mixed, (2, 3)), x)
    again = scale_shift(b, einsum(b, "ij,ij->", [grown, x]), shift=2.0)
    whole = b.graph(reshape(b, negate(b, again), (1, 1)), again, mixed)
    changed = scalars_as_vectors(whole)
    assert scalars_as_vectors(changed) is changed or len(changed.nodes) == len(
        scalars_as_vectors(changed).nodes
    )
    point = [torch.randn(5, 2, 3, dtype=torch.float64), torch.randn(5, dtype=torch.float64)]
    for a, c in zip(whole.evaluate(point), changed.evaluate(point), strict=True):
        assert a.shape == c.shape
        torch.testing.assert_close(a, c)
    sets = [Box(p - 0.1, p + 0.1) for p in point]
    for method in ("interval", "crown", "alpha-crown"):
        bounds = compute_bounds(changed, sets, method)
        for value, found in zip(changed.evaluate(point), bounds.outputs, strict=True):
            assert value.shape == found.lower.shape
            assert (value >= found.lower).all() and (value <= found.upper).all()


def test_graphs_without_scalars_stay_themselves() -> None:
    b = Builder()
    graph = b.graph(absolute(b, b.input("x", (3,))))
    assert scalars_as_vectors(graph) is graph
