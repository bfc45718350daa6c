"""Spectral norms of Jacobians with several rows, from enclosures of their entries."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from verifier.graph import Builder, Graph, Interval
from verifier.jacobian.definite import EPS, Matrix, product, up
from verifier.jacobian.objective import Objective, gradients, selects
from verifier.ops.linear import Linear
from verifier.transforms.fold import fold

WIDEST = 1024
"""Columns, at most, of a Jacobian that is turned: a dense matrix as wide as it is high joins the graph."""


def spectral_bound(graph: Graph, rows: Tensor, enclose: Callable[[Objective], Interval]) -> float:
    """An upper bound of the spectral norm of rows @ J, from what `enclose` finds of the entries' values: as they are,
    and turned.

    For orthogonal U and V, U^T J V has the same norm. With those of the singular vectors of the enclosure's center it
    is nearly diagonal, and what is off the diagonal small; then the norm of the entries' largest sizes is hardly more
    than that of the center, and what their enclosures have in common is not counted for each of them.
    """
    asked = gradients(graph, rows)
    entries = enclose(asked)
    best = spectral(entries)
    turned = _turned(asked, rows, entries.center.cpu()) if math.isfinite(best) else None
    return best if turned is None else min(best, up(spectral(enclose(turned.objective)) * turned.factor))


def spectral(entries: Interval) -> float:
    """An upper bound of the spectral norm of all matrices [R, n] in an interval, float64: |C + D| is at most |C| + |D|,
    and at most the norm of the entries' sizes. Proved, rounding included."""
    center, radius, size = (t.cpu() for t in (entries.center, entries.radius, entries.magnitude))
    if not bool(size.isfinite().all()):
        return math.inf
    radius = radius + 4 * EPS * center.abs()
    apart = up(Matrix(center).norm + Matrix(radius).norm)
    return min(apart, Matrix(size).norm)


@dataclass(frozen=True, eq=False)
class _Turned:
    """An objective whose norm, times `factor`, bounds the other's."""

    objective: Objective
    factor: float


def _turned(asked: Objective, rows: Tensor, center: Tensor) -> _Turned | None:
    """U^T J V for singular vectors of `center` [R, n], rounded so that float32 holds them; None where rows are mixed or
    the matrices too large."""
    if center.shape[1] > WIDEST or len(rows) < 2 or not selects(rows):
        return None
    left, _, right = torch.linalg.svd(center, full_matrices=True)
    left, right = left.float().double(), right.T.float().double()
    factor = _lengthened(left) * _lengthened(right)
    if not math.isfinite(factor):
        return None
    builder = Builder()
    feed = {i: builder.input(asked.raw.nodes[i].name, asked.raw.nodes[i].shape) for i in asked.raw.inputs}
    (gradient,) = builder.include(asked.raw, feed)
    made = fold(builder.graph(builder.add(Linear(right.T.contiguous()), gradient)))
    seeds = (left.T @ rows.double()).view(-1, *asked.seeds.shape[1:])  # exact: single entries of 1 or -1
    return _Turned(Objective(made, seeds, 1, False), factor)


def _lengthened(turn: Tensor) -> float:
    """By how much, at most, the inverse of a nearly orthogonal matrix lengthens vectors; infinite where none is
    proved."""
    square, error = product(turn.T, torch.ones(len(turn), dtype=torch.float64))
    off = Matrix(square - torch.eye(len(square), dtype=torch.float64), up(error + EPS * len(square))).norm
    return up(1 / math.sqrt(1 - off)) if off < 0.5 else math.inf
