"""Local Lipschitz constants of digit classifiers: product of norms, RecurJac, and this project's bounds.

    python -m benchmarks.lipschitz [--networks NAME ...] [--radii R ...] [--images N] [--seconds S] [--norm inf|2|1]
                                   [--jobs J] [--families] [--widths]

MLPs of ReLU layers (3x20, 3x64, 5x128) and a CNN of four layers are trained on scikit-learn's digits (seeded, pixels in
[0, 1]). For boxes of three radii around held-out digits: the product of the layers' norms (which holds everywhere),
bounds in the manner of RecurJac (Zhang et al. 2019: CROWN for neurons, entries of the Jacobian backwards; where a
neuron is undecided and the sign of what comes from behind is open, its interval), CROWN and optimised bounds of the
norm, S seconds for everything with branch and bound, and the norm of a gradient in the box. Medians over images;
seconds in brackets.

`--families`: the margin of the class over the next of the recurrent digit classifiers (vnncomp/benchmarks/
gated_sequences). `--widths`: the mean width of bounds of all entries of an untrained MLP's Jacobian (10-64-64-64-3), as
bound propagation tools give them, beside sampled ones.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from torch import Tensor, nn

from benchmarks.common import machine
from benchmarks.families import held_out, network_file
from verifier import api
from verifier.frontends.torch import trace
from verifier.graph import Graph, Interval, Parameter
from verifier.graph.builder import rewritten
from verifier.jacobian.enclosures import Effort, Method, root_intervals
from verifier.jacobian.lipschitz import lipschitz
from verifier.jacobian.objective import Norm, Objective, gradients
from verifier.ops.switched import Switched
from verifier.sets import Box

RADII = (0.03, 0.1, 0.2)
FAMILIES = ("LSTM", "GLA", "DeltaNet")


def mlp(*widths: int) -> nn.Sequential:
    layers: list[nn.Module] = [nn.Flatten()]
    for a, b in zip((64, *widths), (*widths, 10), strict=True):
        layers += [nn.Linear(a, b), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def cnn() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(8, 16, 4, stride=2, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(256, 64),
        nn.ReLU(),
        nn.Linear(64, 10),
    )


NETWORKS = {
    "MLP 3x20": lambda: mlp(20, 20),
    "MLP 3x64": lambda: mlp(64, 64),
    "MLP 5x128": lambda: mlp(128, 128, 128, 128),
    "CNN, 4 layers": cnn,
}


def trained(name: str) -> tuple[nn.Sequential, Tensor]:
    """The network, and the held-out digits that it gets right, [N, 1, 8, 8]."""
    from sklearn.datasets import load_digits

    data = load_digits()
    x = torch.tensor(data.images, dtype=torch.float32).unsqueeze(1) / 16
    y = torch.tensor(data.target)
    torch.manual_seed(0)
    order = torch.randperm(len(x))
    x, y = x[order], y[order]
    net = NETWORKS[name]()
    adam = torch.optim.Adam(net.parameters(), 1e-3)
    for _ in range(60):
        for rows in torch.randperm(1400).split(64):
            adam.zero_grad()
            nn.functional.cross_entropy(net(x[rows]), y[rows]).backward()
            adam.step()
    with torch.no_grad():
        right = net(x[1400:]).argmax(1) == y[1400:]
    return net.eval(), x[1400:][right]


def product_of_norms(net: nn.Sequential, norm: Norm) -> float:
    """Layers' induced norms multiplied; those of convolutions by their matrices on this input size."""
    shape, result = torch.Size([1, 1, 8, 8]), 1.0
    for layer in net:
        size = shape.numel()
        if isinstance(layer, nn.Linear | nn.Conv2d):
            with torch.no_grad():
                basis = torch.eye(size).view(size, *shape[1:])
                zero = layer(torch.zeros(1, *shape[1:]))
                matrix = (layer(basis) - zero).flatten(1).T.double()
            result *= float(torch.linalg.matrix_norm(matrix, {"inf": float("inf"), "2": 2, "1": 1}[norm]))
        with torch.no_grad():
            shape = layer(torch.zeros(shape)).shape
    return result


class _Constant(Switched):
    """As RecurJac has it: constants where the sign of g is open, lines through zero otherwise, nothing along z."""

    def parameters(self, *xs: Interval) -> dict[str, Parameter]:
        found = super().parameters(*xs)
        slopes = found["lower_slope"]
        g = xs[1]
        below = torch.where(g.upper <= 0, slopes.upper, slopes.lower)
        above = torch.where(g.lower >= 0, slopes.upper, slopes.lower)
        zero = torch.zeros_like(below)
        fixed = {"lower_slope": below, "upper_slope": above, "rise": zero, "fall": zero}
        return {name: Parameter(t, t, t) for name, t in fixed.items()}


def recurjac(graph: Graph, box: Box, norm: Norm, rows: Tensor, effort: Effort) -> float:
    """Bounds of all entries in the manner of RecurJac, and the norm that they allow."""
    asked = gradients(graph, rows)
    replaced = rewritten(
        asked.raw,
        lambda builder, i, values: (
            builder.add(
                _Constant(asked.raw.nodes[i].op.knots, asked.raw.nodes[i].op.levels),
                *[values[j] for j in asked.raw.nodes[i].inputs],
            )
            if isinstance(asked.raw.nodes[i].op, Switched)
            else None
        ),
    )
    entries = root_intervals(Objective(replaced, asked.seeds), [box], Method.CROWN, effort).magnitude
    if norm == "2":
        return float(torch.linalg.matrix_norm(entries, 2))
    return float(entries.sum(1 if norm == "inf" else 0).amax())


def measure(name: str, radius: float, count: int, norm: Norm, seconds: float) -> Mapping[str, list[float]]:
    """Value and seconds of every column, by image."""
    net, digits = trained(name)
    graph = trace(net, digits[:1]).graph(torch.float64)
    rows = torch.eye(10, dtype=torch.float64)
    found: dict[str, list[float]] = {}

    def put(column: str, value: float, spent: float) -> None:
        found.setdefault(column, []).append(value)
        found.setdefault(f"{column} s", []).append(spent)

    for x in digits[:count]:
        box = Box.around(x[None, None], radius)
        put("product", product_of_norms(net, norm), 0.0)
        start = time.monotonic()
        put("RecurJac", recurjac(graph, box, norm, rows, Effort()), time.monotonic() - start)
        methods = tuple(m for m in Method if m not in (Method.PRODUCT, Method.SEMIDEFINITE))
        effort = Effort(methods, deadline=time.monotonic() + seconds, gap=1e-3)
        result = lipschitz(graph, [box], norm, rows, effort)
        for bound in result.bounds:
            put(bound.method.value, bound.value, bound.seconds)
        put("upper", result.upper, result.seconds)
        put("lower", result.lower, 0.0)
        put("domains", float(result.domains), 0.0)
    return found


def family(name: str, form: str, radius: float, norm: Norm, seconds: float) -> Mapping[str, list[float]]:
    """The margin of one held-out digit of a recurrent classifier."""
    graph = api.load_network(str(network_file(name, form))).graph
    x, y = held_out(graph, 1)
    scores = graph.evaluate([x[:1].double()])[0].flatten()
    label = int(y[0])
    scores[label] = -torch.inf
    row = torch.zeros(1, len(scores), dtype=torch.float64)
    row[0, label], row[0, int(scores.argmax())] = 1.0, -1.0
    box = Box.around(x[:1].float(), radius)
    methods = (Method.INTERVAL, Method.CROWN, Method.OPTIMISED, Method.SEARCH)
    result = lipschitz(graph, [box], norm, row, Effort(methods, time.monotonic() + seconds, gap=1e-3))
    found: dict[str, list[float]] = {}
    for bound in result.bounds:
        found[bound.method.value], found[f"{bound.method.value} s"] = [bound.value], [bound.seconds]
    found |= {"upper": [result.upper], "upper s": [result.seconds], "lower": [result.lower]}
    return found | {"domains": [float(result.domains)]}


def widths(radii: Sequence[float], seeds: int = 5) -> None:
    """The table of `--widths`."""
    print("| radius | interval | crown | alpha-crown | sampled |\n| --- | ---: | ---: | ---: | ---: |")
    for radius in radii:
        columns: dict[str, list[float]] = {}
        for seed in range(seeds):
            torch.manual_seed(seed)
            net = nn.Sequential(
                *[nn.Linear(10, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU()],
                *[nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 3)],
            )
            asked = gradients(trace(net, torch.zeros(1, 10)).graph(torch.float64), torch.eye(3))
            box = Box.around(torch.zeros(1, 1, 10), radius)
            for method in (Method.INTERVAL, Method.CROWN, Method.OPTIMISED):
                entries = root_intervals(asked, [box], method, Effort())
                columns.setdefault(method.value, []).append(float((entries.upper - entries.lower).mean()))
            x = radius * (2 * torch.rand(20_000, 1, 10, dtype=torch.float64) - 1)
            with torch.no_grad():
                values = torch.stack(
                    [asked.raw.evaluate([x, s.expand(len(x), *s.shape)])[0] for s in asked.seeds]
                )
            columns.setdefault("sampled", []).append(float((values.amax(1) - values.amin(1)).mean()))
        cells = [f"{statistics.median(values):.3g}" for values in columns.values()]
        print(f"| {radius:g} | {' | '.join(cells)} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--networks", nargs="+", default=list(NETWORKS), choices=list(NETWORKS))
    parser.add_argument("--radii", nargs="+", type=float, default=RADII)
    parser.add_argument("--images", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--norm", default="inf", choices=["inf", "2", "1"])
    parser.add_argument("--jobs", type=int, default=1, help="processes")
    parser.add_argument("--families", action="store_true")
    parser.add_argument("--widths", action="store_true")
    arguments = parser.parse_args()
    print(machine())
    if arguments.widths:
        widths(arguments.radii)
        return
    norm, seconds = arguments.norm, arguments.seconds
    names = ["product", "RecurJac", "interval", "crown", "alpha-crown", "upper", "lower"]
    names = names[2:] if arguments.families else names
    head = " | ".join(names)
    print(f"\n| network | radius | {head} | gap | domains |\n|{' --- |' * 2}{' ---: |' * (len(names) + 2)}")
    with ProcessPoolExecutor(arguments.jobs, mp_context=get_context("spawn")) as pool:
        rows = []
        for name in FAMILIES if arguments.families else arguments.networks:
            for radius in arguments.radii:
                if arguments.families:
                    job = pool.submit(family, name, "recurrent", radius, norm, seconds)
                else:
                    job = pool.submit(measure, name, radius, arguments.images, norm, seconds)
                rows.append((name, radius, job))
        for name, radius, job in rows:
            found = job.result()

            def middle(column: str, found: Mapping[str, list[float]] = found) -> float:
                return statistics.median(found.get(column, [float("nan")]))

            cells = [f"{middle(c):.4g} ({middle(f'{c} s'):.1f})" for c in names[:-1]]
            cells.append(f"{middle('lower'):.4g}")
            gap = middle("upper") / middle("lower")
            line = f"| {name} | {radius:g} | {' | '.join(cells)} | {gap:.2f} | {middle('domains'):.0f} |"
            print(line, flush=True)


if __name__ == "__main__":
    main()
