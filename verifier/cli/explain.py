"""`verifier explain`: why a query is undecided, and what to try."""

from __future__ import annotations

import contextlib
import shutil
import signal
import sys
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from verifier.cli.explained import measure
from verifier.cli.failures import explain
from verifier.cli.flags import with_options
from verifier.cli.solve import Clock
from verifier.cli.supervise import Ending, Session, Worker
from verifier.cli.verify import ModelFile, Networks, SpecFile, check_writable, target_of
from verifier.errors import VerifierError
from verifier.options import Options
from verifier.progress import display

_CUT = {
    Ending.TIME: "The time limit cut the measuring off: what stands here was known before. Raise --timeout.",
    Ending.INTERRUPTED: "Interrupted: what stands here was known before.",
    Ending.DIED: "The system killed the process, almost always for its memory: what stands here was known before.",
}


@with_options(timeout=60.0, progress=True)
def command(
    context: typer.Context,
    model: ModelFile,
    spec: SpecFile = None,
    network: Networks = None,
    json: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write all that was found as JSON.")
    ] = None,
    *,
    options: Options,
) -> None:
    """After unknown or timeout: what is open, where bounds get loose, what is left, what to try.

    Half of the time limit is a search as verify makes it, the rest measures what that leaves.
    """
    target = target_of(model, spec, network or [])
    check_writable(json)
    clock = Clock(options.seconds)
    session: Session = context.obj
    columns = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
    job = partial(measure, target, options, clock, session.debug, columns)
    with display() if options.progress else contextlib.nullcontext(lambda _: None) as show:
        outcome = (session.worker or Worker()).run(job, clock.deadline, show)
    answer = outcome.answer
    if outcome.ending is Ending.DIED and outcome.signal != signal.SIGKILL:
        text, code = explain(RuntimeError(f"the worker process died (signal {outcome.signal})"))
        typer.echo(text, err=True)
        raise typer.Exit(code)
    typer.echo(answer.stdout, nl=False)
    if outcome.ending is not Ending.ANSWERED:
        typer.echo(
            _CUT[outcome.ending] if answer.stdout else _CUT[outcome.ending].partition(":")[0] + ".", err=True
        )
    if answer.stderr:
        typer.echo(answer.stderr, err=True)
    if json is not None and answer.json:
        try:
            json.write_text(answer.json)
        except OSError as error:
            raise VerifierError(f"{json} cannot be written ({error.strerror}).") from error
    raise typer.Exit(130 if outcome.ending is Ending.INTERRUPTED else answer.code)
