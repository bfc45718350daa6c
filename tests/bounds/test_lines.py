"""The hand-written steps against plain formulas and their gradients."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from verifier.bounds.lines import sane, through, through_error
from verifier.graph import Interval, Relaxation
from verifier.graph.coefficients import Dense, Rows, roundings


def randn(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed + sum(shape))
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def plainly(dense: Tensor, lines: Relaxation, groups: int) -> tuple[list[Tensor], Tensor]:
    """The same step written with torch.where."""

    def wide(t: Tensor) -> Tensor:
        t = t if t.dim() == 4 else t.unsqueeze(1)
        return t.repeat_interleave(dense.shape[1] // t.shape[1], 1)

    rising = dense > 0
    parts = [
        dense * torch.where(rising, wide(low), wide(high))
        for low, high in zip(lines.lower_slopes, lines.upper_slopes, strict=True)
    ]
    shift = torch.zeros(1)
    for t, side in ((lines.lower_intercept, rising), (lines.upper_intercept, ~rising)):
        if t is not None:
            shift = shift + (dense * side * wide(t)).flatten(2).sum(2)
    return parts, shift


@pytest.mark.parametrize("arguments", [1, 2])
@pytest.mark.parametrize("groups", [1, 2, 6])
@pytest.mark.parametrize("batch", [1, 3])
def test_values_and_gradients(arguments: int, groups: int, batch: int) -> None:
    shape = (2, 3)
    dense = randn(3, 6, *shape).requires_grad_()

    def line(k: int) -> Tensor:
        size = (batch, *shape) if groups == 1 or k % 2 else (batch, groups, *shape)
        return randn(*size, seed=k).requires_grad_()

    lower, upper = (
        tuple(line(2 * k) for k in range(arguments)),
        tuple(line(2 * k + 1) for k in range(arguments)),
    )
    for below, above in ((None, line(7)), (line(8), None), (line(8), line(7)), (None, None)):
        lines = Relaxation(lower, below, upper, above)
        leaves = [t for t in (dense, *lower, *upper, below, above) if t is not None]
        parts, shift = through(Dense(dense), lines, shape)
        expected, expected_shift = plainly(dense, lines, groups)
        assert (shift is None) == (below is None and above is None)
        total = sum((p.dense() * randn(3, 6, *shape, seed=20)).sum() for p in parts)
        wanted = sum((p * randn(3, 6, *shape, seed=20)).sum() for p in expected)
        if shift is not None:
            assert torch.allclose(shift, expected_shift)
            total, wanted = total + (shift * randn(3, 6)).sum(), wanted + (expected_shift * randn(3, 6)).sum()
        for got, right in zip(parts, expected, strict=True):
            assert torch.allclose(got.dense(), right)
        got = torch.autograd.grad(total, leaves)
        for a, b in zip(got, torch.autograd.grad(wanted, leaves), strict=True):
            assert a.shape == b.shape and torch.allclose(a, b)


def test_lines_that_say_nothing() -> None:
    """An infinite or undefined line gives no bound to those who take it, and harms nobody else."""
    inf, nan = torch.inf, torch.nan
    one = torch.ones(1, 4)
    lines = Relaxation(
        (one,), 0 * one, (torch.tensor([[inf, nan, 1.0, 1.0]]),), torch.tensor([[1.0, 1.0, inf, 2.0]])
    )
    fixed = sane(lines)
    assert all(t.isfinite().all() for t in (*fixed.lower_slopes, *fixed.upper_slopes))
    rows = torch.cat([torch.eye(4), -torch.eye(4)]).unsqueeze(0)
    parts, shift = through(Dense(rows), fixed, (4,))
    assert parts[0].dense().isfinite().all() and shift is not None
    assert (shift[0, :4] == 0).all() and (shift[0, 4:7] < -1e38).all() and shift[0, 7] == -2
    finite = lines._replace(upper_slopes=lines.lower_slopes, upper_intercept=None)
    assert sane(finite).upper_slopes is finite.upper_slopes


def test_rounding_takes_the_line_that_is_taken() -> None:
    lines = Relaxation((randn(1, 5),), randn(1, 5, seed=1), (randn(1, 5, seed=2),), randn(1, 5, seed=3))
    box = Interval(randn(1, 5, seed=4) - 1, randn(1, 5, seed=4) + 1)
    rows = torch.cat([torch.eye(5), -torch.eye(5)]).double().unsqueeze(0)
    size = through_error(Dense(rows), lines, [box.magnitude], (5,), 2)
    assert lines.lower_intercept is not None and lines.upper_intercept is not None
    constant = 2 + roundings(5)
    lower = 2 * lines.lower_slopes[0].abs() * box.magnitude + constant * lines.lower_intercept.abs()
    upper = 2 * lines.upper_slopes[0].abs() * box.magnitude + constant * lines.upper_intercept.abs()
    assert torch.allclose(size[:, :5], lower) and torch.allclose(size[:, 5:], upper)


@pytest.mark.parametrize("groups", [1, 2, 6])
@pytest.mark.parametrize("batch", [1, 3])
def test_single_entries_stay_single_and_are_the_same(groups: int, batch: int) -> None:
    shape = (2, 3)
    generator = torch.Generator().manual_seed(groups)
    rows = Rows(torch.randint(6, (batch, 6), generator=generator), randn(batch, 6), shape)
    size = (3, *shape) if groups == 1 else (3, groups, *shape)
    lines = Relaxation(
        (randn(*size, seed=1), randn(*size, seed=2)), randn(*size, seed=3), (randn(*size, seed=4),) * 2, None
    )
    parts, shift = through(rows, lines, shape)
    expected, expected_shift = through(Dense(rows.dense()), lines, shape)
    assert all(isinstance(p, Rows) for p in parts)
    assert shift is not None and expected_shift is not None
    torch.testing.assert_close(shift, expected_shift)
    for part, wanted in zip(parts, expected, strict=True):
        torch.testing.assert_close(part.dense(), wanted.dense())
    sizes = [randn(3, *shape).abs(), randn(3, *shape, seed=5).abs()]
    found = through_error(rows, lines, sizes, shape, 8)
    assert (found <= through_error(Dense(rows.dense()), lines, sizes, shape, 8) * (1 + 1e-12)).all()
    assert (found > 0).all()


def test_single_entries_on_infinite_lines_say_nothing() -> None:
    rows = Rows(torch.tensor([[0, 1]]), torch.ones(1, 2).double(), (2,))
    slope, intercept = torch.ones(1, 2).double(), torch.tensor([[-torch.inf, 0.5]]).double()
    _, shift = through(rows, Relaxation((slope,), intercept, (slope,), -intercept), (2,))
    assert shift is not None and shift.tolist() == [[-torch.inf, 0.5]]
