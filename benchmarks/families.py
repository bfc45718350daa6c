"""Every family of recurrent and gated networks: what its bounds prove, how wide they are, and what they cost.

    python -m benchmarks.families [--families NAME ...] [--forms FORM ...] [--methods METHOD ...] [--images N]
                                  [--limit S] [--jobs J] [--out FILE] [--print]

The digit classifiers of vnncomp/benchmarks/gated_sequences, in each of their forms, from ONNX. For N held-out digits
that are classified as they should be, and three radii around each: how many intervals, CROWN and alpha-CROWN prove to
keep their class, and how many verification proves, refutes and leaves open in S seconds each (what alpha-CROWN has
proved is not verified again); `--methods` takes some of interval, crown, alpha-crown and full. Widths are those of all
margins (the score of the class less another's), both ways, over the width that gradient descents and ascents reach
(given for the first radius); processor seconds are per image and radius. Cells with three numbers have one per radius.
Every network adds a line to FILE (benchmarks/cache/families.jsonl); what stands there is not run again.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from torch import Tensor

from benchmarks.common import ROOT, machine
from benchmarks.widths import climbed
from verifier import Options, verify
from verifier.certification import lower_bounds, margin_rows
from verifier.frontends import onnx as frontend
from verifier.graph import Graph
from verifier.sets import Box
from verifier.specs.property import Property, robust
from verifier.transforms.prepare import prepare
from vnncomp.benchmarks.gated_sequences.networks import HERE, families, forms, slug
from vnncomp.benchmarks.gated_sequences.tasks import DIGITS

RADII = (0.01, 0.03, 0.06)
METHODS = ("interval", "crown", "alpha-crown")
FULL = "full"
"""Verification, of what the last of the methods has not proved."""
Row = Mapping[str, Any]


def network_file(family: str, form: str) -> Path:
    return HERE / "onnx" / f"digits_{slug(family)}_{form}.onnx.gz"


def held_out(graph: Graph, count: int) -> tuple[Tensor, Tensor]:
    """The first `count` held-out digits [N, 1, T, features] that are classified as they should be, and their labels."""
    x, y = DIGITS.make(DIGITS.steps)[1]
    scores = graph.evaluate([x[:, None].double()])[0].flatten(1)
    right = (scores.argmax(1) == y[:, 0]).nonzero()[:count, 0]
    return x[right, None], y[right, 0]


def measure(
    family: str, form: str, images: int, limit: float, methods: Sequence[str] = (*METHODS, FULL)
) -> dict[str, Any]:
    """The row of one network; lists have an entry per radius. What fails is named in it, and proves nothing."""
    torch.set_num_threads(1)
    row: dict[str, Any] = {"family": family, "form": form, "limit": limit, "remarks": []}
    file = network_file(family, form)
    model = frontend.load(file)
    x, labels = held_out(model.graph, images)
    row["images"] = len(x)
    graph = prepare(model.graph, [x.double()]).to(torch.float32)
    radii = torch.tensor(RADII).repeat_interleave(len(x))
    x, labels = x.repeat(len(RADII), 1, 1, 1), labels.repeat(len(RADII))
    spread = radii.view(-1, 1, 1, 1)
    box = Box((x - spread).clamp(min=0), (x + spread).clamp(max=1))
    one_way = margin_rows(labels, DIGITS.classes)
    rows = torch.cat([one_way, -one_way], 1)
    least = -climbed(graph, box.box(), -rows)
    row["attacked"] = _per_radius(_width(least))
    proved = torch.zeros(len(x), dtype=torch.bool)
    for method in filter(methods.__contains__, METHODS):
        began = time.process_time()
        try:
            lower = lower_bounds(graph, box, rows, method)
        except Exception as error:  # a remark in the row, never a proof
            row["remarks"].append(f"{method}: {type(error).__name__}: {error}"[:300])
            continue
        row[f"{method} seconds"] = (time.process_time() - began) / len(x)
        row[f"{method} width"] = _per_radius(_width(lower))
        if bool((lower > least + 1e-4 * (1 + least.abs())).any()):
            row["remarks"].append(f"{method}: WRONG: an attack gets beyond the bounds")
        proved = (lower[:, : one_way.shape[1]] > 0).all(1)
        row[method] = _per_radius(proved, sum)
    if FULL not in methods:
        return row
    specs = [robust(x[i].double(), int(labels[i]), float(radii[i]), (0.0, 1.0)) for i in range(len(x))]
    return row | verified(file, specs, proved, limit, row["remarks"])


def verified(
    file: Path, specs: Sequence[Property], proved: Tensor, limit: float, remarks: list[str]
) -> dict[str, Any]:
    """How many properties are certified and falsified when those that are not `proved` are verified."""
    verdicts, began = ["unsat" if done else "" for done in proved.tolist()], time.process_time()
    for i in (~proved).nonzero()[:, 0].tolist():
        try:
            verdicts[i] = verify(file, specs[i], timeout=limit, options=Options(device="cpu")).status.value
        except Exception as error:  # likewise
            remarks.append(f"verify: {type(error).__name__}: {error}"[:300])
    left = int((~proved).sum())
    seconds = (time.process_time() - began) / left if left else None
    counts = {
        name: _per_radius(torch.tensor([v == verdict for v in verdicts]), sum)
        for name, verdict in (("certified", "unsat"), ("falsified", "sat"))
    }
    return {**counts, "full seconds": seconds}


def _width(lower: Tensor) -> Tensor:
    """Mean width [B] of margins, from lower ends of them and of their negatives [B, 2 R]."""
    return -lower.unflatten(1, (2, -1)).sum(1).mean(1)


def _per_radius(values: Tensor, joined: Callable[[list[Any]], Any] = statistics.fmean) -> list[Any]:
    return [joined(part) for part in values.view(len(RADII), -1).tolist()]


def read(file: Path) -> dict[tuple[str, str], Row]:
    lines = file.read_text().splitlines() if file.is_file() else []
    return {(row["family"], row["form"]): row for row in map(json.loads, lines)}


def table(rows: Mapping[tuple[str, str], Row]) -> Iterator[str]:
    """Lines of Markdown, in the catalogue's order."""
    yield (
        "| family | form | interval | CROWN | alpha-CROWN | certified | falsified | open | attacked width "
        "| interval | CROWN | alpha-CROWN | s CROWN | alpha-CROWN | full |"
    )
    yield "|---|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|"
    for key in [(family, form) for family in families() for form in forms(family)]:
        if key not in rows:
            continue
        row = rows[key]
        counts = [row.get(name) for name in (*METHODS, "certified", "falsified")]
        known = zip(row.get("certified", ()), row.get("falsified", ()), strict=True)
        counts.append([row["images"] - a - b for a, b in known])
        cells = [" ".join(map(str, c)) if c else "-" for c in counts]
        cells.append(f"{row['attacked'][0]:.3g}")
        for method in METHODS:
            pairs = zip(row.get(f"{method} width", []), row["attacked"], strict=False)
            cells.append(" ".join(f"{width / attacked:.3g}" for width, attacked in pairs) or "-")
        seconds = [row.get(f"{m} seconds") for m in (*METHODS[1:], "full")]
        cells += ["-" if s is None else f"{s:.2g}" for s in seconds]
        yield f"| {' | '.join((*key, *cells))} |"


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--families", nargs="+", default=families(), choices=families(), metavar="NAME")
    parser.add_argument("--forms", nargs="+", default=["recurrent", "parallel"])
    parser.add_argument(
        "--methods", nargs="+", default=[*METHODS, FULL], choices=[*METHODS, FULL], metavar="METHOD"
    )
    parser.add_argument("--images", type=int, default=4)
    parser.add_argument("--limit", type=float, default=20.0)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "cache" / "families.jsonl")
    parser.add_argument("--print", action="store_true", help="only print the table")
    given = parser.parse_args(words)
    wanted = [(family, form) for family in given.families for form in forms(family) if form in given.forms]
    given.out.parent.mkdir(exist_ok=True)
    missing = [] if given.print else [key for key in wanted if key not in read(given.out)]
    with ProcessPoolExecutor(given.jobs, get_context("spawn")) as pool:
        how = given.images, given.limit, given.methods
        for job in as_completed([pool.submit(measure, *key, *how) for key in missing]):
            with given.out.open("a") as file:
                file.write(json.dumps(job.result()) + "\n")
            print(job.result(), flush=True)
    rows = {key: row for key, row in read(given.out).items() if key in wanted}
    print(f"\n{machine()}\n")
    for line in table(rows):
        print(line)
    for (family, form), row in rows.items():
        for remark in row["remarks"]:
            print(f"\n{family}, {form}: {remark}")


if __name__ == "__main__":
    main()
