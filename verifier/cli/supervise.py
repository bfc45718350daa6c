"""Runs the work of one command in a forked process and keeps the promise on time from outside it.

A thread cannot keep that promise: it does not run while the main thread is inside C code that holds the
interpreter's lock. The supervisor imports no torch, is the only one to write to stdout, and ends the worker
at the deadline, on Ctrl-C, or when it has answered (which also saves the worker's tear-down).
"""

from __future__ import annotations

import json
import os
import select
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from enum import Enum
from typing import Any, NoReturn

from verifier.progress import ProgressCallback, throttled
from verifier.results import Progress

_PROGRESS_PERIOD = 0.1  # seconds between two snapshots on their way to the supervisor


@dataclass(frozen=True)
class Answer:
    """What a command has to say, as finished text. `code` is the exit code."""

    stdout: str = ""
    stderr: str = ""
    json: str = ""
    witness: str = ""
    code: int = 0


class Ending(Enum):
    """How the work ended."""

    ANSWERED = "answered"
    TIME = "time"
    INTERRUPTED = "interrupted"
    DIED = "died"


@dataclass(frozen=True)
class Outcome:
    """`answer` counts when `ending` is ANSWERED; `signal` killed a worker that DIED (0: it just left)."""

    ending: Ending
    answer: Answer = field(default_factory=Answer)
    progress: Progress = field(default_factory=Progress)
    signal: int = 0


Job = Callable[[ProgressCallback], Answer]


def supervise(job: Job, deadline: float, on_progress: ProgressCallback) -> Outcome:
    """Runs `job` until it answers or `time.monotonic()` passes `deadline` (which may be inf).

    Where there is no fork (Windows) the job runs in this process and only its own time limit applies.
    """
    if not hasattr(os, "fork"):
        return _inline(job, on_progress)
    sys.stdout.flush()
    sys.stderr.flush()
    from_worker, to_supervisor = os.pipe()
    lifeline, held = os.pipe()  # the worker sees its end closed when the supervisor is gone
    pid = os.fork()
    if pid == 0:
        os.close(from_worker)
        os.close(held)
        _work(job, to_supervisor, lifeline)
    os.close(to_supervisor)
    os.close(lifeline)
    try:
        return _follow(pid, from_worker, deadline, on_progress)
    finally:
        os.close(from_worker)
        os.close(held)


def _inline(job: Job, on_progress: ProgressCallback) -> Outcome:
    last = Progress()

    def remember(p: Progress) -> None:
        nonlocal last
        last = p
        on_progress(p)

    try:
        return Outcome(Ending.ANSWERED, job(remember))
    except KeyboardInterrupt:
        return Outcome(Ending.INTERRUPTED, progress=last)


def _follow(pid: int, source: int, deadline: float, on_progress: ProgressCallback) -> Outcome:
    last = Progress()
    ending = Ending.DIED
    answer = Answer()
    try:
        for kind, value in _messages(source, deadline):
            if kind == "answer":
                ending, answer = Ending.ANSWERED, Answer(**value)
                break
            last = Progress(**value)
            on_progress(last)
    except TimeoutError:
        ending = Ending.TIME
    except KeyboardInterrupt:
        ending = Ending.INTERRUPTED
    if ending is not Ending.DIED:
        os.kill(pid, signal.SIGKILL)
    status = os.waitpid(pid, 0)[1]
    return Outcome(ending, answer, last, os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0)


def _messages(source: int, deadline: float) -> Iterator[tuple[str, dict[str, Any]]]:
    """The worker's lines, each [kind, value] in JSON, until it closes its end. Raises TimeoutError."""
    rest = b""
    while True:
        left = deadline - time.monotonic()
        ready = left > 0 and select.select([source], [], [], min(left, 3600.0))[0]
        if not ready:
            if time.monotonic() >= deadline:
                raise TimeoutError
            continue
        chunk = os.read(source, 1 << 20)
        if not chunk:
            return
        *lines, rest = (rest + chunk).split(b"\n")
        for line in lines:
            kind, value = json.loads(line)
            yield kind, value


def _work(job: Job, target: int, lifeline: int) -> NoReturn:
    """The worker's whole life. It leaves through os._exit: nothing inherited is flushed twice."""
    code = 1
    try:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # the supervisor decides what Ctrl-C means
        os.dup2(2, 1)  # whatever libraries print: stdout is for the verdict
        threading.Thread(target=_leave_with_supervisor, args=(lifeline,), daemon=True).start()
        with os.fdopen(target, "w") as stream:

            def send(kind: str, value: Progress | Answer) -> None:
                stream.write(json.dumps([kind, asdict(value)]) + "\n")
                stream.flush()

            answer = job(throttled(lambda p: send("progress", p), _PROGRESS_PERIOD))
            send("answer", answer)
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def _leave_with_supervisor(lifeline: int) -> None:
    os.read(lifeline, 1)
    os._exit(1)
