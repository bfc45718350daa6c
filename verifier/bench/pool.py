"""Several instances at a time, each in its process, on threads and devices that are divided among them."""

from __future__ import annotations

import os
import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait

from verifier.bench.instances import Instance
from verifier.bench.record import Record
from verifier.bench.runner import Resources
from verifier.errors import OptionsError

Run = Callable[[Instance, Resources, threading.Event], Record]
Seen = Callable[[Instance], None]


def divide(
    jobs: int | None,
    devices: Sequence[str] = (),
    threads: int | None = None,
    memory_gb: float | None = None,
) -> list[Resources]:
    """One Resources per job. Without a number of them there is one per device, or one; the processor's threads are
    divided among several. Raises OptionsError for what is not a device or a number."""
    for device in devices:
        kind, _, number = device.partition(":")
        if kind not in ("cpu", "cuda") or (number and not (kind == "cuda" and number.isdigit())):
            raise OptionsError(f"--devices {device!r} is none: give cpu, cuda, or cuda:0,cuda:1.")
    count = jobs if jobs is not None else max(1, len(devices))
    if count < 1:
        raise OptionsError(f"--jobs must be at least 1, not {count}.")
    if threads is None and count > 1:
        threads = max(1, _cores() // count)
    named = list(devices) or [""]
    return [Resources(threads, memory_gb, named[i % len(named)]) for i in range(count)]


def run_all(
    instances: Sequence[Instance], slots: Sequence[Resources], run: Run, started: Seen
) -> Iterator[Record]:
    """Records as they come. `started` is called from the threads. Left early, it ends what still runs."""
    free: queue.SimpleQueue[Resources] = queue.SimpleQueue()
    for slot in slots:
        free.put(slot)
    stop = threading.Event()

    def one(instance: Instance) -> Record:
        slot = free.get()
        try:
            started(instance)
            return run(instance, slot, stop)
        finally:
            free.put(slot)

    waiting = iter(instances)
    with ThreadPoolExecutor(len(slots)) as pool:
        running: set[Future[Record]] = set()
        try:
            while True:
                for instance in waiting:
                    running.add(pool.submit(one, instance))
                    if len(running) == len(slots):
                        break
                if not running:
                    return
                done, running = wait(running, return_when=FIRST_COMPLETED)
                for future in done:
                    yield future.result()
        finally:
            stop.set()


def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
