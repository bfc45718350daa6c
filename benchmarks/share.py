"""How much sooner `verifier bench --share` settles queries over one network than separate runs; whether verdicts agree.

    python -m benchmarks.share [--benchmark mnist_fc] [--network mnist-net_256x2.onnx] [--limit 60] [--threads 1]

Every query of the benchmark is asked of the one network (without --network, of its own one), each in a process of its
own; then those that the attack or the first bounds settled, without branching, are asked in one shared process per
network. Times are of whole processes. Needs the benchmark instances (environment variable VERIFIER_SHARED).
"""

from __future__ import annotations

import argparse
import threading
import time
from collections.abc import Sequence
from dataclasses import replace

from benchmarks.common import instances, machine
from verifier.bench.instances import Instance, by_network, find_instances
from verifier.bench.record import Record
from verifier.bench.runner import Resources, run_instance, run_together


def alone(chosen: Sequence[Instance], slot: Resources) -> list[Record]:
    """Each in a process of its own."""
    found = []
    for instance in chosen:
        found.append(run_instance(instance, resources=slot))
        phases = ", ".join(f"{name} {s:.1f}" for name, s in found[-1].phases.items())
        print(f"  {instance.name}: {found[-1].verdict}, {found[-1].seconds:.1f} s ({phases})")
    return found


def together(chosen: Sequence[Instance], slot: Resources) -> tuple[float, list[Record]]:
    """Seconds of the shared processes, one per network, and the records."""
    found: list[Record] = []
    began = time.monotonic()
    for group in by_network(chosen):
        run_together(group, 1.0, slot, lambda _: None, threading.Event(), found.append)
    return time.monotonic() - began, found


def settled(record: Record) -> bool:
    """Whether the attack or the first bounds decided it."""
    return record.verdict in ("sat", "unsat") and "branch and bound" not in record.phases


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--benchmark", default="mnist_fc")
    parser.add_argument("--network", default="")
    parser.add_argument("--limit", type=float, default=60.0)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    print(machine())
    folder = instances() / arguments.benchmark
    chosen = [replace(i, timeout=arguments.limit) for i in find_instances(folder)]
    if arguments.network:
        network = {"": folder / "onnx" / arguments.network}
        chosen = [replace(i, networks=network) for i in chosen]
    slot = Resources(threads=arguments.threads)
    separate = {r.row: r for r in alone(chosen, slot)}
    easy = [i for i in chosen if settled(separate[i.row])]
    seconds, records = together(easy, slot)
    before = sum(separate[i.row].seconds for i in easy)
    print(
        f"{len(easy)} of {len(chosen)} are settled by the attack or the first bounds: {before:.1f} s one by one,"
    )
    print(f"{seconds:.1f} s shared, {before / seconds:.1f} times faster")
    print(f"{sum(set(r.phases) == {'shared'} for r in records)} of {len(records)} in the shared batch itself")
    same = {r.row: r.verdict for r in records} == {i.row: separate[i.row].verdict for i in easy}
    print("verdicts are the same" if same else "VERDICTS DIFFER")


if __name__ == "__main__":
    main()
