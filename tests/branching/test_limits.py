"""Limits of the search, through the public interface."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import verifier
from verifier.results import Reason, Status


@pytest.mark.parametrize("branching", ["input", "activation"])
def test_no_more_subdomains_than_allowed(root: Path, branching) -> None:
    data = root / "tests" / "data"
    digits = np.load(data / "digits_test.npz")
    hard = verifier.robust(digits["images"][:1], int(digits["labels"][0]), eps=0.1)
    for allowed in (1, 20):
        options = verifier.Options(branching=branching, attack=False, max_domains=allowed, timeout=60)
        result = verifier.verify(data / "digits_mlp.onnx", hard, options=options)
        assert (result.status, result.reason) == (Status.UNKNOWN, Reason.DOMAIN_LIMIT)
        assert result.stats.domains == allowed
        assert result.bound is None or result.bound <= 0
