"""Networks whose parameters change by a part of their size: where a graph holds them, entry by entry."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import Tensor

from verifier.errors import ModelError
from verifier.graph import Affine, Graph, Node
from verifier.graph.op import Constant
from verifier.training.layers import Standardised

_MOVES = frozenset(
    {
        *(
            "AccumulateGrad",
            "View",
            "UnsafeView",
            "Reshape",
            "ReshapeAlias",
            "T",
            "Transpose",
            "Permute",
            "Squeeze",
        ),
        *(
            "Unsqueeze",
            "Expand",
            "Repeat",
            "Select",
            "Slice",
            "Split",
            "SplitWithSizes",
            "UnsafeSplit",
            "Unbind",
        ),
        *(
            "Cat",
            "Stack",
            "Clone",
            "ToCopy",
            "Neg",
            "Index",
            "IndexSelect",
            "Gather",
            "Embedding",
            "AsStrided",
            "Flip",
        ),
    }
)
"""Steps of autograd that move entries or turn their signs."""

_OFFSETS = ("bias", "shift")


class Varying(NamedTuple):
    """Whether the linear map of an affine node changes, and what it adds."""

    map: bool
    offset: bool


@dataclass(frozen=True)
class Changes:
    """Every trained parameter's entries change by at most `part` of their size, each alone; `nodes` are those that hold
    any."""

    part: float
    nodes: Mapping[int, Varying]

    def radius(self, node: Node, position: int, *arguments: tuple[Tensor, Tensor]) -> Tensor | float:
        """How far the node's value moves with its own parameters, where its arguments have these centers and radii.

        (W + dW) x + b + db with |dW| <= part |W| moves by at most part (|W| |x| + |b|).
        """
        varying = self.nodes.get(position)
        if varying is None:
            return 0.0
        op, moved = node.op, 0.0
        if isinstance(op, Constant):
            return self.part * op.forward().abs()
        assert isinstance(op, Affine)
        if varying.map:
            moved = moved + self.part * op.absolute(*[c.abs() + r for c, r in arguments])
        if varying.offset:
            added = op.offset(*[tuple(c.shape[1:]) for c, _ in arguments])
            moved = moved if added is None else moved + self.part * added.abs()
        return moved


def changes(graph: Graph, part: float) -> Changes:
    """Where the trained parameters stand in a graph that was built while gradients are recorded.

    Raises ModelError where a node's numbers are computed from parameters in another way than by moving them or
    multiplying them by constants, or where a node that holds parameters is not affine.
    """
    nodes: dict[int, Varying] = {}
    for i, node in enumerate(graph.nodes):
        if isinstance(node.op, Standardised):  # statistics of a pass are no parameters
            continue
        held = {name for name, tensor in _tensors(node.op) if _varies(tensor, node)}
        if held and not isinstance(node.op, Affine | Constant):
            raise _refused(node, f"reads them in {type(node.op).__name__}, which is not affine")
        if held:
            nodes[i] = Varying(bool(held - set(_OFFSETS)), bool(held & set(_OFFSETS)))
    return Changes(part, nodes)


def _tensors(op: Any) -> Iterator[tuple[str, Tensor]]:
    for name in op.__dataclass_fields__:
        value = getattr(op, name)
        if isinstance(value, Tensor):
            yield name, value


def _varies(tensor: Tensor, node: Node) -> bool:
    """Whether entries are parameters, each of them one; raises ModelError where they are made of several."""
    if not tensor.requires_grad:
        return False
    waiting = [] if tensor.grad_fn is None else [tensor.grad_fn]
    while waiting:
        step: Any = waiting.pop()
        name = step.name().rpartition("::")[2].rstrip("0123456789").removesuffix("Backward")
        before = [s for s, _ in step.next_functions if s is not None]
        if name == "Addmm" and step._saved_mat1 is not None and not bool(step._saved_mat1.any()):
            before = before[:1]  # a product with zeros, such as a first state: the bias is left
        elif name not in _MOVES and not (name in ("Mul", "Div") and len(before) == 1 and _numerator(step)):
            raise _refused(node, f"holds numbers that are computed from several ({step.name()})")
        waiting += before
    return True


def _numerator(step: Any) -> bool:
    return step.next_functions[0][0] is not None or "Mul" in step.name()


def _refused(node: Node, why: str) -> ModelError:
    return ModelError(
        f"Linf(weights=...) lets parameters change one by one, and node {node.source or node.name!r} {why}. Freeze "
        "these parameters (requires_grad_(False)), or use a loss without changed weights for this module."
    )
