"""Several instances at a time, each in its process, on threads and devices that are divided among them."""

from __future__ import annotations

import os
import queue
import threading
from collections.abc import Callable, Generator, Sequence
from typing import TypeVar

from verifier.bench.record import Record
from verifier.bench.runner import Resources, visible
from verifier.errors import OptionsError

T = TypeVar("T")
Run = Callable[[T, Resources, threading.Event, Callable[[Record], None]], None]


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
        if number and visible() and int(number) >= len(visible()):
            raise OptionsError(
                f"--devices {device}: CUDA_VISIBLE_DEVICES shows {len(visible())} of them, counted from 0."
            )
    count = jobs if jobs is not None else max(1, len(devices))
    if count < 1:
        raise OptionsError(f"--jobs must be at least 1, not {count}.")
    if threads is None and count > 1:
        threads = max(1, _cores() // count)
    named = list(devices) or [""]
    return [Resources(threads, memory_gb, named[i % len(named)]) for i in range(count)]


def run_all(items: Sequence[T], slots: Sequence[Resources], run: Run[T]) -> Generator[Record, None, None]:
    """Records as they come. `run` is called with an item, its resources, an event that asks it to end, and what
    takes its records, in a thread per slot. Left early, the generator ends what still runs."""
    ended: queue.SimpleQueue[Record | BaseException | None] = queue.SimpleQueue()
    stop, lock, waiting = threading.Event(), threading.Lock(), iter(items)

    def work(slot: Resources) -> None:
        try:
            while not stop.is_set():
                with lock:
                    item = next(waiting, None)
                if item is None:
                    break
                run(item, slot, stop, ended.put)
        except BaseException as error:
            ended.put(error)
        ended.put(None)

    threads = [threading.Thread(target=work, args=(slot,)) for slot in slots]
    try:
        for thread in threads:
            thread.start()
        left = len(threads)
        while left:
            found = ended.get()
            if found is None:
                left -= 1
            elif isinstance(found, BaseException):
                raise found
            else:
                yield found
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
