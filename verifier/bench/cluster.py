"""The instances of a run as tasks on a Ray cluster. Needs the extra `ray`, and files that every machine sees."""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from verifier.bench.instances import Instance
from verifier.bench.record import Record
from verifier.bench.runner import Resources, run_instance
from verifier.errors import OptionsError

RETRIES = 3
"""How often an instance is begun anew whose worker was lost."""
WAITING = 2
"""Tasks handed over for every one that the cluster has room for: enough to keep it busy."""


def run_on_ray(
    address: str,
    instances: Sequence[Instance],
    scale: float,
    resources: Resources,
    witness: Callable[[Instance], Path],
    command: Sequence[str] = (),
) -> Generator[Record, None, None]:
    """Records as they come. `address` is that of a running cluster, `auto`, or `local` for one on this machine alone.

    An instance takes `resources.threads` processors (1 unless given), a GPU where the device is `cuda`, and its memory;
    a lost worker's instances are begun anew. Raises OptionsError without Ray.
    """
    try:
        import ray  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise OptionsError("--ray needs the extra: pip install 'nn-verifier[ray]'.") from error
    if not ray.is_initialized():
        ray.init(address=None if address == "local" else address, log_to_driver=False)
    needs: dict[str, Any] = {"num_cpus": resources.threads or 1, "max_retries": RETRIES}
    needs |= {"num_gpus": 1} if resources.device.startswith("cuda") else {}
    needs |= {} if resources.memory_gb is None else {"memory": int(resources.memory_gb * 2**30)}
    task = ray.remote(**needs)(_one)
    # which GPU it is Ray says to the task, by the environment
    seen = Resources(resources.threads or 1, resources.memory_gb, resources.device.partition(":")[0])
    room = max(1, WAITING * int(ray.cluster_resources().get("CPU", 1) // (resources.threads or 1)))
    left, running = list(instances), {}
    try:
        while left or running:
            while left and len(running) < room:
                instance = left.pop(0)
                running[task.remote(instance, scale, seen, tuple(command))] = instance
            done, _ = ray.wait(list(running))
            for reference in done:
                yield _record(ray, reference, running.pop(reference), scale, witness)
    finally:
        for reference in running:
            ray.cancel(reference, force=True)


def _record(
    ray: Any, reference: Any, instance: Instance, scale: float, witness: Callable[[Instance], Path]
) -> Record:
    """What a task gave; an error where its worker was lost again and again."""
    try:
        record, text = ray.get(reference)
    except ray.exceptions.RayError as error:
        said = " ".join(str(error).split())[:500]
        return instance.record(instance.timeout * scale, "error", 0.0, message=said)
    if text:
        file = witness(instance)
        file.write_text(text)
        record = replace(record, witness=f"{file.parent.name}/{file.name}")
    return record


def _one(
    instance: Instance, scale: float, resources: Resources, command: Sequence[str]
) -> tuple[Record, str]:
    """On the worker: the record and the counterexample, which is written where the run is led from."""
    with TemporaryDirectory() as place:
        folder = Path(place) / "witnesses"
        folder.mkdir()
        file = folder / "w"
        record = run_instance(instance, scale, command, resources, file, threading.Event())
        text = file.read_text() if file.is_file() else ""
    return record, text
