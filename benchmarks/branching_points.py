"""Makes the table of branching points (verifier/branching/points.npz), and says what it is worth.

    python -m benchmarks.branching_points [--write]

For every operator and all intervals [l, u] of a grid the point is chosen, of 63 evenly spaced ones, at which the areas
between the starting lines of both halves add up to least. Printed per operator: the mean over random intervals of that
area, as a part of what halving in the middle leaves, by the operator's own rule, by the table, and by the best of 255
points. Operators that jump or have kinks only are left out: they are cut there.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from benchmarks.common import machine
from benchmarks.relaxations import Subject, subjects
from verifier.branching import points
from verifier.branching.points import PARTS, SPAN, STEP, key, table_point
from verifier.graph import Interval, Univariate
from verifier.ops.piecewise_linear import PiecewiseLinear, PRelu, Relu

CANDIDATES = 63
INTERVALS = 2000


def area(op: Univariate, lower: Tensor, upper: Tensor) -> Tensor:
    """Between the starting lines over [lower, upper]."""
    x = Interval(lower, upper)
    lines = op.relax({name: p.value for name, p in op.parameters(x).items()}, x)
    low, high = (0.0 if t is None else t for t in (lines.lower_intercept, lines.upper_intercept))
    middle = (lower + upper) / 2
    return ((lines.upper_slopes[0] - lines.lower_slopes[0]) * middle + high - low) * (upper - lower)


def halves(op: Univariate, lower: Tensor, upper: Tensor, point: Tensor) -> Tensor:
    """The area that both halves leave."""
    return area(op, lower, point) + area(op, point, upper)


def best(op: Univariate, lower: Tensor, upper: Tensor, count: int) -> Tensor:
    """The best of `count` evenly spaced parts in (0, 1), per interval [N]; 0 where nothing is finite."""
    parts = torch.arange(1, count + 1, dtype=lower.dtype).unsqueeze(1) / (count + 1)
    first, last = lower.expand(count, -1), upper.expand(count, -1)
    left = halves(op, first, last, lower + parts * (upper - lower))
    left = torch.where(left.isfinite(), left, torch.inf)
    # Of those that are as good but for rounding, the one nearest to the middle.
    good = left <= left.amin(0) * (1 + 1e-9) + 1e-12
    nearest = torch.where(good, (parts - 0.5).abs(), 1.0).argmin(0)
    found = parts[nearest, 0]
    return torch.where(left.amin(0).isfinite() & (left.amin(0) > 1e-9), found, 0.0)


def table(subject: Subject) -> np.ndarray:
    grid = torch.arange(-SPAN, SPAN + STEP / 2, STEP, dtype=torch.float64)
    i, j = torch.triu_indices(len(grid), len(grid), 1)
    low, high = subject.span
    usable = (grid[i] >= low) & (grid[j] <= high)
    i, j = i[usable], j[usable]
    found = np.zeros((len(grid), len(grid)), dtype=np.uint8)
    if len(i):
        part = best(subject.op, grid[i], grid[j], CANDIDATES)
        found[i.numpy(), j.numpy()] = (part * PARTS).round().to(torch.uint8).numpy()
    return found


def worth(subject: Subject) -> tuple[float, float, float]:
    """Mean area of both halves over that of halving in the middle: by the own rule, by the table, at best."""
    generator = torch.Generator().manual_seed(0)
    low, high = max(subject.span[0], -SPAN), min(subject.span[1], SPAN)
    ends = low + (high - low) * torch.rand(2, INTERVALS, generator=generator, dtype=torch.float64)
    lower, upper = ends.amin(0), ends.amax(0)
    middle = halves(subject.op, lower, upper, (lower + upper) / 2)
    x = Interval(lower, upper)
    part = best(subject.op, lower, upper, 255)
    chosen = [subject.op.branching_point(0, x), table_point(subject.op, x)]
    chosen.append(torch.where(part > 0, lower + part * (upper - lower), (lower + upper) / 2))
    fine = middle.isfinite() & (middle > 1e-6)
    ratios = [(halves(subject.op, lower, upper, p)[fine] / middle[fine]).mean() for p in chosen]
    return float(ratios[0]), float(ratios[1]), float(ratios[2])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--write", action="store_true", help="replace the table of the package")
    arguments = parser.parse_args()
    chosen = {}
    for subject in subjects():
        kinks_only = isinstance(subject.op, Relu | PRelu | PiecewiseLinear) or subject.op.jumps
        name = key(subject.op)
        if name is not None and not kinks_only:
            chosen[name] = subject
    if arguments.write:
        found = {name: table(subject) for name, subject in chosen.items()}
        np.savez_compressed(Path(points.__file__).with_name("points.npz"), **found)  # pyright: ignore[reportArgumentType]
        points._tables.cache_clear()
    print(machine())
    print("\n| operator | own rule | table | best of 255 |\n|---|---|---|---|")
    for subject in chosen.values():
        print(f"| {subject.name} | " + " | ".join(f"{v:.3f}" for v in worth(subject)) + " |", flush=True)


if __name__ == "__main__":
    main()
