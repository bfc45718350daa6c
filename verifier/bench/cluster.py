"""The instances of a run as tasks on a Ray cluster. Needs the extra `ray`, and files that every machine sees."""

from __future__ import annotations

import socket
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
ANSWER = 10.0
"""Seconds within which a cluster has to answer."""
_RESOURCES = {"num_cpus": "CPU", "num_gpus": "GPU", "memory": "memory"}


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
    a lost worker's instances are begun anew. Raises OptionsError without Ray, where no cluster answers, and where
    none of its machines has what an instance needs.
    """
    ray = _connected(address)
    needs: dict[str, Any] = {"num_cpus": resources.threads or 1, "max_retries": RETRIES}
    needs |= {"num_gpus": 1} if resources.device.startswith("cuda") else {}
    needs |= {} if resources.memory_gb is None else {"memory": int(resources.memory_gb * 2**30)}
    _check_room(ray, needs)
    task = ray.remote(**needs)(_one)
    # which GPU it is Ray says to the task, by the environment
    seen = Resources(resources.threads or 1, resources.memory_gb, resources.device.partition(":")[0])
    room = max(1, WAITING * int(ray.cluster_resources().get("CPU", 1) // (resources.threads or 1)))
    left, running = [_anywhere(instance) for instance in instances], {}
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


def _connected(address: str) -> Any:
    """The module, connected. Ray itself would try an address at which nothing answers for minutes."""
    try:
        import ray  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise OptionsError("--ray needs the extra: pip install 'nn-verifier[ray]'.") from error
    if ray.is_initialized():
        return ray
    start = "start one with `ray start --head`, or say `--ray local`"
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if colon and port.isdigit():
        try:
            socket.create_connection((host, int(port)), ANSWER).close()
        except OSError as error:
            raise OptionsError(f"No Ray cluster answers at {address} ({error}): {start}.") from error
    try:
        ray.init(address=None if address == "local" else address, log_to_driver=False)
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise OptionsError(f"No Ray cluster at {address}: {start}.") from error
    return ray


def _check_room(ray: Any, needs: dict[str, Any]) -> None:
    """Raises OptionsError where tasks would wait for ever."""
    wanted = {name: needs[key] for key, name in _RESOURCES.items() if key in needs}
    machines = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    if any(all(m.get(name, 0) >= n for name, n in wanted.items()) for m in machines):
        return
    asked = ", ".join(f"{name} {n:g}" for name, n in wanted.items())
    raise OptionsError(
        f"No machine of the Ray cluster has what an instance takes ({asked}): ask for less with --threads, "
        "--memory-gb or --devices, or add machines to the cluster."
    )


def _anywhere(instance: Instance) -> Instance:
    """The same with paths that do not depend on the folder a process runs in."""
    networks = {name: path.absolute() for name, path in instance.networks.items()}
    return replace(instance, networks=networks, spec=instance.spec.absolute())


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
