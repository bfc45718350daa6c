"""Chains of operators on one scalar per element, bounded as one univariate function.

Each operator of a chain loses what the earlier ones say of its argument; a product of two functions of one number even
forgets that they are of one number. Chains that are Silu, Gelu, Mish or a polynomial become that operator; others
become one whose bounds come from samples and the range of its second derivative (`ops/sampled.py`), which costs some
hundred times as much as a known operator.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch

from verifier.errors import UnsupportedError
from verifier.graph import Builder, Graph, Univariate, Value
from verifier.graph.builder import rewritten
from verifier.graph.op import Op
from verifier.ops.arithmetic import Add, ScaleShift
from verifier.ops.piecewise_linear import PRelu
from verifier.ops.product import Product, Square
from verifier.ops.sampled import Fused
from verifier.ops.within import Within
from verifier.transforms.closed_forms import IDENTITY, Form, apply, writer
from verifier.transforms.differentiate import differentiate

LONGEST = 24
"""Nodes of a chain."""

SAMPLED = 512
"""Elements of a chain that no operator knows."""


def fuse(graph: Graph, sampled: int = SAMPLED) -> Graph:
    """An equal graph (but for rounding, which is counted) in which chains are one node each; `graph` itself where there
    are none. Chains that no operator knows are fused up to `sampled` elements. Nodes inside of a chain stay where
    something else reads them."""
    finder = _Finder(graph)
    found: dict[int, _Chain] = {}
    covered: set[int] = set()
    for i in range(len(graph.nodes) - 1, -1, -1):
        if i in covered or not _curved(graph.nodes[i].op):
            continue
        chain = finder.known_function(i)
        if chain is None and graph.nodes[i].numel <= sampled:
            chain = finder.sampled(i)
        if chain is None:
            continue
        found[i] = chain
        inner = chain.region - {i}
        if all(set(graph.users[j]) <= chain.region and j not in graph.outputs for j in inner):
            covered |= inner
    if not found:
        return graph

    def replacement(builder: Builder, i: int, values: Mapping[int, Value]) -> Value | None:
        if i not in found:
            return None
        start = builder.constant(torch.zeros(()))
        y = found[i].append(builder, values[found[i].source])
        for position in range(start.position, y.position):  # names are left to the nodes that had them
            builder.rename(Value(position), f"{graph.nodes[i].name}_part")
        return builder.rename(y, graph.nodes[i].name)

    return rewritten(graph, replacement)


def _curved(op: Op) -> bool:
    """What a chain may end with: its last affine steps lose nothing outside of it."""
    return isinstance(op, Product | Square | Univariate | Add)


def _fits(graph: Graph, i: int) -> bool:
    """Whether every element of a node is the same function of the same elements of its arguments."""
    node = graph.nodes[i]
    op = node.op
    if any(graph.nodes[j].shape != node.shape for j in node.inputs):
        return False
    if isinstance(op, Add | Product):
        return True
    if isinstance(op, ScaleShift) and op.doubt is not None:
        return False
    smooth = isinstance(op, Univariate) and not op.jumps and not op.no_derivative
    return (smooth or isinstance(op, ScaleShift)) and all(t.numel() == 1 for t in op.tensors())


class _Chain(NamedTuple):
    """A chain from a source to its end: the nodes after the source, and what to append instead."""

    source: int
    region: set[int]
    append: Callable[[Builder, Value], Value]


class _Finder:
    """Chains that end at a node: the node's sources, those of which all its elements are functions, farthest first."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.sources: list[tuple[int, ...]] = []
        for i, node in enumerate(graph.nodes):
            own: tuple[int, ...] = ()
            if node.inputs and graph.variable[i] and _fits(graph, i):
                shared = set.intersection(*[{j, *self.sources[j]} for j in node.inputs])
                if i > LONGEST:
                    shared = {j for j in shared if len(self.region(i, j)) <= LONGEST}
                own = tuple(sorted(shared))
            self.sources.append(own)

    def region(self, i: int, source: int) -> set[int]:
        """The nodes on the way from a source to a node, which is among them."""
        seen, waiting = set(), [i]
        while waiting:
            j = waiting.pop()
            if j != source and j not in seen and self.graph.variable[j]:
                seen.add(j)
                waiting += self.graph.nodes[j].inputs
                if len(seen) > LONGEST:
                    break
        return seen

    def _bends(self, region: set[int]) -> int:
        """How many of them are curved; a range that is known alone bends nothing."""
        ops = [self.graph.nodes[j].op for j in region]
        return sum(isinstance(op, Univariate | Product) and not isinstance(op, Within) for op in ops)

    def known_function(self, i: int) -> _Chain | None:
        """The longest chain that one operator knows."""
        for source in self.sources[i]:
            region = self.region(i, source)
            if self._bends(region) < 2:
                continue
            form = self._form(i, source)
            append = None if form is None else writer(form)
            if append is not None:
                return _Chain(source, region, append)
        return None

    def _form(self, i: int, source: int) -> Form | None:
        forms: dict[int, Form | None] = {source: IDENTITY}
        for j in sorted(self.region(i, source)):
            arguments = [forms[k] for k in self.graph.nodes[j].inputs]
            known = [f for f in arguments if f is not None]
            forms[j] = apply(self.graph.nodes[j].op, known) if len(known) == len(arguments) else None
        return forms[i]

    def sampled(self, i: int) -> _Chain | None:
        """The longest chain with a product or several curved functions, from the first of them on, that can be
        differentiated twice."""
        if isinstance(self.graph.nodes[i].op, Add):
            return None
        for source in self.sources[i]:
            region = self.region(i, source)
            readers = [j for j in region if source in self.graph.nodes[j].inputs]
            lone = len(readers) == 1 and isinstance(self.graph.nodes[readers[0]].op, ScaleShift)
            if lone or self._bends(region) < 2:
                continue
            op = self._fused(i, source, region)
            if op is not None:
                return _Chain(source, region, _appended(op))
        return None

    def _fused(self, i: int, source: int, region: set[int]) -> Fused | None:
        builder = Builder()
        values = {source: builder.input("x", ())}
        for j in sorted(region):
            node = self.graph.nodes[j]
            values[j] = builder.add(_scalar(node.op), *[values[k] for k in node.inputs])
        bodies = [builder.graph(values[i])]
        one = bodies[0].nodes[0].shape
        for _ in range(3):
            try:
                bodies.append(differentiate(bodies[-1], cotangent=torch.ones(one, dtype=torch.float64)))
            except (UnsupportedError, NotImplementedError):
                break
        return Fused(tuple(bodies)) if len(bodies) > 2 else None


def _appended(op: Fused) -> Callable[[Builder, Value], Value]:
    return lambda builder, x: builder.add(op, x)


def _scalar(op: Op) -> Op:
    """The operator for a value without dimensions."""
    if isinstance(op, ScaleShift):
        scale, shift = (None if t is None else t.reshape(()) for t in (op.scale, op.shift))
        return ScaleShift(scale, shift)
    if isinstance(op, PRelu):
        return PRelu(op.slope.reshape(()))
    return op
