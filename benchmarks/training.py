"""Certified training on the digits of scikit-learn: accuracy, certified accuracy, tightness and time of every loss.

    python benchmarks/training.py [--seeds 0 1 2] [--methods IBP ...] [--networks cnn mlp] [--out digits.jsonl]
    python benchmarks/training.py --methods IBP --networks mlp --widths 0.25 1 4      (does width help?)

1297 images train, 500 are held out (the split is fixed); of these the first `--count` are attacked and certified, by
the cheapest bounds first and by branch and bound for `--timeout` seconds each. Radii are of the pixel range. A line of
JSON is written per training, so that an interrupted run loses nothing; `--table digits.jsonl` prints what is there.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from common import machine
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional

import verifier
from verifier.attack.descent import DescentOptions
from verifier.options import Options
from verifier.training import (
    CCIBP,
    CROWNIBP,
    IBP,
    MTLIBP,
    SABR,
    STAPS,
    Adversarial,
    Linf,
    Loss,
    Ramp,
    SmoothRamp,
    WarmUp,
    initialise,
    l1,
    propagation_tightness,
    trace,
)

CLIP = (0.0, 1.0)
NEAR = Linf(clip=CLIP)
BATCH, RATE = 64, 2e-3
SMALL = 0.1
"""Up to this radius the losses between attack and bound take the settings for small radii."""


def losses(eps: float) -> dict[str, Loss | None]:
    """By name, with settings for the radius; None is the clean loss."""
    small = eps <= SMALL
    share, alpha = (0.4, 0.1) if small else (0.7, 0.5)
    latent = DescentOptions(steps=8, starts=1)
    return {
        "standard": None,
        "PGD": Adversarial(near=NEAR),
        "IBP": IBP(near=NEAR),
        "CROWN-IBP": CROWNIBP(near=NEAR),
        "SABR": SABR(near=NEAR, share=share),
        "STAPS": STAPS(near=NEAR, share=share, latent=latent),
        "MTL-IBP": MTLIBP(near=NEAR, alpha=alpha),
        "CC-IBP": CCIBP(near=NEAR, alpha=alpha),
    }


def digits() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Training images [1297, 1, 8, 8] in 0..1 with labels, and the 500 held out."""
    data = load_digits()
    x = torch.from_numpy(data.images / 16).float().unsqueeze(1)
    y = torch.from_numpy(data.target).long()
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    held, train = order[:500], order[500:]
    return x[train], y[train], x[held], y[held]


def network(name: str, width: float) -> nn.Module:
    if name == "mlp":
        n = round(100 * width)
        return nn.Sequential(
            nn.Flatten(), nn.Linear(64, n), nn.ReLU(), nn.Linear(n, n), nn.ReLU(), nn.Linear(n, 10)
        )
    c = round(16 * width)
    return nn.Sequential(
        nn.Conv2d(1, c, 3, 1, 1),
        nn.BatchNorm2d(c),
        nn.ReLU(),
        nn.Conv2d(c, 2 * c, 4, 2, 1),
        nn.BatchNorm2d(2 * c),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(32 * c, 64),
        nn.ReLU(),
        nn.Linear(64, 10),
    )


@dataclass(frozen=True)
class Job:
    """One training."""

    method: str
    network: str
    eps: float
    seed: int
    width: float = 1.0
    epochs: int = 30


def fit(job: Job, x: Tensor, y: Tensor) -> tuple[nn.Module, float]:
    """The trained module and the median seconds of an epoch."""
    torch.manual_seed(job.seed)
    module = network(job.network, job.width)
    loss = losses(job.eps)[job.method]
    if loss is not None:
        initialise(module)
    net = trace(module, x[:1])
    ramp = SmoothRamp(1, job.epochs / 2, 0.0, job.eps)
    mix = Ramp(1, job.epochs / 2, 1.0, 0.0)
    optimiser = torch.optim.Adam(module.parameters(), lr=RATE)
    milestones = [round(job.epochs * share) for share in (0.75, 0.9)]
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimiser, milestones, 0.2)
    spent = []
    for epoch in range(job.epochs):
        began = time.process_time()
        module.train()
        order = torch.randperm(len(x)).split(BATCH)
        for k, rows in enumerate(order):
            now = epoch + k / len(order)
            value = step_loss(loss, net, x[rows], y[rows], ramp(now), mix(now), job.eps)
            optimiser.zero_grad()
            (value + 1e-6 * l1(module)).backward()
            nn.utils.clip_grad_norm_(module.parameters(), 10)
            optimiser.step()
        schedule.step()
        spent.append(time.process_time() - began)
    return module.eval(), statistics.median(spent)


def step_loss(
    loss: Loss | None,
    net: Callable[[Tensor], Tensor],
    x: Tensor,
    y: Tensor,
    radius: float,
    beta: float,
    target: float,
) -> Tensor:
    """With CROWN-IBP's mixture, and the regularisers while the radius grows, for losses of bounds."""
    if loss is None:
        return functional.cross_entropy(net(x), y)
    if isinstance(loss, Adversarial):
        return loss(net, x, y, radius)  # pyright: ignore[reportArgumentType]
    chosen = replace(loss, beta=beta) if isinstance(loss, CROWNIBP) else loss
    return WarmUp(loss=chosen, target=target)(net, x, y, radius)  # pyright: ignore[reportArgumentType]


def judge(job: Job, module: nn.Module, x: Tensor, y: Tensor, count: int, timeout: float) -> dict[str, float]:
    """Shares of the held-out images: clean of all, the others of the first `count`."""
    clean = float((module(x).argmax(1) == y).float().mean())
    tight = propagation_tightness(trace(module, x[:1]), x, y, job.eps, NEAR).margins
    loader = [(x[i : i + 50], y[i : i + 50]) for i in range(0, count, 50)]
    options = Options(timeout=timeout, threads=torch.get_num_threads())
    found = verifier.certify(
        verifier.trace(module, x[:1]), loader, job.eps, clip=CLIP, count=count, options=options
    )
    return {
        "clean": clean,
        "attacked": found.attacked,
        "interval": found.certified("interval"),
        "certified": found.certified(),
        "tightness": tight,
    }


def jobs(given: argparse.Namespace) -> Iterable[Job]:
    for seed in given.seeds:
        for eps in given.eps:
            for name in given.networks:
                for method in given.methods:
                    for width in given.widths:
                        yield Job(method, name, eps, seed, width, given.epochs)


def table(rows: Sequence[dict]) -> list[str]:
    """Means over the seeds."""
    columns = ("clean", "attacked", "interval", "certified", "tightness", "epoch")
    groups: dict[tuple, list[dict]] = {}
    for row in rows:
        groups.setdefault((row["network"], row["eps"], row["width"], row["method"]), []).append(row)
    lines = [
        "| network | eps | loss | clean | PGD | IBP-certified | certified | tightness | s / epoch | seeds |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for (name, eps, width, method), group in groups.items():
        means = [statistics.mean(row[c] for row in group) for c in columns]
        shares = " | ".join(f"{100 * m:.1f}" for m in means[:4])
        wide = "" if width == 1 else f" x{width:g}"
        lines.append(
            f"| {name}{wide} | {eps} | {method} | {shares} | {means[4]:.3f} | {means[5]:.2f} | {len(group)} |"
        )
    return lines


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--eps", type=float, nargs="+", default=[0.1, 0.2])
    parser.add_argument("--networks", nargs="+", default=["cnn", "mlp"], choices=["cnn", "mlp"])
    parser.add_argument("--methods", nargs="+", default=list(losses(SMALL)))
    parser.add_argument("--widths", type=float, nargs="+", default=[1.0])
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--count", type=int, default=100)
    parser.add_argument("--timeout", type=float, default=2.0)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--table", type=Path, help="print the table of such a file and end")
    return parser.parse_args()


def main() -> None:
    given = parsed()
    if given.table:
        print("\n".join(table([json.loads(line) for line in given.table.read_text().splitlines()])))
        return
    x, y, held, labels = digits()
    rows = []
    for job in jobs(given):
        module, epoch = fit(job, x, y)
        began = time.perf_counter()
        row = {**job.__dict__, "epoch": epoch, **judge(job, module, held, labels, given.count, given.timeout)}
        row["judging"] = time.perf_counter() - began
        rows.append(row)
        if given.out:
            with given.out.open("a") as file:
                file.write(json.dumps(row) + "\n")
    print("\n".join(table(rows)))
    print(machine())


if __name__ == "__main__":
    main()
