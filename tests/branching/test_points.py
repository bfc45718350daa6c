"""Branching points from tables."""

from __future__ import annotations

import pytest
import torch

from verifier.branching.points import SPAN, STEP, middle_point, table_point
from verifier.graph import Interval, Univariate
from verifier.ops.piecewise_linear import Relu
from verifier.ops.sigmoid import Sigmoid, Tanh
from verifier.ops.sign import Sign
from verifier.ops.trigonometric import Sine


def intervals(count: int = 400, span: float = SPAN) -> Interval:
    ends = span * (
        2 * torch.rand(2, count, generator=torch.Generator().manual_seed(0), dtype=torch.float64) - 1
    )
    return Interval(ends.amin(0), ends.amax(0))


def area(op: Univariate, lower: torch.Tensor, upper: torch.Tensor) -> torch.Tensor:
    x = Interval(lower, upper)
    lines = op.relax({name: p.value for name, p in op.parameters(x).items()}, x)
    assert lines.upper_intercept is not None and lines.lower_intercept is not None
    tilt = (lines.upper_slopes[0] - lines.lower_slopes[0]) * x.center
    return (tilt + lines.upper_intercept - lines.lower_intercept) * (upper - lower)


@pytest.mark.parametrize("op", [Sigmoid(), Tanh(), Sine(0)])
def test_table_points_leave_less_than_middles(op: Univariate) -> None:
    x = intervals()
    point = table_point(op, x)
    assert bool(((point >= x.lower) & (point <= x.upper)).all())
    left = [area(op, x.lower, p).mean() + area(op, p, x.upper).mean() for p in (point, x.center)]
    assert left[0] < 0.97 * left[1]


@pytest.mark.parametrize("op", [Relu(), Sign()])
@pytest.mark.parametrize("rule", [table_point, middle_point])
def test_kinks_and_jumps_are_cut_at(op: Univariate, rule) -> None:
    x = intervals()
    assert torch.equal(rule(op, x), op.branching_point(0, x))


def test_beyond_the_table_the_operator_decides() -> None:
    wide = Interval(torch.tensor([-50.0, 100.0, 0.0]), torch.tensor([70.0, 101.0, STEP / 8]))
    assert torch.equal(table_point(Sigmoid(), wide), Sigmoid().branching_point(0, wide))
    endless = Interval(torch.tensor([-torch.inf, 0.0]), torch.tensor([torch.inf, torch.inf]))
    assert not bool(table_point(Sigmoid(), endless).isnan().any())
