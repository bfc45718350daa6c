"""What relaxing products jointly gains over lines of the functions and planes of their product.

    python -m benchmarks.products [--boxes N] [--seed S]

The gap of a relaxation is the mean distance between its planes over the box. The first table has, for random boxes of
three sizes (half-widths up to 0.3, 2 and 10), the joint gap over the composed one, as both start: mean and best over
boxes; then the best joint gap (200 steps on the slopes) over the same. Values at random points are checked to lie
between the planes. The second table has the width of CROWN's output bounds of random gated networks (three layers
h + f(A h, B h) of 16 neurons behind 8 inputs), joint over composed, the geometric mean over 3 networks and 4 boxes.
Float64, one thread.
"""

from __future__ import annotations

import argparse
import math
import os
from collections.abc import Callable
from dataclasses import dataclass

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from torch import Tensor

from benchmarks.common import machine
from verifier.bounds.compute import compute_bounds
from verifier.graph import Builder, Elementwise, Graph, Interval, Relaxation, Univariate, Value
from verifier.ops.arithmetic import add, scale_shift
from verifier.ops.erf import Erf
from verifier.ops.exponential import Exp
from verifier.ops.gated import Gated
from verifier.ops.linear import Linear
from verifier.ops.piecewise_linear import Relu
from verifier.ops.power import Power
from verifier.ops.product import Product, Square, multiply
from verifier.ops.reciprocal import Reciprocal
from verifier.ops.sigmoid import Sigmoid, Tanh
from verifier.ops.softplus import Softplus
from verifier.sets import Box
from verifier.transforms.fold import fold
from verifier.transforms.gates import join_gates

SIZES = (0.3, 2.0, 10.0)
STEPS = 200


@dataclass(frozen=True)
class Entry:
    name: str
    op: Gated
    positive: bool = False


ENTRIES = [
    Entry("sigmoid(x) y", Gated(Sigmoid())),
    Entry("tanh(x) y", Gated(Tanh())),
    Entry("softplus(x) y", Gated(Softplus())),
    Entry("erf(x) y", Gated(Erf())),
    Entry("relu(x) y", Gated(Relu())),
    Entry("exp(x) y", Gated(Exp())),
    Entry("x^2 y", Gated(Square())),
    Entry("y / x", Gated(Reciprocal()), positive=True),
    Entry("y / sqrt(x)", Gated(Power(-0.5)), positive=True),
    Entry("sigmoid(x) tanh(y)", Gated(Sigmoid(), Tanh())),
    Entry("tanh(x) tanh(y)", Gated(Tanh(), Tanh())),
    Entry("sigmoid(x) sigmoid(y)", Gated(Sigmoid(), Sigmoid())),
]


def boxes(count: int, size: float, positive: bool, generator: torch.Generator) -> Interval:
    center = torch.randn(1, count, generator=generator, dtype=torch.float64)
    radius = size * torch.rand(1, count, generator=generator, dtype=torch.float64)
    if positive:  # within [0.1, ...)
        low = 0.1 + center.abs()
        return Interval(low, low + 2 * radius)
    return Interval(center - radius, center + radius)


def started(op: Elementwise, *xs: Interval) -> Relaxation:
    return op.relax({n: p.value for n, p in op.parameters(*xs).items()}, *xs)


def heights(lines: Relaxation, *at: Tensor) -> tuple[Tensor, Tensor]:
    """The values of both planes at a point."""
    found = []
    for slopes, intercept in (
        (lines.lower_slopes, lines.lower_intercept),
        (lines.upper_slopes, lines.upper_intercept),
    ):
        total = torch.zeros_like(at[0]) if intercept is None else intercept
        for slope, p in zip(slopes, at, strict=True):
            total = total + slope * p
        found.append(total)
    return found[0], found[1]


def gap(lines: Relaxation, *xs: Interval) -> Tensor:
    """The mean distance over the box, which is that at its middle."""
    low, high = heights(lines, *[x.center for x in xs])
    return high - low


def composed(op: Gated, x: Interval, y: Interval) -> Relaxation:
    """From the functions' starting lines and the product's starting planes."""
    z, v = op.gate.interval(x), y if op.other is None else op.other.interval(y)
    parts = [_lines(op.gate, x), _lines(op.other, y)]
    planes = started(Product(), z, v)
    found = []
    for sign, slopes, intercept in (
        (-1, planes.lower_slopes, planes.lower_intercept),
        (1, planes.upper_slopes, planes.upper_intercept),
    ):
        plane, constant = [], intercept
        for k, (below, above) in zip(slopes, parts, strict=True):
            upper = sign * k >= 0
            plane.append(k * torch.where(upper, above[0], below[0]))
            constant = constant + k * torch.where(upper, above[1], below[1])
        found += [tuple(plane), constant]
    return Relaxation(*found)


def _lines(function: Univariate | None, x: Interval) -> list[tuple[Tensor, Tensor]]:
    zero = torch.zeros_like(x.lower)
    if function is None:
        return [(zero + 1, zero)] * 2
    lines = started(function, x)
    pairs = ((lines.lower_slopes[0], lines.lower_intercept), (lines.upper_slopes[0], lines.upper_intercept))
    return [(slope, zero if c is None else c) for slope, c in pairs]


def optimised(op: Gated, x: Interval, y: Interval) -> Tensor:
    """The least joint gap that Adam finds, each slope moving in units of its range."""
    ranges = op.parameters(x, y)
    values = {n: p.value.clone().requires_grad_() for n, p in ranges.items()}
    moments = {n: (torch.zeros_like(p.value), torch.zeros_like(p.value)) for n, p in ranges.items()}
    best = gap(started(op, x, y), x, y)
    for step in range(1, STEPS + 1):
        now = gap(op.relax(values, x, y), x, y)
        gradients = torch.autograd.grad(now.sum(), list(values.values()))
        best = torch.minimum(best, now.detach())
        with torch.no_grad():
            for (n, t), g in zip(values.items(), gradients, strict=True):
                p = ranges[n]
                width = p.upper - p.lower
                first, second = moments[n]
                first.mul_(0.9).add_(0.1 * width * g)
                second.mul_(0.99).add_(0.01 * (width * g) ** 2)
                move = (first / (1 - 0.9**step)) / ((second / (1 - 0.99**step)).sqrt() + 1e-12)
                t.sub_(0.1 * 0.98**step * width * move)
                t.copy_(torch.minimum(torch.maximum(t, p.lower), p.upper))
    return best


def check(op: Gated, lines: Relaxation, x: Interval, y: Interval, generator: torch.Generator) -> None:
    """Raises ValueError where the function leaves the planes."""
    for _ in range(100):
        at = [
            t.lower
            + torch.rand(t.lower.shape, generator=generator, dtype=torch.float64) * (t.upper - t.lower)
            for t in (x, y)
        ]
        low, high = heights(lines, *at)
        value = op.forward(*at)
        slack = 1e-9 * (1 + value.abs())
        if bool(((low > value + slack) | (high < value - slack)).any()):
            raise ValueError(f"{op} leaves its planes.")


def row(entry: Entry, size: float, count: int, seed: int) -> tuple[float, float, float]:
    """Mean and least of joint over composed, as both start; the mean of the best joint over the same."""
    generator = torch.Generator().manual_seed(seed)
    x = boxes(count, size, entry.positive, generator)
    y = boxes(count, size, False, generator)
    lines = started(entry.op, x, y)
    check(entry.op, lines, x, y, generator)
    base = gap(composed(entry.op, x, y), x, y)
    kept = base > 1e-9  # where the functions are straight there is nothing to gain
    share = (gap(lines, x, y) / base)[kept]
    return float(share.mean()), float(share.min()), float((optimised(entry.op, x, y) / base)[kept].mean())


def network(join: Callable[[Builder, Value, Value], Value], scale: float, seed: int) -> Graph:
    generator = torch.Generator().manual_seed(seed)
    b = Builder()
    h = b.input("x", (8,))

    def affine(x: Value, count: int, size: float) -> Value:
        width = b.shape(x)[0]
        weight = size * torch.randn(count, width, generator=generator, dtype=torch.float64) / math.sqrt(width)
        return b.add(Linear(weight, 0.3 * torch.randn(count, generator=generator, dtype=torch.float64)), x)

    h = affine(h, 16, 1.5)
    for _ in range(3):
        h = add(b, h, join(b, affine(h, 16, scale), affine(h, 16, scale)))
    return fold(b.graph(affine(h, 5, 1.0)))


NETWORKS: dict[str, tuple[Callable[[Builder, Value, Value], Value], float]] = {
    "sigmoid(A h) B h": (lambda b, u, v: multiply(b, b.add(Sigmoid(), u), v), 1.5),
    "tanh(A h) B h": (lambda b, u, v: multiply(b, b.add(Tanh(), u), v), 1.0),
    "sigmoid(A h) tanh(B h)": (lambda b, u, v: multiply(b, b.add(Sigmoid(), u), b.add(Tanh(), v)), 2.0),
    "B h / (1 + exp(A h))": (
        lambda b, u, v: multiply(b, b.add(Reciprocal(), scale_shift(b, b.add(Exp(), u), shift=1.0)), v),
        0.7,
    ),
}


def width_ratio(name: str, eps: float) -> float:
    logs = []
    for seed in range(3):
        graph = network(*NETWORKS[name], seed)
        center = torch.randn(4, 8, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        box = Box(center - eps, center + eps)
        widths = []
        for g in (graph, fold(join_gates(graph))):
            found = compute_bounds(g, [box], "crown").outputs[0]
            widths.append((found.upper - found.lower).mean(1))
        logs.append((widths[1] / widths[0]).log().mean())
    return math.exp(float(torch.stack(logs).mean()))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--boxes", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    words = parser.parse_args()
    torch.set_num_threads(1)
    print(f"{machine()}; {words.boxes} boxes, seed {words.seed}\n")
    print("| product | " + " | ".join(f"up to {s:g}: mean | best | optimised" for s in SIZES) + " |")
    print("|---|" + "---|" * (3 * len(SIZES)))
    for entry in ENTRIES:
        cells = [f"{v:.3f}" for s in SIZES for v in row(entry, s, words.boxes, words.seed)]
        print(f"| {entry.name} | " + " | ".join(cells) + " |", flush=True)
    print("\n| network | eps 0.03 | eps 0.1 | eps 0.3 |\n|---|---|---|---|")
    for name in NETWORKS:
        print(
            f"| {name} | " + " | ".join(f"{width_ratio(name, e):.3f}" for e in (0.03, 0.1, 0.3)) + " |",
            flush=True,
        )


if __name__ == "__main__":
    main()
