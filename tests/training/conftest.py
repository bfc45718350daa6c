"""Small modules and batches for the losses."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import Tensor, nn


def mlp(dtype: torch.dtype = torch.float64, classes: int = 4) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 10), nn.ReLU(), nn.Linear(10, classes)
    ).to(dtype)


def cnn(dtype: torch.dtype = torch.float64) -> nn.Module:
    """Batch normalisation after a convolution and a matrix, and dropout."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, 2, 1),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(36, 10),
        nn.BatchNorm1d(10),
        nn.ReLU(),
        nn.Dropout(0.3),
        nn.Linear(10, 4),
    ).to(dtype)


def batch(count: int = 7, image: bool = False, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    shape = (count, 1, 5, 5) if image else (count, 6)
    return (
        torch.rand(shape, generator=generator).to(dtype),
        torch.randint(4, (count,), generator=generator),
    )


@pytest.fixture
def modules() -> Callable[..., nn.Module]:
    return mlp


@pytest.fixture
def images() -> Callable[..., nn.Module]:
    return cnn


@pytest.fixture
def batches() -> Callable[..., tuple[Tensor, Tensor]]:
    return batch


@pytest.fixture
def example(monkeypatch: pytest.MonkeyPatch, root: Path) -> Iterator[Callable[[str], ModuleType]]:
    """Imports a script of examples/ by its name, as its neighbours there do."""
    known = set(sys.modules)
    monkeypatch.syspath_prepend(str(root / "examples"))
    yield import_module
    for name in set(sys.modules) - known:
        if Path(getattr(sys.modules[name], "__file__", None) or "").parent == root / "examples":
            del sys.modules[name]
