"""What a step of certified training costs beside a plain one: medians of one run, in turns.

    python -m benchmarks.training_cost [--device cuda] [--batch 16] [--repeats 7] [--width 64] [--size 32]

The network is CNN7 (convolutions of 64, 64, 128 (stride 2), 128, 128 channels, 512 neurons, batch normalisation after
each) at CIFAR-10's shape, the data random. A step is loss and gradients, without the optimiser's. Times are divided by
the plain step's of the same network: in evaluation mode (statistics fixed, no clean pass) and in training mode. The
attacks take 8 steps. On a CPU seconds are the processor's, which other programs disturb less.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.common import machine
from verifier.environment import peak_memory_mb
from verifier.training import CROWNIBP, IBP, MTLIBP, SABR, Linf, Loss, trace

NEAR = Linf(clip=(0, 1))
EPS = 2 / 255


def cnn7(classes: int = 10, width: int = 64, size: int = 32, channels: int = 3) -> nn.Module:
    """The network of the published comparisons, of `size` x `size` images."""

    def block(before: int, after: int, stride: int) -> list[nn.Module]:
        return [nn.Conv2d(before, after, 3, stride, 1), nn.BatchNorm2d(after), nn.ReLU()]

    return nn.Sequential(
        *block(channels, width, 1),
        *block(width, width, 1),
        *block(width, 2 * width, 2),
        *block(2 * width, 2 * width, 1),
        *block(2 * width, 2 * width, 1),
        nn.Flatten(),
        nn.Linear(2 * width * ((size + 1) // 2) ** 2, 512),
        nn.BatchNorm1d(512),
        nn.ReLU(),
        nn.Linear(512, classes),
    )


@dataclass(frozen=True)
class Case:
    """A step by its name: of a network with so many classes, in training mode or not; no loss is the plain one."""

    name: str
    loss: Loss | None
    training: bool = True
    classes: int = 10


CASES = (
    Case("plain, evaluation mode", None, training=False),
    Case("IBP", IBP(near=NEAR), training=False),
    Case("IBP + clean, evaluation mode", IBP(near=NEAR, clean=0.5), training=False),
    Case("plain", None),
    Case("IBP + clean", IBP(near=NEAR, clean=0.5)),
    Case("CROWN-IBP fused, 10 classes", CROWNIBP(near=NEAR, fusion=True)),
    Case("CROWN-IBP fused, 200 classes", CROWNIBP(near=NEAR, fusion=True), classes=200),
    Case("CROWN-IBP, 10 classes", CROWNIBP(near=NEAR)),
    Case("SABR", SABR(near=NEAR)),
    Case("MTL-IBP", MTLIBP(near=NEAR)),
)


def step_of(case: Case, x: Tensor, width: int) -> Callable[[], None]:
    """Loss and gradients once."""
    torch.manual_seed(0)
    module = cnn7(case.classes, width, x.shape[-1]).to(x.device)
    labels = torch.randint(case.classes, (len(x),), device=x.device)
    net = trace(module, x)
    module.train(case.training)

    def step() -> None:
        module.zero_grad()
        if case.loss is None:
            functional.cross_entropy(module(x), labels).backward()
        else:
            case.loss(net, x, labels, EPS).backward()

    return step


def seconds(step: Callable[[], None], device: torch.device) -> float:
    if device.type == "cpu":
        began = time.process_time()
        step()
        return time.process_time() - began
    torch.cuda.synchronize()
    began = time.perf_counter()
    step()
    torch.cuda.synchronize()
    return time.perf_counter() - began


def measure(cases: tuple[Case, ...], x: Tensor, width: int, repeats: int) -> list[tuple[Case, float, float]]:
    """Median seconds and peak memory in MB of every case, one step of each in turn (on a CPU, the process's)."""
    steps = {case: step_of(case, x, width) for case in cases}
    times: dict[Case, list[float]] = {case: [] for case in cases}
    memory: dict[Case, float] = dict.fromkeys(cases, 0.0)
    for k in range(repeats + 1):
        for case, step in steps.items():
            if x.is_cuda:
                torch.cuda.reset_peak_memory_stats()
                before = torch.cuda.memory_allocated()
            spent = seconds(step, x.device)
            memory[case] = (
                (torch.cuda.max_memory_allocated() - before) / 2**20 if x.is_cuda else peak_memory_mb() or 0.0
            )
            if k:  # the first one warms up
                times[case].append(spent)
    return [(case, statistics.median(times[case]), memory[case]) for case in cases]


def table(rows: list[tuple[Case, float, float]]) -> list[str]:
    plain = {case.training: spent for case, spent, _ in rows if case.loss is None}
    lines = ["| step | ms | of a plain step | peak MB |", "|---|---|---|---|"]
    for case, spent, peak in rows:
        lines.append(
            f"| {case.name} | {1000 * spent:.1f} | {spent / plain[case.training]:.2f} | {peak:.0f} |"
        )
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--size", type=int, default=32)
    parser.add_argument("--only", default="", help="cases whose names hold this text, besides plain ones")
    given = parser.parse_args()
    device = torch.device(given.device)
    x = torch.rand(given.batch, 3, given.size, given.size, device=device)
    cases = tuple(c for c in CASES if c.loss is None or given.only in c.name)
    print("\n".join(table(measure(cases, x, given.width, given.repeats))))
    print(machine() if device.type == "cpu" else f"{torch.cuda.get_device_name()}, torch {torch.__version__}")


if __name__ == "__main__":
    main()
