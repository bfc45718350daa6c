"""The commands `lipschitz`, `monotone` and `jacobian`."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from verifier import Status, verify
from verifier.cli.app import app
from verifier.errors import VerifierError

DATA = Path(__file__).resolve().parent.parent / "data"


def run(*words: object) -> str:
    result = CliRunner().invoke(app, [str(w) for w in words], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def test_local_and_global(tmp_path: Path) -> None:
    model, spec = DATA / "digits_mlp.onnx", DATA / "digits_mlp_unsat.vnnlib"
    out = tmp_path / "local.json"
    text = run("lipschitz", model, spec, "--margin", 3, 5, "--until", "crown", "--json", out, "--timeout", 4)
    assert "upper, crown" in text and "lower, a gradient" in text
    local = json.loads(out.read_text())
    assert 0 < local["lower"] <= local["upper"] and local["scope"] == "local"
    run("lipschitz", model, "--margin", 3, 5, "--json", out, "--no-progress", "--timeout", 4)
    assert json.loads(out.read_text())["upper"] >= local["upper"]


def test_around_a_point(tmp_path: Path) -> None:
    point = tmp_path / "x.npy"
    np.save(point, np.load(DATA / "digits_test.npz")["images"][0].astype(np.float32).reshape(1, 64))
    text = run("lipschitz", DATA / "digits_mlp.onnx", "--input", point, "--eps", 0.01, "--norm", "2",
               "--output", 1, "--until", "crown", "--timeout", 4)  # fmt: skip
    assert "upper, local" in text


def test_plot(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    run("lipschitz", DATA / "digits_mlp.onnx", "--plot", tmp_path / "a.png")
    assert (tmp_path / "a.png").stat().st_size > 1000


def test_monotone(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.zeros((3, 64), dtype=np.float32))
    out = tmp_path / "found.json"
    words = ("--output", 3, "--feature", 20, "--feature", 21, "--method", "crown", "--json", out)
    text = run("monotone", DATA / "digits_mlp.onnx", tmp_path / "x.npy", *words)
    assert "certified share" in text
    rows = json.loads(out.read_text())["features"]
    assert [r["index"] for r in rows] == [20, 21]
    kinds = ("increasing", "decreasing", "constant", "neither", "open")
    assert all(sum(r[kind] for kind in kinds) == 3 for r in rows)
    run("monotone", DATA / "digits_mlp.onnx", tmp_path / "x.npy", *words, "--timeout", 20)
    assert all(r["open"] == 0 for r in json.loads(out.read_text())["features"])


def test_mistakes(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["lipschitz", str(DATA / "digits_mlp.onnx"), "--eps", "0.1"])
    assert result.exit_code != 0


def test_jacobian(tmp_path: Path) -> None:
    """A file of two derivatives, and a property of these."""
    file, query = tmp_path / "jacobian.onnx", tmp_path / "query.vnnlib"
    model = DATA / "digits_mlp.onnx"
    text = run("jacobian", model, "-o", file, "--output", 3, "--output", 5, "--input", 20)
    assert "d Y_5 / d X_20" in text
    box = (DATA / "digits_mlp_unsat.vnnlib").read_text()
    lines = [s for s in box.splitlines() if "X_" in s] + [f"(declare-const Y_{k} Real)" for k in range(2)]
    for level, status in ((1000, Status.UNSAT), (-1000, Status.SAT)):
        query.write_text("\n".join([*lines, f"(assert (>= (- Y_0 Y_1) {level}))"]))
        assert verify(file, query, timeout=20).status is status
    everything = run("jacobian", model, "-o", file)
    assert "..." in everything and "Y_639" in everything


def test_a_jacobian_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(VerifierError, match="no folder"):
        run("jacobian", DATA / "digits_mlp.onnx", "-o", tmp_path / "nowhere" / "a.onnx")
    with pytest.raises(VerifierError, match="exclude"):
        run("jacobian", DATA / "digits_mlp.onnx", "-o", tmp_path / "a.onnx", "--margin", 1, 2, "--output", 3)
