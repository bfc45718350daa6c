"""`verifier lipschitz`, `verifier monotone` and `verifier jacobian`: what a network's derivatives can be."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from verifier.cli.bounds import Center, Eps, SetOf, input_set
from verifier.cli.dataset import read_array
from verifier.cli.verify import check_writable, existing
from verifier.errors import OptionsError, VerifierError
from verifier.options import Device, Dtype, LipschitzMethod, Options
from verifier.report.columns import columns

if TYPE_CHECKING:
    from verifier.jacobian.lipschitz import Lipschitz, Upper

_SHOWN = 16
"""Entries of a Jacobian that are listed."""
_MARGIN = "The difference of these two outputs, such as 3 5."


def command(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="ONNX file, .gz too.")],
    spec: SetOf = None,
    center: Center = None,
    eps: Eps = None,
    norm: Annotated[
        Literal["inf", "2", "1"], typer.Option(help="The norm of inputs and outputs, and of --eps.")
    ] = "inf",
    output: Annotated[int | None, typer.Option(metavar="I", help="Only this output.")] = None,
    margin: Annotated[tuple[int, int] | None, typer.Option(metavar="I J", help=_MARGIN)] = None,
    until: Annotated[
        LipschitzMethod,
        typer.Option(
            metavar="METHOD",
            help="The tightest bounds to try: product-of-norms, interval, crown, alpha-crown, branch-and-bound; "
            "auto goes on until --gap or --timeout, semidefinite (extra sdp) tries no other.",
        ),
    ] = "auto",
    gap: Annotated[float, typer.Option(help="Upper over lower bound that is good enough.")] = 1.001,
    json: Annotated[Path | None, typer.Option(metavar="FILE", help="Write what was found as JSON.")] = None,
    plot: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Draw the bounds over time (extra plot).")
    ] = None,
    timeout: Annotated[float, typer.Option(help="Seconds for everything after loading.")] = 60.0,
    seed: Annotated[int, typer.Option(help="Seed of the search for gradients.")] = 0,
    device: Annotated[Device, typer.Option(help="Where to compute; auto takes CUDA when present.")] = "auto",
    dtype: Annotated[Dtype, typer.Option(help="Precision of the bounds; auto is float32.")] = "auto",
    max_memory_gb: Annotated[
        float | None, typer.Option(help="Memory to stay below, in GB; by default most of what is free.")
    ] = None,
    progress: Annotated[bool, typer.Option(help="Show every bound on stderr when it is found.")] = True,
) -> None:
    """Bound a Lipschitz constant: |f(x) - f(y)| <= L |x - y| in a set, or everywhere when none is given.

    The lower bound is the norm of a gradient in the set, so that the gap shows what is left to gain.
    """
    given = [x is not None for x in (spec, center, eps)]
    inputs = input_set(spec, center, eps, norm) if any(given) else None
    network = existing(model)

    from verifier.derivatives import lipschitz

    def show(found: Upper) -> None:
        typer.echo(f"{found.method.value}: at most {found.value:.6g}, {found.seconds:.2f} s", err=True)

    options = Options(device=device, dtype=dtype, seed=seed, max_memory_gb=max_memory_gb)
    report = show if progress else None
    found = lipschitz(network, inputs, norm, output, margin, until, timeout, gap, options, report)
    typer.echo(columns(("bound", "constant", "seconds"), _rows(found)))
    if found.reason:
        typer.echo(found.reason, err=True)
    if json is not None:
        _write(json, found.to_json(indent=2) + "\n")
    if plot is not None:
        _plot(found, plot)


def _rows(found: Lipschitz) -> list[tuple[str, str, str]]:
    rows = [(f"upper, {b.method.value}", f"{b.value:.6g}", f"{b.seconds:.2f}") for b in found.bounds]
    rows.append((f"upper, {found.scope}", f"{found.upper:.6g}", f"{found.seconds:.2f}"))
    if found.point is not None:
        rows.append(("lower, a gradient", f"{found.lower:.6g}", ""))
        rows.append(("upper over lower", f"{found.gap:.4g}", ""))
    return rows


def _plot(found: Lipschitz, path: Path) -> None:
    """Upper bounds over the time at which they were known, and the lower bound."""
    try:
        from matplotlib.figure import Figure  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise VerifierError("--plot needs matplotlib: pip install 'nn-verifier[plot]'.") from error
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    times, values, at, best = [], [], 0.0, float("inf")
    for bound in found.bounds:
        at, best = at + bound.seconds, min(best, bound.value)
        times.append(at)
        values.append(best)
        axes.annotate(bound.method.value, (at, best), xytext=(3, 4), textcoords="offset points", fontsize=8)
    axes.step(times, values, where="post", marker="o", label="certified upper bound")
    if found.lower > 0:
        axes.axhline(found.lower, linestyle="--", color="gray", label="norm of a gradient")
    axes.set(xlabel="seconds", ylabel=f"Lipschitz constant ({found.norm}-norm, {found.scope})")
    axes.legend()
    try:
        figure.savefig(path)
    except (OSError, ValueError) as error:
        raise VerifierError(f"{path} cannot be written ({error}).") from error


def monotone(
    model: Annotated[
        Path, typer.Argument(metavar="MODEL", help="ONNX file of a network with one input, .gz too.")
    ],
    data: Annotated[
        Path, typer.Argument(metavar="DATA", help="Samples, as .npy or an .npz with one array or x.")
    ],
    low: Annotated[float, typer.Option(help="The least value of a feature that runs.")] = 0.0,
    high: Annotated[float, typer.Option(help="Its largest value.")] = 1.0,
    feature: Annotated[
        list[int] | None, typer.Option(metavar="K", help="Only this input element; may be repeated.")
    ] = None,
    radius: Annotated[float, typer.Option(help="How far the other inputs may be from the sample.")] = 0.0,
    output: Annotated[int | None, typer.Option(metavar="I", help="Of this output.")] = None,
    margin: Annotated[tuple[int, int] | None, typer.Option(metavar="I J", help=_MARGIN)] = None,
    method: Annotated[
        Literal["interval", "crown", "alpha-crown"], typer.Option(help="Bounds of the derivatives.")
    ] = "alpha-crown",
    timeout: Annotated[
        float | None,
        typer.Option(help="Seconds within which branch and bound decides what the bounds leave open."),
    ] = None,
    json: Annotated[Path | None, typer.Option(metavar="FILE", help="Write the counts as JSON.")] = None,
    device: Annotated[Device, typer.Option(help="Where to compute; auto takes CUDA when present.")] = "auto",
    dtype: Annotated[Dtype, typer.Option(help="Precision of the bounds; auto is float32.")] = "auto",
    max_memory_gb: Annotated[
        float | None, typer.Option(help="Memory to stay below, in GB; by default most of what is free.")
    ] = None,
) -> None:
    """Certify in how many samples an output grows, or falls, all along a feature's range."""
    if not low <= high:
        raise OptionsError(f"--low {low:g} is above --high {high:g}.")
    network, samples = existing(model), read_array(data, "x")

    import torch

    from verifier.derivatives import monotonicity

    options = Options(device=device, dtype=dtype, max_memory_gb=max_memory_gb)
    found = monotonicity(
        network,
        torch.from_numpy(samples).float(),
        low,
        high,
        output,
        margin,
        feature,
        radius,
        method,
        options,
        timeout,
    )
    typer.echo(columns(*found.rows()))
    if json is not None:
        _write(json, found.to_json(indent=2) + "\n")


def jacobian(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="ONNX file, .gz too.")],
    file: Annotated[Path, typer.Option("--write", "-o", metavar="FILE", help="The ONNX file to write.")],
    output: Annotated[
        list[int] | None, typer.Option(metavar="I", help="Only this output; may be repeated.")
    ] = None,
    margin: Annotated[tuple[int, int] | None, typer.Option(metavar="I J", help=_MARGIN)] = None,
    input: Annotated[
        list[int] | None, typer.Option(metavar="K", help="Only this input element; may be repeated.")
    ] = None,
) -> None:
    """Write the Jacobian as an ONNX file of its own, so that a VNN-LIB file can speak of derivatives.

    Its output Y has the derivatives; `verifier verify FILE SPEC` decides a property of them. At a kink the file has one
    generalised derivative; unsat holds for all of them.
    """
    network = existing(model)
    check_writable(file)

    from verifier.derivatives import export_jacobian

    found = export_jacobian(network, output, margin, input)
    _write(file, found.data)
    entries = found.entries()
    shown = entries if len(entries) <= _SHOWN else [*entries[: _SHOWN - 1], ("...", "..."), entries[-1]]
    typer.echo(columns(("output", "derivative"), shown))
    if not found.exact:
        typer.echo(
            "The file's numbers are rounded to float32: it is the Jacobian of about this network.", err=True
        )


def _write(path: Path, content: str | bytes) -> None:
    try:
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    except OSError as error:
        raise VerifierError(f"{path} cannot be written ({error.strerror}).") from error
