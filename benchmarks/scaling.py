"""What certifying a gated layer costs as sequences get longer.

    python -m benchmarks.scaling [--families gla delta] [--steps T ...] [--form recurrent|parallel] [--radius R]
                                 [--depth N] [--device cpu|cuda] [--double] [--of N] [--full]

A layer of width 64 with 4 heads and random weights (seed 0), a linear head on its last token, and a random sequence
with noise of radius R in every entry, of N sequences the one with the largest margin; in float32, or in float64 with
`--double`: seconds of CROWN for all margins of the predicted class (the import apart), peak memory, the least margin,
and the margins' mean width; `--full` adds the same without ending passes early. At the end the slope of log time in
log T.
"""

from __future__ import annotations

import argparse
import math
import resource
import time
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from benchmarks.common import machine
from verifier import trace
from verifier.bounds.crown import Effort, inner_bounds, specification_bound
from verifier.certification import margin_rows
from verifier.graph import Graph
from verifier.graph.coefficients import Dense
from verifier.models import GLA, DeltaNet
from verifier.sets import Box
from verifier.transforms.fold import fold
from verifier.transforms.prepare import prepare

WIDTH, HEADS, CLASSES = 64, 4, 10
FAMILIES = {"gla": GLA, "delta": DeltaNet}
WHOLE = 1 << 30
"""A depth that no network has."""


class Classifier(nn.Module):
    """[1, T, WIDTH] to CLASSES scores of the last token."""

    def __init__(self, family: str, form: str) -> None:
        super().__init__()
        self.layer = FAMILIES[family](WIDTH, HEADS, form=form)
        self.head = nn.Linear(WIDTH, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layer(x)[:, -1])


def network(family: str, form: str, steps: int, of: int, dtype: torch.dtype) -> tuple[Graph, Tensor]:
    torch.manual_seed(0)
    module, drawn = Classifier(family, form).eval().requires_grad_(False), torch.randn(of, steps, WIDTH)
    first, second = module(drawn).topk(2, 1).values.unbind(1)
    x = drawn[[int((first - second).argmax())]]
    graph = trace(module, x).graph()
    return fold(prepare(graph, [x.double().unsqueeze(0)])).to(dtype), x.to(dtype)


def certified(graph: Graph, x: Tensor, radius: float, effort: Effort) -> tuple[float, float]:
    """The least margin's lower bound and the mean width of all margins."""
    box, target = Box.around(x.unsqueeze(0), radius), graph.outputs[0]
    label = graph.evaluate([x.unsqueeze(0)])[0].flatten().argmax().view(1)
    rows = margin_rows(label, CLASSES).to(x)
    rows = torch.cat([rows, -rows], 1).unsqueeze(2)
    with torch.no_grad():
        bounds = inner_bounds(graph, [box], [target], effort=effort)
        low = specification_bound(graph, [box], target, Dense(rows), bounds).minimum(graph, [box])
    count = CLASSES - 1
    return float(low[:, :count].min()), float((-low[:, count:] - low[:, :count]).mean())


def slope(steps: Sequence[int], seconds: Sequence[float]) -> float:
    """Of the line of least squares through the logarithms."""
    x = torch.tensor([math.log(t) for t in steps])
    y = torch.tensor([math.log(s) for s in seconds])
    return float(((x - x.mean()) * (y - y.mean())).sum() / (x - x.mean()).square().sum())


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--families", nargs="*", choices=FAMILIES, default=list(FAMILIES))
    parser.add_argument("--steps", type=int, nargs="*", default=[16, 32, 64, 128])
    parser.add_argument("--form", choices=("recurrent", "parallel"), default="recurrent")
    parser.add_argument("--radius", type=float, default=1e-3)
    parser.add_argument("--depth", type=int, help="how far passes for states go back")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--double", action="store_true", help="float64")
    parser.add_argument(
        "--of", type=int, default=1, help="sequences to draw the one of the largest margin from"
    )
    parser.add_argument("--full", action="store_true")
    given = parser.parse_args()
    torch.set_num_threads(1)
    kind = f"{given.form} form, {'float64' if given.double else 'float32'}"
    print(
        f"{machine()}; {given.device}, {kind}, radius {given.radius:g}, depth {given.depth}, 1 of {given.of}\n"
    )
    print("| family | T | nodes | import s | CROWN s | MiB | margin | width | width, whole passes | s |")
    print("|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|")
    for family in given.families:
        taken = []
        for steps in given.steps:
            began = time.perf_counter()
            dtype = torch.float64 if given.double else torch.float32
            graph, x = network(family, given.form, steps, given.of, dtype)
            graph, x = graph.to(device=given.device), x.to(given.device)
            imported = time.perf_counter() - began
            cells = []
            for depth in (given.depth, WHOLE)[: 1 + given.full]:
                began = time.perf_counter()
                margin, width = certified(graph, x, given.radius, Effort(depth=depth))
                cells.append((time.perf_counter() - began, margin, width))
            memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
            if given.device != "cpu":
                memory = torch.cuda.max_memory_allocated() / 2**20
            taken.append(cells[0][0])
            whole = f"{cells[1][2]:.4g} | {cells[1][0]:.1f}" if given.full else " | "
            print(
                f"| {family} | {steps} | {len(graph.nodes)} | {imported:.1f} | {cells[0][0]:.1f} | {memory:.0f} |"
                f" {cells[0][1]:.4g} | {cells[0][2]:.4g} | {whole} |",
                flush=True,
            )
        if len(taken) > 1:
            print(f"{family}: slope {slope(given.steps, taken):.2f}", flush=True)


if __name__ == "__main__":
    main()
