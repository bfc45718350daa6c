"""The benchmark of families: its row of one network, and that what stands in the file is not run again."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from benchmarks import families
from benchmarks.families import held_out, main, measure, network_file
from verifier.certification import lower_bounds
from verifier.frontends import onnx as frontend


def test_a_row_and_the_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(families, "METHODS", ("interval", "crown"))
    monkeypatch.setattr(families, "RADII", (0.005, 0.3))
    row = measure("LSTM", "recurrent", 2, 5.0)
    assert row["remarks"] == [] and row["images"] == 2
    assert row["crown"][0] == row["certified"][0] == 2 and row["falsified"][1] == 2
    assert row["interval width"][0] > row["crown width"][0] > row["attacked"][0] > 0
    file = tmp_path / "families.jsonl"
    file.write_text(json.dumps(row) + "\n")
    main(["--families", "LSTM", "--out", str(file)])
    assert len(file.read_text().splitlines()) == 1
    assert "| LSTM | recurrent |" in capsys.readouterr().out


def test_an_error_is_a_remark_and_no_proof(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> torch.Tensor:
        raise RuntimeError("no bounds today")

    monkeypatch.setattr(families, "lower_bounds", fail)
    monkeypatch.setattr(families, "RADII", (0.3,))
    row = measure("GRU", "recurrent", 1, 2.0)
    assert len(row["remarks"]) == 3 and "no bounds today" in row["remarks"][0]
    assert row["certified"] == [0] and "crown" not in row


def test_bounds_that_an_attack_passes_are_called_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    honest = lower_bounds
    monkeypatch.setattr(families, "METHODS", ("interval",))
    monkeypatch.setattr(families, "RADII", (0.3,))
    monkeypatch.setattr(families, "lower_bounds", lambda *a: honest(*a) + 1e3)
    assert "WRONG" in measure("GRU", "recurrent", 1, 2.0)["remarks"][0]


def test_images_are_classified_as_they_should_be() -> None:
    graph = frontend.load(network_file("GRU", "recurrent")).graph
    x, labels = held_out(graph, 10)
    assert x.shape == (10, 1, 8, 8)
    assert bool((graph.evaluate([x.double()])[0].flatten(1).argmax(1) == labels).all())
