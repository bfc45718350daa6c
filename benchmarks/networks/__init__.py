"""Six small networks without kinks, trained on scikit-learn's digits, and how they are made.

    python -m benchmarks.networks        train the committed ones again, into this folder

Everything is seeded; on another processor the weights may differ in their last digits.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.networks.modules import GatedMlp, Mlp, Network, Vit, save

HERE = Path(__file__).parent
HELD_OUT = 200

COMMITTED = {
    "sigmoid": lambda: Mlp("Sigmoid", 5, 40),
    "tanh": lambda: Mlp("Tanh", 5, 40),
    "sin": lambda: Mlp("Sin", 5, 40),
    "gelu": lambda: Mlp("Gelu", 5, 40),
    "attention": lambda: Vit(patch=4, depth=1, width=16, heads=2),
    "gated": lambda: GatedMlp(depth=3, width=24, inner=24),
}


def digits(file: Path | None = None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Training images [1597, 64] in 0..1 and labels, then 200 held-out ones: scikit-learn's, or those of a `file` that
    `keep_digits` wrote, where that exists."""
    if file is not None and file.is_file():
        with np.load(file) as found:
            grey, target = found["images"], found["labels"]
    else:
        from sklearn.datasets import load_digits

        data: Any = load_digits()
        grey, target = data.data, data.target
    images, labels = torch.from_numpy(grey / 16).float(), torch.from_numpy(target).long()
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    images, labels = images[order], labels[order]
    return images[HELD_OUT:], labels[HELD_OUT:], images[:HELD_OUT], labels[:HELD_OUT]


def keep_digits(file: Path) -> None:
    """All digits, for machines without scikit-learn."""
    from sklearn.datasets import load_digits

    data: Any = load_digits()
    np.savez_compressed(file, images=data.data.astype(np.uint8), labels=data.target.astype(np.uint8))


def train(module: nn.Module, x: Tensor, y: Tensor, eps: float, epochs: int = 30, rate: float = 3e-3) -> float:
    """Training on inputs `x` [N, ...] in 0..1 against one gradient step of size `eps`, which grows over the first half;
    the accuracy on `x`."""
    generator = torch.Generator().manual_seed(1)
    optimiser = torch.optim.Adam(module.parameters(), lr=rate, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, epochs)
    for epoch in range(epochs):
        radius = eps * min(1.0, 2 * (epoch + 1) / epochs)
        for batch in torch.randperm(len(x), generator=generator).split(64):
            z = x[batch] + radius * (2 * torch.rand(x[batch].shape, generator=generator) - 1)
            z.requires_grad_(True)
            loss = functional.cross_entropy(module(z), y[batch], reduction="sum")
            z = z.detach() + radius * torch.autograd.grad(loss, z)[0].sign()
            z = z.clamp(x[batch] - radius, x[batch] + radius).clamp(0, 1)
            optimiser.zero_grad()
            functional.cross_entropy(module(z), y[batch]).backward()
            optimiser.step()
        schedule.step()
    module.eval()
    return accuracy(module, x, y)


def accuracy(module: nn.Module, x: Tensor, y: Tensor) -> float:
    with torch.no_grad():
        return float((module(x).argmax(1) == y).float().mean())


def make(name: str, module: Network, folder: Path, eps: float, file: Path | None = None) -> str:
    """Trains a network and writes it; a line about it."""
    x, y, test_x, test_y = digits(file)
    train(module, x, y, eps)
    path = folder / f"{name}.onnx"
    save(module, path)
    held_out = accuracy(module, test_x, test_y)
    return f"{name}: {path.stat().st_size / 1e3:.0f} kB, held-out accuracy {held_out:.3f}"
