"""The scripts in examples/ run, shortened, and show what README.md says."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("sklearn", reason="the examples need scikit-learn, an extra")


def printed(root: Path, *words: str) -> str:
    ran = subprocess.run(
        [sys.executable, *words], cwd=root, capture_output=True, text=True, timeout=300, check=False
    )
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


def test_gla_is_certified_and_refuted(root):
    rows = printed(root, "examples/certify_gla.py", "--epochs", "4", "--images", "1").splitlines()
    verdicts = [row.split()[3] for row in rows[3:]]
    assert verdicts == ["unsat", "sat"]


def test_lstm_is_certified_and_refuted_from_the_command_line(root):
    text = printed(root, "examples/certify_lstm_onnx.py", "--epochs", "8")
    verdicts = [line for line in text.splitlines() if line in ("unsat", "sat")]
    assert verdicts == ["unsat", "sat"]
    assert "is read as a" in text.partition("\nsat\n")[2]
