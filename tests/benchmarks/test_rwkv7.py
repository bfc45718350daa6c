"""The search for radii, and what its table refuses; the attack and the bounds on a small random model."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from benchmarks import rwkv7
from benchmarks.rwkv7 import (
    RADII,
    ROUNDS,
    FirstAnswer,
    Row,
    Settings,
    attack,
    certified,
    largest,
    prefix,
    strings,
    table,
)
from verifier.models.rwkv7 import RWKV7Model


@pytest.mark.parametrize("limit", [0.0013, 0.05, 0.97, 7.0])
def test_the_largest_radius_is_found_to_a_few_percent(limit):
    tried = []

    def holds(radii: torch.Tensor) -> torch.Tensor:
        tried.append(len(radii))
        return radii <= limit

    found = largest(holds, 0.001, 1.0)
    near = 1000 ** ((RADII + 1) ** -ROUNDS)
    assert 0.999 * min(limit, 1.0) / near**1.01 <= found < limit
    assert tried == [RADII] * ROUNDS


def test_none_holds():
    assert largest(lambda radii: radii < 0, 0.001, 1.0) == 0.0


def test_strings_are_seeded_and_different():
    texts = strings(4, [1, 2, 3])
    assert texts == strings(4, [1, 2, 3]) and len(set(texts)) == 12
    assert [len(t) for t in texts] == [1] * 4 + [2] * 4 + [3] * 4


def test_a_certified_radius_above_an_attacked_one_is_an_error():
    rows = {
        ("12", k, "recurrent"): Row("12", k, "recurrent", r, 1.0, 0.1)
        for k, r in (("attack", 0.02), ("crown", 0.01))
    }
    assert any("0.500" in line for line in table(rows, ["12"]))
    rows["12", "crown", "recurrent"] = Row("12", "crown", "recurrent", 0.021, 1.0, 0.1)
    with pytest.raises(ValueError, match="certified"):
        list(table(rows, ["12"]))


@pytest.mark.full
def test_certified_below_attacked_on_a_random_model(monkeypatch):
    monkeypatch.setattr(rwkv7, "ROUNDS", 1)
    torch.manual_seed(0)
    network = RWKV7Model(12, 4, 1, 2, 1, "parallel").eval()
    for parameter in network.parameters():
        parameter.requires_grad_(False)
    module, x = FirstAnswer(network).eval(), prefix(network, "3")
    label = int(module(x).argmax())
    reached = attack(module, x, label, steps=8, restarts=1)
    given = Settings(Path(), Path(), "cpu", 1, 1 << 28)
    proved = certified(module, x, label, (reached / 100, reached), given)
    assert 0.02 * reached < proved <= reached
