"""How much sooner two jobs finish 24 instances than one, with one thread each.

    python -m benchmarks.jobs [--count 24] [--jobs 2]

The instances are those of FOLDERS, in order; each run is that of `verifier bench --threads 1`. Needs the benchmark
instances (environment variable VERIFIER_SHARED) and as many cores as jobs that do nothing else.
"""

from __future__ import annotations

import argparse
import threading
import time
from collections.abc import Callable, Sequence

from benchmarks.common import instances, machine
from verifier.bench.instances import Instance, find_instances
from verifier.bench.pool import run_all
from verifier.bench.record import Record
from verifier.bench.runner import Resources, run_instance

FOLDERS = ("acasxu", "rl_benchmarks", "linearizenn")


def one(instance: Instance, slot: Resources, stop: threading.Event, emit: Callable[[Record], None]) -> None:
    emit(run_instance(instance, resources=slot, stop=stop))


def measured(chosen: Sequence[Instance], jobs: int) -> tuple[float, dict[str, str]]:
    """Seconds of all of them, and the verdicts."""
    began = time.monotonic()
    records = list(run_all(chosen, [Resources(threads=1)] * jobs, one))
    return time.monotonic() - began, {r.key: r.verdict for r in records}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--count", type=int, default=24)
    parser.add_argument("--jobs", type=int, default=2)
    arguments = parser.parse_args()
    chosen = [i for name in FOLDERS for i in find_instances(instances() / name)][: arguments.count]
    print(machine())
    for instance in chosen:
        print(f"  {instance.name}")
    alone, verdicts = measured(chosen, 1)
    together, again = measured(chosen, arguments.jobs)
    print(f"1 job {alone:.1f} s, {arguments.jobs} jobs {together:.1f} s, ratio {together / alone:.2f}")
    print("verdicts are the same" if verdicts == again else "VERDICTS DIFFER")


if __name__ == "__main__":
    main()
