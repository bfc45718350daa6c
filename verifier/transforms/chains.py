"""Chains of gated recurrences, S_t = a_t * S_(t-1) + B_t, in graphs of plain operators."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from verifier.graph import Builder, Graph, Value
from verifier.ops.arithmetic import Add, ScaleShift, scale_shift
from verifier.ops.decay import SigmoidPower
from verifier.ops.exponential import Exp
from verifier.ops.movement import Permute, Reshape, Take
from verifier.ops.power import Power
from verifier.ops.product import Product
from verifier.ops.sigmoid import Sigmoid
from verifier.ops.softplus import log_sigmoid

SHORTEST, LONGEST = 3, 64
"""Steps of a chain that is looked at."""

Make = Callable[[Builder, Value], Value]


class _Step(NamedTuple):
    """State `node` = gate * `before` + `write`; `by` is the node that applies the gate, or none for a gate of 1."""

    node: int
    before: int
    write: int
    by: int | None


@dataclass(frozen=True)
class Chain:
    """States from the first on, all with elements in the same order; what writes them (the first is a write), and the
    gates between them: nodes, or constants [n], or none. `inner` are the nodes of the steps."""

    states: tuple[int, ...]
    writes: tuple[int, ...]
    gates: tuple[int | Tensor | None, ...]
    inner: frozenset[int]

    def until(self, last: int) -> Chain:
        """The states up to number `last`."""
        return replace(
            self, states=self.states[: last + 1], writes=self.writes[: last + 1], gates=self.gates[:last]
        )


def chains(graph: Graph) -> list[Chain]:
    """The longest chains, whose gates and writes do not depend on a state."""
    steps: dict[int, _Step] = {}
    length: dict[int, int] = {}
    for i in range(len(graph.nodes)):
        for step in _steps(graph, i):
            if length.get(step.before, 0) + 1 > length.get(i, 0):
                steps[i], length[i] = step, length.get(step.before, 0) + 1
    inner = {step.before for step in steps.values()}
    chains = [
        _followed(graph, steps, i) for i, n in length.items() if i not in inner and SHORTEST <= n <= LONGEST
    ]
    return [chain for chain in chains if chain is not None]


def _steps(graph: Graph, i: int) -> list[_Step]:
    """The ways to take a sum for a step, gated ones first."""
    node = graph.nodes[i]
    if not isinstance(node.op, Add) or any(_vanishes(graph, j) for j in node.inputs):
        return []
    gated, plain = [], []
    for x, write in (node.inputs, node.inputs[::-1]):
        source = _reshaped(graph, x)
        op, arguments = graph.nodes[source].op, graph.nodes[source].inputs
        if isinstance(op, Product):
            for before, gate in (arguments, arguments[::-1]):
                if logarithm(graph, moved(graph, gate)[0]) is not None:
                    gated.append(_Step(i, _reshaped(graph, before), write, source))
        elif isinstance(op, ScaleShift) and op.shift is None and op.doubt is None:
            gated.append(_Step(i, _reshaped(graph, arguments[0]), write, source))
        plain.append(_Step(i, source, write, None))
    return gated + plain


def _followed(graph: Graph, steps: Mapping[int, _Step], last: int) -> Chain | None:
    """The chain that ends with `last`, or None where a gate or write depends on its first state."""
    way: list[_Step] = []
    while last in steps:
        way.insert(0, steps[last])
        last = steps[last].before
    gates: list[int | Tensor | None] = []
    for step in way:
        if last in graph.ancestors(step.write):
            return None
        gate = None if step.by is None else _gate(graph, step.by, step.before)
        if isinstance(gate, int) and last in graph.ancestors(gate):
            return None
        gates.append(gate)
    inner = {n for step in way for n in (step.node, step.by) if n is not None}
    return Chain(
        (last, *[s.node for s in way]), (last, *[s.write for s in way]), tuple(gates), frozenset(inner)
    )


def _gate(graph: Graph, by: int, before: int) -> int | Tensor | None:
    node = graph.nodes[by]
    if isinstance(node.op, ScaleShift):
        return None if node.op.scale is None else node.op.scale.expand(node.shape).flatten()
    first, second = node.inputs
    return second if _reshaped(graph, first) == before else first


def _reshaped(graph: Graph, i: int) -> int:
    while isinstance(graph.nodes[i].op, Reshape):
        i = graph.nodes[i].inputs[0]
    return i


def moved(graph: Graph, i: int) -> tuple[int, Tensor]:
    """The node that elements of a node are copied from, and their flat positions there. Sums with multiples of zero are
    looked through: an unrolled loop has them in its first step."""
    index = torch.arange(graph.nodes[i].numel)
    while True:
        op, inputs = graph.nodes[i].op, graph.nodes[i].inputs
        if isinstance(op, Take):
            index = op.index[index]
        elif isinstance(op, Permute):
            places = torch.arange(graph.nodes[i].numel).view(1, *graph.nodes[inputs[0]].shape)
            index = op.forward(places).flatten()[index]
        elif isinstance(op, Add) and any(_vanishes(graph, j) for j in inputs):
            inputs = [j for j in inputs if not _vanishes(graph, j)][:1] or inputs[:1]
        elif not isinstance(op, Reshape):
            return i, index
        i = inputs[0]


def _vanishes(graph: Graph, i: int) -> bool:
    op = graph.nodes[_reshaped(graph, i)].op
    return (
        isinstance(op, ScaleShift)
        and op.shift is None
        and op.doubt is None
        and op.scale is not None
        and not op.scale.any()
    )


def logarithm(graph: Graph, i: int) -> tuple[int, Hashable, Make] | None:
    """What the logarithm of a node is a function of, a name of that function, and how to write it; None where it is
    not known in closed form."""
    op, inputs = graph.nodes[i].op, graph.nodes[i].inputs
    if isinstance(op, Exp):
        return inputs[0], "plain", lambda _, x: x
    rate = 1.0
    if isinstance(op, Power) and op.exponent > 0:
        rate, op = op.exponent, graph.nodes[inputs[0]].op
        inputs = graph.nodes[inputs[0]].inputs
    elif isinstance(op, SigmoidPower):
        rate, op = op.exponent, Sigmoid()
    if not isinstance(op, Sigmoid):
        return None
    return inputs[0], rate, lambda builder, x: scale_shift(builder, log_sigmoid(builder, x), scale=rate)
