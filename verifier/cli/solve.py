"""What the worker of `verifier verify` does. Imports no typer: the worker has no use for it."""

from __future__ import annotations

import math
import os
import time
from base64 import b64encode
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from verifier.cli.failures import explain
from verifier.cli.supervise import Answer
from verifier.errors import is_out_of_memory
from verifier.options import Options
from verifier.progress import ProgressCallback
from verifier.results import Reason, Result, Status


@dataclass(frozen=True)
class Target:
    """A network, or several by the names that a VNN-LIB 2.0 query gives them, and the query; `serialised` when its
    assignment is wanted as tensors in place of text."""

    model: Path | Mapping[str, Path]
    spec: Path
    vnnlib_version: int
    serialised: bool = False


class Clock:
    """The time limit of the process, counted from its start as well as that can be known."""

    def __init__(self, limit: float) -> None:
        self.start = time.monotonic() - _age()
        self.deadline = self.start + limit - min(0.3, 0.15 * limit)  # time for printing
        self._soft = self.deadline - min(0.5, 0.05 * limit) if math.isfinite(limit) else math.inf

    def elapsed(self) -> float:
        """Seconds since the process started."""
        return time.monotonic() - self.start

    def left(self) -> float | None:
        """Seconds that the engine may use, so that it can end the search itself; None for no limit."""
        return None if math.isinf(self._soft) else max(0.01, self._soft - time.monotonic())


def _age() -> float:
    """Seconds since this process was started; 0 when that is long ago, because then the command was called from
    within a running program."""
    try:
        started = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
        age = time.clock_gettime(time.CLOCK_BOOTTIME) - started / os.sysconf("SC_CLK_TCK")
    except (OSError, AttributeError, IndexError, ValueError):
        age = time.process_time()  # where there is no /proc: less than the truth, by the time spent waiting
    return age if 0 <= age < 60 else 0.0


def solve(target: Target, options: Options, clock: Clock, debug: bool, progress: ProgressCallback) -> Answer:
    """The worker's part: never raises, so that an error is text with its exit code and never a verdict."""
    try:
        from verifier import api

        left = clock.left()
        inner = replace(options, progress=False, timeout=left)
        result = api.verify(target.model, target.spec, timeout=left, options=inner, progress=progress)
    except Exception as error:
        if is_out_of_memory(error):
            return render(Result(Status.UNKNOWN, reason=Reason.MEMORY), target, clock.elapsed())
        text, code = explain(error, debug)
        return Answer(stderr=text, code=code)
    return render(result, target, clock.elapsed())


def render(result: Result, target: Target, seconds: float) -> Answer:
    assignment = result.counterexample.assignment if result.counterexample else ""
    if assignment and not assignment.endswith("\n"):
        assignment += "\n"
    verdict = result.status.printed(target.vnnlib_version)
    tensors: dict[str, str] = {}
    if assignment and target.serialised:
        from verifier.specs.witness import serialise

        tensors = {name: b64encode(data).decode() for name, data in serialise(assignment).items()}
    shown = "" if tensors else assignment
    bound = "none" if result.bound is None else f"{result.bound:.6g}"
    summary = f"{verdict} after {seconds:.2f} s, {result.stats.domains} domains, best proved bound {bound}"
    return Answer(
        stdout=f"{verdict}\n{shown}",
        stderr=f"{summary}\n{result.explanation}",
        json=result.to_json(indent=2) + "\n",
        witness=assignment,
        tensors=tensors,
    )
