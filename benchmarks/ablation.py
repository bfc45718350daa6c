"""Ways to branch, compared: input split, BaBSR, BBPS, FSB; points in the middle, from tables, or chosen by shortcuts.

    python -m benchmarks.ablation [--jobs J] [--limit S] [--images N] [--only NAME ...] [--device D] [--out FILE]

Networks are multilayer perceptrons with sigmoid, tanh, sin and gelu, of 4x100, 4x200 and 6x100 neurons, and a vision
transformer of two blocks, trained on scikit-learn's digits on first use and kept in benchmarks/cache (`--prepare`
stops there; with its `digits.npz` a machine needs no scikit-learn). A property is that all inputs within eps of a
held-out digit keep its class; eps is the largest of a grid at which CROWN proves at least half of the digits that are
classified as they should be. `root` is the quick attack and the optimised bounds that a verification starts with, on
those LOOKED_AT times `--images` of the others that are nearest to a proof. What it leaves open, at most `--images`, the
methods get, without attacks, on one thread each. `lsnc` and `ml4acopf_2024` are the instances of the VNN-COMP sample,
where it is present.

Every run adds a line to FILE (benchmarks/cache/ablation.jsonl); what stands there is not run again. At the end, or with
`--print` at once, a table: solved, mean subdomains over what every method but the input split solves, and mean seconds,
where unsolved counts as the limit.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

from benchmarks.common import ROOT, machine

CACHE = ROOT / "benchmarks" / "cache"
FUNCTIONS = ("Sigmoid", "Tanh", "Sin", "Gelu")
SIZES = ((4, 100), (4, 200), (6, 100))
FOLDERS = ("lsnc", "ml4acopf_2024")
RADII = [0.001 * 1.1**k for k in range(64)]
"""The grid that eps is from."""
ROOT_DOMAINS = 9
"""Subdomains that first bounds may take: one per other class."""
LOOKED_AT = 8
"""Digits that the first bounds are made for, per one that is wanted of those that they leave open."""


@dataclass(frozen=True)
class Method:
    """A way to branch: `Options.branching` and the rule of `branching.points` for where to cut."""

    name: str
    branching: str
    points: str = "table"


Key = tuple[str, str, str, str]
Rows = Mapping[Key, Mapping[str, Any]]
"""By suite, model, property and method."""

ROOT_METHOD = Method("root", "auto")
METHODS = (
    Method("input", "input"),
    Method("BaBSR, middle", "babsr", "middle"),
    Method("BaBSR, table", "babsr"),
    Method("BBPS, middle", "bbps", "middle"),
    Method("BBPS, table", "bbps"),
    Method("BBPS, chosen", "bbps", "shortcut"),
    Method("FSB, table", "fsb"),
    Method("FSB, chosen", "fsb", "shortcut"),
)


@dataclass(frozen=True)
class Instance:
    """A property of an ONNX file: a VNN-LIB file, or the held-out digit `spec` and `eps`."""

    suite: str
    model: str
    spec: str
    eps: float = 0.0
    limit: float = math.inf


def networks() -> dict[str, Callable[[], Any]]:
    from benchmarks.networks.modules import Mlp, Vit

    found: dict[str, Callable[[], Any]] = {
        f"{f.lower()} {depth}x{width}": (lambda f=f, d=depth, w=width: Mlp(f, d, w))
        for f in FUNCTIONS
        for depth, width in SIZES
    }
    return found | {"vit 2x24": lambda: Vit(patch=4, depth=2, width=24, heads=2)}


def network_file(name: str) -> Path:
    return CACHE / f"{name.replace(' ', '_')}.onnx"


def prepare(name: str) -> str:
    """Trains a network and chooses its eps; what was made before stays. A line about it."""
    import torch

    from benchmarks.networks import keep_digits, make

    torch.set_num_threads(1)
    path, digits_file = network_file(name), CACHE / "digits.npz"
    if not digits_file.is_file():
        keep_digits(digits_file)
    remark = ""
    if not path.is_file():
        torch.manual_seed(0)
        remark = make(path.stem, networks()[name](), CACHE, eps=0.02, file=digits_file)
    chosen = path.with_suffix(".json")
    if not chosen.is_file():
        chosen.write_text(json.dumps(choose(path, digits_file)))
    return f"{remark or name}; eps {json.loads(chosen.read_text())['eps']:.4f}"


def choose(path: Path, digits_file: Path) -> dict[str, Any]:
    """The eps at which CROWN proves half of the held-out digits that are classified as they should be, how many these
    are and how many it proves, and the others, those nearest to a proof first."""
    import torch

    from benchmarks.networks import digits
    from verifier.frontends import onnx as frontend
    from verifier.transforms.prepare import prepare as prepared

    _, _, x, y = digits(digits_file)
    graph = frontend.load(path).graph
    x = x.view(-1, *graph.nodes[graph.inputs[0]].shape)
    with torch.no_grad():
        scores = graph.evaluate([x.double()])[0].flatten(1)
    right = (scores.argmax(1) == y).nonzero()[:, 0]
    graph = prepared(graph, [x[right].double()]).to(torch.float32)
    low, high = 0, len(RADII) - 1
    while low < high:
        middle = (low + high + 1) // 2
        margin = first_bounds(graph, x[right], y[right], RADII[middle])
        low, high = (middle, high) if float(margin.median()) > 0 else (low, middle - 1)
    margin = first_bounds(graph, x[right], y[right], RADII[low])
    order = margin.argsort(descending=True)
    order = order[margin[order] <= 0]
    return {
        "eps": RADII[low],
        "right": len(right),
        "proved": len(right) - len(order),
        "open": right[order].tolist(),
    }


def first_bounds(graph: Any, x: Any, y: Any, eps: float) -> Any:
    """CROWN's bounds [N] of the least margin of any class."""
    from verifier.bounds.crown import inner_bounds, specification_bound
    from verifier.certification import margin_rows
    from verifier.graph.coefficients import Dense
    from verifier.sets import Box

    box = Box((x - eps).clamp(min=0), (x + eps).clamp(max=1))
    rows = Dense(margin_rows(y, classes=10).unflatten(2, graph.nodes[graph.outputs[0]].shape))
    bounds = inner_bounds(graph, [box], graph.outputs)
    lower = specification_bound(graph, [box], graph.outputs[0], rows, bounds).minimum(graph, [box])
    return lower.amin(1)


def digit_instances(name: str, images: int) -> Iterator[Instance]:
    chosen = json.loads(network_file(name).with_suffix(".json").read_text())
    for i in chosen["open"][: LOOKED_AT * images]:
        yield Instance(name, str(network_file(name)), str(i), chosen["eps"])


def file_instances(folder: str) -> Iterator[Instance]:
    from benchmarks.common import instances
    from verifier.bench.instances import find_instances

    for i in find_instances(instances(), folder):
        yield Instance(folder, str(i.networks[""]), str(i.spec), limit=i.timeout)


def run(
    instance: Instance, method: Method, limit: float, memory: float, device: Any = "cpu"
) -> dict[str, Any]:
    """One verification in this process."""
    import torch

    from verifier import Options, verify
    from verifier.branching.activation_split import HEURISTICS
    from verifier.specs.property import robust

    torch.set_num_threads(1)
    first = method == ROOT_METHOD
    usual = dict(HEURISTICS)
    options = Options(
        branching=method.branching,  # pyright: ignore[reportArgumentType]
        attack=first,
        max_domains=ROOT_DOMAINS if first else None,
        max_memory_gb=memory,
        device=device,
    )
    spec: Any = instance.spec
    if instance.eps:
        from benchmarks.networks import digits

        _, _, x, y = digits(CACHE / "digits.npz")
        k = int(instance.spec)
        spec = robust(x[k].double().view(1, -1), int(y[k]), instance.eps, clip=(0.0, 1.0))
    began = time.perf_counter()
    row = {"suite": instance.suite, "model": Path(instance.model).name, "spec": Path(instance.spec).name}
    row |= {"method": method.name, "limit": limit}
    try:
        if not first:
            HEURISTICS.update({n: replace(h, points=method.points) for n, h in usual.items()})
        found = verify(instance.model, spec, timeout=min(limit, instance.limit), options=options)
    except Exception as error:  # a row of its own, never a verdict
        return {**row, "verdict": "error", "remark": f"{type(error).__name__}: {error}"[:300]}
    finally:
        HEURISTICS.update(usual)
    seconds = time.perf_counter() - began
    row |= {"verdict": found.status.value, "domains": found.stats.domains, "seconds": seconds}
    return {**row, "bound": found.bound, "reason": found.reason.value}


def place(instance: Instance, method: Method) -> Key:
    return instance.suite, Path(instance.model).name, Path(instance.spec).name, method.name


def still_open(chosen: Sequence[Instance], rows: Rows, images: int) -> list[Instance]:
    """What the first bounds left open: all files, and so many digits of each network."""
    left = [i for i in chosen if not solved(rows[place(i, ROOT_METHOD)])]
    taken: dict[str, int] = {}
    found = []
    for instance in left:
        taken[instance.suite] = taken.get(instance.suite, 0) + 1
        if not instance.eps or taken[instance.suite] <= images:
            found.append(instance)
    return found


def key(row: Mapping[str, Any]) -> Key:
    return row["suite"], row["model"], row["spec"], row["method"]


def solved(row: Mapping[str, Any]) -> bool:
    return row["verdict"] in ("sat", "unsat")


def read(file: Path) -> dict[Key, dict[str, Any]]:
    lines = file.read_text().splitlines() if file.is_file() else []
    return {key(row): row for row in map(json.loads, lines)}


def fill(
    pool: ProcessPoolExecutor,
    tasks: Iterable[tuple[Instance, Method]],
    arguments: argparse.Namespace,
    memory: float,
) -> None:
    """Runs what is not in the file yet; every row is written as it comes."""
    known = read(arguments.out)
    jobs = []
    for instance, method in tasks:
        if place(instance, method) not in known:
            jobs.append(pool.submit(run, instance, method, arguments.limit, memory, arguments.device))
    for job in as_completed(jobs):
        row = job.result()
        with arguments.out.open("a") as file:
            file.write(json.dumps(row) + "\n")
        print(
            " ".join(
                f"{row.get(n, ''):.6g}" if isinstance(row.get(n), float) else str(row.get(n, ""))
                for n in COLUMNS
            ),
            flush=True,
        )


COLUMNS = ("suite", "spec", "method", "verdict", "domains", "seconds", "bound", "remark")


def table(rows: Rows, suites: Sequence[str], limit: float) -> Iterator[str]:
    """Lines of Markdown."""
    yield "| network | eps | CROWN | properties | root | " + " | ".join(m.name for m in METHODS) + " |"
    yield "|---|--:|--:|--:|--:|" + "---|" * len(METHODS)
    for suite in suites:
        mine = {k[1:]: row for k, row in rows.items() if k[0] == suite}
        roots = {k[:2]: row for k, row in mine.items() if k[2] == "root"}
        left = [k for k, row in roots.items() if not solved(row)]
        if not roots:
            continue
        found = {m.name: [mine[*k, m.name] for k in left if (*k, m.name) in mine] for m in METHODS}
        common = [
            k
            for k in left
            if all(solved(mine.get((*k, m.name), {"verdict": ""})) for m in METHODS if m.name != "input")
        ]
        cells = []
        for m in METHODS:
            own = found[m.name]
            done = sum(map(solved, own))
            seconds = [row["seconds"] if solved(row) else limit for row in own]
            domains = [mine[*k, m.name].get("domains", 0) for k in common if (*k, m.name) in mine]
            parts = [str(done), f"{sum(domains) / len(domains):.0f}" if domains else "-"]
            cells.append(" / ".join([*parts, f"{sum(seconds) / len(seconds):.1f} s" if seconds else "-"]))
        eps = share = ""
        if suite in networks():
            chosen = json.loads(network_file(suite).with_suffix(".json").read_text())
            eps, share = f"{chosen['eps']:.4f}", f"{chosen['proved']} of {chosen['right']}"
        yield f"| {suite} | {eps} | {share} | {len(roots)} | {len(roots) - len(left)} | {' | '.join(cells)} |"


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--jobs", type=int, default=max(1, (os.cpu_count() or 2) // 2))
    parser.add_argument("--limit", type=float, default=60.0, help="seconds per run")
    parser.add_argument(
        "--images", type=int, default=20, help="digits per network, those proved at once included"
    )
    parser.add_argument("--only", nargs="+", default=[], help="parts of names of networks or folders")
    parser.add_argument("--methods", nargs="+", default=[], help="parts of names of methods")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--prepare", action="store_true", help="make networks and stop")
    parser.add_argument("--print", action="store_true", help="only print the table")
    parser.add_argument("--out", type=Path, default=CACHE / "ablation.jsonl")
    arguments = parser.parse_args(words)
    CACHE.mkdir(exist_ok=True)
    wanted = [n for n in [*networks(), *FOLDERS] if not arguments.only or any(o in n for o in arguments.only)]
    own = [n for n in wanted if n not in FOLDERS]
    methods = [m for m in METHODS if not arguments.methods or any(o in m.name for o in arguments.methods)]
    if not arguments.print:
        import psutil

        memory = psutil.virtual_memory().available / 2**30 / arguments.jobs * 0.8
        with ProcessPoolExecutor(arguments.jobs, get_context("spawn")) as pool:
            for line in pool.map(prepare, own):
                print(line, flush=True)
            if arguments.prepare:
                return
            chosen = [i for n in own for i in digit_instances(n, arguments.images)]
            chosen += [i for n in wanted if n in FOLDERS for i in file_instances(n)]
            fill(pool, ((i, ROOT_METHOD) for i in chosen), arguments, memory)
            rows = read(arguments.out)
            left = still_open(chosen, rows, arguments.images)
            fill(pool, ((i, m) for i in left for m in methods), arguments, memory)
    print(f"\n{machine()}\n")
    for line in table(read(arguments.out), wanted, arguments.limit):
        print(line)


if __name__ == "__main__":
    main()
