"""Which declared variable is which input or output of a network."""

from __future__ import annotations

from collections.abc import Sequence

from verifier.errors import ModelError
from verifier.specs.query import Variable


def match(variables: Sequence[Variable], names: Sequence[str], what: str, network: str) -> list[Variable]:
    """The variables in the order of the network's `names`: by ONNX name where all give one, else as declared.

    Raises ModelError when the counts differ.
    """
    if len(variables) != len(names):
        raise ModelError(
            f"The query declares {len(variables)} {what} variables for {network!r}, which has {len(names)}."
        )
    by_name = {v.onnx_name: v for v in variables}
    return [by_name[n] for n in names] if set(names) == set(by_name) else list(variables)
