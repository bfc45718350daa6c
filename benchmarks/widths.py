"""Width of the output bounds of six committed networks, over the width that attacks reach.

    python -m benchmarks.widths [--images N] [--only NAME] [--iterations N]

For each network of benchmarks/networks and each eps: the boxes of N held-out digits (clipped to [0, 1]), the outputs'
mean width by gradient attacks both ways, and the mean widths of bounds over it: CROWN with fixed lines, which is what
published tools start from; CROWN as this project starts; and optimised (alpha-CROWN, inner bounds included). Fixed
lines are those of Zhang et al. 2018: chord and tangent in the middle where a function bends one way, else the chord
where it is sound, else the better of the tangents through an end; products take both planes of McCormick in equal
parts, and nothing is joined or centred before. Chains of operators on one scalar are one function for all three.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from torch import Tensor

from benchmarks.common import machine
from benchmarks.networks import COMMITTED, HERE
from verifier.bounds.alpha import AlphaOptions
from verifier.bounds.compute import NodeBounds, compute_bounds
from verifier.frontends import onnx as frontend
from verifier.graph import Elementwise, Graph, Interval, Relaxation, Univariate
from verifier.graph.op import Parameter
from verifier.sets import Box
from verifier.transforms.composites import write_out
from verifier.transforms.fuse import fuse
from verifier.transforms.prepare import prepare

RADII = (0.03, 0.05)
DIGITS = Path(__file__).parent.parent / "tests" / "data" / "digits_test.npz"
GRID = 129
"""Points per interval at which fixed lines are compared with the function."""


@dataclass(frozen=True, eq=False)
class FixedLines(Elementwise):
    """An operator whose relaxation has no free parameters, but the lines of textbooks."""

    of: Elementwise

    def tensors(self) -> Iterator[Tensor]:
        return self.of.tensors()

    def to(self, dtype: torch.dtype | None = None, device: torch.device | str | None = None) -> FixedLines:
        return replace(self, of=self.of.to(dtype, device))

    def forward(self, *xs: Tensor) -> Tensor:
        return self.of.forward(*xs)

    def interval(self, *xs: Interval) -> Interval:
        return self.of.interval(*xs)

    def refinable(self, index: int, *xs: Interval) -> Tensor:
        return self.of.refinable(index, *xs)

    def parameters(self, *xs: Interval) -> dict[str, Parameter]:
        return {}

    def relax(self, parameters: Mapping[str, Tensor], *xs: Interval) -> Relaxation:
        if isinstance(self.of, Univariate):
            slopes = {f"{side}_slope": fixed_slope(self.of, xs[0], sign) for side, sign in SIDES}
            return self.of.relax(slopes, *xs)
        middle = {name: (p.lower + p.upper) / 2 for name, p in self.of.ranges(*xs).items()}
        return self.of.relax(middle, *xs)


SIDES = (("lower", 1), ("upper", -1))


def fixed_slope(op: Univariate, x: Interval, sign: int) -> Tensor:
    """The slope of the line below an operator (sign 1) or above it (sign -1)."""
    wide = (x.upper - x.lower).clamp(min=1e-12)
    part = torch.linspace(0, 1, GRID, dtype=wide.dtype).view(-1, *[1] * wide.dim())
    points = x.lower + part * wide
    y = sign * op.forward(points.flatten(0, 1)).view_as(points)
    chord = (y[-1] - y[0]) / wide
    room = 1e-6 * (1 + y.abs().amax(0))
    straight = (y >= y[0] + part * (y[-1] - y[0]) - room).all(0)
    bends_up = (y[2:] + y[:-2] - 2 * y[1:-1] >= -room).all(0)
    with torch.enable_grad():
        middle = x.center.detach().requires_grad_()
        tangent = sign * torch.autograd.grad(op.forward(middle).sum(), middle)[0]
    from_low = ((y[1:] - y[0]) / (part[1:] * wide)).amin(0)
    from_high = ((y[-1] - y[:-1]) / ((1 - part[:-1]) * wide)).amax(0)
    higher = y[0] + from_low * wide / 2 > y[-1] - from_high * wide / 2
    through_end = torch.where(higher, from_low, from_high)
    return sign * torch.where(bends_up, tangent, torch.where(straight, chord, through_end))


def fixed(graph: Graph) -> Graph:
    """The same graph with fixed lines."""
    nodes = [
        replace(node, op=FixedLines(node.op)) if isinstance(node.op, Elementwise) else node
        for node in graph.nodes
    ]
    return replace(graph, nodes=tuple(nodes))


def attacked(graph: Graph, box: Interval, steps: int = 60) -> Tensor:
    """How far apart attacks bring each output [B, K]."""
    unit = torch.eye(graph.nodes[graph.outputs[0]].numel)
    aims = torch.cat([unit, -unit]).expand(len(box.lower), -1, -1)
    return climbed(graph, box, aims, steps).unflatten(1, (2, -1)).sum(1)


def climbed(graph: Graph, box: Interval, aims: Tensor, steps: int = 60) -> Tensor:
    """The greatest values found of linear forms `aims` [B, R, K] of the output: [B, R], by signed gradient steps from
    the middle."""
    batch, rows, shape = *aims.shape[:2], box.lower.shape[1:]
    aim = aims.flatten(0, 1).to(box.lower)
    lower, upper = (t.repeat_interleave(rows, 0) for t in box)
    x, step = (lower + upper) / 2, (upper - lower) / 8
    best = torch.full((len(x),), -torch.inf, dtype=x.dtype)
    for k in range(steps):
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            y = graph.evaluate([x.view(-1, *shape)])[0].flatten(1)
            value = (y * aim).sum(1)
            gradient = torch.autograd.grad(value.sum(), x)[0]
        best = torch.maximum(best, value.detach())
        moved = x.detach() + step * (1 - k / steps) * gradient.sign()
        x = torch.minimum(torch.maximum(moved, lower), upper)
    return best.view(batch, rows)


@dataclass(frozen=True)
class Row:
    """Mean width of the outputs under attack, mean widths of bounds over it, and seconds."""

    network: str
    eps: float
    attacked: float
    fixed: float
    initial: float
    optimised: float
    seconds: float


def measure(name: str, eps: float, images: Tensor, iterations: int) -> Row:
    graph = frontend.load(HERE / f"{name}.onnx").graph
    shape = graph.nodes[graph.inputs[0]].shape
    images = images.view(-1, *shape)
    box = Box((images - eps).clamp(min=0), (images + eps).clamp(max=1))
    middle = ((box.lower + box.upper) / 2).double()
    plainly = fixed(fuse(write_out(graph))).to(torch.float32)
    ready = prepare(graph, [middle]).to(torch.float32)
    options = AlphaOptions(iterations=iterations)
    reached = attacked(ready, box.box())
    plain = compute_bounds(plainly, [box], "crown")
    began = time.perf_counter()
    initial = compute_bounds(ready, [box], "crown")
    optimised = compute_bounds(ready, [box], "alpha-crown", options=options)
    seconds = time.perf_counter() - began

    def ratio(bounds: NodeBounds) -> float:
        (found,) = bounds.outputs
        return float((found.upper - found.lower).mean() / reached.mean())

    return Row(name, eps, float(reached.mean()), ratio(plain), ratio(initial), ratio(optimised), seconds)


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, default=10)
    parser.add_argument("--iterations", type=int, default=40)
    parser.add_argument("--only", choices=list(COMMITTED))
    arguments = parser.parse_args(words)
    import numpy as np

    with np.load(DIGITS) as found:
        images = torch.from_numpy(found["images"])[: arguments.images].float()
    print(machine())
    print("\n| network | eps | attacked width | fixed lines | initial | optimised | optimised / fixed | s |")
    print("|---|--:|--:|--:|--:|--:|--:|--:|")
    for name in [arguments.only] if arguments.only else COMMITTED:
        for eps in RADII:
            row = measure(name, eps, images, arguments.iterations)
            cells = [row.fixed, row.initial, row.optimised, row.optimised / row.fixed]
            print(
                f"| {name} | {eps} | {row.attacked:.3g} | {' | '.join(f'{v:.3f}' for v in cells)} "
                f"| {row.seconds:.1f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
