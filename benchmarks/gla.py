"""Bounds of a small gated linear attention beside those that another tool is recorded with.

    python -m benchmarks.gla [--reference FOLDER] [--iterations N] [--seeds N] [--steps T ...] [--double]

A layer of 8 inputs per token and 4 x 4 states with weights drawn by NumPy, so that everybody has the same; the widths
of its two outputs around one sequence, in recurrent form, in parallel form, with both as alternatives, and of the
recurrent form as it is prepared (its parallel form, where that is found and not too costly). FOLDER
holds reference.csv with rows T, tau, eps, seed, form, method, width, attacked_width, seconds. Per setting and form:
medians over the seeds of width / attacked width and of seconds, ours and (in brackets) the recorded ones. Ours count
what rounding may do, in float32 or, with `--double`, in float64.
"""

from __future__ import annotations

import argparse
import csv
import os
import statistics
import sys
import time
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.common import ROOT, machine
from verifier import trace
from verifier.bounds.alpha import AlphaOptions
from verifier.bounds.compute import compute_bounds
from verifier.graph import Graph
from verifier.options import BoundMethod
from verifier.sets import Box
from verifier.transforms.either import either
from verifier.transforms.fold import fold
from verifier.transforms.prepare import prepare

INPUTS, KEYS, VALUES = 8, 4, 4
METHODS: dict[str, BoundMethod] = {"IBP": "interval", "CROWN": "crown", "alpha-CROWN": "alpha-crown"}


class Layer(nn.Module):
    """[B, T * INPUTS] to [B, 2]: S_t = diag(sigmoid(g_t)^(1 / tau)) S_(t-1) + k_t v_t^T, outputs H S_T^T q_T."""

    def __init__(self, seed: int, steps: int, tau: float, parallel: bool) -> None:
        super().__init__()
        source = np.random.RandomState(seed)

        def matrix(*shape: int) -> Tensor:
            return torch.tensor(source.standard_normal(shape) / shape[-1] ** 0.5, dtype=torch.float32)

        self.q, self.k = matrix(KEYS, INPUTS), matrix(KEYS, INPUTS)
        self.v, self.gate = matrix(VALUES, INPUTS), matrix(KEYS, INPUTS)
        self.bias = torch.tensor(source.standard_normal(KEYS), dtype=torch.float32)
        self.head = matrix(2, VALUES)
        self.x = torch.tensor(source.standard_normal((1, steps * INPUTS)), dtype=torch.float32)
        self.steps, self.tau, self.parallel = steps, tau, parallel

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.unflatten(1, (self.steps, INPUTS))
        k, v = functional.linear(tokens, self.k), functional.linear(tokens, self.v)
        q = functional.linear(tokens[:, -1], self.q)
        decay = functional.logsigmoid(functional.linear(tokens, self.gate, self.bias)) / self.tau
        if self.parallel:
            kept = [decay[:, t + 1 :].sum(1) for t in range(self.steps - 1)]
            weights = q[:, None] * k
            weights = torch.cat([weights[:, :-1] * torch.stack(kept, 1).exp(), weights[:, -1:]], 1)
            return functional.linear((weights.sum(2, keepdim=True) * v).sum(1), self.head)
        gates, state = decay.exp(), k[:, 0, :, None] * v[:, 0, None]
        for t in range(1, self.steps):
            state = gates[:, t, :, None] * state + k[:, t, :, None] * v[:, t, None]
        return functional.linear((q[:, :, None] * state).sum(1), self.head)


def forms(
    seed: int, steps: int, tau: float, dtype: torch.dtype = torch.float32
) -> tuple[Tensor, dict[str, Graph]]:
    """The sequence and the graphs to bound."""
    layers = {form: Layer(seed, steps, tau, form == "parallel") for form in ("recurrent", "parallel")}
    x = layers["recurrent"].x
    graphs = {form: trace(layer, x).graph() for form, layer in layers.items()}
    graphs["both"] = either(*graphs.values())
    point = [x.double().unsqueeze(0)]
    ready = {form: prepare(graph, point, recurrent=True) for form, graph in graphs.items()}
    ready["detected"] = prepare(graphs["recurrent"], point)
    return x.to(dtype), {form: fold(graph).to(dtype) for form, graph in ready.items()}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    shared = Path(os.environ.get("VERIFIER_SHARED", ROOT.parent / "shared")) / "reference" / "gla"
    parser.add_argument("--reference", type=Path, default=shared)
    parser.add_argument("--iterations", type=int, default=10)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--steps", type=int, nargs="*", help="only these T")
    parser.add_argument("--double", action="store_true", help="float64")
    given = parser.parse_args()
    dtype = torch.float64 if given.double else torch.float32
    torch.set_num_threads(1)
    if not (given.reference / "reference.csv").is_file():
        sys.exit(f"no reference.csv in {given.reference}; name its folder with --reference")
    with (given.reference / "reference.csv").open() as file:
        rows = list(csv.DictReader(file))
    settings = dict.fromkeys((int(r["T"]), float(r["tau"]), float(r["eps"])) for r in rows)
    print(
        f"{machine()}; {given.iterations} iterations, {dtype}; processor seconds (recorded: of the clock)\n"
    )
    print("| T | tau | eps | form |" + "".join(f" {name} | s |" for name in METHODS))
    print("|--:|--:|--:|---|" + "--:|" * 6)
    for steps, tau, eps in settings:
        if given.steps and steps not in given.steps:
            continue
        own = [r for r in rows if (int(r["T"]), float(r["tau"]), float(r["eps"])) == (steps, tau, eps)]
        seeds = sorted({int(r["seed"]) for r in own})[: given.seeds]
        found: dict[tuple[str, str], list[tuple[float, float]]] = {}
        for seed in seeds:
            attacked = next(float(r["attacked_width"]) for r in own if int(r["seed"]) == seed)
            x, graphs = forms(seed, steps, tau, dtype)
            for form, graph in graphs.items():
                for name, method in METHODS.items():
                    options = AlphaOptions(iterations=given.iterations)
                    began = time.process_time()
                    with torch.no_grad():
                        bounds = compute_bounds(graph, [Box.around(x[None], eps)], method, options=options)
                    seconds = time.process_time() - began
                    width = float((bounds.outputs[0].upper - bounds.outputs[0].lower).mean())
                    found.setdefault((form, name), []).append((width / attacked, seconds))
        for form in ("recurrent", "parallel", "both", "detected"):
            cells = []
            for name in METHODS:
                theirs = [
                    r for r in own if r["form"] == form and r["method"] == name and int(r["seed"]) in seeds
                ]
                ratios = [float(r["width"]) / float(r["attacked_width"]) for r in theirs]
                times = [float(r["seconds"]) for r in theirs]
                ours = zip(*found[form, name], strict=True)
                for own_values, past, digits in zip(ours, (ratios, times), (3, 2), strict=True):
                    old = f" ({statistics.median(past):.{digits}f})" if past else ""
                    cells.append(f"{statistics.median(own_values):.{digits}f}{old}")
            print(f"| {steps} | {tau:g} | {eps:g} | {form} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
