"""How many images an LSTM is certified on: `python -m benchmarks.lstm_digits`.

Networks of 32 and 64 units in one and two layers read scikit-learn's digits row by row (eight steps of eight pixels);
they are trained here, seeded, and kept in benchmarks/cache. Of the first 100 held-out images that a network reads
rightly: on how many every image within a radius is proved to be read as the same digit, by intervals, by plain CROWN,
by alpha-CROWN of the margins on CROWN's inner bounds (each for several images in one call), and by all that `verify`
does within a limit per image. What a method certifies the tighter ones are not asked.

Every result is a line of FILE (benchmarks/cache/lstm_digits.jsonl); what stands there is not computed again. The table
comes last.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import torch
from torch import Tensor, nn

from benchmarks.common import ROOT, machine
from benchmarks.networks import digits, train
from verifier import Options, robust, verify
from verifier.bounds.alpha import AlphaOptions, optimise
from verifier.bounds.compute import compute_bounds
from verifier.bounds.crown import inner_bounds, specification_bound
from verifier.frontends.onnx import load
from verifier.graph import Graph
from verifier.graph.coefficients import Dense
from verifier.sets import Box
from verifier.transforms.fold import fold
from verifier.transforms.prepare import prepare

CACHE = ROOT / "benchmarks" / "cache"
NETWORKS = ((32, 1), (64, 1), (32, 2), (64, 2))
"""Units and layers."""
METHODS = ("interval", "crown", "alpha-crown", "full")
ALPHA = AlphaOptions(iterations=20, intermediate=False, threshold=0.0)
TRAINED = 0.02
"""Training moves images by this along the signs of their gradients."""


@dataclass(frozen=True)
class Row:
    """What a method says of one image: certified, falsified or open."""

    units: int
    layers: int
    radius: float
    method: str
    image: int
    verdict: str
    seconds: float


class Classifier(nn.Module):
    """Images [B, 64] as eight rows of eight pixels to ten scores, read from the last state of the last layer."""

    def __init__(self, units: int, layers: int) -> None:
        super().__init__()
        self.layer, self.head = nn.LSTM(8, units, layers, batch_first=True), nn.Linear(units, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layer(x.view(-1, 8, 8))[0][:, -1])


def network(units: int, layers: int, epochs: int = 40) -> tuple[Classifier, bytes]:
    """The trained module, and its ONNX file for one image."""
    torch.manual_seed(0)
    module, path = Classifier(units, layers), CACHE / f"lstm_{units}_{layers}.pt"
    if path.is_file():
        module.load_state_dict(torch.load(path, weights_only=True))
    else:
        train(module, *digits(CACHE / "digits.npz")[:2], TRAINED, epochs)  # pyright: ignore[reportArgumentType]
        torch.save(module.state_dict(), path)
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a batch that can only be 1, which is meant
        torch.onnx.export(module.eval(), (torch.zeros(1, 64),), file, dynamo=False)  # pyright: ignore[reportArgumentType]
    return module, file.getvalue()


def images(module: Classifier, count: int) -> tuple[Tensor, Tensor]:
    """The first held-out images that are read rightly, and their labels."""
    _, _, x, y = digits(CACHE / "digits.npz")
    with torch.no_grad():
        right = (module(x).argmax(1) == y).nonzero().squeeze(1)[:count]
    return x[right], y[right]


def box_of(x: Tensor, radius: float) -> Box:
    """A little more than the radius, by which ends may be rounded inward: [B, 1, 64]."""
    return Box.around(x.unsqueeze(1), (1 + 1e-5) * radius, clip=(0, 1))


def proved(graph: Graph, box: Box, labels: Tensor, method: str) -> Tensor:
    """Whether the label's score exceeds all others on each box: [B]."""
    if method == "interval":
        scores = compute_bounds(graph, [box], "interval").outputs[0]
        index = labels.view(-1, 1, 1)
        others = scores.upper.scatter(2, index, -torch.inf)
        return scores.lower.gather(2, index)[:, 0, 0] > others.amax(2)[:, 0]
    target, classes = graph.outputs[0], torch.eye(10)
    others = (labels.unsqueeze(1) + torch.arange(1, 10)) % 10
    rows = Dense((classes[labels].unsqueeze(1) - classes[others]).unsqueeze(2))  # [B, 9, 1, 10]
    bounds = inner_bounds(graph, [box], [target])
    if method == "crown":
        lower = specification_bound(graph, [box], target, rows, bounds).minimum(graph, [box])
    else:
        lower = optimise(graph, [box], target, rows, bounds, options=ALPHA).lower
    return (lower > 0).all(1)


def together(units: int, layers: int, radius: float, method: str, numbers: Sequence[int]) -> list[Row]:
    """Some images in one call."""
    torch.set_num_threads(1)
    module, data = network(units, layers)
    x, labels = (t[list(numbers)] for t in images(module, max(numbers) + 1))
    graph = fold(prepare(load(data).graph, [x[:1].double().unsqueeze(1)])).to(torch.float32)
    began = time.perf_counter()
    with torch.no_grad():
        answers = proved(graph, box_of(x, radius), labels, method).tolist()
    seconds = (time.perf_counter() - began) / len(answers)
    return [
        Row(units, layers, radius, method, i, "certified" if answer else "open", seconds)
        for i, answer in zip(numbers, answers, strict=True)
    ]


def alone(units: int, layers: int, radius: float, number: int, limit: float) -> list[Row]:
    """One image, with a time limit."""
    torch.set_num_threads(1)
    module, data = network(units, layers)
    x, labels = (t[number] for t in images(module, number + 1))
    claim = robust(x.unsqueeze(0), int(labels), radius, clip=(0, 1))
    began = time.perf_counter()
    holds = verify(data, claim, limit, Options(threads=1)).holds
    verdict = {True: "certified", False: "falsified", None: "open"}[holds]
    return [Row(units, layers, radius, METHODS[-1], number, verdict, time.perf_counter() - began)]


def read(path: Path) -> list[Row]:
    return [Row(**json.loads(line)) for line in path.read_text().splitlines()] if path.is_file() else []


def fill(pool: Executor, tasks: Sequence[Callable[[], list[Row]]], out: Path) -> None:
    for done in as_completed([pool.submit(task) for task in tasks]):
        rows = done.result()
        with out.open("a") as file:
            file.write("".join(json.dumps(asdict(row)) + "\n" for row in rows))
        first, counted = rows[0], sum(row.verdict == "certified" for row in rows)
        place = f"{first.units} x {first.layers}, {first.radius}, {first.method}, from image {first.image}"
        print(f"{place}: {counted} of {len(rows)} certified, {first.seconds:.2f} s each", flush=True)


def settles(row: Row, method: str) -> bool:
    """Whether a tighter method need not be asked any more."""
    return row.verdict == "certified" and METHODS.index(row.method) < METHODS.index(method)


def table(rows: Sequence[Row], radii: Sequence[float], count: int) -> Iterator[str]:
    """Certified, falsified and open of `count` images; mean seconds of the images asked. Raises ValueError where an
    image is both."""
    yield "| units | layers | radius | " + " | ".join(METHODS) + " | falsified | open |"
    yield "|--:|--:|--:|" + "---|" * len(METHODS) + "--:|--:|"
    for units, layers in NETWORKS:
        for radius in radii:
            mine = [
                r
                for r in rows
                if (r.units, r.layers, r.radius) == (units, layers, radius) and r.image < count
            ]
            cells = [str(units), str(layers), f"{radius:g}"]
            for method in METHODS:
                own = [r for r in mine if r.method == method]
                sure = {
                    r.image for r in mine if settles(r, method) or (r in own and r.verdict == "certified")
                }
                seconds = sum(r.seconds for r in own) / max(1, len(own))
                cells.append(f"{len(sure)} ({seconds:.1f} s)" if own else "")
            wrong = {r.image for r in mine if r.verdict == "falsified"}
            sure = {r.image for r in mine if r.verdict == "certified"}
            if wrong & sure:
                raise ValueError(f"{wrong & sure} are certified and falsified.")
            yield "| " + " | ".join([*cells, str(len(wrong)), str(count - len(sure) - len(wrong))]) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--radii", type=float, nargs="+", default=[0.02, 0.03])
    parser.add_argument("--images", type=int, default=100)
    parser.add_argument("--limit", type=float, default=10.0, help="seconds per image of the last method")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=METHODS)
    parser.add_argument("--batch", type=int, default=10, help="images per call of the others")
    parser.add_argument("--jobs", type=int, default=max(1, (os.cpu_count() or 2) // 2))
    parser.add_argument("--out", type=Path, default=CACHE / "lstm_digits.jsonl")
    given = parser.parse_args()
    CACHE.mkdir(exist_ok=True)
    with ProcessPoolExecutor(given.jobs, get_context("spawn")) as pool:
        for task in [pool.submit(trained, *sizes) for sizes in NETWORKS]:
            print(task.result(), flush=True)
        for method in given.methods:
            rows = read(given.out)
            tasks: list[Callable[[], list[Row]]] = []
            for sizes, radius in ((n, r) for n in NETWORKS for r in given.radii):
                mine = [r for r in rows if (r.units, r.layers, r.radius) == (*sizes, radius)]
                done = {r.image for r in mine if r.method == method or settles(r, method)}
                left = [i for i in range(given.images) if i not in done]
                if method == METHODS[-1]:
                    tasks += [partial(alone, *sizes, radius, i, given.limit) for i in left]
                else:
                    parts = [left[i : i + given.batch] for i in range(0, len(left), given.batch)]
                    tasks += [partial(together, *sizes, radius, method, part) for part in parts]
            fill(pool, tasks, given.out)
    print(f"\n{machine()}\n")
    for line in table(read(given.out), given.radii, given.images):
        print(line)


def trained(units: int, layers: int) -> str:
    """Trains where that has not been done; a line about the network."""
    torch.set_num_threads(1)
    module, _ = network(units, layers)
    _, _, x, y = digits(CACHE / "digits.npz")
    return f"{units} units, {layers} layers: held-out accuracy {float((module(x).argmax(1) == y).float().mean()):.3f}"


if __name__ == "__main__":
    main()
