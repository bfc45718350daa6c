"""The training example: loaders of real formats, checkpoints, and what it writes for `verifier bench`."""

from __future__ import annotations

import argparse
import gzip
import pickle
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("sklearn", reason="the example needs scikit-learn, an extra")


@pytest.fixture
def modules(example: Callable[[str], Any]) -> tuple[Any, Any]:
    return example("image_data"), example("train_certified")


def options(**changes: object) -> argparse.Namespace:
    given = {
        "set": "digits",
        "data": None,
        "loss": "IBP",
        "eps": 0.05,
        "epochs": 3,
        "batch": 300,
        "rate": 2e-3,
    }
    given |= {"width": 4, "count": 20, "timeout": 1.0, "seed": 0, "device": "cpu"}
    return argparse.Namespace(**given | changes)


def idx(array: np.ndarray) -> bytes:
    return struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.tobytes()


def test_mnist_files(modules, tmp_path: Path) -> None:
    images, _ = modules
    generator = np.random.default_rng(0)
    arrays = {
        "train-images-idx3-ubyte": generator.integers(0, 256, (5, 28, 28), np.uint8),
        "train-labels-idx1-ubyte": np.arange(5, dtype=np.uint8),
        "t10k-images-idx3-ubyte": generator.integers(0, 256, (2, 28, 28), np.uint8),
        "t10k-labels-idx1-ubyte": np.array([7, 9], np.uint8),
    }
    for k, (name, array) in enumerate(arrays.items()):
        if k % 2:
            (tmp_path / f"{name}.gz").write_bytes(gzip.compress(idx(array)))
        else:
            (tmp_path / name).write_bytes(idx(array))
    data = images.load("mnist", tmp_path)
    assert data.x.shape == (5, 1, 28, 28) and data.test_y.tolist() == [7, 9]
    assert np.array_equal((data.x[:, 0] * 255).round().numpy(), arrays["train-images-idx3-ubyte"])
    (tmp_path / "t10k-images-idx3-ubyte").write_bytes(idx(arrays["t10k-images-idx3-ubyte"])[:-1])
    with pytest.raises(SystemExit, match="header"):
        images.load("mnist", tmp_path)


@pytest.mark.parametrize("binary", [True, False])
def test_cifar_files(modules, tmp_path: Path, binary: bool) -> None:
    images, _ = modules
    generator = np.random.default_rng(0)
    kept = []
    for name in [*[f"data_batch_{i}" for i in range(1, 6)], "test_batch"]:
        pixels, labels = generator.integers(0, 256, (3, 3072), np.uint8), generator.integers(0, 10, 3)
        kept.append((pixels, labels))
        if binary:
            rows = np.concatenate([labels[:, None].astype(np.uint8), pixels], 1)
            (tmp_path / f"{name}.bin").write_bytes(rows.tobytes())
        else:
            (tmp_path / name).write_bytes(pickle.dumps({b"data": pixels, b"labels": labels.tolist()}))
    data = images.load("cifar10", tmp_path)
    assert data.x.shape == (15, 3, 32, 32) and data.test_x.shape == (3, 3, 32, 32)
    assert data.y.tolist() == [int(n) for _, labels in kept[:-1] for n in labels]
    assert np.array_equal((data.test_x * 255).round().numpy().reshape(3, 3072), kept[-1][0])


def test_missing_files_end_the_script(modules, tmp_path: Path) -> None:
    for name in ("mnist", "cifar10"):
        with pytest.raises(SystemExit, match="has no"):
            modules[0].load(name, tmp_path)
        with pytest.raises(SystemExit, match="--data"):
            modules[0].load(name)


def test_a_resumed_training_is_the_one_that_was_not_interrupted(modules, tmp_path: Path) -> None:
    images, example = modules
    data = images.load("digits")
    straight, first, second = (example.Trainer(options(), data) for _ in range(3))
    for _ in range(3):
        straight.train_epoch()
    for _ in range(2):
        first.train_epoch()
    first.save(tmp_path / "checkpoint.pt")
    second.restore(tmp_path / "checkpoint.pt")
    second.train_epoch()
    assert second.run.epoch == 3
    for a, b in zip(straight.module.state_dict().values(), second.module.state_dict().values(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.full
def test_what_it_writes_is_a_benchmark(root: Path, tmp_path: Path) -> None:
    words = [
        "examples/train_certified.py",
        "--epochs",
        "6",
        "--count",
        "10",
        "--eps",
        "0.02",
        "--out",
        str(tmp_path),
    ]
    ran = subprocess.run(
        [sys.executable, *words], cwd=root, capture_output=True, text=True, check=True, timeout=300
    )
    assert "full" in ran.stdout
    command = [sys.executable, "-m", "verifier", "bench", str(tmp_path / "benchmark")]
    ran = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False)
    assert ran.returncode == 0, ran.stderr
    assert "unsat" in ran.stdout + "".join(p.read_text() for p in tmp_path.rglob("*.csv"))
