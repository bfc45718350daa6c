"""Graphs of gradients: equal to autograd at random points, and their bounds hold sampled gradients."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

import verifier.ops  # noqa: F401 - registers all operators
from tests.ops.curve_entries import CURVES
from verifier.bounds.alpha import AlphaOptions
from verifier.bounds.compute import compute_bounds
from verifier.errors import UnsupportedError
from verifier.frontends.onnx import load
from verifier.graph import Builder, Graph, Op
from verifier.graph.op import Affine, Transposed
from verifier.ops.alternatives import Alternatives
from verifier.ops.arithmetic import Add, ScaleShift, add, scale_shift
from verifier.ops.choice import Choice
from verifier.ops.combination import Combination
from verifier.ops.convolution import Conv, ConvTranspose, Window
from verifier.ops.difference import Difference
from verifier.ops.exponential import Exp
from verifier.ops.extremum import maximum_over
from verifier.ops.gated import Gated
from verifier.ops.integers import Integral
from verifier.ops.linear import ConstantMatMul, Linear
from verifier.ops.matmul import matmul
from verifier.ops.maximum import Maximum
from verifier.ops.movement import Concat, Pad, Permute, Reshape, Take
from verifier.ops.near import Near
from verifier.ops.piecewise_linear import PiecewiseLinear, PRelu, Relu, absolute, piecewise_linear
from verifier.ops.product import Product, Square
from verifier.ops.reciprocal import Reciprocal
from verifier.ops.reduction import Sum
from verifier.ops.repeat import repeat
from verifier.ops.sign import Sign
from verifier.ops.signed import Signed
from verifier.ops.softmax import Softmax
from verifier.ops.sorting import Ranked, Sorted
from verifier.ops.step import Step
from verifier.ops.switched import Switched
from verifier.ops.within import Within
from verifier.options import BoundMethod
from verifier.sets import Box
from verifier.transforms.differentiate import differentiate

_generator = torch.Generator().manual_seed(0)


def randn(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=_generator, dtype=torch.float64)


WINDOW = Window((3, 2), (2, 1), (1, 1), (1, 0), (1, 1))
# One form or more for every operator with a rule: the operator and its arguments' shapes.
CASES: list[tuple[Op, list[tuple[int, ...]]]] = [
    (Add(), [(2, 3), (2, 3)]),
    (Switched(torch.zeros(1).double(), torch.tensor([0.5, 2.0]).double()), [(2, 3), (2, 3)]),
    (ScaleShift(randn(3), randn(2, 1)), [(2, 3)]),
    (ScaleShift(None, randn(3)), [(2, 3)]),
    (Linear(randn(3, 4), randn(3)), [(2, 4)]),
    (
        Combination(
            (randn(3, 4), randn(3, 2)), randn(3), 1e-12 * randn(3).abs(), (randn(4).abs(), randn(2).abs())
        ),
        [(4,), (2,)],
    ),
    (Signed(Linear(randn(3, 4), randn(3))), [(2, 4)]),
    (ConstantMatMul(randn(2, 3, 4), True), [(1, 4, 2)]),
    (ConstantMatMul(randn(2, 4, 3), False), [(5, 4)]),
    (Reshape((3, 2)), [(2, 3)]),
    (Permute((2, 0, 1)), [(2, 3, 4)]),
    (Take(torch.tensor([0, 5, 5, 2]), (2, 2)), [(2, 3)]),
    (Concat(1), [(2, 1), (2, 3), (2, 2)]),
    (Pad((0, 1), (2, -1)), [(2, 3)]),
    (Sum((0, 2)), [(2, 3, 2)]),
    (Conv(randn(4, 1, 3, 2), randn(4), WINDOW, groups=2), [(1, 2, 5, 4)]),
    (ConvTranspose(randn(2, 3, 3, 2), randn(3), WINDOW, (0, 0)), [(1, 2, 3, 2)]),
    (Transposed(Linear(randn(3, 4)), 0, ((2, 4),)), [(2, 3)]),
    (Relu(), [(2, 3)]),
    (PRelu(torch.tensor(-1.0, dtype=torch.float64)), [(2, 3)]),
    (PRelu(randn(2, 1)), [(2, 3)]),
    (piecewise_linear([-1.0, 0.1, 2.0], [1.0, -2.0, 0.5, 3.0], 0.3), [(2, 3)]),
    (Product(), [(2, 3), (2, 3)]),
    (Square(), [(2, 3)]),
    (Exp(), [(2, 3)]),
    (Reciprocal(), [(2, 3)]),
    (Softmax(0), [(2, 3)]),
    (Maximum(3), [(2, 3), (2, 3), (2, 3)]),
    (Alternatives(), [(2, 3), (2, 3)]),
    (Integral(), [(2, 3)]),
    (Gated(Exp()), [(2, 3), (2, 3)]),
    (Gated(Relu(), Square()), [(2, 3), (2, 3)]),
    (Difference(Exp(), (2, 3)), [(2, 3), (2, 3), (2, 3)]),
    (Difference(Relu(), (2, 3)), [(2, 3), (2, 3), (2, 3)]),
    (Within(-9.0, 9.0), [(2, 3)]),
    (Near(randn(2, 3)), [(2, 3), (2, 3)]),
    (Choice(), [(2, 3), (2, 3), (2, 3)]),
    (Ranked(torch.ones(2, 3, dtype=torch.int64)), [(2, 3), (2, 3), (2, 3)]),
    (Sorted(1, 3, False), [(2, 3)]),
    (Sorted(0, 1, True), [(3, 2)]),
]


def _subclasses(kind: type) -> Iterator[type]:
    for child in kind.__subclasses__():
        yield child
        yield from _subclasses(child)


def test_every_operator_has_a_rule_or_says_why_not() -> None:
    modules = ("verifier.graph", "verifier.ops")
    own = {c for c in _subclasses(Op) if c.__module__.startswith(modules) and not inspect.isabstract(c)}
    assert {PiecewiseLinear, Step, Sign, Transposed} <= own
    for c in sorted(own, key=lambda c: c.__name__):
        has = c.vjp not in (Op.vjp, Affine.vjp) or issubclass(c, Affine)
        if isinstance(c.no_derivative, property):
            assert has, f"{c.__name__}: a `vjp` where `no_derivative` is empty"
        else:
            assert has != bool(c.no_derivative), f"{c.__name__}: a `vjp` or a reason why there is none"
    refusing = {c for c in own if c.no_derivative and not isinstance(c.no_derivative, property)}
    with_rule = {c for c in own - refusing if c.__module__.startswith("verifier.ops")}
    missing = sorted(c.__name__ for c in with_rule - {type(op) for op, _ in CASES} - set(CURVES))
    assert not missing, f"enter these operators in CASES of this file: {missing}"


def assert_equals_autograd(graph: Graph, xs: list[Tensor], output: int = 0) -> None:
    """With the cotangent as an input, and as a constant."""
    leaves = [x.clone().requires_grad_() for x in xs]
    y = graph.evaluate(leaves)[output]
    seed = randn(*y.shape[1:])
    expected = torch.autograd.grad(y, leaves, seed.expand_as(y), allow_unused=True)
    free = differentiate(graph, output).evaluate([*xs, seed.expand_as(y)])
    fixed = differentiate(graph, output, seed).evaluate(xs)
    for x, wanted, a, b in zip(xs, expected, free, fixed, strict=True):
        wanted = torch.zeros_like(x) if wanted is None else wanted
        torch.testing.assert_close(a.expand_as(x), wanted)
        torch.testing.assert_close(b.expand_as(x), wanted)


@pytest.mark.parametrize(
    ("op", "shapes"), CASES, ids=[f"{i}-{type(op).__name__}" for i, (op, _) in enumerate(CASES)]
)
def test_operators_equal_autograd(op: Op, shapes: list[tuple[int, ...]]) -> None:
    builder = Builder()
    graph = builder.graph(builder.add(op, *[builder.input(f"x{i}", s) for i, s in enumerate(shapes)]))
    assert_equals_autograd(graph, [randn(50, *s) for s in shapes])


def branched() -> Graph:
    """Kinks, products and squares, values used several times, a constant branch and an unused input."""
    b = Builder()
    x, y, _ = b.input("x", (3,)), b.input("y", (3, 3)), b.input("unused", (2,))
    h = b.add(Relu(), b.add(Linear(randn(3, 3), randn(3)), x))
    best = maximum_over(b, matmul(b, y, y), [1], keep=False)
    z = add(b, b.add(Product(), h, absolute(b, x)), best)
    z = b.add(piecewise_linear([-1.0, 1.5], [0.0, 1.0, 0.0], -1.0), add(b, z, b.add(Square(), h)))
    return b.graph(scale_shift(b, x, scale=2.0), add(b, z, b.constant(randn(3))))


def test_several_paths_and_outputs() -> None:
    graph = branched()
    xs = [randn(200, 3), randn(200, 3, 3), randn(200, 2)]
    assert_equals_autograd(graph, xs, 1)
    assert_equals_autograd(graph, xs, 0)


def test_second_derivatives_of_polynomials() -> None:
    b = Builder()
    x = b.input("x", (2,))
    graph = b.graph(b.add(Product(), b.add(Square(), x), x))  # x^3
    ones = torch.ones(2, dtype=torch.float64)
    second = differentiate(differentiate(graph, 0, ones), 0, ones)
    point = randn(5, 2)
    torch.testing.assert_close(second.evaluate([point])[0], 6 * point)


def test_loops_are_written_out() -> None:
    b = Builder()
    state, step = b.input("state", (2,)), b.input("step", (2,))
    body = b.graph(b.add(Relu(), add(b, b.add(Linear(randn(2, 2)), state), step)))
    b = Builder()
    start, steps = b.input("start", (2,)), b.input("steps", (3, 2))
    graph = b.graph(*repeat(b, body, 3, 1, start, steps))
    assert_equals_autograd(graph, [randn(50, 2), randn(50, 3, 2)])


def test_operators_without_a_rule_are_all_named() -> None:
    b = Builder()
    x = b.input("x", (2,))
    first = b.at("model/sign").add(Sign(), x)
    second = b.at("model/step").add(Step(torch.zeros(1), torch.tensor([0.0, 1.0])), x)
    unused = b.at("model/unused").add(Sign(), first)
    graph = b.graph(add(b, first, second), unused)
    with pytest.raises(UnsupportedError) as caught:
        differentiate(graph)
    assert [(n.name, n.operator) for n in caught.value.nodes] == [
        ("model/sign", "Sign"),
        ("model/step", "Step"),
    ]
    assert all("jump" in n.reason for n in caught.value.nodes)
    with pytest.raises(ValueError, match="cotangent has shape"):
        differentiate(graph, 0, torch.ones(3))


@pytest.mark.parametrize(
    ("method", "dtype"),
    [(m, torch.float64) for m in ("interval", "forward", "crown")]
    + [(m, torch.float32) for m in ("interval", "forward", "crown", "alpha-crown")],
)
def test_bounds_hold_sampled_gradients(method: BoundMethod, dtype: torch.dtype) -> None:
    graph = branched()
    gradient = differentiate(graph, 1, torch.ones(3, dtype=torch.float64))
    for radius in (1e-3, 0.3):
        sets = [Box.around(randn(2, *graph.nodes[i].shape).to(dtype), radius) for i in graph.inputs]
        found = compute_bounds(gradient.to(dtype), sets, method, (), AlphaOptions(iterations=3))
        shares = [torch.rand(300, *s.lower.shape, dtype=torch.float64) for s in sets]
        xs = [s.lower + r * (s.upper - s.lower).double() for r, s in zip(shares, sets, strict=True)]
        leaves = [x.flatten(0, 1).requires_grad_() for x in xs]
        wanted = torch.autograd.grad(graph.evaluate(leaves)[1].sum(), leaves, allow_unused=True)
        for bound, g in zip(found.outputs[:2], wanted[:2], strict=True):
            assert g is not None
            g = g.unflatten(0, (300, 2))
            assert (g >= bound.lower).all() and (g <= bound.upper).all()


def test_bounds_at_a_kink_hold_every_generalised_derivative() -> None:
    """|x| at 0 exactly: all of [-1, 1]."""
    b = Builder()
    graph = differentiate(b.graph(absolute(b, b.input("x", (1,)))), 0, torch.ones(1, dtype=torch.float64))
    zero = torch.zeros(1, 1, dtype=torch.float64)
    for method in ("interval", "crown"):
        bound = compute_bounds(graph, [Box(zero, zero)], method).outputs[0]
        assert bound.lower <= -1 and bound.upper >= 1


@pytest.mark.parametrize("name", ["digits_mlp", "digits_cnn"])
def test_trained_networks(root: Path, name: str) -> None:
    graph = load(root / "tests" / "data" / f"{name}.onnx").graph
    shape = graph.nodes[graph.inputs[0]].shape
    x = torch.rand(4, *shape, generator=_generator, dtype=torch.float64)
    assert_equals_autograd(graph, [x])
    one = torch.zeros(graph.nodes[graph.outputs[0]].shape, dtype=torch.float64)
    one.view(-1)[3] = 1.0
    gradient = differentiate(graph, 0, one)
    box = Box.around(x, 0.01)
    bound = compute_bounds(gradient, [box], "interval").outputs[0]
    tight = compute_bounds(gradient, [box], "crown-ibp").outputs[0]
    points = (box.lower + torch.rand(50, *box.lower.shape) * (box.upper - box.lower)).flatten(0, 1)
    g = gradient.evaluate([points])[0].unflatten(0, (50, 4))
    for b in (bound, tight):
        assert (g >= b.lower).all() and (g <= b.upper).all()
    assert (tight.upper - tight.lower).sum() < (bound.upper - bound.lower).sum()


@pytest.mark.full
@pytest.mark.parametrize(
    "model",
    [
        "acasxu/**/*.onnx*",
        "ml4acopf_2024/**/14*linear-nonresidual.onnx*",
        "collins_rul_cnn/**/*.onnx*",
        "yolo/**/*.onnx*",
        "cora/**/*.onnx*",
    ],
)
def test_dev_models(shared: Path, model: str) -> None:
    graph = load(sorted((shared / "vnncomp-dev").glob(model))[0]).graph
    xs = [
        torch.rand(2, *graph.nodes[i].shape, generator=_generator, dtype=torch.float64) for i in graph.inputs
    ]
    assert_equals_autograd(graph, xs)
