"""The benchmark of lines: its best line is that of a linear program, and ours come near to it."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from benchmarks.relaxations import SIZES, _hull, main, measure, subjects


def test_the_hull_is_what_the_linear_program_finds() -> None:
    from scipy.optimize import linprog

    x = torch.linspace(-2, 3, 41, dtype=torch.float64)
    y = (3 * x).sin() + 0.2 * x * x
    ours = float(_hull(x.unsqueeze(1), y.unsqueeze(1), x.mean().view(1)))
    rows = np.stack([-x.numpy(), -np.ones(41)], 1)
    found = linprog([float(x.mean()), 1.0], A_ub=rows, b_ub=-y.numpy(), bounds=[(None, None)] * 2)
    assert ours == pytest.approx(found.fun, abs=1e-9)


SUBJECTS = [
    pytest.param(s, id=s.name, marks=[pytest.mark.full] * (k % 8 > 0)) for k, s in enumerate(subjects())
]


@pytest.mark.parametrize("subject", SUBJECTS)
def test_optimised_lines_are_within_five_percent(subject) -> None:
    row = measure(subject, 10, seed=1)
    assert 0.99 < row.optimised <= 1.05 and len(SIZES) == 3
    assert row.start <= 1.08  # starts lean towards the flat


def test_the_table(capsys: pytest.CaptureFixture[str]) -> None:
    main(["--intervals", "5", "--only", "Sigmoid"])
    printed = capsys.readouterr().out
    assert "| Sigmoid | 1.0" in printed and "| all | 1.0" in printed
