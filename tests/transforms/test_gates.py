"""Products with a function as a factor become one node: the same values, and bounds that are tighter."""

from __future__ import annotations

import math

import torch

from verifier.bounds.compute import compute_bounds
from verifier.graph import Builder, Graph, Value
from verifier.ops.arithmetic import add, scale_shift
from verifier.ops.exponential import Exp
from verifier.ops.gated import Gated
from verifier.ops.linear import Linear
from verifier.ops.movement import broadcast, permute, reshape
from verifier.ops.piecewise_linear import Relu, prelu
from verifier.ops.product import Product, multiply
from verifier.ops.reciprocal import Reciprocal
from verifier.ops.sigmoid import Sigmoid
from verifier.ops.sign import Sign
from verifier.sets import Box
from verifier.transforms.fold import fold
from verifier.transforms.gates import join_gates


def affine(b: Builder, x: Value, shape: tuple[int, ...], seed: int) -> Value:
    generator = torch.Generator().manual_seed(seed)
    count, width = math.prod(shape), b.shape(x)[0]
    weight = torch.randn(count, width, generator=generator, dtype=torch.float64) / math.sqrt(width)
    bias = torch.randn(count, generator=generator, dtype=torch.float64)
    return reshape(b, b.add(Linear(weight, bias), x), shape)


def network() -> Graph:
    """Products to join: (A x) exp(B x), exp times relu, a relu moved and scaled."""
    b = Builder()
    x = b.input("x", (3,))
    first = multiply(b, affine(b, x, (4,), 0), b.add(Exp(), affine(b, x, (4,), 1)))
    second = multiply(b, b.add(Relu(), affine(b, x, (4,), 2)), b.add(Exp(), affine(b, x, (4,), 3)))
    moved = permute(b, b.add(Relu(), affine(b, x, (2, 2), 4)), (1, 0))
    tall = scale_shift(b, moved, scale=torch.tensor([[2.0], [0.0]], dtype=torch.float64))
    third = multiply(b, permute(b, tall, (1, 0)), affine(b, x, (2, 2), 5))
    return b.graph(first, second, third)


def test_the_function_stays() -> None:
    graph = fold(network())
    joined = join_gates(graph)
    kinds = [type(n.op) for n in joined.nodes]
    assert kinds.count(Gated) == 3 and not {Product, Exp, Relu} & set(kinds)
    assert sum(isinstance(n.op, Gated) and n.op.other is not None for n in joined.nodes) == 1
    assert {n.name for n in graph.nodes if isinstance(n.op, Product)} <= {n.name for n in joined.nodes}
    points = torch.rand(500, 3, dtype=torch.float64)
    for a, b in zip(graph.evaluate([points]), joined.evaluate([points]), strict=True):
        torch.testing.assert_close(a, b)


def test_bounds_hold_and_gain() -> None:
    """Three layers h + sigmoid(A h) * (B h); what one layer gains the next ones inherit."""
    b = Builder()
    x = b.input("x", (3,))
    h = affine(b, x, (12,), 0)
    for k in range(3):
        gate, value = (affine(b, h, (12,), 2 * k + j) for j in (1, 2))
        h = add(b, h, multiply(b, b.add(Sigmoid(), gate), value))
    graph = fold(b.graph(h))
    joined = fold(join_gates(graph))
    points = torch.rand(500, 3, dtype=torch.float64) * 0.6
    box = Box(torch.zeros(1, 3, dtype=torch.float64), torch.full((1, 3), 0.6, dtype=torch.float64))
    for method, gain in (("crown", 0.99), ("alpha-crown", 1.01)):
        apart, together = (compute_bounds(g, [box], method).outputs[0] for g in (graph, joined))
        (y,) = graph.evaluate([points])
        assert (together.lower <= y).all() and (y <= together.upper).all()
        widths = [float((t.upper - t.lower).sum()) for t in (apart, together)]
        assert widths[1] < gain * widths[0]


def test_what_others_read_and_what_is_copied_or_jumps_stays_apart() -> None:
    b = Builder()
    x = b.input("x", (3,))
    power = b.add(Exp(), affine(b, x, (4,), 0))
    sign = multiply(b, b.add(Sign(), affine(b, x, (4,), 1)), affine(b, x, (4,), 2))
    inverse = b.add(Reciprocal(), b.add(Exp(), affine(b, x, (4,), 3)))
    copied = multiply(b, affine(b, x, (3, 4), 4), broadcast(b, inverse, (3, 4)))
    graph = b.graph(power, multiply(b, power, affine(b, x, (4,), 5)), sign, copied)
    assert join_gates(graph) is graph


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
