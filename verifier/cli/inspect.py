"""`verifier inspect`: what a network consists of, and what of it is not supported and why."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from verifier.report.columns import columns
from verifier.results import Inspection


def command(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="ONNX file, .gz too.")],
    spec: Annotated[
        Path | None,
        typer.Argument(metavar="SPEC", help="Count the unstable neurons on this query's input set."),
    ] = None,
) -> None:
    """List a network's nodes, shapes and unstable neurons, and what is unsupported and why."""
    from verifier import api

    found = api.inspect(model) if spec is None else api.inspect(model, spec)
    if found.nodes:
        _show(found)
    if found.unsupported:
        typer.echo(f"{len(found.unsupported)} not supported:")
        refused = [(n.name, n.operator, str(n.opset), n.reason) for n in found.unsupported]
        typer.echo(columns(("node", "operator", "opset", "reason"), refused))


def _show(found: Inspection) -> None:
    for title, shapes in (("inputs", found.inputs), ("outputs", found.outputs)):
        typer.echo(f"{title}: " + ", ".join(f"{name} {_shape(shape)}" for name, shape in shapes.items()))
    typer.echo(f"opset: {found.opset or 'none'}, parameters: {found.parameters}\n")
    rows = [
        (n.name, n.operator, _shape(n.shape), "" if n.unstable is None else str(n.unstable), n.note)
        for n in found.nodes
    ]
    typer.echo(
        columns(("node", "operator", "shape", "unstable", "value in the model"), rows)
        + "\n" * bool(found.unsupported)
    )


def _shape(shape: tuple[int, ...]) -> str:
    return "[" + ", ".join(map(str, shape)) + "]"
