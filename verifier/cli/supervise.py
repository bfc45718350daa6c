"""Does the work of one command in a forked process and keeps the promise on time from outside it.

A thread cannot keep that promise: it does not run while the main thread is inside C code that holds the
interpreter's lock. The supervisor imports no torch, is the only one to write to stdout, and ends the worker
at the deadline, on Ctrl-C, or when it has answered (which also saves the worker's tear-down). It is forked
before the words are parsed, so that torch loads meanwhile.
"""

from __future__ import annotations

import json
import os
import pickle
import select
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from enum import Enum
from queue import SimpleQueue
from typing import Any, NoReturn, Self

from verifier.progress import ProgressCallback, throttled
from verifier.results import Progress

_PROGRESS_PERIOD = 0.1  # seconds between two snapshots on their way to the supervisor


@dataclass(frozen=True)
class Answer:
    """What a command has to say, as finished text. `code` is the exit code, `tensors` a counterexample's by name,
    serialised, in base64."""

    stdout: str = ""
    stderr: str = ""
    json: str = ""
    witness: str = ""
    tensors: Mapping[str, str] = field(default_factory=dict)
    code: int = 0


class Ending(Enum):
    """How the work ended."""

    ANSWERED = "answered"
    TIME = "time"
    INTERRUPTED = "interrupted"
    DIED = "died"


@dataclass(frozen=True)
class Outcome:
    """`answer` is the job's when `ending` is ANSWERED, else its last draft; `signal` killed a worker that DIED (0: it
    just left)."""

    ending: Ending
    answer: Answer = field(default_factory=Answer)
    progress: Progress = field(default_factory=Progress)
    signal: int = 0


Tell = Callable[[Progress | Answer], None]
"""Takes progress, and drafts of the answer."""
Job = Callable[[Tell], Answer]


class Worker:
    """A process of its own, forked at once, that loads what it will need before it is given its job.

    As a context manager it is ended on leaving. Where there is no fork (Windows) the job runs in this process and
    only its own time limit applies.
    """

    def __init__(self, warm_up: Callable[[], None] | None = None) -> None:
        self._pid = 0
        if not hasattr(os, "fork"):
            return
        sys.stdout.flush()
        sys.stderr.flush()
        self._source, to_supervisor = os.pipe()
        from_supervisor, self._target = os.pipe()
        self._pid = os.fork()
        if self._pid == 0:
            os.close(self._source)
            os.close(self._target)
            _live(warm_up, from_supervisor, to_supervisor)
        os.close(from_supervisor)
        os.close(to_supervisor)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._pid:
            os.kill(self._pid, signal.SIGKILL)
            self._reap()

    def run(self, job: Job, deadline: float, on_progress: ProgressCallback) -> Outcome:
        """Runs `job`, which must be picklable, until it answers or `time.monotonic()` passes `deadline`."""
        if not self._pid:
            return _inline(job, on_progress)
        try:
            os.write(self._target, pickle.dumps(job))
        except BrokenPipeError:
            return Outcome(Ending.DIED, signal=self._reap())
        outcome = _follow(self._source, deadline, on_progress)
        if outcome.ending is not Ending.DIED:
            os.kill(self._pid, signal.SIGKILL)
        return replace(outcome, signal=self._reap())

    def _reap(self) -> int:
        """Waits for the end; the number of the signal that caused it, 0 when the worker left by itself."""
        status = os.waitpid(self._pid, 0)[1]
        self._pid = 0
        os.close(self._source)
        os.close(self._target)
        return os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0


@dataclass(frozen=True)
class Session:
    """What a command is given besides its words. `worker` was started early for `verify`."""

    debug: bool = False
    worker: Worker | None = None


def _inline(job: Job, on_progress: ProgressCallback) -> Outcome:
    last, draft = Progress(), Answer()

    def remember(p: Progress | Answer) -> None:
        nonlocal last, draft
        if isinstance(p, Answer):
            draft = p
            return
        last = p.after(last)
        on_progress(last)

    try:
        return Outcome(Ending.ANSWERED, job(remember))
    except KeyboardInterrupt:
        return Outcome(Ending.INTERRUPTED, draft, progress=last)


def _follow(source: int, deadline: float, on_progress: ProgressCallback) -> Outcome:
    last, draft = Progress(), Answer()
    try:
        for kind, value in _messages(source, deadline):
            if kind == "answer":
                return Outcome(Ending.ANSWERED, Answer(**value), last)
            if kind == "draft":
                draft = Answer(**value)
                continue
            last = Progress(**value).after(last)
            on_progress(last)
    except TimeoutError:
        return Outcome(Ending.TIME, draft, last)
    except KeyboardInterrupt:
        return Outcome(Ending.INTERRUPTED, draft, last)
    return Outcome(Ending.DIED, draft, last)


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


def _live(warm_up: Callable[[], None] | None, source: int, target: int) -> NoReturn:
    """The worker's whole life. It leaves through os._exit: nothing inherited is flushed twice."""
    code = 1
    try:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # the supervisor decides what Ctrl-C means
        os.dup2(2, 1)  # whatever libraries print: stdout is for the verdict
        jobs: SimpleQueue[Job] = SimpleQueue()
        threading.Thread(target=_listen, args=(source, jobs), daemon=True).start()
        with suppress(Exception):
            if warm_up is not None:
                warm_up()  # what fails now fails again in the job, which tells about it
        with os.fdopen(target, "w") as stream:

            def send(kind: str, value: Progress | Answer) -> None:
                stream.write(json.dumps([kind, asdict(value)]) + "\n")
                stream.flush()

            shown = throttled(lambda p: send("progress", p), _PROGRESS_PERIOD)

            def tell(value: Progress | Answer) -> None:
                if isinstance(value, Answer):
                    send("draft", value)
                else:
                    shown(value)

            send("answer", jobs.get()(tell))
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def _listen(source: int, jobs: SimpleQueue[Job]) -> None:
    """Takes the one job, then waits for the supervisor's end and leaves with it."""
    try:
        with os.fdopen(source, "rb") as stream:
            jobs.put(pickle.load(stream))
            stream.read(1)
    except EOFError:
        pass  # the supervisor is gone, or has no job
    except Exception:
        traceback.print_exc()
    os._exit(1)
