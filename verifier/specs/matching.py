"""Which declared variable is which input or output of a network."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate, pairwise

from verifier.errors import ModelError
from verifier.specs.query import Kind, Query, Variable


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


def places(
    query: Query, kind: Kind, network: str, names: Sequence[str], sizes: Sequence[int]
) -> list[tuple[Variable, slice]]:
    """For each of the network's inputs, or outputs that the query declares, called `names`, which variable it is (as
    `match` says), and which of its elements.

    VNN-LIB 1 has one X and one Y. For several inputs or outputs these are the elements of all, one after the other; a Y
    as large as the first output is that alone. Raises ModelError when the counts differ.
    """
    variables = [v for v in query.of_kind(kind) if v.network == network]
    names = names if kind is Kind.INPUT else names[: len(variables)]
    if query.version == 1 and len(variables) == 1 and len(sizes) > 1:
        first = kind is Kind.OUTPUT and variables[0].size == sizes[0]
        if variables[0].size == sum(sizes) and not first:
            return [(variables[0], slice(*ends)) for ends in pairwise(accumulate(sizes, initial=0))]
    return [(v, slice(0, v.size)) for v in match(variables, names, kind.value, network)]
