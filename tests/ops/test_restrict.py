"""Operators whose tensors belong to elements, on some elements alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

import verifier
from verifier import Box, Options, Property, Status, Y
from verifier.graph import Elementwise
from verifier.ops.piecewise_linear import PRelu
from verifier.ops.piecewise_polynomial import PiecewisePolynomial
from verifier.ops.sampled import TrigPolynomial
from verifier.ops.switched import Switched


def numbers(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(sum(shape)))


OWN: list[tuple[int, ...]] = [(), (1,), (3,), (2,), (3, 1), (2, 1), (3, 3), (2, 2)]
MAKE = {
    "piecewise polynomial": lambda own: PiecewisePolynomial(
        torch.tensor([-0.5, 0.5]).double(), numbers(3), numbers(3, 3, *own)
    ),
    "trigonometric polynomial": lambda own: TrigPolynomial(numbers(3), numbers(3, *own), numbers(3)),
    "prelu": lambda own: PRelu(numbers(*own)),
    "switched": lambda own: Switched(torch.zeros(1).double(), numbers(2, *own)),
}


@pytest.mark.parametrize("shape", [(3,), (2,), (3, 3), (2, 2), (1, 3), (2, 3), (3, 2), (3, 3, 3), (2, 2, 2)])
@pytest.mark.parametrize("kind", MAKE)
def test_some_elements_have_their_own_tensors(kind: str, shape: tuple[int, ...]) -> None:
    """Also where sizes of the value are numbers of pieces or of terms."""
    for own in OWN:
        try:
            if np.broadcast_shapes(own, shape) != shape:
                continue
        except ValueError:
            continue
        op: Elementwise = MAKE[kind](own)
        xs = [numbers(5, *shape), numbers(5, *shape) + 1][: 2 if kind == "switched" else 1]
        index = torch.randperm(xs[0][0].numel(), generator=torch.Generator().manual_seed(0))[:4]
        part = op.restrict(index, shape).forward(*[x.flatten(1)[:, index] for x in xs])
        assert torch.equal(part, op.forward(*xs).flatten(1)[:, index]), own


class HardSwishMap(torch.nn.Module):
    """A map as high and wide as a HardSwish has pieces, and terms in each."""

    def __init__(self, size: int) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.size = size
        self.first, self.last = torch.nn.Linear(2, size * size), torch.nn.Linear(size * size, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = (2 * self.first(x)).unflatten(1, (1, self.size, self.size))
        return self.last(torch.nn.functional.hardswish(h).flatten(1))


@pytest.mark.parametrize("size", [2, 3])
def test_maps_of_hardswish_are_verified(size: int) -> None:
    module = HardSwishMap(size)
    box = Box.around(torch.zeros(1, 2), 2.0)
    with torch.no_grad():
        most = float(module(4 * torch.rand(4000, 2) - 2).max())
    traced = verifier.trace(module, torch.zeros(1, 2))
    options = Options(branching="activation", attack=False, timeout=5)
    result = verifier.verify(traced, Property(inputs=box, ensures=Y[0] < most - 0.01), options=options)
    assert result.status is not Status.UNSAT
    result = verifier.verify(traced, Property(inputs=box, ensures=Y[0] < most + 0.2), options=options)
    assert result.status is Status.UNSAT
