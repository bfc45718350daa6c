"""Time and width of the bounds, and certified accuracy in one batch against one by one.

    python -m benchmarks.bounds [--repeat N] [--large FILE]

One thread, float32, medians of N runs. The digits networks are those of tests/data; `--large` takes the 784-256x4-10
network that `python tests/data/make_networks.py --large DIR` trains, without it a seeded random one is used. Prints
Markdown tables; `width` is the mean over outputs and images of upper minus lower bound.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
from torch import Tensor

from verifier.bounds.alpha import AlphaOptions, optimise
from verifier.bounds.compute import compute_bounds
from verifier.bounds.crown import inner_bounds, specification_bound
from verifier.frontends.onnx import load
from verifier.graph import Builder, Graph
from verifier.graph.coefficients import Dense
from verifier.ops.linear import Linear
from verifier.ops.piecewise_linear import relu
from verifier.sets import Box

DATA = Path(__file__).resolve().parent.parent / "tests" / "data"
METHODS = ("interval", "forward", "crown-ibp", "crown", "alpha-crown")


def random_mlp(sizes: tuple[int, ...]) -> Graph:
    """PyTorch's default initialisation, seed 0."""
    torch.manual_seed(0)
    b = Builder()
    h = b.input("x", (sizes[0],))
    for k, (m, n) in enumerate(pairwise(sizes)):
        layer = torch.nn.Linear(m, n)
        h = b.add(Linear(layer.weight.detach(), layer.bias.detach()), h)
        h = relu(b, h) if k < len(sizes) - 2 else h
    return b.graph(h)


def median(run: Callable[[], object], repeat: int) -> float:
    """Seconds of the median run, after one that warms up."""
    run()
    seconds = []
    for _ in range(repeat):
        start = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


def networks(large: Path | None) -> list[tuple[str, Graph, Tensor, float]]:
    """(name, graph, images [N, *input shape], eps)"""
    images = torch.from_numpy(np.load(DATA / "digits_test.npz")["images"])
    found = []
    for name, eps in (("digits_mlp", 0.02), ("digits_cnn", 0.005)):
        graph = load(DATA / f"{name}.onnx").graph.to(torch.float32)
        found.append((name, graph, images.view(-1, *graph.nodes[graph.inputs[0]].shape), eps))
    wide = torch.nn.functional.interpolate(images.view(-1, 1, 8, 8), size=(28, 28), mode="bilinear")
    if large is None:
        graph, name = random_mlp((784, 256, 256, 256, 256, 10)), "random 784-256x4-10"
    else:
        graph, name = load(large).graph.to(torch.float32), large.stem
    found.append((name, graph, wide.reshape(-1, *graph.nodes[graph.inputs[0]].shape), 0.02))
    return found


def methods_table(large: Path | None, repeat: int) -> None:
    print("| network | eps | method | seconds (1 image) | width |")
    print("|---|---|---|---|---|")
    for name, graph, images, eps in networks(large):
        inputs = [Box.around(images[:1], eps, clip=(0.0, 1.0))]
        for method in METHODS:
            run = partial(compute_bounds, graph, inputs, method)
            found = run().outputs[0]
            width = float((found.upper - found.lower).mean())
            print(f"| {name} | {eps} | {method} | {median(run, repeat):.4f} | {width:.4f} |", flush=True)
        rows = Dense(torch.eye(10).view(1, 10, *graph.nodes[graph.outputs[0]].shape))
        options = AlphaOptions(iterations=20)
        seconds = median(partial(optimise, graph, inputs, graph.outputs[0], rows, options=options), repeat)
        print(f"| {name} | {eps} | alpha-crown, lower bounds only | {seconds:.4f} | |", flush=True)


def certified(graph: Graph, images: Tensor, labels: Tensor, eps: float) -> Tensor:
    """Which images provably keep their label (CROWN): [B]."""
    inputs = [Box.around(images, eps, clip=(0.0, 1.0))]
    target = graph.outputs[0]
    margins = torch.nn.functional.one_hot(labels, 10).float().unsqueeze(1) - torch.eye(10)
    rows = Dense(margins.view(-1, 10, *graph.nodes[target].shape))
    plane = specification_bound(graph, inputs, target, rows, inner_bounds(graph, inputs, [target]))
    lower = plane.minimum(graph, inputs)
    return torch.where(torch.nn.functional.one_hot(labels, 10).bool(), torch.inf, lower).amin(1) > 0


def batching_table(repeat: int) -> None:
    labels = torch.from_numpy(np.load(DATA / "digits_test.npz")["labels"])
    print("\n| network | eps | certified of 200 | one batch (s) | one by one (s) | ratio |")
    print("|---|---|---|---|---|---|")
    for name, graph, images, eps in networks(None)[:2]:
        batched = certified(graph, images, labels, eps)
        alone = torch.cat(
            [certified(graph, x[None], y[None], eps) for x, y in zip(images, labels, strict=True)]
        )
        assert int((batched != alone).sum()) <= 1, "batching changed the verdicts"
        together = median(lambda g=graph, x=images, e=eps: certified(g, x, labels, e), repeat)
        single = median(
            lambda g=graph, x=images, e=eps: [
                certified(g, x[k : k + 1], labels[k : k + 1], e) for k in range(200)
            ],
            max(1, repeat // 3),
        )
        share = f"{int(batched.sum())}"
        print(
            f"| {name} | {eps} | {share} | {together:.3f} | {single:.3f} | {single / together:.1f} |",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--large", type=Path, default=None)
    options = parser.parse_args()
    torch.set_num_threads(1)
    methods_table(options.large, options.repeat)
    batching_table(options.repeat)


if __name__ == "__main__":
    main()
