"""Parts of a model that depend on the network's input only through a few integers.

A slice that begins where the input says has no fixed shape and no place in the graph. But such values are functions
of integers; where they meet the rest of the network they become a `Lookup`, whose entries the nodes between are
evaluated for.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from verifier.frontends.onnx_constants import LAYERS
from verifier.graph import Builder, Value
from verifier.graph.registry import Unsupported
from verifier.ops.integers import integral
from verifier.ops.lookup import Table, lookup

if TYPE_CHECKING:
    import onnx

MOST = 3
"""Integers that one table may depend on."""
_ROOTS = ("Cast", "ArgMax", "ArgMin")
_EXAMPLES = ((0, 0, 0), (1, 1, 1), (0, 1, 2), (2, 1, 0), (-1, -1, -1))

Evaluate = Callable[[list["np.ndarray | None"]], list[np.ndarray]]
"""Computes a node's results of its inputs."""


def graphs(node: onnx.NodeProto) -> dict[str, onnx.GraphProto]:
    """The graphs among a node's attributes."""
    return {a.name: a.g for a in node.attribute if a.HasField("g")}


def reads(node: onnx.NodeProto) -> list[str]:
    """The values that a node or the graphs that it holds read."""
    return [
        *node.input,
        *[name for graph in graphs(node).values() for name in sorted(free_names(graph), key=str)],
    ]


def free_names(graph: onnx.GraphProto) -> set[str]:
    """The values that a graph reads from around it."""
    inside = {t.name for t in graph.initializer} | {i.name for i in graph.input}
    inside.update(o for node in graph.node for o in node.output)
    read = {i for node in graph.node for i in reads(node)} | {o.name for o in graph.output}
    return read - inside - {""}


def _wraps(array: np.ndarray) -> bool:
    """Whether these may be integers that do not fit into 32 bits: they are counted here, whatever their type, in 64."""
    return array.dtype.kind in "iu" and bool((np.abs(array.astype(np.float64)) >= 2.0**31).any())


class Discrete:
    """`pending` names values that are functions of integers and have no node in the graph; `values` are the others'."""

    def __init__(
        self,
        graph: onnx.GraphProto,
        builder: Builder,
        values: Mapping[str, Value],
        evaluator: Callable[[onnx.NodeProto], Evaluate],
    ) -> None:
        self._graph, self._builder, self._values, self._evaluator = graph, builder, values, evaluator
        self._makers = {o: n for n in graph.node for o in n.output if o}
        self._found: dict[str, frozenset[str] | None] = {}
        self.pending: set[str] = set()

    def covers(self, node: onnx.NodeProto) -> bool:
        """Whether all that a node reads is constant or depends on integers, on few of them."""
        if graphs(node) or node.op_type in LAYERS:
            return False
        roots = [self._roots(name) for name in node.input if name]
        known = [r for r in roots if r is not None]
        if len(known) < len(roots) or not any(known):
            return False
        return sum(self._size(name) for name in frozenset().union(*known)) <= MOST

    def _size(self, name: str) -> int:
        return math.prod(self._builder.shape(self._values[name]))

    def _roots(self, name: str) -> frozenset[str] | None:
        """The integers in the graph that a value depends on, by name; None where it depends on other things, too."""
        if name not in self._found:
            self._found[name] = self._find_roots(name)
        return self._found[name]

    def _find_roots(self, name: str) -> frozenset[str] | None:
        value = self._values.get(name)
        if value is not None and not self._builder.is_variable(value):
            return frozenset()
        maker = self._makers.get(name)
        if maker is None or graphs(maker) or maker.op_type in LAYERS:
            return None
        below = [self._roots(i) for i in maker.input if i]
        known = [r for r in below if r is not None]
        if len(known) == len(below):
            return frozenset().union(*known)
        whole = value is not None and maker.op_type in _ROOTS and integral(self._builder, value)
        return frozenset({name}) if whole and self._size(name) <= MOST else None

    def materialise(self, name: str) -> Value:
        """A pending value as a node. Raises Unsupported where it cannot be computed, or has no fixed shape."""
        roots = sorted(self._roots(name) or ())
        function = self._function(name, roots)
        count = sum(self._size(root) for root in roots)
        shapes = {tuple(v.shape) for e in _EXAMPLES if (v := function(e[:count])) is not None}
        if len(shapes) != 1:
            raise Unsupported(
                "its shape depends on the network's input"
                if shapes
                else "a value that depends on integers cannot be computed"
            )
        shape = shapes.pop()
        if not math.prod(shape):
            raise Unsupported("it has no elements")
        return lookup(self._builder, Table(function, count, shape), [self._values[r] for r in roots])

    def _function(self, name: str, roots: list[str]) -> Callable[[tuple[int, ...]], Tensor | None]:
        nodes = list(self._between(name, roots))
        steps = [(self._evaluator(node), list(node.input), list(node.output)) for node in nodes]
        shapes = [self._builder.shape(self._values[root]) for root in roots]
        constants: dict[str, np.ndarray] = {}
        for i in {i for node in nodes for i in node.input}:
            tensor = self._builder.tensor(self._values[i]) if i in self._values else None
            if tensor is not None:
                constants[i] = tensor.numpy()

        def function(cell: tuple[int, ...]) -> Tensor | None:
            arrays, start = dict(constants), 0
            for root, shape in zip(roots, shapes, strict=True):
                size = math.prod(shape)
                arrays[root] = np.array(cell[start : start + size], dtype=np.int64).reshape(shape)
                start += size
            try:
                for evaluate, given, made in steps:
                    found = evaluate([arrays.get(i) for i in given])
                    if any(map(_wraps, found)):
                        return None
                    arrays.update(zip(made, found, strict=False))
            except (Unsupported, ValueError, IndexError, ArithmeticError, TypeError):
                return None  # the model has no value there
            return torch.from_numpy(np.array(arrays[name], dtype=np.float64))

        return function

    def _between(self, name: str, roots: list[str]) -> Iterator[onnx.NodeProto]:
        """The nodes that compute a value from the roots, in order."""
        needed, chosen = {name}, []
        for node in reversed(self._graph.node):
            mine = needed.intersection(node.output) - set(roots)
            constant = all(o in self._values and not self._builder.is_variable(self._values[o]) for o in mine)
            if mine and not constant:
                chosen.append(node)
                needed.update(i for i in node.input if i)
        return reversed(chosen)
