"""`verifier supports`: what the VNN-LIB standard lets a program ask, answered in its format."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

import typer

from verifier.errors import VerifierError

_BOTH = "--multiple-input-output-theories"


def _opsets() -> tuple[str, ...]:
    from verifier.report.tables import OPSETS

    return str(OPSETS[0]), str(OPSETS[-1])


def _operators() -> tuple[str, ...]:
    import verifier.ops  # noqa: F401  (registers the operators)
    from verifier.graph.registry import onnx_operators

    return tuple(onnx_operators())


# `unsat` speaks of exact real arithmetic, so that by the standard no element type but real may be named. The theories
# of a set include one another; a program that looks for one finds each that is supported.
_ANSWERS: dict[str, Callable[[], tuple[str, ...]] | tuple[str, ...]] = {
    "--onnx-opset-versions": _opsets,
    "--onnx-element-types": ("real",),
    "--onnx-operators": _operators,
    "--onnx-operators-unsat-proofs": (),
    "--vnnlib-versions": ("2.0", "2.0"),
    "--hidden-node-theories": ("NH", "H"),
    _BOTH: ("SIO", "MIO"),
    "--multiple-network-theories": ("SNET", "MENET", "MINET", "MNET"),
    "--multiple-node-comparison-theories": ("SNC", "MNC"),
    "--arithmetic-complexity-theories": ("BND", "OUTC", "LIN", "POLY"),
    "--optimised-disjunctive-reasoning": ("true",),
    "--serialise-assignments": ("true",),
    "--unsat-proofs": ("false",),
}
_ALSO = {"--multiple-inputs-output-theories": _BOTH}  # the standard's text and its example differ


def command(
    capability: Annotated[
        str, typer.Argument(metavar="--CAPABILITY", help=f"One of: {', '.join(_ANSWERS)}.")
    ],
) -> None:
    """Print whether, or what of, a capability of the VNN-LIB standard is supported, one item a line."""
    answer = _ANSWERS.get(_ALSO.get(capability, capability))
    if answer is None:
        raise VerifierError(f"{capability} is no capability. Ask for one of: {', '.join(_ANSWERS)}.")
    typer.echo("".join(f"{line}\n" for line in (answer() if callable(answer) else answer)), nl=False)
