"""One instance in a process of its own, which is killed when it passes its limits."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import psutil

from verifier.bench.instances import Instance
from verifier.bench.record import Record

# Nothing of what is loaded is garbage: looking for some takes a third of the start, and again at the end. Threads that
# spin while they wait make a busy machine several times slower.
_SHARED = (
    "import gc, os; os.environ.setdefault('OMP_WAIT_POLICY', 'PASSIVE'); gc.disable(); "
    "from verifier.bench.share import main; gc.freeze(); gc.enable(); main()"
)
SHARE = (sys.executable, "-c", _SHARED)
VERIFIER = (sys.executable, "-m", "verifier", "verify")
_GRACE = 10.0  # seconds beyond its limit after which a process is killed and counts as an error
_POLL = 0.1  # seconds between two looks at a process's memory
_VERDICTS = ("sat", "unsat", "unknown", "timeout")
_NEVER = threading.Event()
# Asks Linux for the end of the process with that of its parent, then becomes the command: a bench that is killed leaves
# nothing running.
_BOOT = (
    "import ctypes, os, sys; ctypes.CDLL(None).prctl(1, 9); "
    "os.getppid() == int(sys.argv[1]) or os._exit(1); os.execvp(sys.argv[2], sys.argv[2:])"
)


@dataclass(frozen=True)
class Resources:
    """What one process may use: CPU threads, memory of all it starts together (GB), and a device such as `cuda:1`."""

    threads: int | None = None
    memory_gb: float | None = None
    device: str = ""

    def arguments(self) -> list[str]:
        """The flags of `verify`. The engine's own limit leaves room for what it does not count."""
        words = [] if self.threads is None else [f"--threads={self.threads}"]
        words += [] if self.memory_gb is None else [f"--max-memory-gb={0.6 * self.memory_gb:g}"]
        return words + ([f"--device={self.device.partition(':')[0]}"] if self.device else [])

    def environment(self) -> dict[str, str]:
        """The process's environment: its threads, and the one GPU that it sees."""
        found = dict(os.environ)
        if self.threads is not None:
            found |= {name: str(self.threads) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
        number = self.device.partition(":")[2]
        if number:
            seen = visible()
            found["CUDA_VISIBLE_DEVICES"] = seen[int(number)] if seen else number
        return found


def visible() -> list[str]:
    """The GPUs that CUDA_VISIBLE_DEVICES names; none where it says nothing."""
    return [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]


def run_instance(
    instance: Instance,
    scale: float = 1.0,
    command: Sequence[str] = (),
    resources: Resources = Resources(),
    witness: Path | None = None,
    stop: threading.Event = _NEVER,
) -> Record:
    """Runs `command MODEL SPEC --timeout S` (VERIFIER unless given), the instance's limit times `scale`.

    Its failure is a record too. A counterexample is written to `witness`, which the record names by its folder and
    name. When `stop` is set the process is killed. The record is then an error that nobody should keep.
    """
    timeout = instance.timeout * scale
    with tempfile.TemporaryDirectory() as place:
        details = Path(place) / "result.json"
        words = [*(command or VERIFIER), *instance.arguments(), *resources.arguments()]
        words += [f"--json={details}"] + ([] if witness is None else [f"--witness={witness}"])
        words += [f"--timeout={timeout:g}", "--no-progress"]
        with (Path(place) / "out").open("w+") as out, (Path(place) / "err").open("w+") as err:
            ended = _run(words, out, err, timeout + _GRACE, resources, stop)
            out.seek(0)
            err.seek(0)
            verdict = out.readline().strip().replace("timed-out", "timeout")
            said = " ".join(err.read().split())
        if ended.killed or verdict not in _VERDICTS or ended.code != 0:
            verdict = "error"
        message = (ended.killed or said[-500:]) if verdict in ("error", "unknown") else ""
        more = {} if verdict == "error" else _details(details)
    kept = witness is not None and verdict == "sat" and witness.is_file()
    more |= {"witness": f"{witness.parent.name}/{witness.name}"} if kept and witness is not None else {}
    return instance.record(
        timeout, verdict, ended.seconds, message=message, memory_mb=ended.memory_mb, **more
    )


@dataclass(frozen=True)
class _Ended:
    code: int
    seconds: float
    memory_mb: float
    killed: str = ""


@contextmanager
def _process(
    words: Sequence[str], resources: Resources, **streams: Any
) -> Generator[subprocess.Popen[Any], None, None]:
    """The words in a process with these resources that ends with this one, and on leaving."""
    if sys.platform == "linux":
        words = [sys.executable, "-ISc", _BOOT, str(os.getpid()), *words]
    environment = resources.environment()
    with subprocess.Popen(words, env=environment, start_new_session=True, **streams) as process:
        try:
            yield process
        finally:
            kill_group(process)


class _Watch:
    """Why a process has to be ended now: its memory, its time, or a request."""

    def __init__(self, limit: float, resources: Resources, stop: threading.Event) -> None:
        self._deadline = time.monotonic() + limit
        self._resources, self._stop = resources, stop
        self.peak = 0

    def restart(self, limit: float) -> None:
        """From now on so many seconds."""
        self._deadline = time.monotonic() + limit

    def look(self, pid: int) -> str:
        most = self._resources.memory_gb
        used = memory(pid)
        self.peak = max(self.peak, used)
        if most is not None and used > most * 2**30:
            return f"more than {most:g} GB of memory: killed"
        if time.monotonic() > self._deadline:
            return f"no verdict {_GRACE:g} s after the limit: killed"
        return "interrupted" if self._stop.is_set() else ""


def _run(
    words: Sequence[str], out: Any, err: Any, limit: float, resources: Resources, stop: threading.Event
) -> _Ended:
    """Runs the words until they end or have to be ended."""
    start, watch, killed = time.monotonic(), _Watch(limit, resources, stop), ""
    with _process(words, resources, stdin=subprocess.DEVNULL, stdout=out, stderr=err) as process:
        while not killed:
            with suppress(subprocess.TimeoutExpired):
                process.wait(_POLL)
                break
            killed = watch.look(process.pid)
    return _Ended(process.returncode, time.monotonic() - start, watch.peak / 2**20, killed)


def run_together(
    group: Sequence[Instance],
    scale: float,
    resources: Resources,
    witness: Callable[[Instance], Path | None],
    stop: threading.Event,
    emit: Callable[[Record], None],
    begin: Callable[[Instance], None] = lambda _: None,
) -> None:
    """Instances of the same networks in one process, which loads these once (`bench.share`). `begin` gets those that
    their batch left open, when they are looked at alone.

    Of a process that had to be ended, the instance that it was at is an error, and another one goes on with the rest.
    Where that was the batch, which would end in the same way again, each has a process of its own.
    """
    left = list(group)
    while left and not stop.is_set():
        why, alone = _run_group(left, scale, resources, witness, stop, emit, begin)
        if stop.is_set() or not left:
            return
        if alone is None:
            for instance in left:
                begin(instance)
                record = run_instance(instance, scale, (), resources, witness(instance), stop)
                if stop.is_set():
                    return
                emit(record)
            return
        left.remove(alone)
        emit(alone.record(alone.timeout * scale, "error", 0.0, message=why))


def _run_group(
    left: list[Instance],
    scale: float,
    resources: Resources,
    witness: Callable[[Instance], Path | None],
    stop: threading.Event,
    emit: Callable[[Record], None],
    begin: Callable[[Instance], None],
) -> tuple[str, Instance | None]:
    """One process for all of `left`, from which it takes what is decided. Why it ended before it was done, if
    so, and which one it looked at alone then."""
    group, limits = list(left), [i.timeout * scale for i in left]
    options: dict[str, Any] = {} if resources.threads is None else {"threads": resources.threads}
    options |= {} if resources.memory_gb is None else {"max_memory_gb": 0.6 * resources.memory_gb}
    options |= {"device": resources.device.partition(":")[0]} if resources.device else {}
    with tempfile.TemporaryDirectory() as place:
        job, answers = Path(place) / "job", Path(place) / "answers"
        networks = {name: str(path) for name, path in group[0].networks.items()}
        work = {"networks": networks, "specs": [str(i.spec) for i in group], "limits": limits}
        job.write_text(json.dumps(work | {"options": options, "answers": str(answers)}))
        answers.touch()
        watch, killed, alive = _Watch(sum(limits) + _GRACE, resources, stop), "", True
        alone: Instance | None = None
        streams: dict[str, Any] = dict.fromkeys(("stdin", "stdout"), subprocess.DEVNULL)
        with (
            (Path(place) / "err").open("w+") as err,
            _process([*SHARE, str(job)], resources, stderr=err, **streams) as process,
            answers.open("rb") as stream,
        ):
            while alive and not killed:
                with suppress(subprocess.TimeoutExpired):
                    process.wait(_POLL)
                    alive = False
                killed = watch.look(process.pid) if alive else ""
                lines = _whole_lines(stream)
                for line in lines:
                    told = json.loads(line)
                    instance = group[told["number"]]
                    if "begun" in told:
                        alone = instance
                        begin(instance)
                        continue
                    alone = None
                    left.remove(instance)
                    emit(_told(instance, limits[told["number"]], told, witness(instance), watch.peak))
                if lines:  # the next one has its own time
                    watch.restart(max((i.timeout * scale for i in left), default=0.0) + _GRACE)
            err.seek(0)
            said = " ".join(err.read().split())[-500:]
    return killed or said or "the process ended", alone


def _whole_lines(stream: BinaryIO) -> list[bytes]:
    """The lines that are complete, from where the stream is."""
    start = stream.tell()
    text = stream.read()
    end = text.rfind(b"\n") + 1
    stream.seek(start + end)
    return text[:end].splitlines()


def _told(instance: Instance, limit: float, told: dict[str, Any], witness: Path | None, peak: int) -> Record:
    """The record of an answer of `bench.share`."""
    seconds = float(told["seconds"])
    if "error" in told:
        return instance.record(limit, "error", seconds, message=str(told["error"])[-500:])
    result = told["result"]
    more = details(result)
    if told["witness"] and witness is not None:
        witness.write_text(told["witness"])
        more["witness"] = f"{witness.parent.name}/{witness.name}"
    verdict = str(result["verdict"])
    message = str(result["explanation"])[:500] if verdict == "unknown" else ""
    return instance.record(limit, verdict, seconds, message=message, memory_mb=peak / 2**20, **more)


def memory(pid: int) -> int:
    """Resident bytes of a process and all below it; what they share is counted for each."""
    total = 0
    with suppress(psutil.Error):
        root = psutil.Process(pid)
        for process in (root, *root.children(recursive=True)):
            with suppress(psutil.Error):
                total += process.memory_info().rss
    return total


def kill_group(process: subprocess.Popen[Any]) -> None:
    """Ends the process and what it started, when it still runs."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _details(file: Path) -> dict[str, Any]:
    """What `verify --json` tells beside the verdict; nothing where it told nothing."""
    try:
        return details(json.loads(file.read_text()))
    except (OSError, ValueError):
        return {}


def details(result: dict[str, Any]) -> dict[str, Any]:
    """The fields of a Record that a result's JSON form has."""

    def number(name: str) -> float | None:
        return None if result.get(name) is None else float(result[name])

    return {
        "phases": {name: float(seconds) for name, seconds in result.get("seconds", {}).items()},
        "bound": number("bound"),
        "attack_margin": number("attack_margin"),
        "domains": int(result.get("domains", 0)),
        "device": result.get("device"),
        "reason": "" if result.get("reason") == "none" else str(result.get("reason", "")),
    }
