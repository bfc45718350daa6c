"""Products of values that follow a few inputs, bounded together through their second-order part.

Near the centre of a box a factor is a = a0 + K (x - x0) + e with a small remainder |e| <= r: the mean of two backward
bounds gives K, and their distance r. Then a b = a0 b + b0 a - a0 b0 + (a - a0)(b - b0), of which the first three terms
are lines with the same slopes on both sides, and a weighted sum of the last ones is a quadratic form in x - x0 with a
matrix of its own in every subdomain, and terms in e. The form is a convex part less another: the convex one lies above
every tangent plane, and with the tangent at the minimum over the box nothing is lost; the other is at most its largest
value. Planes of the products one by one do not see what cancels between them (x' P x and the change of such a function
along a trajectory are nearly convex), and are off by the sum of all of it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from verifier.bounds.backward import LinearBound, backward
from verifier.bounds.final import Ascent, FinalPass
from verifier.graph import Graph, Relaxation
from verifier.graph.coefficients import Rows
from verifier.ops.product import Product, Square

INPUTS, ELEMENTS = 16, 64
"""Up to so many inputs, and so many products in all: matrices are inputs squared per row."""
STEPS = 16
"""Of the tangent's point towards the minimum of the convex part."""
_EPS = torch.finfo(torch.float64).eps


def curved(graph: Graph, target: int) -> list[int]:
    """Products and squares below `target`; none where the graph is too large or has several inputs."""
    found = [i for i in sorted(graph.ancestors(target)) if isinstance(graph.nodes[i].op, Product | Square)]
    few = len(graph.inputs) == 1 and graph.nodes[graph.inputs[0]].numel <= INPUTS
    return found if few and sum(graph.nodes[i].numel for i in found) <= ELEMENTS else []


@dataclass(frozen=True, eq=False)
class _Box:
    """Centres and half widths of the inputs [B, n], float64; every input lies within both."""

    center: Tensor
    radius: Tensor

    @classmethod
    def of(cls, final: FinalPass) -> _Box:
        box = final.sets[0].box()
        low, high = (t.double().flatten(1) for t in (box.lower, box.upper))
        center = (low + high) / 2
        radius = torch.maximum(high - center, center - low)
        return cls(center, radius + 4 * _EPS * radius)

    @property
    def magnitude(self) -> Tensor:
        return self.center.abs() + self.radius


@dataclass(frozen=True, eq=False)
class _Factor:
    """One argument's M elements: within `rest` [B, M] of center [B, M] + slope [B, M, n] (x - x0), where
    |slope (x - x0)| is at most `reach` [B, M]."""

    center: Tensor
    slope: Tensor
    rest: Tensor
    reach: Tensor

    @classmethod
    def of(cls, final: FinalPass, node: int, box: _Box) -> _Factor:
        """Between backward bounds from below and from above; the centre is a number of the pass's type."""
        graph, like = final.graph, final.bounds[node].lower
        numel = graph.nodes[node].numel
        index = torch.arange(numel, device=like.device).repeat(1, 2)
        signs = like.new_ones(1, numel).repeat(1, 2)
        signs[:, numel:] = -1
        rows = Rows(index, signs, graph.nodes[node].shape)
        found = backward(graph, {node: rows}, final.lines, final.bounds)
        slopes = found.coefficients.get(graph.inputs[0], like.new_zeros(1, 2 * numel, box.center.shape[1]))
        slopes = slopes.double().flatten(2)
        value = found.constant.double() + _inner(slopes, box.center)
        slack = _inner(slopes.abs(), box.magnitude) + found.constant.double().abs()
        slack = (4 * slopes.shape[2] + 32) * _EPS * slack + found.error.double()  # pyright: ignore[reportOptionalMemberAccess]
        lower, upper = (value - slack)[:, :numel], (slack - value)[:, numel:]
        below, above = slopes[:, :numel], -slopes[:, numel:]
        slope = (below + above) / 2
        center = ((lower + upper) / 2).to(like.dtype).double()
        turn = _inner((below - slope).abs(), box.radius), _inner((above - slope).abs(), box.radius)
        rest = torch.maximum(turn[0] + center - lower, turn[1] + upper - center).clamp(min=0)
        rest = rest * (1 + 64 * _EPS) + 64 * _EPS * (center.abs() + slack[:, :numel] + slack[:, numel:])
        reach = _inner(slope.abs(), box.radius) * (1 + 64 * _EPS)
        return cls(*[t.expand(final.batch, *t.shape[1:]) for t in (center, slope, rest, reach)])


def second_order(final: FinalPass, nodes: Sequence[int]) -> Ascent:
    """The final pass with the products `nodes` bounded together, at the starting lines of everything else; worse than
    their planes in places. What is not finite is no bound (minus infinity)."""
    graph, box = final.graph, _Box.of(final)
    arguments = {j: _Factor.of(final, j, box) for j in {j for i in nodes for j in graph.nodes[i].inputs}}
    factors = {i: [arguments[graph.nodes[i].inputs[k]] for k in (0, -1)] for i in nodes}
    lines = {i: _tangent(a, b, final, i) for i, (a, b) in factors.items()}
    arrived = dict.fromkeys(nodes, box.center)
    plane, _ = final.run({}, rounding=True, record=arrived, lines=lines)
    coefficients = {i: t.double().flatten(2) for i, t in arrived.items()}
    matrix, loss = _form(coefficients, factors, box)
    return _with_form(final, plane, matrix, loss, box)


def _tangent(a: _Factor, b: _Factor, final: FinalPass, node: int) -> Relaxation:
    """a0 b + b0 a - a0 b0; of a square 2 a0 a - a0 a0."""
    own = final.graph.nodes[node]
    first, second = (f.center.to(final.bounds[node].lower).unflatten(1, own.shape) for f in (a, b))
    constant = -first * second
    slopes = (2 * first,) if isinstance(own.op, Square) else (second, first)
    return Relaxation(slopes, constant, slopes, constant)


def _form(
    coefficients: Mapping[int, Tensor], factors: Mapping[int, Sequence[_Factor]], box: _Box
) -> tuple[Tensor, Tensor]:
    """Of sum c (a - a0)(b - b0): a matrix [B, R, n, n] in units of the half widths, and how much less than its form the
    sum may be [B, R]."""
    matrix: Tensor | float = 0.0
    loss: Tensor | float = 0.0
    for i, c in coefficients.items():
        a, b = factors[i]
        first, second = ((f.slope * box.radius.unsqueeze(1)).unsqueeze(1) for f in (a, b))
        part = (first * c.unsqueeze(3)).mT @ second
        matrix = matrix + (part + part.mT) / 2
        rest = a.rest * b.reach + b.rest * a.reach + a.rest * b.rest
        unit = (4 * c.shape[2] + 8 * len(factors) + 64) * _EPS
        loss = loss + _inner(c.abs(), rest + unit * (a.reach * b.reach + rest))
    return torch.as_tensor(matrix), torch.as_tensor(loss)


def _with_form(final: FinalPass, plane: LinearBound, matrix: Tensor, loss: Tensor, box: _Box) -> Ascent:
    """The plane with the form's tangent at the best point."""
    source, size = final.graph.inputs[0], box.center.shape[1]
    wild = ~(matrix.isfinite().flatten(2).all(2) & loss.isfinite())
    matrix = matrix.masked_fill(wild[:, :, None, None], 0.0)
    values, vectors = torch.linalg.eigh(matrix)
    values = values.clamp(min=0)
    convex = (vectors * values.unsqueeze(2)) @ vectors.mT
    convex = (convex + convex.mT) / 2
    rest = (convex - matrix).abs().flatten(2).sum(2)
    size_of = convex.abs().flatten(2).sum(2) + matrix.abs().flatten(2).sum(2) + size * values.sum(2)
    loss = loss + rest + (8 * size + 64) * _EPS * size_of  # with how far `convex` may be from convex
    slopes = plane.coefficients[source].double().flatten(2).expand(len(matrix), -1, -1)
    point = _lowest(slopes * box.radius.unsqueeze(1), convex)
    turn = 2 * (convex @ point.unsqueeze(3)).squeeze(3)
    drop = (turn * point).sum(2) / 2 + loss
    added = torch.where(box.radius.unsqueeze(1) > 0, turn / box.radius.unsqueeze(1), 0.0)
    total = slopes + added
    constant = plane.constant.double() - _inner(added, box.center) - drop
    dtype, reach = plane.constant.dtype, box.magnitude
    spread = _inner(slopes.abs() + 2 * added.abs(), reach) + plane.constant.double().abs() + drop.abs()
    error = (8 * size + 64) * _EPS * spread + plane.error.double()  # pyright: ignore[reportOptionalMemberAccess]
    stored, short = total.to(dtype), constant.to(dtype)
    error = error + _inner((stored.double() - total).abs(), reach) + (short.double() - constant).abs()
    value = constant + _inner(total, box.center) - _inner(total.abs(), box.radius)
    lower = _down(value - error, dtype).masked_fill(wild, -torch.inf)
    found = LinearBound(
        {source: stored.unflatten(2, final.graph.nodes[source].shape)},
        short.masked_fill(wild, -torch.inf),
        -_down(-error, dtype),
    )
    return Ascent(found, torch.nan_to_num(lower, nan=-torch.inf, posinf=-torch.inf, neginf=-torch.inf), {})


def _lowest(slopes: Tensor, convex: Tensor) -> Tensor:
    """About where slopes y + y' convex y is least over [-1, 1]^n: accelerated projected gradients (Beck and Teboulle
    2009), with steps per coordinate."""
    step = 0.5 / convex.abs().sum(3).clamp(min=1e-30)
    at = before = torch.zeros_like(slopes)
    for k in range(STEPS):
        ahead = at + k / (k + 3) * (at - before)
        gradient = slopes + 2 * (convex @ ahead.unsqueeze(3)).squeeze(3)
        at, before = (ahead - step * gradient).clamp(-1, 1), at
    return torch.nan_to_num(at)


def _down(t: Tensor, dtype: torch.dtype) -> Tensor:
    """In another type, not above."""
    short = t.to(dtype)
    info = torch.finfo(dtype)
    return short - (2 * info.eps * short.abs() + info.tiny)


def _inner(a: Tensor, x: Tensor) -> Tensor:
    """[B, R, n] times [B, n], over n."""
    return (a @ x.unsqueeze(2)).squeeze(2)
