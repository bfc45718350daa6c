"""What the bounds of a recurrent classifier cost: `python -m benchmarks.recurrent lstm --units 32 --steps 8`.

A layer with random weights (seed 0) and a linear head to ten classes, exported to ONNX and imported, around one random
sequence. Seconds of processor time, and widths (mean of the classes) beside what random corners reach.
"""

from __future__ import annotations

import argparse
import time
from collections import Counter

import torch
from torch import Tensor, nn

from benchmarks.common import exported
from verifier.bounds.compute import compute_bounds
from verifier.frontends.onnx import load
from verifier.graph import Graph
from verifier.ops.gated import Gated
from verifier.sets import Box
from verifier.transforms.fold import fold
from verifier.transforms.prepare import prepare

KINDS = {"lstm": nn.LSTM, "gru": nn.GRU, "rnn": nn.RNN}


class Classifier(nn.Module):
    """[1, steps, features] to ten scores of the last state."""

    def __init__(self, kind: str, features: int, units: int) -> None:
        super().__init__()
        self.layer = KINDS[kind](features, units, batch_first=True)
        self.head = nn.Linear(units, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layer(x)[0][:, -1])


def network(kind: str, features: int, units: int, steps: int) -> tuple[bytes, Tensor]:
    """The model's file, and a sequence [1, steps, features]."""
    torch.manual_seed(0)
    module, x = Classifier(kind, features, units).eval(), torch.rand(1, steps, features)
    return exported(module, x), x


def reached(graph: Graph, x: Tensor, radius: float, count: int = 4000) -> float:
    """The mean width that random corners of the box reach."""
    generator = torch.Generator().manual_seed(0)
    signs = torch.randint(0, 2, (count, *x.shape[1:]), generator=generator) * 2 - 1
    values = graph.evaluate([x + radius * signs])[0]
    return float((values.amax(0) - values.amin(0)).mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kind", choices=KINDS)
    for name, default in (("features", 8), ("units", 32), ("steps", 8)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--radius", type=float, default=0.01)
    parser.add_argument("--methods", default="interval,crown-ibp,crown,alpha-crown")
    given = parser.parse_args()
    torch.set_num_threads(1)
    data, x = network(given.kind, given.features, given.units, given.steps)
    began = time.process_time()
    model = load(data)
    loaded = time.process_time()
    graph = fold(prepare(model.graph, [x.double().unsqueeze(0)])).to(torch.float32)
    print(f"import {loaded - began:.3f} s, preparation {time.process_time() - loaded:.3f} s")
    kinds = Counter(type(node.op).__name__ for node in graph.nodes)
    print(f"{kinds.total()} nodes, {kinds[Gated.__name__]} joint gates, {kinds['Product']} products")
    box = Box.around(x.unsqueeze(0), given.radius)
    print(f"random corners reach {reached(graph, x.unsqueeze(0), given.radius):.4g}")
    for method in given.methods.split(","):
        began = time.process_time()
        found = compute_bounds(graph, [box], method).outputs[0]
        width = float((found.upper - found.lower).mean())
        print(f"{method:12} {time.process_time() - began:8.2f} s  width {width:.4g}", flush=True)


if __name__ == "__main__":
    main()
