"""The comparison of losses on digits runs, and its table takes means over the seeds."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("sklearn", reason="the digits are scikit-learn's, an extra")


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch, root: Path):
    monkeypatch.syspath_prepend(str(root / "benchmarks"))
    import training

    yield training
    sys.modules.pop("training", None)


def test_every_loss_trains_and_is_judged(script) -> None:
    x, y, held, labels = script.digits()
    assert len(x) == 1297 and len(held) == 500
    for method in script.losses(0.1):
        job = script.Job(method, "mlp", 0.01, 0, width=0.1, epochs=2)
        module, seconds = script.fit(job, x[:128], y[:128])
        assert seconds > 0 and not module.training
        assert all(bool(p.isfinite().all()) for p in module.parameters())
    found = script.judge(job, module, held, labels, count=2, timeout=1.0)
    assert found["interval"] <= found["certified"] <= found["attacked"] <= 1
    assert 0 < found["tightness"] < 1.001
    assert found["clean"] == pytest.approx(float((module(held).argmax(1) == labels).float().mean()))


def test_both_networks_take_digits(script) -> None:
    for name in ("cnn", "mlp"):
        assert script.network(name, 0.5)(torch.rand(3, 1, 8, 8)).shape == (3, 10)


def test_the_table_has_means_over_seeds(script) -> None:
    shares = {"attacked": 0.5, "interval": 0.1, "certified": 0.25, "tightness": 0.75, "epoch": 1.0}
    rows = [
        {"network": "mlp", "eps": 0.1, "width": 1.0, "method": "IBP", "clean": c, **shares}
        for c in (0.9, 0.8)
    ]
    assert script.table(rows)[2] == "| mlp | 0.1 | IBP | 85.0 | 50.0 | 10.0 | 25.0 | 0.750 | 1.00 | 2 |"
