"""The same seed, device and no time limit: the same verdict, bound and number of subdomains."""

from __future__ import annotations

import numpy as np
import pytest

import verifier
from tests.verdicts.networks import random_case, random_net, to_onnx
from verifier.options import Options
from verifier.specs.load import parse_query

SEARCHED = (53, 73, 128, 192, 194)
"""Cases for which several subdomains are bounded."""


@pytest.mark.parametrize("attack", [False, pytest.param(True, marks=pytest.mark.full)])
@pytest.mark.parametrize("seed", SEARCHED)
def test_same_result_twice(seed: int, attack: bool) -> None:
    random = np.random.default_rng(seed)
    case = random_case(random, random_net(random, 40))
    options = Options(timeout=None, seed=7, device="cpu", attack=attack, max_domains=300, batch_size=64)
    results = [
        verifier.verify(to_onnx(case.net), parse_query(case.text()), options=options) for _ in range(2)
    ]
    assert attack or results[0].stats.domains > 5
    first, second = ((r.status, r.bound, r.stats.domains, r.stats.branches) for r in results)
    assert first == second
