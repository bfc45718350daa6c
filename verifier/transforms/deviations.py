"""States of delta rules as near to a nominal trajectory as their norms say.

For any constants C_t, S_t - C_t = (I - b_t k_t k_t^T) (S_(t-1) - C_(t-1)) + D_t, where D_t is what the step makes of
C_(t-1), less C_t. As a step makes no column longer, |S_t - C_t| <= |S_(t-1) - C_(t-1)| + |D_t| column by column. With
a = b k and w = v - C_(t-1)^T k, and constants a', w' near them,

    D_t = (a - a') w'^T + a (w - w')^T + (C_(t-1) + a' w'^T - C_t),

of which only the first two vary with the input, by one step's numbers. The constants are the values at the middle of
the input set, rounded to numbers that float32 holds exactly. Decays between steps, S' = g S, shorten all by |g| and add
|g - g'| |C|. (The same for S_t itself, which is 5 to 30 times looser: Yang et al. 2024, arXiv 2406.06484, section 3.)
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from verifier.graph import Builder, Graph, Value
from verifier.graph.builder import rewritten
from verifier.ops.arithmetic import add, scale_shift
from verifier.ops.movement import Take, reshape
from verifier.ops.near import near
from verifier.ops.piecewise_linear import absolute
from verifier.ops.power import power
from verifier.ops.product import Product, multiply, square
from verifier.ops.reduction import Sum
from verifier.ops.within import within
from verifier.transforms.chains import moved
from verifier.transforms.delta_rules import DeltaStep, Part, delta_step

FEWEST = 16
"""Steps of a rule, at least: intervals of fewer ones are as narrow, or of as little use."""


class _Ball(NamedTuple):
    """Columns `members` [n, K] of a value are within `radius` [n] (none: 0) of those of `center` [numel]."""

    center: Tensor
    radius: Value | None
    members: Tensor


def bound_deviations(graph: Graph, points: Sequence[Tensor], fewest: int = FEWEST) -> Graph:
    """An equal graph in which states of delta rules are known to be near their values at the one point given, a tensor
    [1, *shape] per graph input; `graph` itself where there are fewer than `fewest`."""
    if not points or any(len(p) != 1 for p in points):
        return graph
    steps = {i: step for i in range(len(graph.nodes)) if (step := delta_step(graph, i)) is not None}
    if len(steps) < max(fewest, 1):
        return graph
    with torch.no_grad():
        found = graph.evaluate([p.to(graph.dtype) for p in points], range(len(graph.nodes)))
    middle = [_held(v.double().flatten()) for v in found]
    if not all(bool(middle[i].isfinite().all()) for step in steps.values() for i in (step.node, step.before)):
        return graph
    walk = _Walk(graph, steps, middle)
    return rewritten(graph, walk.replacement)


def _held(x: Tensor) -> Tensor:
    """The nearest numbers that float32 holds."""
    return x.float().double()


def _above(x: Tensor) -> Tensor:
    """Numbers that float32 holds, no less than x, which is known within a few roundings of float64."""
    return torch.nextafter((x * (1 + 1e-12)).float(), torch.tensor(math.inf)).double()


class _Walk:
    """The new graph under construction, with what is known of the states so far."""

    def __init__(self, graph: Graph, steps: Mapping[int, DeltaStep], middle: Sequence[Tensor]) -> None:
        self._graph, self._steps, self._middle = graph, steps, middle
        self._balls: dict[int, _Ball] = {}

    def replacement(self, builder: Builder, i: int, values: Mapping[int, Value]) -> Value | None:
        """A step's state, known to be near its center."""
        step = self._steps.get(i)
        if step is None:
            return None
        node = self._graph.nodes[i]
        x = builder.add(node.op, *[values[j] for j in node.inputs], name=f"{node.name}_free")
        ball = self._after(builder, values, step)
        self._balls[i] = ball
        if ball.radius is None or not builder.is_variable(x):
            return builder.rename(x, node.name)
        radius = builder.add(Take(step.columns, node.shape), ball.radius)
        for own in range(x.position + 1, radius.position + 1):
            builder.rename(Value(own), f"{node.name}_radius")  # later nodes keep their names
        return builder.rename(near(builder, x, ball.center.view(node.shape), radius), node.name)

    def _before(self, builder: Builder, values: Mapping[int, Value], i: int, members: Tensor) -> _Ball:
        """What is known of a value before a step: of a state, of one that has decayed, or of anything else."""
        source, index = moved(self._graph, i)
        if torch.equal(index, torch.arange(self._graph.nodes[source].numel)):
            i = source
        known = self._balls.get(i)
        if known is not None and torch.equal(known.members, members):
            return known
        decayed = self._decayed(builder, values, i, members)
        if decayed is not None:
            return decayed
        center = self._middle[i]
        if not self._graph.variable[i]:
            exact = self._graph.constant(i)
            if exact is not None and torch.equal(_held(exact.double().flatten()), exact.double().flatten()):
                return _Ball(center, None, members)
        parts = builder.add(Take(members.flatten(), tuple(members.shape)), values[i])
        return _Ball(center, _length(builder, parts, center[members]), members)

    def _decayed(
        self, builder: Builder, values: Mapping[int, Value], i: int, members: Tensor
    ) -> _Ball | None:
        """Of g S, where a step made S and every column of it has one g."""
        node = self._graph.nodes[i]
        if not isinstance(node.op, Product):
            return None
        for state, gate in (node.inputs, node.inputs[::-1]):
            source, index = moved(self._graph, state)
            known = self._balls.get(source)
            if known is None or not torch.equal(index, torch.arange(len(index))):
                continue
            part = Part(*moved(self._graph, gate))
            own = part.index[members]
            if not torch.equal(known.members, members) or bool((own != own[:, :1]).any()):
                continue
            g = builder.add(Take(own[:, 0], (len(own),)), values[part.node])
            g0 = self._middle[part.node][own[:, 0]]
            center = self._middle[i]
            off = torch.zeros_like(center)
            off[members] = g0[:, None] * known.center[members] - center[members]
            slack = 1e-15 * (g0.abs().amax() * known.center.abs() + center.abs())
            defect = _above((off.abs() + slack)[members].norm(dim=1))
            length = _above(known.center[members].norm(dim=1))
            moves = absolute(builder, scale_shift(builder, g, shift=-g0))
            radius = scale_shift(builder, moves, scale=length, shift=defect)
            if known.radius is not None:
                radius = add(builder, radius, multiply(builder, absolute(builder, g), known.radius))
            return _Ball(center, radius, members)
        return None

    def _after(self, builder: Builder, values: Mapping[int, Value], step: DeltaStep) -> _Ball:
        ball = self._before(builder, values, step.before, step.members)
        error = self._error(builder, values, step, ball.center)
        w0 = self._middle[step.read.error][step.errors]
        w = builder.add(Take(step.errors, (len(step.errors),)), error)
        moves = absolute(builder, scale_shift(builder, w, shift=-w0))
        direction, a0, group = self._direction(builder, values, step)
        turned = _length(builder, direction, a0)  # [G]
        turned = builder.add(Take(group, (len(group),)), turned)
        length = _above(a0.norm(dim=1))[group]
        grown = multiply(builder, scale_shift(builder, turned, shift=length), moves)
        center = self._middle[step.node]
        before, after = ball.center[step.members], center[step.members]
        outer = a0[group] * w0[:, None]
        slack = 1e-15 * (before.abs() + after.abs() + outer.abs())
        defect = _above(((before + outer - after).abs() + slack).norm(dim=1))
        radius = add(builder, scale_shift(builder, turned, scale=_above(w0.abs()), shift=defect), grown)
        if ball.radius is not None:
            radius = add(builder, radius, ball.radius)
        return _Ball(center, radius, step.members)

    def _error(self, builder: Builder, values: Mapping[int, Value], step: DeltaStep, center: Tensor) -> Value:
        """v - C^T k: the nodes of the step's error with C for the state."""
        graph, read = self._graph, step.read
        product = graph.nodes[read.product]
        source, index = moved(graph, product.inputs[read.state])
        known, places = moved(graph, step.before)
        fixed = center.new_zeros(graph.nodes[source].numel)
        assert source == known  # as `delta_rules` has found
        fixed[places] = center
        value = scale_shift(
            builder, values[product.inputs[1 - read.state]], scale=fixed[index].view(product.shape)
        )
        last = read.product
        for i in read.way:
            node = graph.nodes[i]
            inputs = [value if j == last else values[j] for j in node.inputs]
            value, last = builder.add(node.op, *inputs), i
        return value

    def _direction(
        self, builder: Builder, values: Mapping[int, Value], step: DeltaStep
    ) -> tuple[Value, Tensor, Tensor]:
        """b k of every group of columns with the same [G, K], its values at the middle, and which group each column is
        in."""
        places = [p.at(step.members) for p in (step.factors if step.direction is None else [step.direction])]
        rows = torch.stack([p.index for p in places], -1).flatten(1)
        unique, group = rows.unique(dim=0, return_inverse=True)
        own = unique.unflatten(1, (-1, len(places))).unbind(-1)
        value, middle = None, torch.ones((), dtype=torch.float64)
        for part, index in zip(places, own, strict=True):
            taken = builder.add(Take(index.flatten(), tuple(index.shape)), values[part.node])
            value = taken if value is None else multiply(builder, value, taken)
            middle = middle * self._middle[part.node][index]
        assert value is not None
        return value, _held(middle), group


def _length(builder: Builder, x: Value, center: Tensor) -> Value:
    """|x - center| along the second dimension: [n, K] to [n]."""
    squares = square(builder, scale_shift(builder, x, shift=-center))
    total = within(builder, builder.add(Sum((1,)), squares), 0.0, math.inf)
    return power(builder, reshape(builder, total, (len(center),)), 0.5)
