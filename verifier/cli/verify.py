"""`verifier verify`: one query, one verdict on the first line of stdout, in time."""

from __future__ import annotations

import contextlib
import math
import re
import signal
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from verifier.cli.failures import explain, is_out_of_memory
from verifier.cli.flags import with_options
from verifier.cli.supervise import Answer, Ending, Outcome, supervise
from verifier.errors import VerifierError
from verifier.options import Options
from verifier.progress import ProgressCallback, display
from verifier.results import Reason, Result, Stats, Status

_LEADING = re.compile(rb"(?:\s|;[^\n]*\n)*+\(\s*vnnlib-version\b")


@dataclass(frozen=True)
class Target:
    """A network, or several by the names that a VNN-LIB 2.0 query gives them, and the query."""

    model: Path | Mapping[str, Path]
    spec: Path
    vnnlib_version: int


@with_options(progress=True)
def command(
    context: typer.Context,
    model: Annotated[
        Path, typer.Argument(metavar="MODEL", help="ONNX file, .gz too; left out with --network.")
    ],
    spec: Annotated[
        Path | None, typer.Argument(metavar="SPEC", help="VNN-LIB 1.0 or 2.0 file, .gz too.")
    ] = None,
    network: Annotated[
        list[str] | None, typer.Option(metavar="NAME=MODEL", help="The network of that name in a 2.0 query.")
    ] = None,
    json: Annotated[Path | None, typer.Option(metavar="FILE", help="Write the result as JSON.")] = None,
    witness: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write a counterexample there too.")
    ] = None,
    *,
    options: Options,
) -> None:
    """Decide whether the query in SPEC has a solution for MODEL.

    The first line on stdout is sat, unsat, unknown or timeout (timed-out for VNN-LIB 2.0); after sat comes
    the assignment in the format of the query.
    """
    target = _target(model, spec, network or [])
    for file in (json, witness):
        _check_writable(file)
    clock = _Clock(options.seconds)
    with display() if options.progress else contextlib.nullcontext(_ignore) as show:
        outcome = supervise(partial(_solve, target, options, clock, context.obj), clock.deadline, show)
    answer = _finish(outcome, target, clock)
    typer.echo(answer.stdout, nl=False)
    for file, text in ((json, answer.json), (witness, answer.witness)):
        if file is not None and text:
            file.write_text(text)
    typer.echo(answer.stderr, err=True)
    raise typer.Exit(answer.code)


class _Clock:
    """The time limit of the process, counted from its start as well as that can be known."""

    def __init__(self, limit: float) -> None:
        self.start = time.monotonic() - time.process_time()
        self.deadline = self.start + limit - min(0.3, 0.1 * limit)  # time for printing
        self._soft = self.deadline - min(0.5, 0.05 * limit) if math.isfinite(limit) else math.inf

    def elapsed(self) -> float:
        """Seconds since the process started."""
        return time.monotonic() - self.start

    def left(self) -> float | None:
        """Seconds that the engine may use, so that it can end the search itself; None for no limit."""
        return None if math.isinf(self._soft) else max(0.01, self._soft - time.monotonic())


def _solve(
    target: Target, options: Options, clock: _Clock, debug: bool, progress: ProgressCallback
) -> Answer:
    """The worker's part: never raises, so that an error is text with its exit code and never a verdict."""
    try:
        from verifier import api

        left = clock.left()
        inner = replace(options, progress=False, timeout=left)
        result = api.verify(target.model, target.spec, timeout=left, options=inner, progress=progress)
    except Exception as error:
        if is_out_of_memory(error):
            return _render(Result(Status.UNKNOWN, reason=Reason.MEMORY), target, clock.elapsed())
        text, code = explain(error, debug)
        return Answer(stderr=text, code=code)
    return _render(result, target, clock.elapsed())


def _finish(outcome: Outcome, target: Target, clock: _Clock) -> Answer:
    """The answer to give: the worker's, or what is known when it did not come to one."""
    if outcome.ending is Ending.ANSWERED:
        return outcome.answer
    if outcome.ending is Ending.DIED and outcome.signal != signal.SIGKILL:
        text, code = explain(RuntimeError(f"the worker process died (signal {outcome.signal})"))
        return Answer(stderr=text, code=code)
    seconds = clock.elapsed()
    status, reason = {
        Ending.TIME: (Status.TIMEOUT, Reason.NONE),
        Ending.INTERRUPTED: (Status.UNKNOWN, Reason.INTERRUPTED),
        Ending.DIED: (Status.UNKNOWN, Reason.MEMORY),  # killed from outside: almost always for its memory
    }[outcome.ending]
    last = outcome.progress
    stats = Stats(
        domains=last.domains_done, seconds={"total": seconds}, attack_margin=last.best_attack_margin
    )
    result = Result(status, bound=last.worst_bound, reason=reason, stats=stats)
    answer = _render(result, target, seconds)
    return replace(answer, code=130) if outcome.ending is Ending.INTERRUPTED else answer


def _render(result: Result, target: Target, seconds: float) -> Answer:
    assignment = result.counterexample.assignment if result.counterexample else ""
    if assignment and not assignment.endswith("\n"):
        assignment += "\n"
    verdict = result.status.printed(target.vnnlib_version)
    bound = "none" if result.bound is None else f"{result.bound:.6g}"
    summary = f"{verdict} after {seconds:.2f} s, {result.stats.domains} domains, best proved bound {bound}"
    return Answer(
        stdout=f"{verdict}\n{assignment}",
        stderr=f"{summary}\n{result.explanation}",
        json=result.to_json(indent=2) + "\n",
        witness=assignment,
    )


def _target(model: Path, spec: Path | None, networks: list[str]) -> Target:
    """Sorts the arguments out. Raises VerifierError when files are missing or do not go together."""
    named = {name: existing(path) for name, path in map(_named, networks)}
    if spec is not None and named:
        raise VerifierError(
            "give either MODEL SPEC, or one VNN-LIB 2.0 query with a --network NAME=MODEL for each name."
        )
    if spec is not None:
        model, spec = existing(model), existing(spec)
        return Target(model, spec, _vnnlib_version(spec))
    query = existing(model)
    if not named:
        raise VerifierError(
            f"only one file was given ({model}). Give MODEL SPEC, or a VNN-LIB 2.0 query with "
            "--network NAME=MODEL."
        )
    if _vnnlib_version(query) != 2:
        raise VerifierError(
            f"{query} does not start with (vnnlib-version <2.0>), so it names no networks. Give MODEL SPEC."
        )
    return Target(named, query, 2)


def _named(text: str) -> tuple[str, Path]:
    name, equals, path = text.partition("=")
    if not (name and equals and path):
        raise VerifierError(
            f"--network {text} is not of the form NAME=MODEL, for example --network f=net.onnx."
        )
    return name, Path(path)


def _vnnlib_version(path: Path) -> int:
    """1 or 2, from the head of the file alone: a verdict that comes for want of time is spelled by it."""
    import gzip

    with path.open("rb") as file:
        head = file.read(1 << 16)
    if head.startswith(b"\x1f\x8b"):
        try:
            with gzip.open(path) as file:
                head = file.read(1 << 16)
        except (OSError, EOFError):
            return 1  # whoever reads it in full will say what is wrong
    return 2 if _LEADING.match(head) else 1


def existing(path: Path) -> Path:
    """The file, or the same with .gz when only that is there. Raises VerifierError."""
    packed = path.with_name(path.name + ".gz")
    for file in (path, packed):
        if file.is_file():
            return file
    raise VerifierError(f"there is no file {path}, nor {packed.name} beside it. Check the path.")


def _check_writable(file: Path | None) -> None:
    if file is not None and not file.absolute().parent.is_dir():
        raise VerifierError(
            f"{file} cannot be written: there is no folder {file.absolute().parent}. Make it first."
        )


def _ignore(_: object) -> None:
    """Shows nothing."""
