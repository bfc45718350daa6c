"""Values in order along an axis: sorting, GroupSort, MaxMin, the largest few."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from verifier.graph import Builder, Composite, Elementwise, Interval, Parameter, Relaxation, Value
from verifier.graph.op import Shape
from verifier.graph.registry import Unsupported
from verifier.ops.arithmetic import add, subtract
from verifier.ops.movement import Take, broadcast, permute
from verifier.ops.piecewise_linear import relu
from verifier.ops.reduction import normalised
from verifier.ops.select import concat

MOST = 64
"""More elements than these are not ordered."""

FEW = 8
"""Up to so many elements each result is told which ends of intervals it lies between."""


@dataclass(frozen=True, eq=False)
class Ranked(Elementwise):
    """The first argument, of which is known that it is the one of rank `ranks` (0: the largest) among the others;
    `ranks` has a rank per element.

    It lies between the others' lower ends, and upper ends, of that rank; lines mix it with these, with free shares.
    """

    ranks: Tensor

    def forward(self, *xs: Tensor) -> Tensor:
        return xs[0]

    def restrict(self, index: Tensor, shape: Shape) -> Ranked:
        return Ranked(self.ranks.expand(shape).flatten()[index])

    def _ends(self, xs: Sequence[Interval]) -> Interval:
        low = torch.stack(torch.broadcast_tensors(*[x.lower for x in xs[1:]])).sort(0, descending=True)[0]
        high = torch.stack(torch.broadcast_tensors(*[x.upper for x in xs[1:]])).sort(0, descending=True)[0]
        ranks = self.ranks.expand(low.shape[1:]).unsqueeze(0)
        return Interval(low.gather(0, ranks)[0], high.gather(0, ranks)[0])

    def interval(self, *xs: Interval) -> Interval:
        return xs[0].intersect(self._ends(xs))

    def parameters(self, *xs: Interval) -> dict[str, Parameter]:
        """`lower` and `upper`: how much of the argument a line has; all where its interval does not reach beyond."""
        x, met = xs[0], self.interval(*xs)
        width = (x.upper - x.lower).clamp(min=torch.finfo(x.lower.dtype).tiny)
        share = torch.nan_to_num((met.upper - met.lower) / width, nan=0.0).clamp(0, 1)
        one, found = torch.ones_like(share), {}
        for name, beyond in (("lower", x.lower < met.lower), ("upper", x.upper > met.upper)):
            found[name] = Parameter(torch.where(beyond, share, one), torch.where(beyond, 0 * one, one), one)
        return found

    def relax(self, parameters: Mapping[str, Tensor], *xs: Interval) -> Relaxation:
        ends = self._ends(xs)
        zero = torch.zeros_like(parameters["lower"] + ends.lower)
        lines = []
        for name, end, sign in (("lower", ends.lower, -1.0), ("upper", ends.upper, 1.0)):
            share = parameters[name] + zero
            endless = end.isinf() & (share < 1)
            constant = torch.where(end.isinf(), zero, (1 - share) * end)
            constant = constant.masked_fill(endless, sign * torch.inf)
            lines += [(share, *[zero] * (len(xs) - 1)), constant]
        return Relaxation(*lines)

    def refinable(self, index: int, *xs: Interval) -> Tensor:
        """Tighter ends of any argument help where the first reaches beyond them."""
        ends = self._ends(xs)
        beyond = (xs[0].lower < ends.lower) | (xs[0].upper > ends.upper)
        return beyond & (xs[index].upper > xs[index].lower)

    def vjp(
        self, builder: Builder, inputs: Sequence[Value], output: Value, cotangent: Value
    ) -> Sequence[Value | None]:
        return [cotangent, *[None] * (len(inputs) - 1)]


@dataclass(frozen=True, eq=False)
class Sorted(Composite):
    """The `count` largest (or smallest) elements along `axis` (non-negative), in order.

    Written out as a network of comparators: one Relu each, relu(a - b), which the larger has more than b and the
    smaller less than a, so that sums stay exact and splitting Relus decides the order.
    """

    axis: int
    count: int
    largest: bool

    def output_shape(self, *shapes: Shape) -> Shape:
        return tuple(self.count if a == self.axis else n for a, n in enumerate(shapes[0]))

    def forward(self, *xs: Tensor) -> Tensor:
        found = xs[0].sort(self.axis + 1, descending=self.largest).values
        return found.narrow(self.axis + 1, 0, self.count)

    def interval(self, *xs: Interval) -> Interval:
        """Ranks rise with every element."""
        return xs[0].map(self.forward)

    def write_out(self, builder: Builder, *xs: Value) -> Value:
        size = builder.shape(xs[0])[self.axis]
        order = [*[a for a in range(len(builder.shape(xs[0]))) if a != self.axis], self.axis]
        x = permute(builder, xs[0], order)
        y = x
        for layer in comparators(size, self.count):
            y = self._compared(builder, y, layer)
        y = _places(builder, y, list(range(self.count)))
        if 2 <= size <= FEW:
            shape = builder.shape(y)
            others = [broadcast(builder, _places(builder, x, [k]), shape) for k in range(size)]
            ranks = torch.arange(self.count) if self.largest else size - 1 - torch.arange(self.count)
            y = builder.add(Ranked(ranks.expand(shape)), y, *others)
        return permute(builder, y, sorted(range(len(order)), key=order.__getitem__))

    def _compared(self, builder: Builder, x: Value, pairs: Sequence[tuple[int, int]]) -> Value:
        """The elements of each pair of places in order."""
        size = builder.shape(x)[-1]
        first, second = [i for i, _ in pairs], [j for _, j in pairs]
        a, b = _places(builder, x, first), _places(builder, x, second)
        more = relu(builder, subtract(builder, a, b))
        top, bottom = add(builder, more, b), subtract(builder, a, more)
        parts = [top, bottom] if self.largest else [bottom, top]
        rest = [k for k in range(size) if k not in first and k not in second]
        if rest:
            parts.append(_places(builder, x, rest))
        placed = [*first, *second, *rest]
        return _places(builder, concat(builder, parts, -1), sorted(range(size), key=placed.__getitem__))


def comparators(size: int, count: int) -> list[list[tuple[int, int]]]:
    """Layers of pairs of places that, put in order one layer after another, bring the first `count` of `size` elements
    to their places: merges of odd and even places (Batcher, 1968), without pairs that nothing wanted depends on."""
    layers: list[list[tuple[int, int]]] = []
    top = 1 << max(size - 1, 0).bit_length()
    p = top // 2
    while p > 0:
        q, r, d = top // 2, 0, p
        while True:
            layers.append([(i, i + d) for i in range(size - d) if i & p == r])
            if q == p:
                break
            d, q, r = q - p, q // 2, p
        p //= 2
    wanted, found = set(range(count)), []
    for layer in reversed(layers):
        used = [pair for pair in layer if wanted.intersection(pair)]
        wanted.update(*used)
        if used:
            found.append(used)
    return found[::-1]


def _places(builder: Builder, x: Value, index: Sequence[int]) -> Value:
    """Elements along the last axis."""
    shape = builder.shape(x)
    if list(index) == list(range(shape[-1])):
        return x
    flat = torch.arange(math.prod(shape)).view(shape)[..., torch.tensor(index)]
    return builder.add(Take(flat.flatten(), tuple(flat.shape)), x)


def in_order(builder: Builder, x: Value, axis: int, count: int, largest: bool = True) -> Value:
    """The `count` largest (or smallest) elements along `axis`, in order. Raises Unsupported for more than MOST."""
    shape = builder.shape(x)
    (axis,) = normalised([axis], shape)
    if shape[axis] > MOST:
        raise Unsupported(f"the order of {shape[axis]} values, which are more than {MOST}")
    return builder.add(Sorted(axis, min(count, shape[axis]), largest), x)
