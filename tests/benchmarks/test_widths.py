"""The benchmark of widths: its fixed lines are those of the literature, and optimised bounds beat them."""

from __future__ import annotations

import pytest
import torch

from benchmarks.networks import COMMITTED, HERE, Mlp
from benchmarks.networks.modules import GatedMlp, Vit, save
from benchmarks.widths import FixedLines, fixed_slope, main, measure
from verifier.graph import Interval
from verifier.ops.product import Product
from verifier.ops.sigmoid import Sigmoid
from verifier.ops.trigonometric import Sine


def ends(*pairs: tuple[float, float]) -> Interval:
    low, high = torch.tensor(pairs, dtype=torch.float64).T
    return Interval(low.unsqueeze(0), high.unsqueeze(0))


def test_lines_of_a_sigmoid() -> None:
    """Convex: tangent in the middle below, chord above; across the turn: chord where sound, else through an end."""
    x = ends((-4.0, -2.0), (2.0, 4.0), (-0.5, 6.0))
    below, above = (fixed_slope(Sigmoid(), x, sign)[0] for sign in (1, -1))
    s = torch.sigmoid
    tangent = s(x.center) * s(-x.center)
    chord = (s(x.upper) - s(x.lower)) / (x.upper - x.lower)
    torch.testing.assert_close(below[0], tangent[0, 0])
    torch.testing.assert_close(above[0], chord[0, 0])
    torch.testing.assert_close(below[1], chord[0, 1])
    torch.testing.assert_close(above[1], tangent[0, 1])
    assert below[2] == pytest.approx(float(chord[0, 2]))  # no tangent from 6 touches above -0.5
    assert above[2] == pytest.approx(float((s(x.upper) * s(-x.upper))[0, 2]), rel=0.05)


def test_fixed_lines_are_sound_and_free_of_parameters() -> None:
    x, y = ends((-3.0, 1.0), (0.0, 5.0)), ends((-1.0, 2.0), (1.0, 3.0))
    for op, boxes in ((Sigmoid(), [x]), (Sine(), [x]), (Product(), [x, y])):
        fixed = FixedLines(op)
        lines = fixed.relax(fixed.parameters(*boxes), *boxes)
        points = [b.lower + torch.rand(1000, 2, dtype=torch.float64) * (b.upper - b.lower) for b in boxes]
        value = op.forward(*points)
        low = sum(s * p for s, p in zip(lines.lower_slopes, points, strict=True)) + lines.lower_intercept
        high = sum(s * p for s, p in zip(lines.upper_slopes, points, strict=True)) + lines.upper_intercept
        assert not fixed.parameters(*boxes) and (low <= value + 1e-9).all() and (value <= high + 1e-9).all()


def test_optimised_bounds_are_narrower() -> None:
    row = measure("tanh", 0.06, torch.full((1, 64), 0.5), iterations=2)
    assert 1 < row.optimised < row.initial <= row.fixed and row.attacked > 0


@pytest.mark.full
def test_the_table(capsys: pytest.CaptureFixture[str]) -> None:
    main(["--images", "1", "--iterations", "20"])
    lines = [line.split("|") for line in capsys.readouterr().out.splitlines() if "| 0.05 |" in line]
    assert len(lines) == 6 and all(float(cells[7]) <= 0.9 for cells in lines)


@pytest.mark.parametrize(
    "module", [Mlp("Gelu", 1, 4), GatedMlp(1, 4, 4), Vit(4, 1, 4, 2)], ids=["mlp", "gated", "vit"]
)
def test_networks_are_written_as_they_are(module, tmp_path) -> None:
    save(module, tmp_path / "network.onnx")  # which compares


def test_committed_networks_are_small() -> None:
    sizes = [(HERE / f"{name}.onnx").stat().st_size for name in COMMITTED]
    assert len(sizes) == 6 and max(sizes) <= 60_000
