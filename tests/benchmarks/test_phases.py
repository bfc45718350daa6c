"""The profile of a verification adds up, and leaves no clock behind."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest
import torch

import verifier
from benchmarks.phases import METHODS, Stopwatch, profile
from verifier import api
from verifier.branching.search import Search
from verifier.ops.linear import Linear
from verifier.options import Options


def test_rows_count_what_is_spent_in_them_alone() -> None:
    watch = Stopwatch(True, lambda: None)
    with watch.timed("outer"):
        time.sleep(0.02)
        for _ in range(2):
            with watch.timed("inner"):
                time.sleep(0.01)
    outer, inner = watch.rows[("outer",)], watch.rows[("outer", "inner")]
    assert (outer.calls, inner.calls) == (1, 2)
    assert 0.02 <= outer.seconds < 0.04 <= outer.seconds + inner.seconds == watch.seconds("outer")


@pytest.mark.parametrize("branching", ["input", "activation"])
def test_a_search_is_accounted_for(root: Path, branching) -> None:
    originals = [vars(Linear)[name] for name in METHODS.keys() & vars(Linear).keys()]
    run, grad, check = Search.run, torch.autograd.grad, api.load_network
    data = root / "tests" / "data"
    digits = np.load(data / "digits_test.npz")
    hard = verifier.robust(digits["images"][:1], int(digits["labels"][0]), eps=0.1)
    options = Options(timeout=60, branching=branching, max_domains=100, device="cpu")
    report = profile(data / "digits_mlp.onnx", hard, options)
    spent = {path: row.seconds for path, row in report.phases.rows.items()}
    assert report.missing == ()
    assert {("load",), ("compile",), ("quick attack",), ("branch and bound", "bounding")} <= set(spent)
    assert ("branch and bound", "branching") in spent and ("branch and bound", "store") in spent
    assert all(seconds >= 0 for seconds in spent.values())
    assert 0.5 * report.seconds < sum(spent.values()) <= report.seconds
    steps = {step for operator, step in report.operators.rows if operator == "Linear"}
    assert {"forward", "backward"} <= steps
    assert sum(row.seconds for row in report.operators.rows.values()) < report.seconds
    text = "\n".join(report.lines(1.0))
    assert "| import | 1 | 1.000 |" in text and "subdomains" in text and "| Linear | backward |" in text
    assert (Search.run, torch.autograd.grad, api.load_network) == (run, grad, check)
    assert originals == [vars(Linear)[name] for name in METHODS.keys() & vars(Linear).keys()]


def test_parsing_and_root_bounds_are_phases(root: Path) -> None:
    data = root / "tests" / "data"
    report = profile(
        data / "digits_cnn.onnx", data / "digits_cnn_unsat.vnnlib", Options(timeout=60, device="cpu")
    )
    assert report.result.holds
    assert {("parse",), ("load", "compare with onnxruntime"), ("root bounds",)} <= set(report.phases.rows)
