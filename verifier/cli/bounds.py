"""`verifier bounds`: the ranges of outputs and named nodes over a set of inputs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from verifier.errors import OptionsError, VerifierError
from verifier.options import BoundMethod
from verifier.report.columns import columns

if TYPE_CHECKING:
    import numpy as np

    from verifier.sets import InputSet

_SHOWN = 20  # elements of one tensor that are listed before only the extremes are

SetOf = Annotated[
    Path | None, typer.Argument(metavar="SPEC", help="Take the input set of this VNN-LIB query.")
]
Center = Annotated[
    Path | None, typer.Option("--input", metavar="FILE", help="A point, as .npy or .npz with one array.")
]
Eps = Annotated[float | None, typer.Option(help="Radius around --input, in its units.")]
"""What names an input set on the command line; `input_set` makes it."""


def command(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="ONNX file, .gz too.")],
    spec: SetOf = None,
    center: Center = None,
    eps: Eps = None,
    norm: Annotated[Literal["inf", "2", "1"], typer.Option(help="The norm of that radius.")] = "inf",
    method: Annotated[BoundMethod, typer.Option(help="Bounds to use.")] = "alpha-crown",
    node: Annotated[list[str] | None, typer.Option(metavar="NAME", help="Bound this node as well.")] = None,
    out: Annotated[Path | None, typer.Option(metavar="FILE", help="Write all bounds to this .npz.")] = None,
) -> None:
    """Bound the outputs and named nodes of MODEL over a set of inputs."""
    inputs = input_set(spec, center, eps, norm)
    nodes = tuple(node or ())

    from verifier import api

    found = api.compute_bounds(model, inputs, method=method, nodes=nodes)
    several = len(found.outputs) > 1
    ranges = {f"output {i}" if several else "output": ends for i, ends in enumerate(found.outputs)}
    ranges |= {name: found[name] for name in nodes}
    arrays = {
        name: (low.detach().cpu().numpy(), high.detach().cpu().numpy())
        for name, (low, high) in ranges.items()
    }
    rows = [row for name, (low, high) in arrays.items() for row in _rows(name, low, high)]
    typer.echo(columns(("node", "element", "lower", "upper"), rows))
    if out is not None:
        _write(out, arrays)


def input_set(spec: Path | None, center: Path | None, eps: float | None, norm: str) -> InputSet | Path:
    """The set that the flags of a command name: a query's, or a ball around a point."""
    if spec is not None and center is None and eps is None:
        return spec
    if spec is None and center is not None and eps is not None:
        return _set_around(center, eps, norm)
    raise OptionsError("give the input set once: either SPEC, or --input FILE together with --eps RADIUS.")


def _set_around(file: Path, eps: float, norm: str) -> InputSet:
    import torch

    from verifier.cli.dataset import read_array
    from verifier.sets import Ball, Box

    loaded = read_array(file)
    x = torch.as_tensor(loaded).unsqueeze(0)
    if not x.dtype.is_floating_point:
        raise VerifierError(f"{file} holds {loaded.dtype}, and a point of an input set needs floats.")
    try:
        return Box.around(x, eps) if norm == "inf" else Ball.around(x, eps, 2 if norm == "2" else 1)
    except ValueError as error:
        raise VerifierError(f"no input set around {file} with --eps {eps:g}: {error}") from error


def _rows(name: str, low: np.ndarray, high: np.ndarray) -> list[tuple[str, str, str, str]]:
    """One row per element of a small tensor; of a large one the whole range and the widest element."""
    low, high = low.reshape(-1), high.reshape(-1)
    if low.size <= _SHOWN:
        return [
            (name, str(i), f"{a:.7g}", f"{b:.7g}") for i, (a, b) in enumerate(zip(low, high, strict=True))
        ]
    widest = int((high - low).argmax())
    return [
        (name, f"all {low.size}", f"{low.min():.7g}", f"{high.max():.7g}"),
        (name, f"widest, {widest}", f"{low[widest]:.7g}", f"{high[widest]:.7g}"),
    ]


def _write(out: Path, arrays: dict[str, tuple[np.ndarray, np.ndarray]]) -> None:
    import numpy as np

    flat = {
        f"{name}/{end}": pair[i] for name, pair in arrays.items() for i, end in enumerate(("lower", "upper"))
    }
    np.savez(out, **flat)  # type: ignore[arg-type]
