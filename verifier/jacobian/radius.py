"""Radii within which a class cannot change, by Lipschitz constants of its margins."""

from __future__ import annotations

import math
import time
from dataclasses import replace

import torch
from torch import Tensor

from verifier.bounds.interval import interval_bounds
from verifier.graph import Builder, Graph, Interval
from verifier.graph.precision import full_precision
from verifier.jacobian.enclosures import Effort, Method, raised, root_values
from verifier.jacobian.jumps import Jumping
from verifier.jacobian.objective import Norm, objective
from verifier.ops.linear import Linear
from verifier.ops.movement import reshape
from verifier.sets import Ball, Box, InputSet

STEPS = 14
"""Halvings of the radius's range."""


def certified_radius(
    graph: Graph, x: Tensor, label: int, norm: Norm, most: float, method: Method, effort: Effort
) -> float:
    """The largest r <= `most` that is found, for which every margin m of the class at x [1, *shape] is more than L r.

    L bounds the length of m's gradient, in the dual norm, on the ball of radius r around x, so that m stays positive
    there (Weng et al., ICLR 2018). All margins are bounded in one batch, and r is found by bisection: 0 where none is.
    Raises UnsupportedError for operators without a derivative.
    """
    count = graph.nodes[graph.outputs[0]].numel
    others = [j for j in range(count) if j != label]
    eye = torch.eye(count, dtype=torch.float64)
    rows = eye[label] - eye[others]
    with full_precision():
        jumping = Jumping(graph)
        margins = _margins(graph, x.double(), rows)
        question = objective(graph, norm, rows[:1])
        question = replace(question, seeds=rows.view(-1, *graph.nodes[graph.outputs[0]].shape))

        def holds(r: float) -> bool:
            ball: InputSet = Box.around(x, r) if norm == "inf" else Ball.around(x, r, 2 if norm == "2" else 1)
            if bool(jumping([ball]).open.any()):
                return False
            values = root_values(question, [ball], method, effort).amax(1).tolist()
            constants = [raised(v, question.power) for v in values]
            # What the ball's ends and this product round by.
            return all(m > c * r * (1 + 1e-6) for m, c in zip(margins, constants, strict=True))

        if not all(m > 0 for m in margins):
            return 0.0
        low, high = 0.0, most
        if holds(most):
            return most
        for _ in range(STEPS):
            if time.monotonic() > effort.deadline:
                break
            middle = high / 16 if low == 0.0 else math.sqrt(low * high)
            low, high = (middle, high) if holds(middle) else (low, middle)
        return low


def _margins(graph: Graph, x: Tensor, rows: Tensor) -> list[float]:
    """Lower ends of the margins at a point, rounding included."""
    builder = Builder()
    source = builder.input("x", graph.nodes[graph.inputs[0]].shape)
    output = builder.include(graph, {graph.inputs[0]: source})[0]
    value = builder.add(Linear(rows, None), reshape(builder, output, (-1,)))
    made = builder.graph(value).to(torch.float64, x.device)
    return interval_bounds(made, [Interval(x, x)])[made.outputs[0]].lower[0].tolist()
