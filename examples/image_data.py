"""Labelled images from local files: MNIST as idx files, CIFAR-10 as binary or pickle files, digits of scikit-learn.

Nothing is downloaded. `load` gives images [N, C, H, W] in 0..1 and labels [N], for training and for testing.
"""

from __future__ import annotations

import gzip
import pickle
import struct
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class Images:
    """Training and test images [N, C, H, W] in 0..1, labels int64 [N]."""

    x: Tensor
    y: Tensor
    test_x: Tensor
    test_y: Tensor


def load(name: str, folder: Path | None = None) -> Images:
    """The data set `digits`, `mnist` or `cifar10`; the last two lie in `folder`. Ends the script where files are
    missing."""
    if name == "digits":
        return _digits()
    if folder is None:
        sys.exit(f"{name} needs --data FOLDER with its files")
    return _mnist(folder) if name == "mnist" else _cifar10(folder)


def _digits() -> Images:
    """A split that is always the same: 1297 images to train, 500 to test."""
    from sklearn.datasets import load_digits

    data = load_digits()
    x, y = torch.from_numpy(data.images / 16).float().unsqueeze(1), torch.from_numpy(data.target).long()
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    held, train = order[:500], order[500:]
    return Images(x[train], y[train], x[held], y[held])


def read_idx(path: Path) -> np.ndarray:
    """An array of bytes in LeCun's format: two zeros, the type (8: bytes), the number of dimensions, their sizes as
    big-endian int32, then the data. A name that ends in .gz is unpacked."""
    raw = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    zeros, kind, rank = struct.unpack(">HBB", raw[:4])
    if zeros or kind != 8:
        sys.exit(f"{path} is no idx file of bytes")
    shape = struct.unpack(f">{rank}I", raw[4 : 4 + 4 * rank])
    data = np.frombuffer(raw, np.uint8, offset=4 + 4 * rank)
    if data.size != np.prod(shape):
        sys.exit(f"{path} has {data.size} bytes of data, its header says {shape}")
    return data.reshape(shape)


def _mnist(folder: Path) -> Images:
    parts = []
    for part in ("train", "t10k"):
        for what, rank in (("images", 3), ("labels", 1)):
            names = [f"{part}-{what}{dot}idx{rank}-ubyte{end}" for dot in "-." for end in ("", ".gz")]
            found = next((folder / n for n in names if (folder / n).is_file()), None)
            if found is None:
                sys.exit(f"{folder} has none of {', '.join(names)}")
            parts.append(read_idx(found))
    x, y, test_x, test_y = parts
    return Images(_pixels(x[:, None]), _labels(y), _pixels(test_x[:, None]), _labels(test_y))


def _cifar10(folder: Path) -> Images:
    """The folder of the binary version (data_batch_1.bin) or of the Python version (data_batch_1)."""
    names = [*[f"data_batch_{i}" for i in range(1, 6)], "test_batch"]
    missing = [n for n in names if not ((folder / n).is_file() or (folder / f"{n}.bin").is_file())]
    if missing:
        sys.exit(f"{folder} has no {missing[0]} or {missing[0]}.bin")
    parts = [_batch(folder / n) for n in names]
    x = np.concatenate([p[0] for p in parts[:-1]])
    y = np.concatenate([p[1] for p in parts[:-1]])
    return Images(_pixels(x), _labels(y), _pixels(parts[-1][0]), _labels(parts[-1][1]))


def _batch(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Images [N, 3, 32, 32] and labels [N]: rows of a label and 3072 bytes, or a pickled dictionary of both."""
    binary = path.with_name(f"{path.name}.bin")
    if binary.is_file():
        rows = np.fromfile(binary, np.uint8).reshape(-1, 3073)
        return rows[:, 1:].reshape(-1, 3, 32, 32), rows[:, 0]
    with path.open("rb") as file:
        content = _Arrays(file, encoding="bytes").load()
    return content[b"data"].reshape(-1, 3, 32, 32), np.array(content[b"labels"])


class _Arrays(pickle.Unpickler):
    """Of arrays, lists and dictionaries alone: other pickles can run any code."""

    def find_class(self, module: str, name: str) -> object:
        known = ("numpy.core.multiarray", "numpy._core.multiarray", "numpy", "_codecs")
        if module in known and name in ("_reconstruct", "ndarray", "dtype", "encode"):
            return super().find_class(module.replace("numpy.core", "numpy._core"), name)
        raise pickle.UnpicklingError(f"CIFAR-10's files hold no {module}.{name}")


def _pixels(x: np.ndarray) -> Tensor:
    return torch.tensor(np.ascontiguousarray(x)).float() / 255


def _labels(y: np.ndarray) -> Tensor:
    return torch.from_numpy(y.astype(np.int64))
