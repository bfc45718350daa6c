"""The command line with an engine that the test writes: what is printed and when needs no torch."""

from __future__ import annotations

import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

import verifier
from verifier.cli import solve
from verifier.cli.main import main


class Ran(NamedTuple):
    code: int | str | None
    out: str
    err: str


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Ran]:
    """Runs `verifier WORDS...` in this process (its worker is a fork); gives exit code, stdout, stderr."""
    monkeypatch.setattr(
        solve, "_age", lambda: 0.0
    )  # or the tests before would count as the command's start-up

    def call(*words: object) -> Ran:
        capfd.readouterr()
        with pytest.raises(SystemExit) as left:
            main([str(word) for word in words])
        return Ran(left.value.code, *capfd.readouterr())

    return call


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> types.SimpleNamespace:
    """A stand-in for `verifier.api`; a test sets the functions that it needs on it."""
    fake = types.SimpleNamespace()
    monkeypatch.setitem(sys.modules, "verifier.api", fake)
    monkeypatch.setattr(verifier, "api", fake, raising=False)
    return fake


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    """A model and a VNN-LIB 1 query that exist; the stand-in engine does not read them."""
    model, spec = tmp_path / "net.onnx", tmp_path / "query.vnnlib"
    model.write_bytes(b"")
    spec.write_text("; a comment (vnnlib-version <2.0>)\n(declare-const X_0 Real)\n")
    return model, spec
