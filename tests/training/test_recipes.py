"""The recipes in the documentation are code that trains."""

from __future__ import annotations

import re
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import verifier
from verifier import training


def blocks(root: Path, heading: str) -> list[str]:
    """The code under a heading of docs/training.md."""
    text = (root / "docs" / "training.md").read_text()
    part = re.search(rf"^#+ {heading}\n(.*?)(?=^#+ |\Z)", text, re.DOTALL | re.MULTILINE)
    assert part is not None
    return re.findall(r"```py(?:thon)?\n(.*?)```", part.group(1), re.DOTALL)


def recipe(root: Path, lightning: ModuleType) -> type[nn.Module]:
    (code,) = blocks(root, "Lightning")
    names = {"lightning": lightning, "torch": torch, **{n: getattr(training, n) for n in training.__all__}}
    exec(code, names)  # the documentation's own code
    return names["Certified"]


def data() -> tuple[nn.Module, DataLoader]:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Flatten(), nn.Linear(64, 12), nn.ReLU(), nn.Linear(12, 10))
    x, y = torch.rand(96, 1, 8, 8), torch.randint(10, (96,))
    return module, DataLoader(TensorDataset(x, y), batch_size=32)


def test_the_plain_loop_and_averaged_weights(root: Path) -> None:
    names: dict[str, Any] = {}
    for code in (*blocks(root, "Certified training"), *blocks(root, "A plain loop")):
        exec(code, names)
    assert names["value"].isfinite() and names["radius"](8) == 0.1
    (code,) = blocks(root, "Averaged weights")
    exec(code, names)
    averaged = names["averaged"]
    assert averaged.n_averaged == 4
    x, y = names["loader"][0]
    found = verifier.certify(verifier.trace(averaged.module, x), [(x, y)], 0.01, count=4, methods=["crown"])
    assert len(found.samples) == 4


def test_its_steps_train_the_module(root: Path) -> None:
    """With a stand-in for Lightning's class: what the recipe itself says."""
    stand_in = ModuleType("lightning")
    stand_in.LightningModule = nn.Module  # pyright: ignore[reportAttributeAccessIssue]
    module, loader = data()
    certified = recipe(root, stand_in)(module, next(iter(loader))[0])
    certified.current_epoch, certified.trainer = 30, SimpleNamespace(num_training_batches=len(loader))
    optimiser = certified.configure_optimizers()
    assert len(list(certified.parameters())) == len(list(module.parameters()))
    batch = next(iter(loader))
    value = certified.training_step(batch, 0)
    wanted = training.IBP(near=training.Linf(clip=(0, 1)))(training.trace(module, batch[0]), *batch, 0.1)
    assert value.item() == pytest.approx(wanted.item())
    value.backward()
    before = module[1].weight.detach().clone()
    optimiser.step()
    assert not torch.equal(before, module[1].weight)


def test_lightning_trains_and_resumes_it(root: Path, tmp_path: Path) -> None:
    lightning = pytest.importorskip("lightning", reason="Lightning is not installed")
    words = {
        "accelerator": "cpu",
        "logger": False,
        "enable_progress_bar": False,
        "default_root_dir": tmp_path,
    }
    module, loader = data()
    before = module[1].weight.detach().clone()
    certified = recipe(root, lightning)(module, next(iter(loader))[0])
    lightning.Trainer(max_epochs=3, **words).fit(certified, loader)
    assert not torch.equal(before, module[1].weight)
    (checkpoint,) = tmp_path.rglob("*.ckpt")
    again = recipe(root, lightning)(data()[0], next(iter(loader))[0])
    trainer = lightning.Trainer(max_epochs=4, enable_checkpointing=False, **words)
    trainer.fit(again, loader, ckpt_path=checkpoint)
    assert trainer.current_epoch == 4
