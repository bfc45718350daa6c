"""The training example from files in their real formats to what `verifier bench` takes, killed and resumed."""

from __future__ import annotations

import argparse
import csv
import gzip
import json
import os
import pickle
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("sklearn", reason="the example needs scikit-learn, an extra")

BATCHES = [*[f"data_batch_{i}" for i in range(1, 6)], "test_batch"]


@pytest.fixture
def modules(example: Callable[[str], Any]) -> tuple[Any, Any]:
    return example("image_data"), example("train_certified")


def options(**changes: object) -> argparse.Namespace:
    given = {"set": "digits", "data": None, "loss": "IBP", "eps": 0.05, "epochs": 3, "batch": 300}
    given |= {"rate": 2e-3, "width": 4, "count": 20, "timeout": 1.0, "seed": 0, "device": "cpu"}
    return argparse.Namespace(**given | changes)


def idx(array: np.ndarray) -> bytes:
    return struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.tobytes()


def write_mnist(folder: Path, train: int = 5, test: int = 2) -> dict[str, np.ndarray]:
    """Half of the files packed, as they are downloaded; images whose brightness tells the class."""
    generator = np.random.default_rng(0)
    arrays: dict[str, np.ndarray] = {}
    for part, count in (("train", train), ("t10k", test)):
        labels = (np.arange(count) % 10).astype(np.uint8)
        noise = generator.integers(0, 30, (count, 28, 28))
        arrays[f"{part}-images-idx3-ubyte"] = (noise + 22 * labels[:, None, None]).astype(np.uint8)
        arrays[f"{part}-labels-idx1-ubyte"] = labels
    for k, (name, array) in enumerate(arrays.items()):
        if k % 2:
            (folder / f"{name}.gz").write_bytes(gzip.compress(idx(array)))
        else:
            (folder / name).write_bytes(idx(array))
    return arrays


def python2_pickle(pixels: np.ndarray, labels: list[int]) -> bytes:
    """What Python 2's cPickle writes (protocol 2) of {"data": pixels, "labels": labels}: strings without an encoding,
    numpy's functions by their old names."""

    def text(value: bytes) -> bytes:
        return b"U" + bytes([len(value)]) + value

    def number(value: int) -> bytes:
        return b"J" + struct.pack("<i", value)

    kind = b"cnumpy\ndtype\n(" + text(b"u1") + number(0) + number(1) + b"tR"
    kind += b"(" + number(3) + text(b"|") + b"NNN" + number(-1) + number(-1) + number(0) + b"tb"
    array = (
        b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(" + number(0) + b"t" + text(b"b") + b"tR"
    )
    shape = b"(" + b"".join(map(number, pixels.shape)) + b"t"
    data = b"T" + struct.pack("<i", pixels.size) + pixels.tobytes()
    array += b"(" + number(1) + shape + kind + b"\x89" + data + b"tb"
    items = text(b"data") + array + text(b"labels") + b"](" + b"".join(map(number, labels)) + b"e"
    return b"\x80\x02}(" + items + b"u."


def write_cifar(folder: Path, binary: bool, count: int = 3) -> list[tuple[np.ndarray, np.ndarray]]:
    generator = np.random.default_rng(0)
    kept = []
    for name in BATCHES:
        pixels, labels = generator.integers(0, 256, (count, 3072), np.uint8), generator.integers(0, 10, count)
        kept.append((pixels, labels))
        if binary:
            rows = np.concatenate([labels[:, None].astype(np.uint8), pixels], 1)
            (folder / f"{name}.bin").write_bytes(rows.tobytes())
        else:
            (folder / name).write_bytes(python2_pickle(pixels, labels.tolist()))
    return kept


def test_mnist_files(modules: tuple[Any, Any], tmp_path: Path) -> None:
    images, _ = modules
    arrays = write_mnist(tmp_path)
    data = images.load("mnist", tmp_path)
    assert data.x.shape == (5, 1, 28, 28) and data.test_y.tolist() == [0, 1]
    assert np.array_equal((data.x[:, 0] * 255).round().numpy(), arrays["train-images-idx3-ubyte"])
    (tmp_path / "t10k-images-idx3-ubyte").write_bytes(idx(arrays["t10k-images-idx3-ubyte"])[:-1])
    with pytest.raises(SystemExit, match="header"):
        images.load("mnist", tmp_path)


@pytest.mark.parametrize("binary", [True, False])
def test_cifar_files(modules: tuple[Any, Any], tmp_path: Path, binary: bool) -> None:
    kept = write_cifar(tmp_path, binary)
    data = modules[0].load("cifar10", tmp_path)
    assert data.x.shape == (15, 3, 32, 32) and data.test_x.shape == (3, 3, 32, 32)
    assert data.y.tolist() == [int(n) for _, labels in kept[:-1] for n in labels]
    assert np.array_equal((data.test_x * 255).round().numpy().reshape(3, 3072), kept[-1][0])


def test_pickles_of_python_3_are_read_and_code_is_not_run(modules: tuple[Any, Any], tmp_path: Path) -> None:
    pixels = np.arange(3072, dtype=np.uint8).reshape(1, 3072)
    for name in BATCHES:
        (tmp_path / name).write_bytes(pickle.dumps({b"data": pixels, b"labels": [3]}))
    assert modules[0].load("cifar10", tmp_path).y.tolist() == [3] * 5
    (tmp_path / "test_batch").write_bytes(b"cos\nsystem\n(S'false'\ntR.")
    with pytest.raises(pickle.UnpicklingError, match=r"os\.system"):
        modules[0].load("cifar10", tmp_path)


def test_missing_files_end_the_script(modules: tuple[Any, Any], tmp_path: Path) -> None:
    for name in ("mnist", "cifar10"):
        with pytest.raises(SystemExit, match="has no"):
            modules[0].load(name, tmp_path)
        with pytest.raises(SystemExit, match="--data"):
            modules[0].load(name)


def test_a_checkpoint_of_another_training_is_refused(modules: tuple[Any, Any], tmp_path: Path) -> None:
    images, example = modules
    data = images.load("digits")
    example.Trainer(options(), data).save(tmp_path / "checkpoint.pt")
    with pytest.raises(SystemExit, match=r"--eps 0\.05, not 0\.1"):
        example.Trainer(options(eps=0.1), data).restore(tmp_path / "checkpoint.pt")


def run(root: Path, out: Path, *words: object) -> subprocess.Popen[str]:
    given = ["--epochs", 6, "--batch", 100, "--width", 4, "--count", 2, "--timeout", 1, "--eps", 0.05]
    command = [sys.executable, "examples/train_certified.py", "--out", out, *given, *words]
    return subprocess.Popen(list(map(str, command)), cwd=root, stdout=subprocess.PIPE, text=True)


@pytest.mark.full
def test_a_killed_training_goes_on_as_if_it_had_not_been(root: Path, tmp_path: Path) -> None:
    """CROWN-IBP has a mixture that changes with the epoch, batch normalisation running statistics."""
    whole, part = tmp_path / "whole", tmp_path / "part"
    told, _ = run(root, whole, "--loss", "CROWNIBP").communicate(timeout=300)
    first = run(root, part, "--loss", "CROWNIBP")
    assert first.stdout is not None
    while "epoch   2" not in first.stdout.readline():
        assert first.poll() is None
    time.sleep(0.05)  # in the middle of the third epoch
    os.kill(first.pid, signal.SIGKILL)
    first.communicate(timeout=60)
    assert not (part / "history.json").exists()
    again, _ = run(root, part, "--loss", "CROWNIBP", "--resume").communicate(timeout=300)
    assert "resumed after epoch" in again
    assert told.splitlines()[-1].split()[:3] == again.splitlines()[-1].split()[:3]
    assert json.loads((whole / "history.json").read_text()) == json.loads((part / "history.json").read_text())
    states = [torch.load(f / "checkpoint.pt", weights_only=True)["module"] for f in (whole, part)]
    assert all(torch.equal(a, b) for a, b in zip(*(s.values() for s in states), strict=True))


@pytest.mark.full
@pytest.mark.parametrize("name", ["digits", "mnist", "cifar10"])
def test_what_it_writes_is_a_benchmark(
    name: str, root: Path, tmp_path: Path, modules: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """From files to verdicts."""
    data, out = tmp_path / "data", tmp_path / "out"
    data.mkdir()
    if name == "mnist":
        write_mnist(data, 200, 40)
    elif name == "cifar10":
        write_cifar(data, binary=False, count=20)
    words = ["--set", name, "--data", data, "--out", out, "--epochs", 4, "--width", 4, "--count", 4]
    words += ["--timeout", 10, "--eps", 0.02 if name == "digits" else 0.002]
    monkeypatch.setattr(sys, "argv", ["train_certified.py", *map(str, words)])
    modules[1].main()
    with (out / "benchmark" / "instances.csv").open() as file:
        asked = list(csv.reader(file))
    if name == "cifar10" and not asked:  # labels at random: what is learnt is luck
        pytest.skip("no test image is classified as labelled")
    assert (out / "history.json").is_file() and len(asked) >= 1
    command = [sys.executable, "-m", "verifier", "bench", str(out / "benchmark")]
    ran = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False)
    assert ran.returncode == 0, ran.stderr
    with (tmp_path / "results.csv").open() as file:
        verdicts = [row[4] for row in csv.reader(file)]
    assert len(verdicts) == len(asked) and set(verdicts) <= {"sat", "unsat", "timeout", "unknown"}
    assert name != "digits" or "unsat" in verdicts


def test_the_curves_are_in_tensorboard(modules: tuple[Any, Any], tmp_path: Path) -> None:
    """Those that a killed run lost, too, and no epoch twice."""
    pytest.importorskip("tensorboard", reason="TensorBoard is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    rows = [
        {"epoch": k, "loss": 1.0 / k, "clean": 0.1 * k, "certified": 0.0, "tightness": 0.5} for k in (1, 2, 3)
    ]
    first = modules[1].Board(tmp_path, [])
    first.add(rows[0])
    first.add(rows[1] | {"clean": 0.9})  # of an epoch whose checkpoint was not written any more
    again = modules[1].Board(tmp_path, rows[:1])
    again.add(rows[1])
    again.add(rows[2])
    again.close()
    found = EventAccumulator(str(tmp_path))
    found.Reload()
    assert set(found.Tags()["scalars"]) == set(modules[1].CURVES)
    points = [(e.step, e.value) for e in found.Scalars("clean")]
    assert points == [(k, pytest.approx(0.1 * k)) for k in (1, 2, 3)]


def test_without_tensorboard_there_are_no_curves(
    modules: tuple[Any, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    board = modules[1].Board(tmp_path, [])
    board.add({"epoch": 1})
    board.close()
    assert "pip install tensorboard" in capsys.readouterr().out and not list(tmp_path.iterdir())
