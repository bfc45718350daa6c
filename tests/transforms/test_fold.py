# ruff: noqa: E501
"""Fusions: the same function to float64 rounding, and as few nodes as promised."""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction

import pytest
import torch

from verifier.bounds.backward import backward
from verifier.bounds.crown import inner_bounds
from verifier.bounds.interval import interval_bounds
from verifier.graph import Affine, Builder, Graph, Interval, Value
from verifier.graph.coefficients import identity
from verifier.ops.arithmetic import ScaleShift, add
from verifier.ops.convolution import Conv, ConvTranspose, Window
from verifier.ops.linear import Linear
from verifier.ops.movement import Permute, Reshape, Take
from verifier.ops.piecewise_linear import PRelu, relu
from verifier.sets import Box
from verifier.transforms.fold import fold


def r(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64)


def few(*shape: int) -> torch.Tensor:
    """Numbers with few digits, whose sums and products are exact."""
    return torch.randn(*shape).half().double()


def window(kernel: int, stride: int = 1, pad: int = 0) -> Window:
    return Window((kernel,) * 2, (stride,) * 2, (1, 1), (pad,) * 2, (pad,) * 2)


def kinds(graph: Graph) -> list[str]:
    return [type(n.op).__name__ for n in graph.nodes[1:]]


def chain(shape: tuple[int, ...], *ops: object) -> Graph:
    builder = Builder()
    x = builder.input("x", shape)
    for op in ops:
        x = op(builder, x) if isinstance(op, Callable) else builder.add(op, x)  # type: ignore[arg-type]
    return builder.graph(x)


CHAINS = {
    "linear, bias": ((1, 3), ["Linear"], lambda: [Linear(r(4, 3)), ScaleShift(None, r(4))]),
    "linear, scale and bias of rows": ((2, 3), ["Linear"], lambda: [Linear(r(4, 3), r(4)), ScaleShift(r(1, 4), r(4))]),
    "bias that differs by row stays": (
        (2, 3), ["Linear", "ScaleShift"], lambda: [Linear(r(4, 3)), ScaleShift(None, r(2, 4))]),
    "normalisation": ((1, 3), ["Linear"], lambda: [ScaleShift(r(3), r(1, 3)), Linear(r(4, 3), r(4))]),
    "scalar normalisation before a reshape": (
        (1, 1, 3), ["Reshape", "Linear"], lambda: [ScaleShift(r(1, 3), r(1)), Reshape((1, 3)), Linear(r(4, 3))]),
    "bottleneck stays": ((8,), ["Linear", "Linear"], lambda: [Linear(r(2, 8)), Linear(r(8, 2))]),
    "two matrices": ((3,), ["Linear"], lambda: [Linear(few(8, 3), few(8)), Linear(few(3, 8), r(3))]),
    "two matrices whose product is rounded stay": (
        (3,), ["Linear", "Linear"], lambda: [Linear(r(8, 3), r(8)), Linear(r(3, 8), r(3))]),
    "conv, batch norm": (
        (1, 2, 5, 5), ["Conv"], lambda: [Conv(r(4, 1, 3, 3), r(4), window(3, 1, 1), 2), ScaleShift(r(4, 1, 1), r(4, 1, 1))]),
    "transposed conv, batch norm": (
        (1, 4, 3, 3), ["ConvTranspose"],
        lambda: [ConvTranspose(r(4, 3, 2, 2), r(6), window(2, 2), (0, 0), 2), ScaleShift(r(6, 1, 1), r(6, 1, 1))]),
    "batch norm, conv": (
        (1, 4, 5, 5), ["Conv"], lambda: [ScaleShift(r(1, 4, 1, 1), r(4, 1, 1)), Conv(r(6, 2, 3, 3), r(6), window(3), 2)]),
    "scale, padded conv": (
        (1, 4, 5, 5), ["Conv"], lambda: [ScaleShift(r(4, 1, 1), None), Conv(r(6, 2, 3, 3), None, window(3, 1, 1), 2)]),
    "shift, padded conv stays": (
        (1, 4, 5, 5), ["ScaleShift", "Conv"], lambda: [ScaleShift(None, r(4, 1, 1)), Conv(r(6, 4, 3, 3), None, window(3, 1, 1))]),
    "scalings": ((2, 3), ["ScaleShift"], lambda: [ScaleShift(r(3), r(2, 1)), ScaleShift(None, r(3)), ScaleShift(r(2, 3))]),
    "no-ops": ((2, 3), [], lambda: [ScaleShift(torch.ones(3).double()), Reshape((6,)), Reshape((2, 3)), Permute((0, 1))]),
    "rearrangements": (
        (2, 3), ["Take"],
        lambda: [Permute((1, 0)), Reshape((6,)), Take(torch.tensor([5, 0, 0, 3]), (2, 2)), Reshape((4,)),
                 Take(torch.tensor([1, 3]), (2,))]),
    "permutations around a relu": ((2, 3), ["Relu"], lambda: [Permute((1, 0)), relu, Permute((1, 0))]),
    "permutation, one slope": (
        (2, 3), ["PRelu"], lambda: [Permute((1, 0)), PRelu(torch.tensor([0.1]).double()), Permute((1, 0))]),
    "permutation, own slopes": (
        (2, 3), ["Permute", "PRelu", "Permute"], lambda: [Permute((1, 0)), PRelu(r(2)), Permute((1, 0))]),
    "around a relu": (
        (3,), ["Linear", "Relu", "Linear"],
        lambda: [ScaleShift(r(3), r(3)), Linear(r(4, 3)), ScaleShift(None, r(4)), relu, ScaleShift(r(4)), Linear(r(2, 4))]),
}  # fmt: skip


@pytest.mark.parametrize("name", CHAINS)
def test_chains(name: str) -> None:
    torch.manual_seed(0)
    shape, expected, ops = CHAINS[name]
    graph = chain(shape, *ops())
    folded = fold(graph)
    x = r(5, *shape)
    torch.testing.assert_close(folded.evaluate([x])[0], graph.evaluate([x])[0], rtol=1e-13, atol=1e-13)
    assert kinds(folded) == expected
    assert folded.nodes[folded.outputs[0]].shape == graph.nodes[graph.outputs[0]].shape


def test_what_others_need_is_kept() -> None:
    """A value with two users is not fused away, nor is one that is an output."""
    builder = Builder()
    x = builder.input("x", (3,))
    a = builder.add(Linear(r(3, 3)), x, name="a")
    b = builder.add(ScaleShift(None, r(3)), a, name="b")
    graph = builder.graph(add(builder, relu(builder, b), a), b)
    folded = fold(graph)
    assert [n.name for n in folded.nodes] == ["x", "a", "b", "Relu", "Add"]
    point = r(4, 3)
    for ours, theirs in zip(folded.evaluate([point]), graph.evaluate([point]), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_names_of_last_parts_and_unused_inputs_survive() -> None:
    builder = Builder()
    x, _ = builder.input("x", (3,)), builder.input("unused", (2,))
    value: Value = builder.at("bias").add(
        ScaleShift(None, r(3)), builder.add(Linear(r(3, 3)), x), name="named"
    )
    folded = fold(builder.graph(value))
    assert [(n.name, n.source) for n in folded.nodes][2:] == [("named", "bias")]
    assert len(folded.inputs) == 2


def cancelling(*shape: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Large a, ordinary b, and c that is about -a b: what is left of a b + c is mostly rounding."""
    a, b = 1e6 * r(*shape), r(*shape)
    return a, b, -a * b + 1e-9 * r(*shape)


def shift_first(n: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """A matrix, a shift before it and a bias behind it that leaves little."""
    w, shift = r(n, n), 1e6 * r(n)
    return w, shift, -(w @ shift) + 1e-9 * r(n)


def doubtful_chains() -> dict[str, tuple[tuple[int, ...], list[object]]]:
    a, b, c = cancelling(4)
    w, shift, bias = shift_first(4)
    column = (4, 1, 1)
    return {
        "linear, scale": ((3,), [Linear(r(4, 3), a), ScaleShift(b, c)]),
        "scale, linear": ((4,), [ScaleShift(r(4), shift), Linear(w, bias)]),
        "scale, scale": ((4,), [ScaleShift(r(4), a), ScaleShift(b, c)]),
        "conv, scale": (
            (1, 2, 3, 3),
            [Conv(r(4, 2, 2, 2), a, window(2)), ScaleShift(b.view(column), c.view(column))],
        ),
        "conv transpose, scale": (
            (1, 2, 3, 3),
            [ConvTranspose(r(2, 4, 2, 2), a, window(2), (0, 0)), ScaleShift(b.view(column), c.view(column))],
        ),
        "scale, conv": (
            (1, 4, 2, 2),
            [ScaleShift(r(*column), shift.view(column)), Conv(w.view(4, 4, 1, 1), bias, window(1))],
        ),
        "through a reshape, twice": (
            (2, 2),
            [
                ScaleShift(r(2, 2), a.view(2, 2)),
                ScaleShift(b.view(2, 2), c.view(2, 2)),
                Reshape((4,)),
                Linear(w),
            ],
        ),
    }


def exact_at_zero(shape: tuple[int, ...], ops: list[object]) -> list[Fraction]:
    """The chain's value at zero without any rounding: every operator by its own matrix and offset."""
    value = [Fraction(0)] * math.prod(shape)
    for op in ops:
        assert isinstance(op, Affine)
        size = math.prod(shape)
        with_zero = op.forward(torch.zeros(1, *shape, dtype=torch.float64)).flatten()
        outputs = len(with_zero)
        matrix = op.transpose(
            torch.eye(outputs, dtype=torch.float64).view(1, outputs, *op.output_shape(shape)), 0, shape
        )
        offset = op.offset(shape)
        start = torch.zeros(outputs) if offset is None else offset.flatten()
        value = [
            Fraction(s) + sum(Fraction(m) * v for m, v in zip(row, value, strict=True))
            for row, s in zip(matrix.view(outputs, size).tolist(), start.tolist(), strict=True)
        ]
        shape = op.output_shape(shape)
    return value


@pytest.mark.parametrize("name", doubtful_chains())
def test_what_a_fused_shift_is_off_by_is_counted(name: str) -> None:
    torch.manual_seed(3)
    shape, ops = doubtful_chains()[name]
    graph = fold(chain(shape, *ops))
    op = graph.nodes[graph.outputs[0]].op
    assert isinstance(op, Affine)
    below = graph.nodes[graph.nodes[graph.outputs[0]].inputs[0]].shape
    doubt, offset = op.uncertainty(below), op.offset(below)
    assert doubt is not None and offset is not None
    exact = exact_at_zero(shape, ops)
    errors = [abs(Fraction(o) - e) for o, e in zip(offset.flatten().tolist(), exact, strict=True)]
    assert all(e <= Fraction(d) for e, d in zip(errors, doubt.flatten().tolist(), strict=True))
    # Far more than what is relative to the offset itself, hence the field.
    assert any(
        e > 16 * Fraction(abs(o)) * Fraction(2) ** -53
        for e, o in zip(errors, offset.flatten().tolist(), strict=True)
    )
    zero = torch.zeros(1, *shape, dtype=torch.float64)
    bounds = inner_bounds(graph, [Box(zero, zero)], graph.outputs)[graph.outputs[0]]
    rows = backward(
        graph,
        {graph.outputs[0]: identity(graph.nodes[graph.outputs[0]].shape, zero)},
        {},
        interval_bounds(graph, [Interval(zero, zero)]),
    ).minimum(graph, [Box(zero, zero)])
    for low, high, behind, e in zip(*[t.flatten().tolist() for t in (*bounds, rows)], exact, strict=True):
        assert Fraction(low) <= e <= Fraction(high) and Fraction(behind) <= e


def test_exact_sums_have_no_doubt() -> None:
    torch.manual_seed(0)
    for ops in (
        [Linear(r(4, 3), few(4)), ScaleShift(few(4), few(4))],
        [ScaleShift(r(3), few(3)), Linear(few(4, 3), few(4))],
    ):
        graph = fold(chain((3,), *ops))
        assert kinds(graph) == ["Linear"]
        op = graph.nodes[1].op
        assert isinstance(op, Linear) and op.doubt is None


def test_a_scaling_with_a_doubt_is_something() -> None:
    op = ScaleShift(torch.ones(3).double(), torch.zeros(3).double(), 1e-9 * torch.ones(3).double())
    assert kinds(fold(chain((3,), op))) == ["ScaleShift"]
