"""What a run of benchmarks keeps: a line of JSON per instance, and one for what the run was made with.

A line is appended with a single write and brought to the disk before the next one, so that a run killed at any
moment leaves whole lines, but perhaps for the last, which `repair` takes away before the file is continued.
"""

from __future__ import annotations

import json
import math
import os
import platform
from collections.abc import Generator, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from verifier.environment import versions
from verifier.errors import VerifierError

VERDICTS = ("sat", "unsat", "unknown", "timeout", "error")
POINTS, PENALTY = 10, -150


@dataclass(frozen=True)
class Environment:
    """Where and how a run was made; the line before the records of that run."""

    started: str  # ISO 8601, UTC
    versions: Mapping[str, str] = field(default_factory=dict)
    system: str = ""
    machine: str = ""
    cores: int = 0
    memory_gb: float = 0.0
    gpus: tuple[str, ...] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)  # jobs, threads, shard ...: as given


@dataclass(frozen=True)
class Record:
    """One instance's outcome.

    `networks` maps names to paths as instances.csv has them (one model stands under the empty name), `row` counts
    from 1 in that file and `version` is that of the folder, `1.0` or `2.0`, or empty. `verdict` is one of VERDICTS,
    `expected` is `sat`, `unsat` or None. Times are wall-clock seconds: `seconds` of the whole process, `phases` of
    its parts (load, root, attack, search, total ...). `bound` is the best proved one of the worst margin.
    `witness` is the file of the counterexample, relative to the JSON lines, or empty.
    """

    benchmark: str
    networks: Mapping[str, str]
    spec: str
    timeout: float
    verdict: str
    seconds: float
    row: int = 0
    version: str = ""
    expected: str | None = None
    phases: Mapping[str, float] = field(default_factory=dict)
    bound: float | None = None
    attack_margin: float | None = None
    domains: int = 0
    memory_mb: float | None = None  # peak of the process and what it started, as polled
    device: str | None = None
    reason: str = ""  # results.Reason's word
    message: str = ""  # what was said on stderr, where there is no verdict
    witness: str = ""

    @property
    def key(self) -> str:
        """What `--resume` and comparisons know the instance by within a run."""
        network = "+".join(f"{name}={path}" if name else path for name, path in self.networks.items())
        return "|".join((self.benchmark, self.version, str(self.row), network, self.spec))

    @property
    def name(self) -> str:
        """The row as a person would call it."""
        models = "+".join(Path(path).name for path in self.networks.values())
        return "/".join(filter(None, (self.benchmark, self.version, models, Path(self.spec).name)))

    @property
    def counted(self) -> str:
        """The verdict as the competition counts it: one given after the limit is a timeout."""
        return "timeout" if self.verdict in ("sat", "unsat") and self.seconds > self.timeout else self.verdict

    @property
    def wrong(self) -> bool:
        """Whether the verdict contradicts the expected one."""
        return (
            self.expected is not None and self.verdict in ("sat", "unsat") and self.verdict != self.expected
        )

    @property
    def points(self) -> int:
        """By the competition's rule: 10 for a verdict in time, -150 for a wrong one, else 0."""
        if self.counted not in ("sat", "unsat"):
            return 0
        return PENALTY if self.wrong else POINTS


def environment(started: str, settings: Mapping[str, Any] | None = None) -> Environment:
    """This machine and this installation."""
    import psutil

    return Environment(
        started,
        versions(),
        platform.platform(),
        _processor(),
        os.cpu_count() or 0,
        round(psutil.virtual_memory().total / 2**30, 1),
        _gpus(),
        dict(settings or {}),
    )


def append(path: Path, item: Record | Environment) -> None:
    """One line at the end of `path`, in one write, on the disk when this returns."""
    kind = "environment" if isinstance(item, Environment) else "instance"
    line = json.dumps({"kind": kind, **_plain(asdict(item))}, allow_nan=False) + "\n"
    handle = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        data = line.encode()
        if os.write(handle, data) != len(data):
            raise OSError(f"{path}: the disk took only a part of a line")
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def locked(path: Path) -> Generator[None, None, None]:
    """Only one run at a time writes to `path`: FILE.lock beside it, held by the kernel until the block or the process
    ends, however it ends. Raises VerifierError where another run has it. Without `flock` (Windows) nothing is held."""
    try:
        import fcntl
    except ImportError:
        yield
        return
    file = path.with_name(f"{path.name}.lock")
    try:
        handle = os.open(file, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise VerifierError(f"{file} cannot be written ({error.strerror}). Choose another --out.") from error
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            owner = os.read(handle, 64).decode(errors="replace").strip()
            raise VerifierError(
                f"another `verifier bench` ({owner or 'process unknown'}) is writing {path}. Wait until it has "
                "ended, or give this one a file of its own with --out."
            ) from error
        os.truncate(handle, 0)
        os.write(handle, f"process {os.getpid()} on {platform.node()}\n".encode())
        yield
    finally:
        os.close(handle)  # and with that the lock; the file stays, since whoever waits for it has it open


def repair(path: Path) -> None:
    """Takes away a last line that has no end, as a run killed while it wrote leaves it."""
    if not path.exists():
        return
    with path.open("r+b") as file:
        whole = file.read().rfind(b"\n") + 1
        file.truncate(whole)


def read(path: Path) -> tuple[list[Environment], list[Record]]:
    """All whole lines of `path`, in order. Raises VerifierError where one is not what `append` writes."""
    environments: list[Environment] = []
    records: list[Record] = []
    for number, value in _lines(path):
        kind = value.pop("kind", None)
        try:
            if kind == "environment":
                value["gpus"] = tuple(value.get("gpus", ()))
                environments.append(_made(Environment, value))
            elif kind == "instance":
                for name in ("bound", "attack_margin", "seconds", "timeout"):
                    value[name] = None if value.get(name) is None else float(value[name])
                records.append(_made(Record, value))
        except TypeError as error:
            raise VerifierError(f"{path}:{number}: not a record of `verifier bench` ({error}).") from error
    return environments, records


def _lines(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    text = path.read_text()
    lines = text.split("\n")[:-1]  # after the last line's end there is nothing, or a torn line
    for number, line in enumerate(lines, start=1):
        try:
            value = json.loads(line)
        except ValueError as error:
            raise VerifierError(f"{path}:{number}: not a line of JSON ({error}).") from error
        if not isinstance(value, dict):
            raise VerifierError(f"{path}:{number}: expected an object, got {line[:40]!r}.")
        yield number, value


def _made(kind: type, value: Mapping[str, Any]) -> Any:
    """Fields that a later version added are left out."""
    known = {f.name for f in fields(kind)}
    return kind(**{name: v for name, v in value.items() if name in known})


def _plain(value: Any) -> Any:
    """JSON has no infinities: they become strings, which `float` reads back."""
    if isinstance(value, Mapping):
        return {name: _plain(v) for name, v in value.items()}
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def _processor() -> str:
    try:
        lines: Iterable[str] = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = ()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _gpus() -> tuple[str, ...]:
    """By the driver's own tool: torch would take seconds to load."""
    import shutil
    import subprocess

    tool = shutil.which("nvidia-smi")
    if tool is None:
        return ()
    words = [tool, "--query-gpu=name", "--format=csv,noheader"]
    try:
        out = subprocess.run(words, capture_output=True, text=True, timeout=20, check=False).stdout
    except (OSError, subprocess.TimeoutExpired):
        return ()
    return tuple(line.strip() for line in out.splitlines() if line.strip())
