"""An LSTM that reads digits row by row, trained with PGD and with a certified loss, judged alike by branch and bound.

    python -m benchmarks.training_gated [--eps 0.05] [--epochs 15] [--units 16] [--count 50] [--timeout 5]

1297 images train, 500 are held out; of these the first `--count` are certified, cheapest bounds first, with `--timeout`
seconds of branch and bound each. The radius is of the pixel range.
"""

from __future__ import annotations

import argparse
from dataclasses import replace

import torch
from torch import Tensor, nn

import verifier
from benchmarks.common import machine
from benchmarks.training import digits
from verifier.attack.descent import DescentOptions
from verifier.options import Options
from verifier.training import IBP, Adversarial, Linf, Loss, Ramp, SmoothRamp, propagation_tightness, trace

NEAR = Linf(clip=(0.0, 1.0))
LOSSES: dict[str, Loss] = {
    "PGD": Adversarial(near=NEAR, attack=DescentOptions(steps=4, starts=1)),
    "IBP": IBP(near=NEAR),
}


class Reader(nn.Module):
    """Images [B, 8, 8] to ten scores, from the state after the last row."""

    def __init__(self, units: int) -> None:
        super().__init__()
        self.layer, self.head = nn.LSTM(8, units, batch_first=True), nn.Linear(units, 10)

    def forward(self, rows: Tensor) -> Tensor:
        return self.head(self.layer(rows)[0][:, -1])


def fit(loss: Loss, x: Tensor, y: Tensor, eps: float, epochs: int, units: int) -> nn.Module:
    """Adam with a rate that falls, the radius rising over the first half, the clean part falling to nothing with it."""
    torch.manual_seed(0)
    module = Reader(units)
    net = trace(module, x[:1])
    optimiser = torch.optim.Adam(module.parameters(), lr=1e-2)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, epochs)
    radius, clean = SmoothRamp(1, epochs / 2, 0.0, eps), Ramp(1, epochs / 2, 1.0, 0.0)
    for epoch in range(epochs):
        order = torch.randperm(len(x)).split(64)
        for k, rows in enumerate(order):
            now = epoch + k / len(order)
            value = replace(loss, clean=clean(now))(net, x[rows], y[rows], radius(now))
            optimiser.zero_grad()
            value.backward()
            nn.utils.clip_grad_norm_(module.parameters(), 1)
            optimiser.step()
        schedule.step()
    return module.eval()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--eps", type=float, default=0.05)
    parser.add_argument("--epochs", type=int, default=15)
    parser.add_argument("--units", type=int, default=16)
    parser.add_argument("--count", type=int, default=50)
    parser.add_argument("--timeout", type=float, default=5.0)
    given = parser.parse_args()
    x, y, held, labels = (t.squeeze(1) if t.dim() == 4 else t for t in digits())
    print("| trained with | clean | attacked | IBP | CROWN | alpha-CROWN | certified | tightness |")
    print("|---|---|---|---|---|---|---|---|")
    for name, loss in LOSSES.items():
        module = fit(loss, x, y, given.eps, given.epochs, given.units)
        clean = float((module(held).argmax(1) == labels).float().mean())
        found = verifier.certify(
            verifier.trace(module, x[:1]),
            [(held, labels)],
            given.eps,
            clip=(0.0, 1.0),
            count=given.count,
            options=Options(timeout=given.timeout),
        )
        shares = [clean, found.attacked, *[found.certified(m) for m in found.methods]]
        tight = propagation_tightness(trace(module, x[:1]), held[:50], labels[:50], given.eps, NEAR).margins
        print(f"| {name} | " + " | ".join(f"{100 * s:.1f}" for s in shares) + f" | {tight:.3f} |", flush=True)
    print(machine())


if __name__ == "__main__":
    main()
