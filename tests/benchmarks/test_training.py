"""The comparison of losses on digits runs, goes on from its file, and its table takes means over the seeds."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import pytest
import torch

pytest.importorskip("sklearn", reason="the digits are scikit-learn's, an extra")

from benchmarks import training as script


def test_every_loss_trains_and_is_judged() -> None:
    x, y, held, labels = script.digits()
    assert len(x) == 1297 and len(held) == 500
    for method in script.losses(0.1):
        job = script.Job(method, "mlp", (0.01,), 0, width=0.1, epochs=2)
        module, seconds = script.fit(job, x[:128], y[:128])
        assert seconds > 0 and not module.training
        assert all(bool(p.isfinite().all()) for p in module.parameters())
    found = script.judge(module, 0.01, held, labels, script.Limits(2, 1.0, 1.0))
    assert found["interval"] <= found["certified"] <= found["attacked"] <= 1
    assert 0 < found["tightness"] < 1.001
    assert found["clean"] == pytest.approx(float((module(held).argmax(1) == labels).float().mean()))


def test_both_networks_take_digits() -> None:
    for name in ("cnn", "mlp"):
        assert script.network(name, 0.5)(torch.rand(3, 1, 8, 8)).shape == (3, 10)


def test_a_run_goes_on_from_its_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked: list[script.Job] = []

    def quick(job: script.Job, limits: script.Limits) -> list[dict]:
        asked.append(job)
        shares = dict.fromkeys(("clean", "attacked", "interval", "certified", "tightness", "epoch"), 0.5)
        return [job.key(eps) | shares | {"training": 1.0, "judging": 1.0} for eps in job.radii]

    out = tmp_path / "rows.jsonl"
    given = {"methods": ["standard", "IBP"], "networks": ["mlp"], "eps": [0.1, 0.2], "widths": [1.0]}
    given |= {"seeds": [0], "epochs": 3, "count": 1, "timeout": 1.0, "budget": 1.0, "jobs": 1}
    monkeypatch.setattr(script, "rows_of", quick)
    monkeypatch.setattr(script, "parsed", lambda: argparse.Namespace(**given, out=out, table=None))
    script.main()
    assert [(j.method, j.radii) for j in asked] == [
        ("standard", (0.1, 0.2)),
        ("IBP", (0.1,)),
        ("IBP", (0.2,)),
    ]
    assert len(out.read_text().splitlines()) == 4
    given["seeds"] = [0, 1]
    script.main()
    assert [j.seed for j in asked] == [0, 0, 0, 1, 1, 1]
    assert [json.loads(line)["seed"] for line in out.read_text().splitlines()] == [0] * 4 + [1] * 4


def test_the_table_has_means_over_seeds() -> None:
    shares = {"attacked": 0.5, "interval": 0.1, "certified": 0.25, "tightness": 0.75, "epoch": 1.0}
    rows = [
        {"network": "mlp", "eps": 0.1, "width": 1.0, "method": "IBP", "clean": c, **shares}
        for c in (0.9, 0.8)
    ]
    cells = "85.0 ± 7.1 | 50.0 ± 0.0 | 10.0 ± 0.0 | 25.0 ± 0.0 | 0.750 ± 0.000 | 1.00 | 2"
    assert script.table(rows)[2] == f"| mlp | 0.1 | IBP | {cells} |"
