"""A GPU beside two cores of its host: verdicts, times, subdomains a second, memory, and what a batch costs.

    python -m benchmarks.gpu [--folders oval21 cifar10_resnet_2021 ...] [--limit 60] [--batches FOLDER/ROW] [--jobs 1]

Every instance is verified by a process of its own, on `cuda` and on `cpu` (two threads, `--jobs` of them at once);
times are of the whole process. Then the cost of one bounding step for batches of growing size, on the open subdomains
of one instance. Needs the benchmark instances (environment variable VERIFIER_SHARED). Run it from the project's folder.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from benchmarks.common import instances, machine
from verifier.bench.instances import Instance, find_instances

if TYPE_CHECKING:
    from verifier.options import Device

DEVICES: tuple[Device, ...] = ("cuda", "cpu")
FOLDERS = ["oval21", "cifar10_resnet_2021", "sri_resnet_a", "sri_resnet_b", "acasxu"]
SIZES = [1, 4, 16, 64, 256, 1024, 4096]


def one(model: str, spec: str, device: Device, limit: float) -> dict[str, Any]:
    """Verifies in this process."""
    import torch

    from verifier import Options, verify

    if device == "cpu":
        torch.set_num_threads(2)
    result = verify(model, spec, options=Options(device=device, timeout=limit))
    searched = result.stats.seconds.get("branch and bound", 0.0)
    return {
        "verdict": result.status.value,
        "domains": result.stats.domains,
        "rate": result.stats.domains / searched if searched else None,
        "memory": torch.cuda.max_memory_allocated() / 2**20
        if device == "cuda"
        else result.stats.peak_memory_mb,
    }


def run(instance: Instance, device: str, limit: float) -> dict[str, Any]:
    """The same in a process of its own, which is given the time that it takes to start on top."""
    environment = dict(os.environ, OMP_NUM_THREADS="2", MKL_NUM_THREADS="2")
    words = [instance.networks[""], instance.spec, "--one", device, "--limit", limit]
    began = time.perf_counter()
    ran = subprocess.run(
        [sys.executable, "-m", "benchmarks.gpu", *map(str, words)],
        capture_output=True,
        text=True,
        env=environment,
    )
    seconds = time.perf_counter() - began
    found = json.loads(ran.stdout.splitlines()[-1]) if ran.returncode == 0 else {"verdict": ran.stderr[-200:]}
    return {**found, "seconds": seconds}


def batches(instance: Instance, device: Device) -> list[tuple[int, float]]:
    """Milliseconds per subdomain of one bounding step, by batch size."""
    import torch

    from verifier.branching.search import Search

    seen: list[Any] = []
    step = Search._step

    def first_large(self: Search, batch: Any) -> Any:
        if not seen and len(batch) >= 4:
            seen.append((self._bounder, batch))
            self._store._blocks.clear()
            raise StopIteration
        return step(self, batch)

    Search._step = first_large  # pyright: ignore[reportAttributeAccessIssue]
    try:
        one(str(instance.networks[""]), str(instance.spec), device, 100)
    except StopIteration:
        pass
    finally:
        Search._step = step
    if not seen:
        return []
    bounder, domains = seen[0]
    wait = torch.cuda.synchronize if device == "cuda" else lambda: None
    rows = []
    for size in SIZES:
        part = domains.index(torch.arange(size, device=domains.lower.device) % len(domains))
        times = []
        for _ in range(3):
            wait()
            began = time.perf_counter()
            try:
                with torch.no_grad():
                    bounder.bound(part)
            except torch.OutOfMemoryError:
                return rows
            wait()
            times.append(time.perf_counter() - began)
        rows.append((size, 1000 * statistics.median(times) / size))
    return rows


def table(folders: list[str], limit: float, jobs: int) -> None:
    print("| instance | known | " + " | ".join(f"{d} | s | subdomains/s | MB" for d in DEVICES) + " |")
    print("|---|---|" + "---|" * 8)
    chosen = [i for folder in folders for i in find_instances(instances(), folder)]
    with ThreadPoolExecutor(jobs) as pool:
        slow = [pool.submit(run, i, "cpu", limit) for i in chosen]
        for instance, other in zip(chosen, slow, strict=True):
            cells = []
            for found in (run(instance, "cuda", limit), other.result()):
                rate, memory = found.get("rate"), found.get("memory")
                cells += [found["verdict"], f"{found['seconds']:.1f}", "" if rate is None else f"{rate:.0f}"]
                cells += ["" if memory is None else f"{memory:.0f}"]
            print(f"| {instance.name} | {instance.expected} | {' | '.join(cells)} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("files", nargs="*", help=argparse.SUPPRESS)
    parser.add_argument("--one", choices=["cuda", "cpu"], help=argparse.SUPPRESS)
    parser.add_argument("--folders", nargs="+", default=FOLDERS)
    parser.add_argument("--limit", type=float, default=60.0)
    parser.add_argument("--batches", default="cifar10_resnet_2021/2")
    parser.add_argument("--jobs", type=int, default=1)
    arguments = parser.parse_args()
    if arguments.one:
        model, spec = arguments.files
        print(json.dumps(one(model, spec, arguments.one, arguments.limit)))
        return
    import torch

    print(machine() + (", " + torch.cuda.get_device_name() if torch.cuda.is_available() else ", no GPU"))
    if arguments.batches:
        folder, row = arguments.batches.split("/")
        instance = list(find_instances(instances(), folder))[int(row)]
        print("\n| batch | " + " | ".join(f"ms per subdomain, {d}" for d in DEVICES) + " |\n|---|---|---|")
        columns = [dict(batches(instance, d)) for d in DEVICES]
        for size in SIZES:
            cells = [f"{c[size]:.2f}" if size in c else "" for c in columns]
            print(f"| {size} | {' | '.join(cells)} |", flush=True)
    print()
    table(arguments.folders, arguments.limit, arguments.jobs)


if __name__ == "__main__":
    main()
