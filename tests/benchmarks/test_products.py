"""The benchmark of products: joint gaps are never larger than composed ones, and its table can be printed."""

from __future__ import annotations

import pytest

from benchmarks.products import ENTRIES, main, row, width_ratio


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda e: e.name)
def test_joint_gaps_are_smaller(entry, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.products.STEPS", 5)
    mean, best, optimised = row(entry, 1.0, 50, 0)
    most = (
        1.003 if entry.name == "relu(x) y" else 0.99
    )  # McCormick's flattest mixture of ReLU's lines is as good
    assert best <= mean < most and optimised <= mean


def test_networks_gain() -> None:
    assert width_ratio("tanh(A h) B h", 0.1) < 0.95


def test_the_tables(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("benchmarks.products.ENTRIES", ENTRIES[:1])
    monkeypatch.setattr("benchmarks.products.NETWORKS", {})
    monkeypatch.setattr("benchmarks.products.STEPS", 1)
    monkeypatch.setattr("sys.argv", ["products", "--boxes", "10"])
    main()
    assert "| sigmoid(x) y |" in capsys.readouterr().out
