"""Exceptions that are the user's to act on. Everything else that escapes is a bug.

A leaf: it imports nothing of the package, so every layer can subclass `VerifierError`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple


class VerifierError(Exception):
    """Bad input: the message says what is wrong, where, and what to do. The command line exits with 2."""


class OptionsError(VerifierError, ValueError):
    """An option has an impossible value, or two options contradict each other."""


class ModelError(VerifierError):
    """A network is missing, corrupt, has NaN weights or wrong shapes, or disagrees with onnxruntime."""


class UnsupportedNode(NamedTuple):
    """One node that the importer refuses. `opset` is the model's opset for the operator's domain."""

    name: str
    operator: str
    opset: int
    reason: str


class UnsupportedError(ModelError):
    """A network has nodes that are not supported: all of them, in `nodes`. Nothing is guessed."""

    def __init__(self, nodes: Sequence[UnsupportedNode | tuple[str, str, int, str]]) -> None:
        """`nodes`: one (name, operator, opset, reason) per refused node, in graph order."""
        self.nodes: tuple[UnsupportedNode, ...] = tuple(UnsupportedNode(*node) for node in nodes)
        count = len(self.nodes)
        what = "1 node of the network is" if count == 1 else f"{count} nodes of the network are"
        rows = [f"  {n.name or '(no name)'}: {n.operator} (opset {n.opset}): {n.reason}" for n in self.nodes]
        advice = (
            "Export the network with other operators, or add the operator (CONTRIBUTING.md shows how); "
            "`verifier inspect MODEL` lists every node."
        )
        super().__init__("\n".join([f"{what} not supported:", *rows, advice]))

    def __reduce__(self) -> tuple[type[UnsupportedError], tuple[tuple[UnsupportedNode, ...]]]:
        return type(self), (self.nodes,)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether Python or torch ran out of memory; torch has a type for the GPU's memory only."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    text = str(error)
    return isinstance(error, RuntimeError) and ("not enough memory" in text or "out of memory" in text)
