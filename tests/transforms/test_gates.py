"""Products with a function as a factor become one node: the same values, bounds that are tighter."""

from __future__ import annotations

import torch

from verifier.bounds.compute import compute_bounds
from verifier.graph import Builder, Graph
from verifier.ops.arithmetic import scale_shift
from verifier.ops.exponential import Exp
from verifier.ops.gated import Gated
from verifier.ops.linear import Linear
from verifier.ops.movement import broadcast, permute, reshape
from verifier.ops.piecewise_linear import Relu, prelu
from verifier.ops.product import Product, multiply
from verifier.ops.reciprocal import Reciprocal
from verifier.ops.sign import Sign
from verifier.sets import Box
from verifier.transforms.fold import fold
from verifier.transforms.gates import join_gates


def network(seed: int = 0) -> Graph:
    """exp(A x) * (B x), and the exponential is read again; 1 / (...) copied along rows; exp times relu; a sign;
    a relu moved, and scaled too."""
    generator = torch.Generator().manual_seed(seed)
    b = Builder()
    x = b.input("x", (3,))

    def affine(count: int) -> object:
        weight = 0.5 * torch.randn(count, 3, generator=generator, dtype=torch.float64)
        return b.add(Linear(weight, torch.randn(count, generator=generator, dtype=torch.float64)), x)

    power = b.add(Exp(), affine(4))
    first = multiply(b, affine(4), power)
    inverse = b.add(Reciprocal(), b.add(Exp(), affine(4)))
    matrix = reshape(b, affine(12), (3, 4))
    second = multiply(b, matrix, broadcast(b, inverse, (3, 4)))
    third = multiply(b, b.add(Relu(), affine(4)), b.add(Exp(), affine(4)))
    fourth = multiply(b, b.add(Sign(), affine(4)), affine(4))
    moved = permute(b, b.add(Relu(), reshape(b, affine(4), (2, 2))), (1, 0))
    fifth = multiply(b, moved, reshape(b, affine(4), (2, 2)))
    tall = scale_shift(b, moved, scale=torch.tensor([[2.0], [0.0]], dtype=torch.float64))
    sixth = multiply(b, permute(b, tall, (1, 0)), reshape(b, affine(4), (2, 2)))
    return b.graph(first, power, second, third, fourth, fifth, sixth)


def test_the_function_stays_and_bounds_are_tighter() -> None:
    graph = fold(network())
    joined = join_gates(graph)
    kinds = [type(n.op) for n in joined.nodes]
    assert kinds.count(Gated) == 5 and kinds.count(Product) == 1  # the sign's product stays
    assert sum(isinstance(n.op, Gated) and n.op.other is not None for n in joined.nodes) == 1
    names = {n.name for n in joined.nodes}
    assert {n.name for n in graph.nodes if isinstance(n.op, Product)} <= names
    points = torch.rand(500, 3, dtype=torch.float64)
    for a, b in zip(graph.evaluate([points]), joined.evaluate([points]), strict=True):
        torch.testing.assert_close(a, b)
    box = Box(torch.zeros(1, 3, dtype=torch.float64), torch.ones(1, 3, dtype=torch.float64))
    apart, together = (compute_bounds(g, [box], "crown").outputs for g in (graph, fold(joined)))
    for found, y in zip(together, graph.evaluate([points]), strict=True):
        assert (found.lower <= y).all() and (y <= found.upper).all()
    widths = [sum(float((t.upper - t.lower).sum()) for t in found) for found in (apart, together)]
    assert widths[1] < 0.97 * widths[0]


def test_per_element_functions_are_not_moved() -> None:
    b = Builder()
    x = b.input("x", (2, 3))
    y = prelu(b, x, torch.arange(3, dtype=torch.float64))
    graph = b.graph(multiply(b, permute(b, y, (1, 0)), b.input("z", (3, 2))))
    assert join_gates(graph) is graph
    inputs = [torch.randn(5, 2, 3, dtype=torch.float64), torch.randn(5, 3, 2, dtype=torch.float64)]
    assert len(graph.evaluate(inputs)) == 1


def test_nothing_to_do() -> None:
    b = Builder()
    x = b.input("x", (5,))
    graph = b.graph(multiply(b, x, b.add(Linear(torch.eye(5, dtype=torch.float64)), x)))
    assert join_gates(graph) is graph
