"""Building a graph node by node, with shape inference and constant folding."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from torch import Tensor

from verifier.graph.graph import Graph, Node
from verifier.graph.op import Constant, Input, Op, Shape


@dataclass(frozen=True)
class Value:
    """A node under construction, by its position; only meaningful to the Builder that made it."""

    position: int


class Builder:
    """Collects nodes; `graph` returns the immutable result without what no output needs."""

    def __init__(self) -> None:
        self._nodes: list[Node] = []
        self._inputs: list[int] = []
        self._variable: list[bool] = []
        self._names: set[str] = set()
        self._copies: dict[str, int] = {}
        self._source: str = ""

    def at(self, source: str) -> Builder:
        """Nodes added from here on are said to come from `source` (a name in the user's model)."""
        self._source = source
        return self

    def input(self, name: str, shape: Shape) -> Value:
        value = self._append(Input(tuple(shape)), (), name, variable=True)
        self._inputs.append(value.position)
        return value

    def constant(self, tensor: Tensor, name: str = "constant") -> Value:
        return self._append(Constant(tensor), (), name, variable=False)

    def add(self, op: Op, *inputs: Value, name: str = "") -> Value:
        """Append `op`; if all its arguments are constants, its value is computed now.

        Raises ValueError where the shapes do not fit the operator.
        """
        positions = tuple(v.position for v in inputs)
        variable = any(self._variable[p] for p in positions)
        if positions and not variable:
            values = [self._constant(p).unsqueeze(0) for p in positions]
            return self.constant(op.forward(*values).squeeze(0), name or type(op).__name__)
        return self._append(op, positions, name or type(op).__name__, variable)

    def rename(self, value: Value, name: str) -> Value:
        """Give a node another name (with a number at its end where that is taken)."""
        node = self._nodes[value.position]
        self._names.discard(node.name)
        self._nodes[value.position] = replace(node, name=self._unique(name))
        return value

    def made_by(self, value: Value) -> tuple[Op, tuple[Value, ...]]:
        """The operator behind a value, and its arguments."""
        node = self._nodes[value.position]
        return node.op, tuple(Value(p) for p in node.inputs)

    def shape(self, value: Value) -> Shape:
        return self._nodes[value.position].shape

    def is_variable(self, value: Value) -> bool:
        """Whether the value depends on an input."""
        return self._variable[value.position]

    def tensor(self, value: Value) -> Tensor | None:
        """The tensor behind a constant value (without batch dimension), or None."""
        return None if self._variable[value.position] else self._constant(value.position)

    def include(self, graph: Graph, inputs: dict[int, Value]) -> list[Value]:
        """Append a copy of `graph` with its input nodes replaced by `inputs`; returns its outputs."""
        mapped = self.embed(graph, inputs)
        return [mapped[i] for i in graph.outputs]

    def embed(self, graph: Graph, inputs: Mapping[int, Value]) -> dict[int, Value]:
        """Like `include`, but returns what each of the graph's nodes became."""
        mapped: dict[int, Value] = dict(inputs)
        for i, node in enumerate(graph.nodes):
            if i in mapped:
                continue
            if isinstance(node.op, Constant):
                mapped[i] = self.constant(node.op.value, node.name)
            else:
                self._source = node.source
                mapped[i] = self.add(node.op, *[mapped[j] for j in node.inputs], name=node.name)
        return mapped

    def graph(self, *outputs: Value) -> Graph:
        """The finished graph; nodes that no output needs are dropped, inputs are always kept."""
        needed = {v.position for v in outputs} | set(self._inputs)
        for i in range(len(self._nodes) - 1, -1, -1):
            if i in needed:
                needed.update(self._nodes[i].inputs)
        order = sorted(needed)
        new = {old: i for i, old in enumerate(order)}
        nodes = tuple(
            Node(n.name, n.op, tuple(new[j] for j in n.inputs), n.shape, n.source)
            for n in (self._nodes[i] for i in order)
        )
        return Graph(nodes, tuple(new[i] for i in self._inputs), tuple(new[v.position] for v in outputs))

    def _append(self, op: Op, positions: tuple[int, ...], name: str, variable: bool) -> Value:
        shape = tuple(int(n) for n in op.output_shape(*[self._nodes[p].shape for p in positions]))
        self._nodes.append(Node(self._unique(name), op, positions, shape, self._source))
        self._variable.append(variable)
        return Value(len(self._nodes) - 1)

    def _unique(self, name: str) -> str:
        unique, k = name, self._copies.get(name, 1)  # numbers below are taken, or were
        while unique in self._names:
            k += 1
            unique = f"{name}_{k}"
        self._copies[name] = k
        self._names.add(unique)
        return unique

    def _constant(self, position: int) -> Tensor:
        op = self._nodes[position].op
        if not isinstance(op, Constant):  # pragma: no cover - `_append` folds everything that is not variable
            raise TypeError("A folded value is always a Constant.")
        return op.value


def rewritten(
    graph: Graph, replacement: Callable[[Builder, int, Mapping[int, Value]], Value | None]
) -> Graph:
    """A copy of `graph` with the nodes changed for which `replacement`, called with their position and the values that
    all nodes before have now, adds something else (None keeps a node); inputs and constants stay."""
    builder = Builder()
    values: dict[int, Value] = {}
    for i, node in enumerate(graph.nodes):
        builder.at(node.source)
        if isinstance(node.op, Input):
            values[i] = builder.input(node.name, node.shape)
        elif isinstance(node.op, Constant):
            values[i] = builder.constant(node.op.value, node.name)
        else:
            changed = replacement(builder, i, values)
            if changed is None:
                changed = builder.add(node.op, *[values[j] for j in node.inputs], name=node.name)
            values[i] = changed
    return builder.graph(*[values[i] for i in graph.outputs])
