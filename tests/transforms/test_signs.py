"""A sign of a sign is one sign, where no rounding can make it another one."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from verifier.graph import Builder, Graph
from verifier.ops.arithmetic import scale_shift
from verifier.ops.sign import Sign
from verifier.transforms.signs import join_signs

POINTS = torch.tensor([[-2.0, -1e-30, 0.0, 1e-30, 3.0]], dtype=torch.float64)


def network(
    scale: Tensor | float | None = None,
    shift: Tensor | float | None = None,
    at_zero: float = 0.0,
    doubt: Tensor | None = None,
) -> Graph:
    builder = Builder()
    first = builder.add(Sign(at_zero), builder.input("x", (5,)))
    if scale is not None or shift is not None:
        first = scale_shift(builder, first, scale, shift, doubt)
    return builder.graph(builder.add(Sign(), first, name="y"))


def signs(graph: Graph) -> int:
    return sum(isinstance(n.op, Sign) for n in graph.nodes)


@pytest.mark.parametrize("at_zero", [-1.0, 0.0, 1.0])
@pytest.mark.parametrize(
    ("scale", "shift"), [(None, None), (None, 0.1), (None, -0.1), (-2.0, 0.5), (3.0, 0.0)]
)
def test_two_signs_become_one(scale: float | None, shift: float | None, at_zero: float) -> None:
    graph = network(scale, shift, at_zero)
    joined = join_signs(graph)
    assert signs(graph) == 2 and signs(joined) == 1
    assert joined.nodes[joined.outputs[0]].name == "y"
    assert torch.equal(joined.evaluate([POINTS])[0], graph.evaluate([POINTS])[0])


@pytest.mark.parametrize(
    ("scale", "shift", "doubt"),
    [
        (None, 1.5, None),  # constant
        (None, 1.0, None),  # never negative, and zero below
        (0.3, 0.1 + 0.2, None),  # zero or not by rounding
        (None, torch.tensor([0.1, 0.1, -0.1, 0.1, 0.1], dtype=torch.float64), None),  # not the same for all
        (None, 0.1, torch.tensor(0.2, dtype=torch.float64)),
    ],
)
def test_others_stay(scale: float | None, shift: float | Tensor, doubt: Tensor | None) -> None:
    graph = network(scale, shift, doubt=doubt)
    assert [type(n.op) for n in join_signs(graph).nodes] == [type(n.op) for n in graph.nodes]


def test_three_signs_become_one() -> None:
    builder = Builder()
    y = builder.input("x", (5,))
    for shift in (0.1, -0.2, 0.3):
        y = scale_shift(builder, builder.add(Sign(), y), scale=-1.0, shift=shift)
    graph = builder.graph(builder.add(Sign(), y))
    assert signs(graph) == 4 and signs(join_signs(graph)) == 2  # the last negation stands between them
    assert torch.equal(join_signs(graph).evaluate([POINTS])[0], graph.evaluate([POINTS])[0])


def test_a_sign_that_is_used_elsewhere_stays_beside_the_new_one() -> None:
    builder = Builder()
    first = builder.add(Sign(), builder.input("x", (5,)))
    graph = builder.graph(builder.add(Sign(), scale_shift(builder, first, shift=0.1)), first)
    joined = join_signs(graph)
    assert [n.op.at_zero for n in joined.nodes if isinstance(n.op, Sign)] == [0.0, 1.0]
    for a, b in zip(joined.evaluate([POINTS]), graph.evaluate([POINTS]), strict=True):
        assert torch.equal(a, b)
