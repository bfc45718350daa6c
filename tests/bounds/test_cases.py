"""Cases of comparisons: they are orders, cover the set, ties included, and bounds are tight in each."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from verifier.bounds.cases import decision_cases
from verifier.bounds.compute import compute_bounds
from verifier.graph import Builder, Graph, Interval
from verifier.ops.arithmetic import scale_shift
from verifier.ops.largest import largest_mask
from verifier.ops.linear import Linear
from verifier.ops.movement import reshape
from verifier.ops.product import Product
from verifier.ops.reduction import total
from verifier.ops.sigmoid import tanh
from verifier.ops.sign import Sign
from verifier.ops.softmax import differences
from verifier.sets import Box

CENTER = torch.tensor([[0.0, 0.02, 1.0, -1.0], [2.0, 1.0, 0.0, -1.0], [0.02, 0.0, 0.01, 3.0]]).double()
RADIUS = 0.05
"""One pair decides whose order counts, none, and three values of which one is chosen."""


def router(kind: str) -> Graph:
    """The two largest of x, each times its expert's output."""
    b = Builder()
    x = b.input("x", (4,))
    if kind == "steps":
        mask = largest_mask(b, x, 0, 2)
    else:  # as networks write it, x_j > x_i
        above = b.add(Sign(-1.0), reshape(b, differences(b, x), (4, 3)))
        rivals = total(b, scale_shift(b, above, scale=0.5, shift=0.5), [-1], keep=False)
        fewer = b.add(Sign(-1.0), scale_shift(b, rivals, scale=-1.0, shift=1.5))
        mask = scale_shift(b, fewer, scale=0.5, shift=0.5)
    weight = torch.tensor([[3.0, 0, 1, 0], [0, -3, 1, 0], [1, 1, 2, 0], [0, 0, 1, 4]]).double()
    experts = tanh(b, b.add(Linear(weight, torch.ones(4).double()), x))
    return b.graph(total(b, b.add(Product(), mask, experts), [0], keep=True))


def points(center: Tensor) -> Tensor:
    """Points of a box, on a grid with all ties, and anywhere."""
    grid = torch.tensor(list(itertools.product((-1.0, -0.4, 0.0, 0.4, 1.0), repeat=4))).double()
    ties = (center * 50).round() / 50 + 0.05 * grid
    anywhere = center + RADIUS * (2 * torch.rand(500, 4, generator=torch.Generator().manual_seed(0)) - 1)
    found = torch.cat([ties, anywhere, center + 0.01 * grid])
    return found[((found - center).abs() <= RADIUS).all(1)]


@pytest.mark.parametrize("kind", ["steps", "signs"])
def test_bounds_hold_at_ties_and_are_those_of_the_selections(kind: str) -> None:
    net = router(kind)
    box = Box(CENTER - RADIUS, CENTER + RADIUS)
    (found,) = compute_bounds(net, [box], "crown").outputs
    plain = compute_bounds(net, [box], "crown-ibp").outputs[0]
    for k in range(3):
        values = net.evaluate([points(CENTER[k])])[0]
        assert (found.lower[k] <= values + 1e-9).all() and (values <= found.upper[k] + 1e-9).all()
    width, loose = found.upper - found.lower, plain.upper - plain.lower
    assert bool((width <= loose + 1e-9).all())
    assert float(width[0]) < 0.6 * float(loose[0])


def test_cases_cover_the_set_and_are_orders() -> None:
    net = router("signs")
    box = Box(CENTER - RADIUS, CENTER + RADIUS)
    cases = decision_cases(net, [box], net.outputs)
    assert cases is not None
    count = torch.bincount(cases.owner).tolist()
    assert count == [3, 1, 13]
    for k in range(3):
        x = points(CENTER[k])
        values = dict(zip(cases.known, net.evaluate([x], list(cases.known)), strict=True))
        held = torch.zeros(len(x), dtype=torch.bool)
        for case in (cases.owner == k).nonzero()[:, 0].tolist():
            mine = torch.ones(len(x), dtype=torch.bool)
            for i, value in values.items():
                within(cases.known[i], case, value, mine)
                low, high = (t[case] for t in cases.splits[i])
                mine &= ((low <= value) & (value <= high)).flatten(1).all(1)
            held |= mine
        assert bool(held.all())


def within(known: Interval, case: int, value: Tensor, mine: Tensor) -> None:
    mine &= ((known.lower[case] <= value + 1e-12) & (value <= known.upper[case] + 1e-12)).flatten(1).all(1)


def test_too_many_stay_open_and_nothing_open_is_no_case() -> None:
    net = router("signs")
    box = Box(CENTER[2:] - RADIUS, CENTER[2:] + RADIUS)
    assert decision_cases(net, [box], net.outputs, most=26) is None
    assert decision_cases(net, [Box(CENTER[1:2] - RADIUS, CENTER[1:2] + RADIUS)], net.outputs) is None
