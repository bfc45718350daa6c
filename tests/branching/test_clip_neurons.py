"""Clipped enclosures hold wherever the plane is not positive, and are nearly as tight as the best multiplier's."""

from __future__ import annotations

import pytest
import torch

from verifier.bounds.crown import inner_bounds
from verifier.branching.clip_neurons import NeuronPlanes, PlaneLimits, neuron_planes
from verifier.graph import Builder, Graph, Interval
from verifier.ops.linear import Linear
from verifier.ops.piecewise_linear import Relu
from verifier.sets import Box


def network(seed: int, dtype: torch.dtype, scale: float = 1.0) -> tuple[Graph, Box]:
    """6 -> 12 -> 12 -> 1 with random weights on a random box."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return scale * torch.randn(*shape, generator=generator, dtype=torch.float64)

    builder = Builder()
    x = builder.input("x", (6,))
    for width, before in ((12, 6), (12, 12)):
        x = builder.add(Relu(), builder.add(Linear(normal(width, before), normal(width)), x))
    graph = builder.graph(builder.add(Linear(normal(1, 12), normal(1)), x)).to(dtype, torch.device("cpu"))
    center = torch.randn(1, 6, generator=generator, dtype=torch.float64).to(dtype)
    return graph, Box(center - 0.5, center + 0.5)


def planes_of(graph: Graph, box: Box) -> tuple[NeuronPlanes, dict[int, Interval]]:
    nodes = [graph.nodes[i].inputs[0] for i in range(len(graph.nodes)) if isinstance(graph.nodes[i].op, Relu)]
    bounds = inner_bounds(graph, [box], graph.outputs)
    known = {i: bounds[i] for i in nodes}
    made = neuron_planes(graph, box, nodes, graph.outputs[0], known, PlaneLimits(1 << 20))
    assert made is not None
    return made, known


def half_space(box: Box, seed: int, part: float) -> tuple[torch.Tensor, torch.Tensor]:
    """A form whose least value on the box is `part` of its variation below zero."""
    plane = torch.randn(1, 6, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    center = ((box.lower + box.upper) / 2).double()
    width = (plane.abs() * (box.upper - box.lower).double()).sum(1)
    return plane, width / 2 - part * width - (plane * center).sum(1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("scale", [1e-4, 1.0, 1e3])
@pytest.mark.parametrize("part", [0.001, 0.05, 0.4, 1.5])
def test_enclosures_hold_where_the_plane_is_not_positive(
    dtype: torch.dtype, scale: float, part: float
) -> None:
    for seed in range(6):
        graph, box = network(seed, dtype, scale)
        made, known = planes_of(graph, box)
        plane, constant = half_space(box, seed, part)
        gaps = {i: torch.ones_like(b.lower) for i, b in known.items()}
        clipped = made.clip(known, gaps, plane, constant)
        ends = box.box().map(lambda t: t.double())
        inner = torch.rand(4000, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
        corner = torch.where(plane > 0, torch.zeros_like(plane), torch.ones_like(plane))
        x = corner + (inner - corner) * torch.rand(4000, 1, dtype=torch.float64) ** 3
        x = ends.lower + (ends.upper - ends.lower) * torch.cat([x, corner])
        x = x[(x @ plane[0] + constant <= 0)]
        assert len(x)
        exact = graph.to(torch.float64, torch.device("cpu"))
        for i, value in zip(known, exact.evaluate([x], list(known)), strict=True):
            assert bool(
                (value >= clipped[i].lower.double()).all() & (value <= clipped[i].upper.double()).all()
            )
            assert bool(
                (clipped[i].lower >= known[i].lower).all() & (clipped[i].upper <= known[i].upper).all()
            )


def test_multipliers_are_nearly_the_best() -> None:
    graph, box = network(3, torch.float64)
    made, _ = planes_of(graph, box)
    plane, constant = half_space(box, 3, 0.05)
    every = torch.arange(made.matrix.shape[1]).unsqueeze(0)
    found = made._ends(plane, constant, every)[:, 0]
    scaled, level = plane * made.radius, constant + (plane @ made.center)
    factors = torch.linspace(0, 60, 6001, dtype=torch.float64).view(-1, 1)
    values = []
    for q, middle in zip(made.matrix[0], made.middle[0], strict=True):
        values.append((middle + factors[:, 0] * level - (q + factors * scaled).abs().sum(1)).amax())
    best, alone = torch.stack(values), made.middle[0] - made.matrix[0].abs().sum(1)
    gained, possible = (found[0] - alone).clamp(min=0), best - alone
    assert float(gained.sum()) > 0.8 * float(possible.sum()) > 0
    assert bool((found[0] <= best + 1e-9).all())


def test_neurons_without_a_gap_stay() -> None:
    graph, box = network(1, torch.float64)
    made, known = planes_of(graph, box)
    plane, constant = half_space(box, 1, 0.01)
    none = {i: torch.zeros_like(b.lower) for i, b in known.items()}
    for i, b in made.clip(known, none, plane, constant).items():
        assert torch.equal(b.lower, known[i].lower) and torch.equal(b.upper, known[i].upper)
