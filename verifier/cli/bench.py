"""`verifier bench`: a folder of instances, one process each, and a table per benchmark."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def command(
    folder: Annotated[
        Path, typer.Argument(metavar="DIR", help="A folder with instances.csv, or a folder of such folders.")
    ],
    out: Annotated[Path, typer.Option(metavar="FILE", help="Where the rows are written.")] = Path(
        "results.csv"
    ),
    timeout_scale: Annotated[float, typer.Option(metavar="X", help="Multiply each instance's limit.")] = 1.0,
    only: Annotated[
        str, typer.Option(metavar="GLOB", help="Only these: a benchmark, or benchmark/model/spec.")
    ] = "*",
) -> None:
    """Run every instance of a benchmark in a process of its own and count the verdicts."""
    from verifier.bench.instances import find_instances
    from verifier.bench.runner import run_instance, summary, write_csv
    from verifier.errors import OptionsError
    from verifier.report.columns import columns

    if not timeout_scale > 0:
        raise OptionsError(f"--timeout-scale must be positive, not {timeout_scale:g}.")
    instances = find_instances(folder, only)
    rows = []
    try:
        for number, instance in enumerate(instances, start=1):
            row = run_instance(instance, timeout_scale)
            rows.append(row)
            mark = "  WRONG" if row.wrong else ""
            note = f"{row.verdict:8}{row.seconds:8.2f} s{mark}"
            typer.echo(f"[{number}/{len(instances)}] {instance.name}: {note}", err=True)
    finally:
        write_csv(rows, out)
        typer.echo(columns(*summary(rows)))
    if any(row.wrong for row in rows):
        raise typer.Exit(1)
