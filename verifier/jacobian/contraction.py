"""Contraction in a block-weighted metric: recurrent cells, and pseudo-gradients of differentiable games.

The state x = (x_1, ..., x_n) is a vector of blocks (parts of a cell's state, the players' strategies) with
Euclidean norms. All that is used of a map's Jacobian on a convex region is |J_ij| <= b_ij and, for a flow, that the
symmetric part of J_ii has no eigenvalue below mu_i. In |x|_w = max_i |x_i| / w_i a map contracts at the rate max_i
sum_j b_ij w_j / w_i, and the flow x' = -F(x) at min_i (mu_i - sum_(j != i) b_ij w_j / w_i): the small-gain
condition (Dashkovskiy, Rueffer, Wirth, 2007; Davydov, Jafarpour, Bullo, 2022), for games also called Small-Gain
Nash. The best weights are a Perron vector of the gains; what is returned is proved for the weights that were found,
however good these are.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from verifier.bounds.compute import compute_bounds
from verifier.errors import VerifierError
from verifier.graph import Graph, Interval
from verifier.jacobian.definite import EPS, largest_eigenvalue, product, up
from verifier.jacobian.jumps import Jumping
from verifier.options import BoundMethod
from verifier.sets import Box, InputSet
from verifier.transforms.differentiate import differentiate


class ContractionError(VerifierError, ValueError):
    """Blocks do not fit a map, or nothing is known of its Jacobian."""


@dataclass(frozen=True)
class Contraction:
    """A step: |f(x) - f(y)|_w <= rate |x - y|_w with |x|_w = max_i |x_i| / weights[i], on the region. Contracting where
    `rate` is less than 1."""

    rate: float
    weights: tuple[float, ...]
    gains: Tensor
    """Bounds of the blocks' norms, [n, n]."""


@dataclass(frozen=True)
class Monotonicity:
    """A flow x' = -F(x): distances in the weighted norms shrink at least like exp(-rate t), where `rate` is positive.

    `rate` belongs to max_i |x_i| / weights[i]. `step` is a step size h for which x - h F(x) contracts in that norm, at
    `step_rate`, and so does every smaller one but zero. In the metric sum_i metric[i] |x_i|^2 the map F is strongly
    monotone with constant `monotone`, where that is positive. `euclidean` bounds the constant without weights from
    below; `weakest` is about what it is at the middle of the region, so that it is not more.
    """

    rate: float
    weights: tuple[float, ...]
    step: float
    step_rate: float
    metric: tuple[float, ...]
    monotone: float
    euclidean: float
    weakest: float
    gains: Tensor
    """Off the diagonal the norms' bounds, on it those of the whole diagonal blocks, [n, n]."""
    own: Tensor
    """mu_i [n]."""


def contraction(
    graph: Graph,
    regions: Sequence[InputSet],
    blocks: Sequence[Sequence[int]] | None = None,
    method: BoundMethod = "crown",
) -> Contraction:
    """How a map x -> f(x, ...), of as many elements as x, contracts in its first input for all x of a convex region.

    `regions` has one set, of one case, per input of the graph: a cell's inputs besides its state may be any of theirs.
    `blocks` are the state's elements, flat, each in one block; by default every element is one. Raises
    ContractionError, also for a map that may jump, and UnsupportedError for operators without a derivative.
    """
    jacobian = _jacobian(graph, regions, method).bounds
    places = _blocks(blocks, len(jacobian.lower))
    gains = _norms(jacobian, places)
    weights = _perron(gains)
    rate = float(_scaled_sums(gains, weights).amax())
    return Contraction(up(rate), tuple(weights.tolist()), gains)


def monotonicity(
    graph: Graph,
    regions: Sequence[InputSet],
    blocks: Sequence[Sequence[int]] | None = None,
    method: BoundMethod = "crown",
) -> Monotonicity:
    """How the flow x' = -F(x, ...) of a pseudo-gradient contracts; arguments as for `contraction`, blocks being the
    players."""
    found = _jacobian(graph, regions, method)
    jacobian = found.bounds
    places = _blocks(blocks, len(jacobian.lower))
    gains, own = _norms(jacobian, places), torch.stack([_least(jacobian, p) for p in places])
    coupling = gains - gains.diag().diag()
    # min_i (mu_i - sum_j b_ij w_j / w_i) is a shift less the largest sum of coupling + (shift - mu).
    weights = _perron(coupling + (own.amax() - own).diag())
    sums = _scaled_sums(coupling, weights)
    rate = float((own - sums).amin()) - 8 * EPS * float((own.abs() + sums).amax())
    step, step_rate = _step(own, gains.diagonal(), sums) if rate > 0 else (0.0, 1.0)
    metric, monotone = _metric(own, coupling)
    euclidean = float(_least(jacobian, torch.arange(len(jacobian.lower))))
    weakest = float(torch.linalg.eigvalsh((found.middle + found.middle.T) / 2)[0])
    return Monotonicity(
        rate, tuple(weights.tolist()), step, step_rate, metric, monotone, euclidean, weakest, gains, own
    )


class _Jacobian(NamedTuple):
    """Bounds, [n, n] each end, and the value at the middle of the region [n, n]."""

    bounds: Interval
    middle: Tensor


@torch.no_grad()
def _jacobian(graph: Graph, regions: Sequence[InputSet], method: BoundMethod) -> _Jacobian:
    """By the first input; the rows are cases of one batch."""
    if any(region.batch != 1 for region in regions) or len(regions) != len(graph.inputs):
        raise ContractionError(f"The map has {len(graph.inputs)} inputs: give a set of one case for each.")
    shapes = [graph.nodes[i].shape for i in (graph.inputs[0], graph.outputs[0])]
    count = math.prod(shapes[0])
    if len(graph.outputs) != 1 or math.prod(shapes[1]) != count:
        raise ContractionError(
            f"A map from shape {shapes[0]} to shape {shapes[1]} does not go from one state to the next: give a graph "
            "with one output of as many elements as its first input."
        )
    graph = graph.to(torch.float64)
    jumps = Jumping(graph)(regions)
    if bool(jumps.open.any()):
        raise ContractionError(jumps.reason)
    rows = torch.eye(count, dtype=torch.float64).view(count, *shapes[1])
    batch = [region.index(torch.zeros(count, dtype=torch.int64)) for region in regions]
    steep = differentiate(graph)
    found = compute_bounds(steep, [*batch, Box(rows, rows)], method).outputs[0].expand(count)
    found = found.map(lambda t: t.reshape(count, count))
    if not bool((found.lower.isfinite() & found.upper.isfinite()).all()):
        raise ContractionError(
            "The Jacobian is not bounded on the region: nothing is known of contraction there."
        )
    middle = steep.evaluate([*[region.box().center for region in batch], rows])[0].reshape(count, count)
    return _Jacobian(found, middle)


def _blocks(blocks: Sequence[Sequence[int]] | None, count: int) -> list[Tensor]:
    found = [[k] for k in range(count)] if blocks is None else [list(block) for block in blocks]
    if sorted(k for block in found for k in block) != list(range(count)):
        raise ContractionError(f"Blocks must hold each of the {count} elements once.")
    return [torch.tensor(block) for block in found]


def _norms(jacobian: Interval, places: Sequence[Tensor]) -> Tensor:
    """Bounds of the spectral norms of blocks: of their centers, and of their radii, which bound what is left."""
    center, radius = jacobian.center, _radius(jacobian)
    norms = torch.zeros(len(places), len(places), dtype=torch.float64)
    for i, rows in enumerate(places):
        for j, columns in enumerate(places):
            parts = [m[rows][:, columns] for m in (center, radius)]
            norms[i, j] = sum(_spectral(part) for part in parts)
    return norms * (1 + 2 * EPS)


def _radius(jacobian: Interval) -> Tensor:
    """Of the center as it was rounded."""
    center = jacobian.center
    return torch.maximum(jacobian.upper - center, center - jacobian.lower) * (1 + 2 * EPS)


def _spectral(matrix: Tensor) -> float:
    return up(math.sqrt(up(largest_eigenvalue(*product(matrix, torch.ones_like(matrix[0]))))))


def _least(jacobian: Interval, place: Tensor) -> Tensor:
    """A bound from below of the least eigenvalue of the symmetric part of a block on the diagonal."""
    center, radius = (m[place][:, place] for m in (jacobian.center, _radius(jacobian)))
    symmetric, spread = (center + center.T) / 2, (radius + radius.T) / 2
    size = float(symmetric.abs().sum())
    lowest = -largest_eigenvalue(
        size * torch.eye(len(place), dtype=torch.float64) - symmetric, 4 * EPS * size
    )
    return torch.tensor(lowest + size - up(_spectral(spread)) - 8 * EPS * size, dtype=torch.float64)


def _perron(gains: Tensor) -> Tensor:
    """Positive weights for which the largest scaled sum of a row is about the least possible."""
    n = len(gains)
    small = 1e-9 * float(gains.amax()) + 1e-300
    values, vectors = torch.linalg.eig(gains + small)
    vector = vectors[:, values.real.argmax()].real.abs()
    vector = (vector / vector.amax()).clamp(min=1e-9) if bool(vector.isfinite().all()) else torch.ones(n)
    candidates = [vector.double(), torch.ones(n, dtype=torch.float64)]
    return min(candidates, key=lambda w: float(_scaled_sums(gains, w).amax()))


def _scaled_sums(gains: Tensor, weights: Tensor) -> Tensor:
    """sum_j b_ij w_j / w_i, rounded up."""
    return (gains * weights).sum(1) / weights * (1 + (len(gains) + 4) * EPS)


def _step(own: Tensor, sizes: Tensor, sums: Tensor) -> tuple[float, float]:
    """A step size h and a bound of max_i (|I - h J_ii| + h sum_j b_ij w_j / w_i), of a convex function of h, by
    |I - h J|^2 <= 1 - 2 h mu + h^2 |J|^2."""
    grid = 1 / sizes.amax().clamp(min=1e-300) * torch.logspace(-4, 0.5, 400, dtype=torch.float64)
    inner = (1 - 2 * grid.unsqueeze(1) * own + (grid.unsqueeze(1) * sizes) ** 2).clamp(min=0)
    rates = ((inner * (1 + 64 * EPS) + 64 * EPS).sqrt() + grid.unsqueeze(1) * sums).amax(1) * (1 + 16 * EPS)
    best = int(rates.argmin())
    return float(grid[best]), float(rates[best])


def _metric(own: Tensor, coupling: Tensor) -> tuple[tuple[float, ...], float]:
    """Weights d of sum_i d_i |x_i|^2, and the constant c with sum_i d_i x_i'(F(x)_i) >= c sum_i d_i |x_i|^2 that they
    prove: the least eigenvalue of diag(mu) - (D^1/2 B D^-1/2 + its transposed) / 2. Left and right Perron vectors give
    the weights for which B is closest to symmetric."""
    n = len(own)
    base = coupling + 1e-9 * float(coupling.amax()) + 1e-300
    shifted = base + (own.amax() - own).diag()
    right, left = _perron(shifted), _perron(shifted.T)
    candidates = [left / right, torch.ones(n, dtype=torch.float64)]

    def constant(d: Tensor) -> float:
        root = d.sqrt()
        moved = root.unsqueeze(1) * coupling / root
        matrix = (moved + moved.T) / 2 - own.diag()
        error = 32 * n * EPS * (float(moved.norm()) + float(own.abs().amax()))
        lift = float(own.abs().amax()) + float(moved.norm())
        top = largest_eigenvalue(matrix + lift * torch.eye(n, dtype=torch.float64), error + 8 * EPS * lift)
        return lift - top - 8 * EPS * lift

    best = max(candidates, key=constant)
    return tuple((best / best.amax()).tolist()), constant(best)
