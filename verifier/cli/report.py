"""`verifier report`: an HTML page of benchmark runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def command(
    results: Annotated[
        list[Path],
        typer.Argument(metavar="RESULTS...", help="results.csv or .jsonl files of `verifier bench`."),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", metavar="FILE", help="The page.")] = Path("report.html"),
    against: Annotated[
        list[Path] | None, typer.Option(metavar="FILE", help="Another tool's results.csv.")
    ] = None,
    title: Annotated[str, typer.Option(help="What the page is called.")] = "Verification report",
    markdown: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write the tables as Markdown too.")
    ] = None,
) -> None:
    """Write one self-contained page about benchmark runs, and print the table.

    It has verdicts per benchmark, plots, every instance with its counterexample, comparisons with other tools,
    and where it was run. A results.csv that has no .jsonl beside it is taken for another tool's.
    """
    from verifier.bench.score import summary
    from verifier.errors import VerifierError
    from verifier.report.columns import columns
    from verifier.report.page import markdown_summary, page, read_runs

    runs = read_runs(results, against or [])
    try:
        out.write_text(page(runs, title), "utf-8")
        if markdown is not None:
            markdown.write_text(markdown_summary(runs), "utf-8")
    except OSError as error:
        raise VerifierError(f"{error.filename} cannot be written ({error.strerror}).") from error
    typer.echo(columns(*summary(runs.records, runs.others)))
    typer.echo(f"{out} has the report.", err=True)
