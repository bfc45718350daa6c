"""The difference of two values that are computed alike, from the differences of what they are computed from.

Where a graph subtracts two such values (the outputs of two networks of one structure, on inputs that are tied), the
difference b - a of every pair of values on the way is a value of its own: an affine step takes W d + (W' - W) a, a
function its `Difference`, a product d1 b2 + a1 d2. What is common to both then never enters a bound. The subtraction
itself stays, as an alternative (after ReluDiff and NeuroDiff, Paulsen et al. 2020).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from verifier.graph import Affine, Builder, Graph, Op, Univariate, Value
from verifier.graph.builder import rewritten
from verifier.graph.op import Input
from verifier.ops.alternatives import alternatives
from verifier.ops.arithmetic import Add, ScaleShift, add, negate, subtract
from verifier.ops.convolution import Conv, ConvTranspose
from verifier.ops.difference import Difference, Rate, Secant
from verifier.ops.linear import ConstantMatMul, Linear
from verifier.ops.movement import Concat, Pad, Permute, Reshape, Take
from verifier.ops.product import Product, Square, multiply
from verifier.ops.reduction import Sum
from verifier.ops.signed import signed

Pair = tuple[int, int]

_WEIGHTS = {
    Linear: ("weight", "bias"),
    Conv: ("weight", "bias"),
    ConvTranspose: ("weight", "bias"),
    ConstantMatMul: ("matrix", None),
    ScaleShift: ("scale", "shift"),
}
"""The fields of affine operators in which two that are subtracted may differ: the linear part, and the constant."""
CLOSE = 0.7
"""The largest part of its norm by which the weights of two copies may differ."""
_PLAIN = (Add, Sum, Reshape, Permute, Take, Concat, Pad)
"""Affine operators without a constant, which two copies share."""


def carry_differences(graph: Graph) -> Graph:
    """An equal graph in which differences of values that are computed alike are known in a second way; `graph` itself
    where there are none that depend on something in common. A `Rate` becomes what its difference is in units of what
    it is made by, at every step, or -1 where something else makes it."""
    subtracted = {i: pair for i in range(len(graph.nodes)) if (pair := _subtracted(graph, i)) is not None}
    found = {i: walk for i, pair in subtracted.items() if (walk := _Walk.of(graph, pair)) is not None}
    rates = any(isinstance(node.op, Rate) for node in graph.nodes)
    if not found and not rates:
        return graph

    def replacement(builder: Builder, i: int, values: Mapping[int, Value]) -> Value | None:
        node = graph.nodes[i]
        if isinstance(node.op, Rate):
            return _rate(graph, builder, values, i)
        if i not in found:
            return None
        plain = builder.add(node.op, *[values[j] for j in node.inputs], name=f"{node.name}_apart")
        other = _Carrier(graph, builder, values).difference(found[i])
        return builder.rename(alternatives(builder, plain, other), node.name)

    return rewritten(graph, replacement)


@dataclasses.dataclass(frozen=True)
class _Walk:
    """Pairs of nodes, later ones of which are differences of earlier ones; the last is the one that is asked for."""

    pairs: tuple[Pair, ...]

    @classmethod
    def of(cls, graph: Graph, pair: Pair) -> _Walk | None:
        """For (a, b); None where nothing is gained."""
        pairs, stack, tied, curved = {pair}, [pair], False, False
        while stack:
            first, second = stack.pop()
            tied |= _tied(graph, first, second)
            curved |= first != second and isinstance(graph.nodes[first].op, Univariate)
            fresh = set(_below(graph, first, second)) - pairs
            pairs |= fresh
            stack += fresh
        return cls(tuple(sorted(pairs, key=sum))) if tied and curved else None


def _subtracted(graph: Graph, position: int) -> Pair | None:
    """(a, b) of a node b - a of two values that are computed alike."""
    node = graph.nodes[position]
    if not isinstance(node.op, Add):
        return None
    for a, b in (node.inputs, node.inputs[::-1]):
        op, below = graph.nodes[a].op, graph.nodes[a].inputs
        if not isinstance(op, ScaleShift) or op.scale is None or op.shift is not None:
            continue
        if bool((op.scale == -1).all()) and _below(graph, below[0], b):
            return below[0], b
    return None


def _below(graph: Graph, first: int, second: int) -> list[Pair]:
    """The pairs of arguments whose differences make that of two nodes; none where these are just subtracted."""
    if first == second:
        return []
    a, b = graph.nodes[first], graph.nodes[second]
    if type(a.op) is not type(b.op) or len(a.inputs) != len(b.inputs) or a.shape != b.shape:
        return []
    pairs = list(zip(a.inputs, b.inputs, strict=True))
    if any(graph.nodes[i].shape != graph.nodes[j].shape for i, j in pairs):
        return []
    return pairs if _fits(a.op, b.op) else []


def _fits(a: Op, b: Op) -> bool:
    """Whether the difference of two operators of one type is made of those of their arguments."""
    if isinstance(a, Univariate):
        return not (a.jumps or a.no_derivative) and _alike(a, b)
    if type(a) in _WEIGHTS:
        return _alike(a, b, _WEIGHTS[type(a)]) and _close(a, b)
    return isinstance(a, Product) or (isinstance(a, _PLAIN) and _alike(a, b))


def _close(a: Op, b: Op) -> bool:
    """Whether linear parts differ by less than CLOSE of what they are: elsewhere copies have little in common."""
    name = _WEIGHTS[type(a)][0]
    own, other = getattr(a, name), getattr(b, name)
    return a is b or own is None or bool((other - own).norm() <= CLOSE * own.norm())


def _alike(a: Op, b: Op, but: tuple[str | None, ...] = ()) -> bool:
    """Whether two operators of one type have the same attributes, except for those named."""
    if a is b:
        return True
    for attribute in dataclasses.fields(a):  # pyright: ignore[reportArgumentType]
        own, other = getattr(a, attribute.name), getattr(b, attribute.name)
        if attribute.name in (*but, "doubt"):
            if type(own) is not type(other) or (isinstance(own, Tensor) and own.shape != other.shape):
                return False
        elif isinstance(own, Op):
            if type(own) is not type(other) or not _alike(own, other):
                return False
        elif isinstance(own, Tensor):
            if not isinstance(other, Tensor) or own.shape != other.shape or not torch.equal(own, other):
                return False
        elif own != other:
            return False
    return True


def _tied(graph: Graph, first: int, second: int) -> bool:
    """Whether two nodes that are subtracted have something in common that is known at once."""
    a, b = graph.nodes[first], graph.nodes[second]
    if first == second or first in b.inputs or second in a.inputs:
        return True
    both = isinstance(a.op, Take) and isinstance(b.op, Take) and a.inputs == b.inputs
    return both and bool((a.op.index == b.op.index).any())  # pyright: ignore[reportAttributeAccessIssue]


def _rate(graph: Graph, builder: Builder, values: Mapping[int, Value], position: int) -> Value:
    """What a Rate is, from those of what it is computed from."""
    node = graph.nodes[position]
    assert isinstance(node.op, Rate)
    first, second, unit = node.inputs
    walk = _Walk.of(graph, (first, second))
    try:
        if walk is not None:
            return _RateCarrier(graph, builder, values, unit, node.op.sign).difference(walk)
    except _Unknown:
        pass
    return builder.constant(torch.full(node.shape, -1.0, dtype=graph.dtype))


class _Carrier:
    """Adds the differences of a walk's pairs; None stands for zero."""

    through: type[Difference | Secant] = Difference

    def __init__(self, graph: Graph, builder: Builder, values: Mapping[int, Value]) -> None:
        self.graph, self.builder, self.values = graph, builder, values
        self.found: dict[Pair, Value | None] = {}

    def difference(self, walk: _Walk) -> Value:
        for pair in walk.pairs:
            self.found[pair] = self._of(*pair)
        last = self.found[walk.pairs[-1]]
        return self._zeros(self.graph.nodes[walk.pairs[-1][0]].shape) if last is None else last

    def step(self, op: Affine) -> Affine:
        """How differences go through an affine operator."""
        return op

    def _zeros(self, shape: tuple[int, ...]) -> Value:
        return self.builder.constant(torch.zeros(shape, dtype=self.graph.dtype))

    def _of(self, first: int, second: int) -> Value | None:
        graph, builder, values = self.graph, self.builder, self.values
        a, b = graph.nodes[first], graph.nodes[second]
        builder.at(b.source)
        if first == second:
            return None
        below = _below(graph, first, second)
        if not below:
            return self._subtracted(first, second)
        parts = [self.found[pair] for pair in below]
        if isinstance(a.op, Univariate):
            if parts[0] is None:
                return None
            arguments = values[a.inputs[0]], values[b.inputs[0]], parts[0]
            if isinstance(a.op, Square):
                return multiply(builder, parts[0], add(builder, arguments[0], arguments[1]))
            return builder.add(self.through(a.op, a.shape), *arguments, name=f"{b.name}_less")
        if isinstance(a.op, Product):
            terms = ((parts[0], values[b.inputs[1]]), (parts[1], values[a.inputs[0]]))
            return self._sum([multiply(builder, d, x) for d, x in terms if d is not None])
        return self._affine(first, second, parts)

    def _subtracted(self, first: int, second: int) -> Value:
        """Of nodes that have nothing in common but, perhaps, that one is the other plus something."""
        a, b = self.graph.nodes[first], self.graph.nodes[second]
        if isinstance(b.op, Add) and first in b.inputs:
            return self.values[b.inputs[1 - b.inputs.index(first)]]
        if isinstance(a.op, Add) and second in a.inputs:
            return negate(self.builder, self.values[a.inputs[1 - a.inputs.index(second)]])
        return subtract(self.builder, self.values[second], self.values[first])

    def _affine(self, first: int, second: int, parts: list[Value | None]) -> Value | None:
        """L' d + (L' - L) a, and the difference of the constants."""
        a, b = self.graph.nodes[first], self.graph.nodes[second]
        assert isinstance(a.op, Affine) and isinstance(b.op, Affine)
        less = _Less.of(a.op, b.op)
        if less.doubt is not None:
            return self._subtracted(first, second)
        terms = []
        if any(part is not None for part in parts) or less.constant is not None:
            shapes = [self.graph.nodes[j].shape for j in b.inputs]
            moved = [
                self._zeros(shape) if part is None else part
                for part, shape in zip(parts, shapes, strict=True)
            ]
            terms.append(self.builder.add(self.step(less.kept(b.op)), *moved, name=f"{b.name}_less"))
        if less.weight is not None:
            terms.append(self.builder.add(less.rest(b.op), self.values[a.inputs[0]], name=f"{b.name}_more"))
        return self._sum(terms)

    def _sum(self, terms: list[Value]) -> Value | None:
        if not terms:
            return None
        return terms[0] if len(terms) == 1 else add(self.builder, *terms)


class _Unknown(Exception):
    """A difference is made by something else than the one value that it is to be measured by."""


class _RateCarrier(_Carrier):
    """The same for differences in units of `sign` times the element that node `unit` holds copies of, which then have
    to be made by that alone."""

    through = Secant

    def __init__(
        self, graph: Graph, builder: Builder, values: Mapping[int, Value], unit: int, sign: int
    ) -> None:
        super().__init__(graph, builder, values)
        self.unit, self.sign = unit, sign

    def _subtracted(self, first: int, second: int) -> Value:
        a, b = self.graph.nodes[first], self.graph.nodes[second]
        for sign, whole, part in ((1, b, first), (-1, a, second)):
            if isinstance(whole.op, Add) and part in whole.inputs:
                rest = whole.inputs[1 - whole.inputs.index(part)]
                return self.builder.constant(sign * self.sign * self._shares(rest))
        raise _Unknown

    def step(self, op: Affine) -> Affine:
        return signed(op)

    def _shares(self, node: int) -> Tensor:
        """Which elements of a node are the unit's element; the others must be zero."""
        graph = self.graph
        moved = {node, self.unit}
        for i in range(max(moved), -1, -1):
            if i in moved and not isinstance(op := graph.nodes[i].op, Input):
                if not (isinstance(op, Affine) and op.exact):
                    raise _Unknown
                moved.update(graph.nodes[i].inputs)
        every = [torch.zeros(1, *graph.nodes[i].shape, dtype=torch.float64) for i in graph.inputs]
        places = [x.flatten() for x in every]
        count = sum(len(x) for x in places)
        numbers = torch.arange(1, count + 1, dtype=torch.float64).split([len(x) for x in places])
        feed = [n.view(x.shape) for n, x in zip(numbers, every, strict=True)]
        own, unit = graph.evaluate(feed, [node, self.unit])
        mine = own == unit.flatten()[0]
        if not bool((unit == unit.flatten()[0]).all()) or not bool((mine | (own == 0)).all()):
            raise _Unknown
        return mine[0].to(graph.dtype)

    def _affine(self, first: int, second: int, parts: list[Value | None]) -> Value | None:
        less = _Less.of(*[self.graph.nodes[i].op for i in (first, second)])  # pyright: ignore[reportArgumentType]
        if less.weight is not None or less.constant is not None or less.doubt is not None:
            raise _Unknown
        return super()._affine(first, second, parts)


@dataclasses.dataclass(frozen=True, eq=False)
class _Less:
    """What a second affine operator has more than a first one of its kind: None where the same."""

    weight: Tensor | None
    constant: Tensor | None
    doubt: Tensor | None

    @classmethod
    def of(cls, first: Affine, second: Affine) -> _Less:
        names = _WEIGHTS.get(type(first))
        if names is None or first is second:
            return cls(None, None, None)
        weight, constant = (_less(first, second, name) for name in names)
        doubts = [t for op in (first, second) if (t := getattr(op, "doubt", None)) is not None]
        return cls(weight, constant, doubts[0] if doubts else None)

    def kept(self, second: Affine) -> Affine:
        """The second operator's linear part, and the constants' difference."""
        names = _WEIGHTS.get(type(second))
        return second if names is None or names[1] is None else _changed(second, {names[1]: self.constant})

    def rest(self, second: Affine) -> Affine:
        """The difference of the linear parts."""
        weight, constant = _WEIGHTS[type(second)]
        return _changed(second, {weight: self.weight} | ({} if constant is None else {constant: None}))


def _less(first: Affine, second: Affine, name: str | None) -> Tensor | None:
    """The difference of one tensor, each element rounded once; None where it is zero."""
    if name is None or getattr(first, name) is None:
        return None
    own, other = getattr(first, name), getattr(second, name)
    if torch.equal(own, other):
        return None
    return (other.double() - own.double()).to(own.dtype)


def _changed(op: Affine, fields: dict[str, Tensor | None]) -> Affine:
    if hasattr(op, "doubt"):
        fields = fields | {"doubt": None}
    return replace(op, **fields)  # pyright: ignore[reportArgumentType]
