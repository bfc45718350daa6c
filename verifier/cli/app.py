"""The commands and the flags that stand before them."""

from __future__ import annotations

from typing import Annotated

import typer

from verifier.cli import bench, bounds, certify, doctor, explain, inspect, lipschitz, report, supports, verify

_HELP = (
    "Prove or refute properties of neural networks: ONNX and VNN-LIB in, 'sat' or 'unsat' out. "
    "Exit code 0 for every verdict, 2 for bad input, 1 for a bug, 130 after Ctrl-C."
)

app = typer.Typer(
    name="verifier",
    help=_HELP,
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
app.command("verify")(verify.command)
app.command("bounds")(bounds.command)
app.command("certify")(certify.command)
app.command("lipschitz")(lipschitz.command)
app.command("monotone")(lipschitz.monotone)
app.command("jacobian")(lipschitz.jacobian)
app.command("explain")(explain.command)
app.command("inspect")(inspect.command)
app.command("bench")(bench.command)
app.command("supports", context_settings={"ignore_unknown_options": True})(supports.command)
app.command("report")(report.command)
app.command("doctor")(doctor.command)


def _print_version(wanted: bool) -> None:
    if wanted:
        from verifier import __version__

        typer.echo(__version__)
        raise typer.Exit()


def _print_name(wanted: bool) -> None:
    if wanted:
        typer.echo("verifier")
        raise typer.Exit()


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
    name: Annotated[
        bool, typer.Option("--name", callback=_print_name, is_eager=True, help="Print the name.")
    ] = False,
    debug: Annotated[
        bool, typer.Option("--debug", help="Show the traceback of a bug; may stand anywhere.")
    ] = False,
) -> None:
    pass
