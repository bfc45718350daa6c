"""Limits of the search, through the public interface."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest

import verifier
from verifier import strategy
from verifier.bounds.backward import OutOfTime
from verifier.results import Reason, Status


@pytest.mark.parametrize("branching", ["input", "activation"])
def test_no_more_subdomains_than_allowed(root: Path, branching) -> None:
    data = root / "tests" / "data"
    digits = np.load(data / "digits_test.npz")
    hard = verifier.robust(digits["images"][:1], int(digits["labels"][0]), eps=0.1)
    for allowed in (1, 10):
        options = verifier.Options(branching=branching, attack=False, max_domains=allowed, timeout=60)
        result = verifier.verify(data / "digits_mlp.onnx", hard, options=options)
        assert (result.status, result.reason) == (Status.UNKNOWN, Reason.DOMAIN_LIMIT)
        assert result.stats.domains == allowed
        assert result.bound is None or result.bound <= 0


@pytest.mark.parametrize(("property", "status"), [("sat", Status.SAT), ("unsat", Status.TIMEOUT)])
def test_what_the_first_bounds_leave_belongs_to_the_attack(
    root: Path, monkeypatch: pytest.MonkeyPatch, property: str, status: Status
) -> None:
    """They may take three quarters of the time; afterwards intervals are reported and the attack goes on."""
    deadlines, attack = [], strategy._Run._attack

    def slow(bounder, *_):
        deadlines.append(bounder.options.deadline - time.monotonic())
        raise OutOfTime

    def late(run, deadline, rounds):
        return attack(run, deadline, rounds) if deadlines else None

    monkeypatch.setattr(strategy, "root", slow)
    monkeypatch.setattr(strategy._Run, "_attack", late)
    data = root / "tests" / "data"
    options = verifier.Options(branching="activation", timeout=4)
    spec = data / f"digits_cnn_{property}.vnnlib"
    result = verifier.verify(data / "digits_cnn.onnx", spec, options=options)
    assert result.status is status
    assert (result.bound is not None) == (status is Status.TIMEOUT)
    assert 2 < deadlines[0] < 3
