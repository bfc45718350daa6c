"""The independent check of assignments accepts what is true and refuses what is not."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from benchmarks.common import exported
from benchmarks.scripts import Row, check

SPEC = """(declare-const X_0 Real) (declare-const X_1 Real) (declare-const Y_0 Real)
(assert (>= X_0 0)) (assert (<= X_0 1)) (assert (or (and (>= X_1 -1) (<= X_1 0)) (and (>= X_1 2) (<= X_1 3))))
(assert (>= Y_0 1.5)) ; the sum of the inputs"""


@pytest.fixture
def row(tmp_path: Path) -> Row:
    layer = torch.nn.Linear(2, 1, bias=False)
    torch.nn.init.ones_(layer.weight)
    (tmp_path / "a.onnx").write_bytes(exported(layer, torch.zeros(1, 2)))
    (tmp_path / "a.vnnlib").write_text(SPEC)
    return Row(tmp_path, "a.onnx", "a.vnnlib", 1.0, "sat")


@pytest.mark.parametrize(
    ("x", "y", "word"),
    [
        ((0.5, 2.0), 2.5, "accepted"),
        ((0.5, 1.99995), 2.49995, "within tolerance"),
        ((0.5, 1.5), 2.0, "does not hold"),  # between the two ranges
        ((1.0, 0.0), 1.0, "does not hold"),  # the output is too small
        ((0.5, 2.0), 3.5, "off by"),  # outputs that the model does not give
    ],
)
def test_check(row: Row, x: tuple[float, float], y: float, word: str) -> None:
    assert word in check(row, f"((X_0 {x[0]})\n (X_1 {x[1]})\n (Y_0 {y}))")
