"""Norms of Jacobians as graphs: from an input and a seed to values whose largest is the norm, or its square."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor

from verifier.graph import Builder, Graph, Value
from verifier.graph.op import Constant, Shape
from verifier.ops.arithmetic import negate, scale_shift
from verifier.ops.linear import Linear
from verifier.ops.movement import reshape, take
from verifier.ops.piecewise_linear import absolute
from verifier.ops.product import square
from verifier.ops.reduction import total
from verifier.ops.select import concat
from verifier.transforms.differentiate import depends, differentiate, push_forward
from verifier.transforms.fold import fold
from verifier.transforms.prepare import prepare
from verifier.transforms.switches import join_switches

Norm = Literal["inf", "2", "1"]
COVERED = 4
CELLS = {2: 32, 3: 8, 4: 4}
"""Of so many rows norms are taken in directions, cells of a cube's edge for each: 64, 193 and 272 of them."""


@dataclass(frozen=True, eq=False)
class Objective:
    """What is to be maximised over an input set and S seeds.

    `raw` maps the network's inputs and a seed to values [K]; the largest value over the set, the seeds and k is the
    Lipschitz constant to the power of `power`, where `exact`, and otherwise a bound of it. `seeds` is [S, *seed shape].
    """

    raw: Graph
    seeds: Tensor
    power: int = 1
    exact: bool = True

    @cached_property
    def graph(self) -> Graph:
        """`raw` as engines like it."""
        return prepare(self.raw)

    @cached_property
    def flat(self) -> Graph:
        """The same with one input vector, the network's inputs and then the seed, as searches have it."""
        builder = Builder()
        shapes = [self.graph.nodes[i].shape for i in self.graph.inputs]
        x = builder.input("x", (sum(math.prod(s) for s in shapes),))
        feed = dict(zip(self.graph.inputs, _split(builder, x, shapes), strict=True))
        return builder.graph(*builder.include(self.graph, feed))

    def margins(self, target: float) -> Graph:
        """`flat` with target - value, [K], in place of the values."""
        flat = self.flat
        builder = Builder()
        source = flat.inputs[0]
        x = builder.input("x", flat.nodes[source].shape)
        (values,) = builder.include(flat, {source: x})
        return fold(builder.graph(scale_shift(builder, values, scale=-1.0, shift=target)))


def objective(graph: Graph, norm: Norm, rows: Tensor) -> Objective:
    """The norm of the Jacobian of rows @ f, for the first output of `graph`, flattened, and `rows` [R, n_out], induced
    by the vectors' `norm` on both sides.

    "inf": the largest sum of absolute values of a row. "1": of a column; for R = 1 that is the largest absolute value.
    "2": for R = 1 the gradient's length, squared; for up to COVERED rows the longest of u @ rows @ f for directions u
    of a `cover` (at most 0.05, 1.6 or 9 % too long); for more rows, or rows that mix outputs, the sum of squares of
    all entries (Frobenius), which is at least as large. Several inputs of the network count as one vector. Raises
    UnsupportedError that names all operators without a derivative.
    """
    rows = rows.to(graph.dtype)
    shape = graph.nodes[graph.outputs[0]].shape
    if norm == "1" and len(rows) > 1:
        return _columns(graph, rows)
    covered = norm == "2" and 1 < len(rows) <= COVERED and selects(rows)
    if norm == "2" and len(rows) > 1 and not covered:
        return _frobenius(graph, rows)
    pulled = join_switches(differentiate(graph))
    builder, gradient = _gradient(pulled)
    if norm == "inf":
        value = total(builder, absolute(builder, gradient), [0], keep=True)
    elif norm == "2":
        value = total(builder, square(builder, gradient), [0], keep=True)
    else:
        value = concat(builder, [gradient, negate(builder, gradient)], 0)
    seeds = (cover(len(rows)).to(rows) @ rows if covered else rows).view(-1, *shape)
    return Objective(fold(builder.graph(value)), seeds, 2 if norm == "2" else 1, not covered)


def selects(rows: Tensor) -> bool:
    """Whether every row is an output, or its negative."""
    return bool(((rows != 0).sum(1) == 1).all()) and bool((rows.abs().sum(1) == 1).all())


def cover(size: int) -> Tensor:
    """Vectors [S, size], about of length one, such that every vector of length one is a convex combination of them and
    their negatives: a convex function that is equal for both is nowhere on the sphere more than the largest at these.

    The corners of a grid on the cube's faces, made of one length; a cell's corners lie within an angle a of its middle,
    so that their combinations are no shorter than cos(a), which they are lengthened by.
    """
    cells = CELLS[size]
    ends = torch.linspace(-1, 1, cells + 1, dtype=torch.float64)
    points = torch.cartesian_prod(*[ends] * size)
    points = points[points.abs().amax(1) == 1]
    first = points.gather(1, (points != 0).to(torch.int8).argmax(1, keepdim=True))
    points = points[first[:, 0] > 0]  # one of each pair of negatives
    middles = torch.cartesian_prod(*[(ends[1:] + ends[:-1]) / 2] * (size - 1)).view(-1, 1, size - 1)
    offsets = torch.cartesian_prod(*[torch.tensor([-1.0, 1.0], dtype=torch.float64)] * (size - 1))
    corners = middles + offsets.view(1, -1, size - 1) / cells
    face = (
        torch.nn.functional.pad(middles, (0, 1), value=1.0),
        torch.nn.functional.pad(corners, (0, 1), value=1.0),
    )
    units = [t / t.norm(dim=2, keepdim=True) for t in face]
    nearest = float((units[0] * units[1]).sum(2).amin())
    return (points / points.norm(dim=1, keepdim=True) * ((1 + 1e-6) / nearest)).float()


def gradients(graph: Graph, rows: Tensor) -> Objective:
    """Not a norm but the gradients themselves: values [n_in], for each of the `rows` [R, n_out] as a seed."""
    builder, gradient = _gradient(join_switches(differentiate(graph)))
    shape = graph.nodes[graph.outputs[0]].shape
    return Objective(fold(builder.graph(gradient)), rows.to(graph.dtype).view(-1, *shape), 1, False)


def _gradient(pulled: Graph) -> tuple[Builder, Value]:
    """A builder that holds the vector-Jacobian product, and all its outputs as one vector."""
    builder = Builder()
    feed = {i: builder.input(pulled.nodes[i].name, pulled.nodes[i].shape) for i in pulled.inputs}
    parts = [reshape(builder, v, (-1,)) for v in builder.include(pulled, feed)]
    gradient = concat(builder, parts, 0)
    if builder.is_variable(gradient):
        return builder, gradient
    source = reshape(builder, feed[pulled.inputs[0]], (-1,))  # engines take variables only
    zero = scale_shift(builder, take(builder, source, lambda t: t[:1]), scale=0.0)
    return builder, scale_shift(builder, zero, shift=builder.tensor(gradient))


def _split(builder: Builder, x: Value, shapes: Sequence[Shape]) -> list[Value]:
    """The parts, of these shapes, that a vector holds one after another."""
    ends = list(itertools.accumulate([math.prod(s) for s in shapes], initial=0))
    return [
        reshape(builder, take(builder, x, lambda t, a=a, b=b: t[a:b]), shape)
        for (a, b), shape in zip(itertools.pairwise(ends), shapes, strict=True)
    ]


def repeated(
    builder: Builder,
    graph: Graph,
    feed: Mapping[int, Value],
    places: Sequence[int],
    given: Sequence[Sequence[Value]],
) -> Iterator[list[Value]]:
    """The graph's outputs for each of what is `given` to its inputs `places`, the others being `feed`; what does not
    depend on these is appended once."""
    late = depends(graph, places)
    shared = dict(feed)
    for i, node in enumerate(graph.nodes):
        if i in shared or late[i]:
            continue
        if isinstance(node.op, Constant):
            shared[i] = builder.constant(node.op.value, node.name)
        else:
            shared[i] = builder.at(node.source).add(
                node.op, *[shared[j] for j in node.inputs], name=node.name
            )
    for values in given:
        yield builder.include(graph, {**shared, **dict(zip(places, values, strict=True))})


def _columns(graph: Graph, rows: Tensor) -> Objective:
    """Sums over the rows, for the unit vectors of the input as seeds."""
    pushed = join_switches(push_forward(graph))
    builder = Builder()
    half = len(pushed.inputs) // 2
    shapes = [pushed.nodes[i].shape for i in pushed.inputs]
    feed = {
        i: builder.input(pushed.nodes[i].name, s)
        for i, s in zip(pushed.inputs[:half], shapes[:half], strict=True)
    }
    size = sum(math.prod(s) for s in shapes[half:])
    seed = builder.input("seed", (size,))
    feed.update(zip(pushed.inputs[half:], _split(builder, seed, shapes[half:]), strict=True))
    (column,) = builder.include(pushed, feed)
    column = reshape(builder, column, (-1,))
    chosen = _combined(builder, column, rows)
    value = total(builder, absolute(builder, chosen), [0], keep=True)
    return Objective(fold(builder.graph(value)), torch.eye(size, dtype=graph.dtype))


def _frobenius(graph: Graph, rows: Tensor) -> Objective:
    """The backward pass written out for every row; the seed counts for nothing."""
    builder = Builder()
    pulled = join_switches(differentiate(graph))
    feed = {i: builder.input(pulled.nodes[i].name, pulled.nodes[i].shape) for i in pulled.inputs[:-1]}
    seed = scale_shift(builder, builder.input("seed", (1,)), scale=0.0)
    held = pulled.nodes[pulled.inputs[-1]].shape
    seeds = [(builder.constant(row.view(held)),) for row in rows]
    squares = [seed]
    for parts in repeated(builder, pulled, feed, pulled.inputs[-1:], seeds):
        for part in parts:
            flat = reshape(builder, part, (-1,))
            squares.append(total(builder, square(builder, flat), [0], keep=True))
    value = total(builder, concat(builder, squares, 0), [0], keep=True)
    return Objective(fold(builder.graph(value)), torch.ones(1, 1, dtype=graph.dtype), 2, exact=False)


def _combined(builder: Builder, x: Value, rows: Tensor) -> Value:
    eye = len(rows) == rows.shape[1] and torch.equal(rows, torch.eye(len(rows), dtype=rows.dtype))
    return x if eye else builder.add(Linear(rows, None), x)
