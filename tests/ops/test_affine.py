"""Affine operators against their dense matrices, one form or more for every class."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

import verifier.ops  # noqa: F401 - registers all operators
from verifier.graph import Affine
from verifier.ops.arithmetic import Add, ScaleShift
from verifier.ops.combination import Combination
from verifier.ops.convolution import Conv, ConvTranspose, Window
from verifier.ops.integers import Integral
from verifier.ops.linear import ConstantMatMul, Linear
from verifier.ops.movement import Concat, Pad, Permute, Reshape, Take
from verifier.ops.reduction import Sum
from verifier.ops.signed import Signed

_generator = torch.Generator().manual_seed(0)


def randn(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=_generator, dtype=torch.float64)


CASES = [
    (Signed(Linear(randn(3, 4), randn(3))), [(4,)]),
    (
        Signed(Conv(randn(4, 2, 3, 3), randn(4), Window((3, 3), (1, 1), (1, 1), (1, 1), (1, 1)))),
        [(1, 2, 4, 5)],
    ),
    (Signed(ConstantMatMul(randn(2, 3, 4), True)), [(1, 4, 2)]),
    (Linear(randn(3, 4), randn(3)), [(4,)]),
    (Linear(randn(3, 4)), [(2, 4)]),
    (
        Combination(
            (randn(3, 4), randn(3, 2)), randn(3), 1e-12 * randn(3).abs(), (randn(4).abs(), randn(2).abs())
        ),
        [(4,), (2,)],
    ),
    (Linear(randn(3, 4), randn(3)), [(1, 1, 4)]),
    (ConstantMatMul(randn(3, 4), True), [(4, 2)]),
    (ConstantMatMul(randn(2, 4, 3), False), [(5, 4)]),
    (ConstantMatMul(randn(2, 3, 4), True), [(1, 4, 2)]),
    (Add(), [(2, 3), (2, 3)]),
    (ScaleShift(randn(3), randn(2, 1)), [(2, 3)]),
    (ScaleShift(None, randn(3)), [(2, 3)]),
    (ScaleShift(randn(1)), [(2, 3)]),
    (Reshape((3, 2)), [(2, 3)]),
    (Reshape(()), [(1, 1)]),
    (Permute((2, 0, 1)), [(2, 3, 4)]),
    (Take(torch.tensor([0, 5, 5, 2]), (2, 2)), [(2, 3)]),
    (Concat(1), [(2, 1), (2, 3), (2, 2)]),
    (Pad((0, 1), (2, 0)), [(2, 3)]),
    (Sum((1,)), [(2, 3, 2)]),
    (Sum((0, 2)), [(2, 3, 2)]),
    (Conv(randn(4, 2, 3, 3), randn(4), Window((3, 3), (1, 1), (1, 1), (1, 1), (1, 1))), [(1, 2, 4, 5)]),
    (Conv(randn(4, 2, 2, 3), randn(4), Window((2, 3), (2, 3), (1, 1), (0, 0), (0, 0))), [(1, 2, 4, 6)]),
    (Conv(randn(4, 2, 3), None, Window((3,), (3,), (1,), (0,), (0,))), [(1, 2, 9)]),
    (Conv(randn(4, 1, 2), None, Window((2,), (2,), (2,), (0,), (1,)), groups=2), [(1, 2, 7)]),
    (Conv(randn(3, 1, 3), randn(3), Window((3,), (1,), (1,), (2,), (0,)), groups=3), [(1, 3, 5)]),
    (Conv(randn(3, 1, 2), None, Window((2,), (1,), (3,), (1,), (4,)), groups=3), [(2, 3, 4)]),
    (
        ConvTranspose(randn(2, 3, 2, 2), randn(3), Window((2, 2), (2, 2), (1, 1), (0, 1), (1, 0)), (0, 0)),
        [(1, 2, 3, 2)],
    ),
]


@pytest.mark.parametrize(
    ("op", "shapes"), CASES, ids=[f"{i}-{type(op).__name__}" for i, (op, _) in enumerate(CASES)]
)
def test_against_the_dense_matrix(
    harness: SimpleNamespace, op: Affine, shapes: list[tuple[int, ...]]
) -> None:
    harness.check_affine(op, *shapes)


@pytest.mark.parametrize(
    ("length", "before", "after", "dilation"), [(5, 3, 0, 1), (7, 1, 2, 3), (4, 9, 4, 2)]
)
def test_kernels_of_single_channels(length: int, before: int, after: int, dilation: int) -> None:
    """In float64 they are applied tap by tap, in float32 by torch's own convolution."""
    window = Window((4,), (1,), (dilation,), (before,), (after,))
    conv, x = Conv(randn(3, 1, 4), randn(3), window, groups=3), randn(6, 2, 3, length)
    padded = torch.nn.functional.pad(x.flatten(0, 1), (before, after))
    expected = torch.nn.functional.conv1d(padded, conv.weight, conv.bias, dilation=dilation, groups=3)
    torch.testing.assert_close(conv.forward(x).flatten(0, 1), expected)
    single = replace(conv, weight=conv.weight.float(), bias=conv.bias.float())
    rows = randn(2, 5, *conv.output_shape((2, 3, length)))
    plain = single.transpose(rows.float(), 0, (2, 3, length)).double()
    torch.testing.assert_close(conv.transpose(rows, 0, (2, 3, length)), plain, rtol=1e-4, atol=1e-4)


def _subclasses(kind: type) -> Iterator[type]:
    for child in kind.__subclasses__():
        yield child
        yield from _subclasses(child)


def test_every_operator_has_a_case() -> None:
    own = {
        c
        for c in _subclasses(Affine)
        if c.__module__.startswith("verifier.ops") and not inspect.isabstract(c)
    }
    own.remove(Integral)  # the identity, of whole numbers only: test_integers.py
    missing = sorted(c.__name__ for c in own - {type(op) for op, _ in CASES})
    assert not missing, f"enter these operators in CASES of this file: {missing}"


def test_a_wrong_transpose_is_found(harness: SimpleNamespace) -> None:
    class Broken(Linear):
        def transpose(self, coefficients: Tensor, index: int, *shapes: tuple[int, ...]) -> Tensor:
            return 1.01 * super().transpose(coefficients, index, *shapes)

    with pytest.raises(AssertionError, match="transpose"):
        harness.check_affine(Broken(randn(3, 4)), (4,))
