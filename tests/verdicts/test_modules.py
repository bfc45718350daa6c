"""Modules of torch end to end: traced, verified against Python properties, and the same through VNN-LIB text."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

import verifier
from verifier import Box, Options, Property, Status, X, Y, robust
from verifier.results import Result


def mlp() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(4, 10), nn.ReLU(), nn.Linear(10, 10), nn.LeakyReLU(0.1), nn.Linear(10, 3)
    ).eval()


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.first = nn.Conv2d(1, 3, 3, padding=1)
        self.norm = nn.BatchNorm2d(3)
        self.second = nn.Conv2d(3, 3, 3, padding=1)
        self.pool = nn.MaxPool2d(2)
        self.last = nn.Linear(12, 3)
        with torch.no_grad():
            self.norm.running_mean.uniform_(-0.1, 0.1)  # type: ignore[union-attr]
            self.norm.running_var.uniform_(0.5, 1.5)  # type: ignore[union-attr]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = torch.relu(self.norm(self.first(x)))
        h = self.pool(torch.relu(h + self.second(h)))
        return self.last(h.flatten(1))


MODULES = {"mlp": (mlp, (4,)), "residual": (lambda: Residual().eval(), (1, 4, 4))}
OPTIONS = Options(timeout=60, max_domains=2000)


def sampled_margin(module: nn.Module, box: Box, label: int) -> float:
    """The least lead of `label` over the other classes at random points."""
    points = box.lower + (box.upper - box.lower) * torch.rand(2000, *box.lower.shape[1:])
    with torch.no_grad():
        y = module(points)
    others = y.index_fill(1, torch.tensor([label]), -torch.inf).amax(1)
    return float((y[:, label] - others).min())


def check(module: nn.Module, box: Box, label: int, result: Result) -> None:
    if result.status is Status.SAT:
        assert result.counterexample is not None and result.holds is False
        x = torch.from_numpy(next(iter(result.counterexample.inputs.values()))).reshape(
            1, *box.lower.shape[1:]
        )
        assert bool((x >= box.lower).all() & (x <= box.upper).all())
        with torch.no_grad():
            y = module(x)[0]
        assert float(y[label]) <= float(y[torch.arange(len(y)) != label].max())
    elif result.status is Status.UNSAT:
        assert result.holds is True and sampled_margin(module, box, label) > 0


@pytest.mark.parametrize("eps", [0.01, 2.0])
@pytest.mark.parametrize("name", MODULES)
def test_robustness(name: str, eps: float, tmp_path: Path) -> None:
    make, shape = MODULES[name]
    module = make()
    torch.manual_seed(3)
    x = torch.randn(1, *shape)
    label = int(module(x).argmax())
    box = Box.around(x, eps)
    traced = verifier.trace(module, x)
    claim = robust(x.numpy(), label, eps)
    result = verifier.verify(traced, claim, options=OPTIONS)
    assert result.status is (Status.UNSAT if eps < 0.1 else Status.SAT)
    check(module, box, label, result)
    claim.to_vnnlib(tmp_path / "robust.vnnlib", (1, 3))
    again = verifier.verify(traced, tmp_path / "robust.vnnlib", options=OPTIONS)
    assert again.status is result.status
    check(module, box, label, again)


@pytest.mark.parametrize("version", [1, 2])
def test_property_and_its_text(version: int, tmp_path: Path) -> None:
    if version == 2:
        pytest.importorskip("vnnlib")
    module = mlp()
    x = torch.zeros(1, 4)
    traced = verifier.trace(module, x)
    y = module(x)[0].tolist()
    box = Box.around(x, 0.05)
    claims = {
        Status.UNSAT: (Y[0] < y[0] + 1) & ((Y[1] > y[1] - 1) | (Y[2] > y[2] + 5)) & (Y[0] + X[0] < y[0] + 2),
        Status.SAT: (Y[0] < y[0] + 1) & (Y[1] - Y[2] > y[1] - y[2]),
    }
    for status, ensures in claims.items():
        claim = Property(inputs=box, ensures=ensures)
        assert verifier.verify(traced, claim, options=OPTIONS).status is status
        path = tmp_path / "claim.vnnlib"
        claim.to_vnnlib(path, (1, 3), version=version)
        assert verifier.verify(traced, path, options=OPTIONS).status is status
