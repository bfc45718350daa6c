"""Certified training on the digits of scikit-learn: accuracy, certified accuracy, tightness and time of every loss.

    python -m benchmarks.training --jobs 2 --out digits.jsonl              (the table: 90 trainings, 96 judgements)
    python -m benchmarks.training --methods IBP --widths 0.25 1 4 --eps 0.1 --out widths.jsonl    (does width help?)
    python -m benchmarks.training --table digits.jsonl

1297 images train, 500 are held out (the split is fixed); of these the first `--count` are attacked and certified: cheap
bounds first, then branch and bound, `--timeout` seconds per image and `--budget` seconds per network, the
same for all. Radii are of the pixel range. Each process has one thread. A line of JSON is written per network and
radius as soon as it is judged; what `--out` has already is not run again.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional

import verifier
from benchmarks.common import machine
from verifier.attack.descent import DescentOptions
from verifier.options import Options
from verifier.training import (
    CCIBP,
    CROWNIBP,
    IBP,
    MTLIBP,
    SABR,
    STAPS,
    TAPS,
    Adversarial,
    ExpIBP,
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
        "TAPS": TAPS(near=NEAR, latent=latent),
        "Exp-IBP": ExpIBP(near=NEAR, alpha=alpha),
    }


METHODS = ("standard", "PGD", "IBP", "CROWN-IBP", "SABR", "STAPS", "MTL-IBP", "CC-IBP")
"""Those of the table; TAPS and Exp-IBP are there for who asks."""


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
    """One training, for the largest of `radii`; the network is judged at each (the clean loss knows no radius)."""

    method: str
    network: str
    radii: tuple[float, ...]
    seed: int
    width: float = 1.0
    epochs: int = 30

    @property
    def eps(self) -> float:
        return max(self.radii)

    def key(self, eps: float) -> dict[str, Any]:
        """What names a row."""
        words = {"method": self.method, "network": self.network, "eps": eps, "seed": self.seed}
        return words | {"width": self.width, "epochs": self.epochs}


@dataclass(frozen=True)
class Limits:
    """How many of the held-out images are judged, and seconds of branch and bound for each and for all."""

    count: int = 200
    timeout: float = 2.0
    budget: float = 30.0


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


def judge(module: nn.Module, eps: float, x: Tensor, y: Tensor, limits: Limits) -> dict[str, float]:
    """Shares of the held-out images: clean of all, the others of the first ones."""
    clean = float((module(x).argmax(1) == y).float().mean())
    tight = propagation_tightness(trace(module, x[:1]), x, y, eps, NEAR).margins
    options = Options(timeout=limits.timeout, threads=torch.get_num_threads())
    model = verifier.trace(module, x[:1])
    found = verifier.certify(
        model, [(x, y)], eps, clip=CLIP, count=limits.count, options=options, budget=limits.budget
    )
    return {
        "clean": clean,
        "attacked": found.attacked,
        "interval": found.certified("interval"),
        "certified": found.certified(),
        "tightness": tight,
    }


def rows_of(job: Job, limits: Limits) -> list[dict[str, Any]]:
    """Trains, judges at every radius; `training` and `judging` are processor seconds."""
    torch.set_num_threads(1)
    x, y, held, labels = digits()
    began = time.process_time()
    module, epoch = fit(job, x, y)
    spent, rows = time.process_time() - began, []
    for eps in job.radii:
        began = time.process_time()
        found = judge(module, eps, held, labels, limits)
        cost = {"epoch": epoch, "training": spent / len(job.radii), "judging": time.process_time() - began}
        rows.append(job.key(eps) | found | cost)
    return rows


def jobs(given: argparse.Namespace, done: Sequence[dict[str, Any]]) -> Iterator[Job]:
    """All trainings some row of which is not there yet, seed by seed."""
    for seed in given.seeds:
        for name in given.networks:
            for method in given.methods:
                for width in given.widths:
                    each = [tuple(given.eps)] if method == "standard" else [(eps,) for eps in given.eps]
                    for radii in each:
                        job = Job(method, name, radii, seed, width, given.epochs)
                        keys = [job.key(eps).items() for eps in radii]
                        if not all(any(key <= row.items() for row in done) for key in keys):
                            yield job


def finished(chosen: Sequence[Job], limits: Limits, processes: int) -> Iterator[list[dict[str, Any]]]:
    """The rows of every job as it ends."""
    if processes == 1:
        yield from (rows_of(job, limits) for job in chosen)
        return
    with ProcessPoolExecutor(processes, multiprocessing.get_context("spawn")) as pool:
        for future in as_completed([pool.submit(rows_of, job, limits) for job in chosen]):
            yield future.result()


def table(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Means over the seeds, with their standard deviation."""
    groups: dict[tuple, list[dict[str, Any]]] = {}
    order = {name: k for k, name in enumerate(losses(SMALL))}
    for row in sorted(rows, key=lambda r: (r["network"], r["eps"], order[r["method"]], r["width"])):
        groups.setdefault((row["network"], row["eps"], row["width"], row["method"]), []).append(row)
    lines = [
        "| network | eps | loss | clean | PGD | IBP-certified | certified | tightness | s / epoch | seeds |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for (name, eps, width, method), group in groups.items():
        names = ("clean", "attacked", "interval", "certified")
        cells = [_spread([100 * row[c] for row in group], 1) for c in names]
        cells += [_spread([row["tightness"] for row in group], 3)]
        cells += [f"{statistics.mean(row['epoch'] for row in group):.2f}", str(len(group))]
        wide = "" if width == 1 else f" x{width:g}"
        lines.append(f"| {name}{wide} | {eps} | {method} | " + " | ".join(cells) + " |")
    return lines


def _spread(values: Sequence[float], digits: int) -> str:
    mean = f"{statistics.mean(values):.{digits}f}"
    return mean if len(values) == 1 else f"{mean} ± {statistics.stdev(values):.{digits}f}"


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--eps", type=float, nargs="+", default=[0.1, 0.2])
    parser.add_argument("--networks", nargs="+", default=["cnn", "mlp"], choices=["cnn", "mlp"])
    parser.add_argument("--methods", nargs="+", default=METHODS, choices=list(losses(SMALL)))
    parser.add_argument("--widths", type=float, nargs="+", default=[1.0])
    parser.add_argument("--epochs", type=int, default=Job.epochs)
    parser.add_argument("--count", type=int, default=Limits.count)
    parser.add_argument("--timeout", type=float, default=Limits.timeout)
    parser.add_argument("--budget", type=float, default=Limits.budget)
    parser.add_argument("--jobs", type=int, default=1, help="processes of one thread")
    parser.add_argument("--out", type=Path, help="lines of JSON, which a later run goes on from")
    parser.add_argument("--table", type=Path, help="print the table of such a file and end")
    return parser.parse_args()


def read(path: Path | None) -> list[dict[str, Any]]:
    if path is None or not path.is_file():
        return []
    return [json.loads(line) for line in path.read_text().splitlines()]


def main() -> None:
    given = parsed()
    rows = read(given.table or given.out)
    began = time.monotonic()
    if not given.table:
        limits = Limits(given.count, given.timeout, given.budget)
        for fresh in finished(list(jobs(given, rows)), limits, given.jobs):
            rows += fresh
            if given.out:
                with given.out.open("a") as file:
                    file.write("".join(json.dumps(row) + "\n" for row in fresh))
    print("\n".join(table(rows)))
    spent = [sum(row[name] for row in rows) for name in ("training", "judging")]
    print(f"processor seconds: {spent[0]:.0f} of training, {spent[1]:.0f} of judging")
    if not given.table:
        print(f"{time.monotonic() - began:.0f} s in this run; {machine()}")


if __name__ == "__main__":
    main()
