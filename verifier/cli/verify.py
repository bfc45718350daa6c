"""`verifier verify`: one query, one verdict on the first line of stdout, in time."""

from __future__ import annotations

import contextlib
import os
import re
import signal
from base64 import b64decode
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from verifier.cli.failures import explain
from verifier.cli.flags import with_options
from verifier.cli.solve import Clock, Target, render, solve
from verifier.cli.supervise import Answer, Ending, Outcome, Session, Worker
from verifier.environment import find_file, peak_memory_mb, versions
from verifier.errors import VerifierError
from verifier.options import Options
from verifier.progress import display
from verifier.results import Reason, Result, Stats, Status

_LEADING = re.compile(rb"(?:\s|;[^\n]*\n)*+\(\s*vnnlib-version\b")

ModelFile = Annotated[
    Path, typer.Argument(metavar="MODEL", help="ONNX file, .gz too; left out with --network.")
]
SpecFile = Annotated[Path | None, typer.Argument(metavar="SPEC", help="VNN-LIB 1.0 or 2.0 file, .gz too.")]
Networks = Annotated[
    list[str] | None, typer.Option(metavar="NAME=MODEL", help="The network of that name in a 2.0 query.")
]
"""What names a query on the command line."""


@with_options(progress=True)
def command(
    context: typer.Context,
    model: ModelFile,
    spec: SpecFile = None,
    network: Networks = None,
    json: Annotated[Path | None, typer.Option(metavar="FILE", help="Write the result as JSON.")] = None,
    witness: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write a counterexample there too.")
    ] = None,
    serialise_assignments: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Write a 2.0 assignment there, a tensor a file, and not to stdout."),
    ] = None,
    *,
    options: Options,
) -> None:
    """Decide whether the query in SPEC has a solution for MODEL.

    The first line on stdout is sat, unsat, unknown or timeout (timed-out for VNN-LIB 2.0); after sat comes
    the assignment in the format of the query.
    """
    target = target_of(model, spec, network or [])
    for file in (json, witness):
        check_writable(file)
    if serialise_assignments is not None:
        target = _serialised(target, serialise_assignments)
    clock = Clock(options.seconds)
    session: Session = context.obj
    job = partial(solve, target, options, clock, session.debug)
    worker = session.worker or Worker()
    with display() if options.progress else contextlib.nullcontext(_ignore) as show:
        outcome = worker.run(job, clock.deadline, show)
    answer = _finish(outcome, target, clock)
    typer.echo(answer.stdout, nl=False)
    lost = [_write(file, text) for file, text in ((json, answer.json), (witness, answer.witness))]
    if serialise_assignments is not None:
        folder = serialise_assignments
        lost += [_write(folder / f"{name}.pb", b64decode(data)) for name, data in answer.tensors.items()]
    typer.echo("\n".join([answer.stderr, *filter(None, lost)]), err=True)
    raise typer.Exit(2 if any(lost) else answer.code)


def _finish(outcome: Outcome, target: Target, clock: Clock) -> Answer:
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
        domains=last.domains_done,
        seconds={"total": seconds},
        peak_memory_mb=peak_memory_mb(children=True),
        attack_margin=last.best_attack_margin,
    )
    result = Result(status, bound=last.worst_bound, reason=reason, stats=stats, versions=versions())
    answer = render(result, target, seconds)
    return replace(answer, code=130) if outcome.ending is Ending.INTERRUPTED else answer


def target_of(model: Path, spec: Path | None, networks: list[str]) -> Target:
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


def _serialised(target: Target, folder: Path) -> Target:
    """The target when its assignment goes to `folder`, which is made. Raises VerifierError."""
    if target.vnnlib_version != 2:
        raise VerifierError("--serialise-assignments is for VNN-LIB 2.0 queries. Take --witness FILE.")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise VerifierError(f"the folder {folder} cannot be made ({error.strerror}).") from None
    check_writable(folder / "assignment.pb")
    return replace(target, serialised=True)


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
    """The file, or the same with .gz (or without) when only that is there. Raises VerifierError."""
    if path.is_dir():
        raise VerifierError(f"{path} is a folder. Give the file itself.")
    file = find_file(path)
    if file.is_file():
        return file
    other = path.stem if path.suffix == ".gz" else f"{path.name}.gz"
    raise VerifierError(f"there is no file {path}, nor {other} beside it. Check the path.")


def check_writable(file: Path | None) -> None:
    """Refuses, before the search, what could not be written after it. Raises VerifierError."""
    if file is None:
        return
    folder = file.absolute().parent
    if not folder.is_dir():
        raise VerifierError(f"{file} cannot be written: there is no folder {folder}. Make it first.")
    if file.is_dir():
        raise VerifierError(f"{file} cannot be written: it is a folder. Give a file's name.")
    if not os.access(file if file.exists() else folder, os.W_OK):
        raise VerifierError(f"{file} cannot be written: permission denied. Choose another place.")


def _write(file: Path | None, content: str | bytes) -> str:
    """Writes what there is to write; the complaint when that fails, a full disk say: the verdict stands."""
    if file is None or not content:
        return ""
    try:
        file.write_bytes(content.encode() if isinstance(content, str) else content)
    except OSError as error:
        return f"error: {file} could not be written ({error.strerror})."
    return ""


def _ignore(_: object) -> None:
    """Shows nothing."""
