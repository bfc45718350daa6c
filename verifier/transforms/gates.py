"""Products of which a factor is a function of one value, as one node with a relaxation of its own (`ops/gated.py`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from verifier.graph import Builder, Graph, Univariate, Value
from verifier.graph.builder import rewritten
from verifier.graph.op import Op, Shape
from verifier.ops.arithmetic import ScaleShift, scale_shift
from verifier.ops.gated import Gated
from verifier.ops.movement import Permute, Reshape, Take
from verifier.ops.piecewise_linear import PiecewiseLinear
from verifier.ops.product import Product


def join_gates(graph: Graph) -> Graph:
    """An equal graph in which products g(x) * y and g(x) * h(y) are one node each, also where g's values are moved
    or scaled in between; `graph` itself where there are none.

    Only where each value of the function is read once, by its product. What others read too, or what is copied for
    several products (a softmax's shares, the factor of a norm), has one line for all of them, and what that line is
    off by cancels between readers of different signs; a line in each of the products would add up. Functions that jump
    stay apart, because splitting them at their jumps makes them constant.
    """
    found = {i: pair for i in range(len(graph.nodes)) if (pair := _factors(graph, i)) is not None}
    if not found:
        return graph

    def replacement(builder: Builder, i: int, values: Mapping[int, Value]) -> Value | None:
        if i not in found:
            return None
        gate, other = found[i]
        first, second = (_moved(builder, values[part.source], part.moves) for part in (gate, other))
        y = builder.add(Gated(gate.function, other.function), first, second)  # pyright: ignore[reportArgumentType]
        for scale in (
            gate.scale(graph.nodes[gate.source].shape),
            other.scale(graph.nodes[other.source].shape),
        ):
            y = y if scale is None else scale_shift(builder, y, scale=scale)
        return builder.rename(y, graph.nodes[i].name)

    return rewritten(graph, replacement)


@dataclass(frozen=True)
class _Factor:
    """function(the value of node `source`), then moved and scaled; the function may be missing."""

    function: Univariate | None
    source: int
    steps: tuple[Op, ...] = ()

    @property
    def moves(self) -> tuple[Op, ...]:
        return tuple(op for op in self.steps if not isinstance(op, ScaleShift))

    def scale(self, shape: Shape) -> Tensor | None:
        """By what each element is multiplied in the end, for a source of this shape."""
        found = None
        for op in self.steps:
            if isinstance(op, ScaleShift) and op.scale is not None:
                found = op.scale.expand(shape) if found is None else found * op.scale
            elif found is not None:
                found = op.forward(found.unsqueeze(0)).squeeze(0)
            shape = op.output_shape(shape)
        return found


def _factors(graph: Graph, i: int) -> tuple[_Factor, _Factor] | None:
    """What a product multiplies, a function first; None where neither factor is one."""
    if not isinstance(graph.nodes[i].op, Product):
        return None
    parts = sorted((_factor(graph, j) for j in graph.nodes[i].inputs), key=lambda part: part.function is None)
    return None if parts[0].function is None else (parts[0], parts[1])


def _factor(graph: Graph, position: int) -> _Factor:
    steps: list[Op] = []
    at = position
    while _read_once(graph, at) and _passes_on(op := graph.nodes[at].op):
        steps.append(op)
        at = graph.nodes[at].inputs[0]
    op = graph.nodes[at].op
    alike = isinstance(op, PiecewiseLinear) or all(t.numel() == 1 for t in op.tensors())
    moved = any(not isinstance(step, ScaleShift) for step in steps)
    if not isinstance(op, Univariate) or op.jumps or op.no_derivative:
        return _Factor(None, position)
    if not _read_once(graph, at) or (moved and not alike):
        return _Factor(None, position)
    return _Factor(op, graph.nodes[at].inputs[0], tuple(reversed(steps)))


def _read_once(graph: Graph, i: int) -> bool:
    return len(graph.users[i]) == 1 and i not in graph.outputs


def _passes_on(op: Op) -> bool:
    """Whether an operator moves or scales elements without copying any."""
    if isinstance(op, Take):
        return op.index.unique().numel() == op.index.numel()
    return isinstance(op, Reshape | Permute) or _only_scales(op)


def _only_scales(op: Op) -> bool:
    if not isinstance(op, ScaleShift) or op.doubt is not None:
        return False
    return op.shift is None or not bool(op.shift.any())


def _moved(builder: Builder, x: Value, moves: Sequence[Op]) -> Value:
    for op in moves:
        x = builder.add(op, x)
    return x
