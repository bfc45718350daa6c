"""Shared by all tests: one thread per process, and where the optional real instances are."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported: tests run in parallel processes

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def root() -> Path:
    """The project's folder."""
    return ROOT


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real benchmark instances; the test is skipped where it is missing."""
    folder = Path(os.environ.get("VERIFIER_SHARED", ROOT.parent / "shared"))
    if not (folder / "vnncomp-dev").is_dir():
        pytest.skip(f"no benchmark instances at {folder}; set VERIFIER_SHARED to the folder that has them")
    return folder
