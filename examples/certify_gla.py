"""Train a small gated linear attention classifier, and prove its answers robust.

    python examples/certify_gla.py        (about twenty seconds; needs scikit-learn)

Digits are read row by row: a sequence of eight tokens of eight pixels. Every pixel of every row may change by eps.
"""

import argparse
import time

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional

import verifier
from verifier.models import GLA

TRAIN = 1600


class Classifier(nn.Module):
    """Rows [B, 8, 8] to ten scores [B, 10], read at the last row."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.embed = nn.Linear(8, width)
        self.position = nn.Parameter(0.3 * torch.randn(8, width))
        self.layer = GLA(width, num_heads=2, gate_rank=4, form="parallel")
        self.head = nn.Linear(width, 10)

    def forward(self, rows: Tensor) -> Tensor:
        x = self.embed(rows) + self.position
        return self.head((x + self.layer(x))[:, -1])


def data() -> tuple[Tensor, Tensor]:
    """Images [N, 8, 8] in 0..1 and labels [N], in a random order."""
    digits = load_digits()
    order = torch.randperm(len(digits.target))
    return torch.from_numpy(digits.images / 16).float()[order], torch.from_numpy(digits.target)[order]


def train(net: nn.Module, x: Tensor, y: Tensor, epochs: int, eps: float) -> None:
    """Every step sees the images moved by `eps` along the sign of their gradient."""
    optimiser = torch.optim.Adam(net.parameters(), lr=2e-2)
    schedule = torch.optim.lr_scheduler.LinearLR(optimiser, 1.0, 0.01, epochs)
    for _ in range(epochs):
        for batch in torch.randperm(len(x)).split(100):
            z = x[batch].requires_grad_()
            slope = torch.autograd.grad(functional.cross_entropy(net(z), y[batch]), z)[0]
            optimiser.zero_grad()
            functional.cross_entropy(net(z.detach() + eps * slope.sign()), y[batch]).backward()
            optimiser.step()
        schedule.step()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--epochs", type=int, default=25)
    parser.add_argument("--images", type=int, default=4)
    parser.add_argument("--timeout", type=float, default=5, help="seconds for each question")
    given = parser.parse_args()
    torch.manual_seed(0)
    x, y = data()
    net = Classifier()
    train(net, x[:TRAIN], y[:TRAIN], given.epochs, eps=0.03)
    net.eval()
    correct = net(x[TRAIN:]).argmax(1) == y[TRAIN:]
    print(f"accuracy on held-out images {correct.float().mean():.3f}\n")
    model = verifier.trace(net, x[:1])
    print("image  label  eps   verdict   bound  seconds")
    for i in range(TRAIN, TRAIN + given.images):
        for eps in (0.02, 0.2):
            began = time.perf_counter()
            claim = verifier.robust(x[i : i + 1], int(y[i]), eps, clip=(0, 1))
            result = verifier.verify(model, claim, given.timeout)
            bound = "" if result.bound is None else f"{result.bound:.2f}"
            seconds = time.perf_counter() - began
            print(f"{i:5}  {int(y[i]):5}  {eps:<4}  {result.status.value:8} {bound:>6}  {seconds:7.2f}")


if __name__ == "__main__":
    main()
