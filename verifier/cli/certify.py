"""`verifier certify`: how much of a data set a classifier is certified on."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from verifier.cli.dataset import read_dataset
from verifier.cli.flags import with_options
from verifier.cli.verify import existing
from verifier.errors import VerifierError
from verifier.options import Options
from verifier.report.columns import columns

if TYPE_CHECKING:
    from verifier.certification import Sample


@with_options(timeout=30.0, progress=True)
def command(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="ONNX file of a classifier, .gz too.")],
    data: Annotated[
        Path,
        typer.Argument(
            metavar="DATA", help="An .npz with x and y, or a folder: x.npy and y.npy, or one per class."
        ),
    ],
    eps: Annotated[float, typer.Option(help="The radius, in the units of the samples.")],
    norm: Annotated[Literal["inf", "2", "1"], typer.Option(help="The norm of the radius.")] = "inf",
    clip: Annotated[
        tuple[float, float] | None,
        typer.Option(metavar="LOW HIGH", help="What inputs are cut to, such as 0 1."),
    ] = None,
    scale: Annotated[
        float | None, typer.Option(metavar="X", help="Divide the samples by this, such as 255.")
    ] = None,
    count: Annotated[int | None, typer.Option(metavar="N", help="Only the first N samples.")] = None,
    until: Annotated[
        Literal["interval", "crown", "alpha-crown", "full"],
        typer.Option(help="The last of these to try; full branches, --timeout seconds per sample."),
    ] = "full",
    budget: Annotated[
        float | None,
        typer.Option(metavar="S", help="Seconds of branching for all samples, the likeliest first."),
    ] = None,
    json: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write every sample's row as JSON.")
    ] = None,
    *,
    options: Options,
) -> None:
    """Certify a classifier on DATA: clean, attacked and certified accuracy, by cheap methods first.

    A sample is certified when every input within the radius gets its class.
    """
    if scale is not None and not scale > 0:
        raise VerifierError(f"--scale must be positive, not {scale:g}.")
    if count is not None and count < 1:
        raise VerifierError(f"--count must be at least 1, not {count}.")
    if budget is not None and not budget >= 0:
        raise VerifierError(f"--budget must be at least 0, not {budget:g}.")
    network = existing(model)
    batches = read_dataset(data, scale)

    import torch

    from verifier.certification import METHODS, certify

    tensors = ((torch.from_numpy(x), torch.from_numpy(y)) for x, y in batches)
    methods = METHODS[: METHODS.index(until) + 1]
    show = _show() if options.progress else None
    spent = math.inf if budget is None else budget
    found = certify(network, tensors, eps, norm, clip, methods, count, options, show, spent)
    typer.echo(columns(*found.rows()))
    if norm != "inf" and until == "full":
        typer.echo("Only boxes are branched: methods end at alpha-crown in this norm.", err=True)
    if json is not None:
        try:
            json.write_text(found.to_json(indent=2) + "\n")
        except OSError as error:
            raise VerifierError(f"{json} cannot be written ({error.strerror}).") from error


def _show() -> Callable[[Sample], None]:
    """A line per sample on stderr."""

    def line(sample: Sample) -> None:
        by = f" ({sample.method})" if sample.method else ""
        margin = "" if sample.margin is None else f", margin at least {sample.margin:.4g}"
        typer.echo(f"[{sample.index}] {sample.verdict.value}{by}{margin}, {sample.seconds:.2f} s", err=True)

    return line
