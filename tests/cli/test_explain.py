"""`verifier explain`: tables, JSON, and what is said of files that do not fit."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cli.conftest import Ran

DATA = Path(__file__).parent.parent / "data"
Runner = Callable[..., Ran]


def hard(folder: Path) -> Path:
    """A query that five subdomains do not decide."""
    import numpy as np

    import verifier

    digits = np.load(DATA / "digits_test.npz")
    claim = verifier.robust(digits["images"][:1], int(digits["labels"][0]), eps=0.1)
    file = folder / "hard.vnnlib"
    claim.to_vnnlib(file, (1, 10))
    return file


def test_tables_advice_and_json(run: Runner, tmp_path: Path) -> None:
    out = tmp_path / "why.json"
    spec = hard(tmp_path)
    words = (
        "--timeout",
        10,
        "--max-domains",
        5,
        "--branching",
        "activation",
        "--no-attack",
        "--no-progress",
    )
    ran = run("explain", DATA / "digits_mlp.onnx", spec, *words, "--json", out)
    assert ran.code == 0, ran.err
    told = json.loads(out.read_text())
    lines = ran.out.splitlines()
    assert lines[0].startswith("unknown after") and f"{told['disjuncts']['open']} of 9 disjuncts" in ran.out
    title = lines.index("Open disjuncts, worst first")
    assert lines[title + 1].split() == ["disjunct", "bound", "attack", "gap", "middle", "open", "left"]
    worst = told["disjuncts"]["worst"][0]
    assert lines[title + 2].startswith(worst["text"]) and f"{worst['bound']:.4g}" in lines[title + 2]
    assert "Where bounds get loose" in ran.out and told["layers"][0]["name"] in ran.out
    assert [line for line in lines if line.startswith("1. ")] and len(told["hints"]) >= 2


def test_a_step_that_takes_too_long_costs_what_comes_after_it(
    run: Runner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from verifier.explanation import explain

    monkeypatch.setattr(explain, "largest", lambda *_: time.sleep(60))
    out, began = tmp_path / "why.json", time.monotonic()
    words = ("--timeout", 6, "--max-domains", 5, "--no-attack", "--no-progress", "--json", out)
    ran = run("explain", DATA / "digits_mlp.onnx", hard(tmp_path), "--branching", "activation", *words)
    assert time.monotonic() - began < 7.5 and ran.code == 0
    assert "The time limit cut the measuring off" in ran.err
    assert "Open disjuncts, worst first" in ran.out and "Where bounds get loose" in ran.out
    told = json.loads(out.read_text())
    assert told["layers"] and told["radius"] is None and told["hints"]


def test_decided(run: Runner) -> None:
    spec = DATA / "digits_mlp_unsat.vnnlib"
    ran = run("explain", DATA / "digits_mlp.onnx", spec, "--timeout", 20, "--no-progress")
    assert ran.code == 0 and ran.out.startswith("unsat after") and "there is nothing to explain" in ran.out


def test_errors_say_what_to_do(run: Runner, tmp_path: Path) -> None:
    model, spec = DATA / "digits_mlp.onnx", DATA / "digits_mlp_sat.vnnlib"
    for words, said in (
        ((model, tmp_path / "none.vnnlib"), "no file"),
        ((model, spec, "--timeout", "inf"), "finite timeout"),
        ((model, spec, "--json", tmp_path / "no" / "x.json"), "Make it first"),
        ((model,), "only one file was given"),
    ):
        ran = run("explain", *words)
        assert ran.code == 2 and said in ran.err, ran.err
