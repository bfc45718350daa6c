"""Which benchmark networks load, and what loading, interval and CROWN bounds of them cost, as a Markdown table.

    python -m benchmarks.coverage [--only GLOB] [--limit S] [--instances N]

One row per network, with the first N properties that the folder has for it (1; `0` takes all), each in a process of
its own that has S seconds (60). The bounds are those of the property's margins on its first box: `closed` counts the
margins that are above zero by CROWN alone. Needs the benchmark instances (environment variable VERIFIER_SHARED).
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.common import instances, machine
from verifier.bench.instances import Instance, find_instances
from verifier.report.columns import markdown

if TYPE_CHECKING:
    from verifier.specs.compile import Compiled

HEAD = (
    "network", "property", "load", "parse", "compile", "nodes", "boxes", "margins", "interval s", "crown s",
    "widest", "closed", "MB", "remarks",
)  # fmt: skip


def measure(networks: Mapping[str, Path], spec: Path) -> Iterator[dict[str, Any]]:
    """What is known of one instance, as soon as it is: numbers by the columns' names."""
    from verifier.environment import peak_memory_mb
    from verifier.errors import UnsupportedError, VerifierError
    from verifier.frontends.onnx import load
    from verifier.frontends.replay import check
    from verifier.specs.compile import compile_query
    from verifier.specs.load import load_query

    def timed(make: Callable[[], Any]) -> tuple[Any, float]:
        began = time.perf_counter()
        return make(), time.perf_counter() - began

    try:
        models, seconds = timed(lambda: [load(path) for path in networks.values()])
        yield {"load": seconds, "nodes": sum(len(m.graph.nodes) for m in models)}
        for model in models:
            check(model)
        query, seconds = timed(lambda: load_query(spec))
        yield {"parse": seconds}
        named = {name or query.networks[0].name: m for name, m in zip(networks, models, strict=True)}
        compiled, seconds = timed(lambda: compile_query(query, named))
        yield {"compile": seconds, "boxes": len(compiled.lower), "margins": len(compiled.strict)}
        for method, column in (("interval", "interval s"), ("crown", "crown s")):
            (low, high), seconds = timed(lambda m=method: _bounds(compiled, m))
            widest = float((high - low).amax()) if low.numel() else 0.0
            yield {column: seconds, "widest": widest, "closed": int((low > 0).sum()), "MB": peak_memory_mb()}
    except UnsupportedError as error:
        kinds = {f"{n.operator}: {n.reason}" for n in error.nodes}
        yield {"remarks": f"{len(error.nodes)} nodes refused: {'; '.join(sorted(kinds))}"}
    except VerifierError as error:
        yield {"remarks": " ".join(str(error).split())[:200]}


def _bounds(compiled: Compiled, method: Any) -> Any:
    import torch

    from verifier.bounds.compute import compute_bounds
    from verifier.sets import Box

    if not len(compiled.lower):
        return torch.zeros(1, 0), torch.zeros(1, 0)
    graph = compiled.graph_on(torch.float32, torch.device("cpu"))
    box = Box(compiled.lower[:1], compiled.upper[:1]).to(torch.float32)
    with torch.no_grad():
        (found,) = compute_bounds(graph, [box], method).outputs
    return found


def run(instance: Instance, limit: float) -> dict[str, Any]:
    """`measure` in a process of its own; what it had said when the time was over or the memory."""
    words = [f"{name}={path}" for name, path in instance.networks.items()]
    command = [sys.executable, "-m", "benchmarks.coverage", "--one", str(instance.spec), *words]
    row: dict[str, Any] = {}
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=limit)
        text, remark = (
            done.stdout,
            "" if not done.returncode else (done.stderr.splitlines() or ["killed"])[-1],
        )
    except subprocess.TimeoutExpired as error:
        text, remark = (error.stdout or b"").decode(), f"more than {limit:g} s"
    for line in text.splitlines():
        row |= json.loads(line)
    if remark:
        row["remarks"] = remark[:200]
    return row


def _cell(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", default="*", help="as of `verifier bench`")
    parser.add_argument("--limit", type=float, default=60.0)
    parser.add_argument("--instances", type=int, default=1)
    parser.add_argument("--one", nargs="+", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        spec, *networks = arguments.one
        named = {name: Path(path) for name, _, path in (word.partition("=") for word in networks)}
        for part in measure(named, Path(spec)):
            print(json.dumps(part), flush=True)
        return
    seen: dict[str, int] = {}
    rows = []
    for instance in find_instances(instances(), arguments.only):
        network = f"{instance.benchmark}/{'+'.join(p.name for p in instance.networks.values())}"
        seen[network] = seen.get(network, 0) + 1
        if arguments.instances and seen[network] > arguments.instances:
            continue
        found = run(instance, arguments.limit)
        cells = {"network": network, "property": instance.spec.name, **found}
        rows.append([_cell(cells.get(name, "")) for name in HEAD])
        print(" ".join(rows[-1]), file=sys.stderr, flush=True)
    print(machine())
    print(f"\n{markdown(HEAD, rows)}")


if __name__ == "__main__":
    main()
