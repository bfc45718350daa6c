"""Joint relaxations: the cuts hold everywhere, are tight for single groups, and only ever gain in the final pass."""

from __future__ import annotations

import pytest
import torch

from verifier.bounds.crown import inner_bounds
from verifier.bounds.final import AscentOptions, FinalPass
from verifier.bounds.joint import Final, JointOptions, joint_cuts
from verifier.bounds.pairing import nearest_pairs
from verifier.graph import Builder, Graph
from verifier.graph.coefficients import Rows
from verifier.ops.convolution import Conv, Window
from verifier.ops.linear import Linear
from verifier.ops.movement import Reshape
from verifier.ops.piecewise_linear import Relu, piecewise_linear
from verifier.sets import Box

ROWS = 2


def dense(generator: torch.Generator, op, inputs: int = 4, hidden: int = 11) -> Graph:
    """inputs -> hidden -> ROWS, all weights random."""

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    builder = Builder()
    x = builder.input("x", (inputs,))
    z = builder.add(Linear(normal(hidden, inputs), normal(hidden)), x)
    y = builder.add(op, z)
    return builder.graph(builder.add(Linear(normal(ROWS, hidden), normal(ROWS)), y))


def convolution(generator: torch.Generator, op) -> Graph:
    """A map of 6 x 6, windows of 3 x 3 that overlap, three channels."""

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    builder = Builder()
    x = builder.add(Reshape((1, 1, 6, 6)), builder.input("x", (36,)))
    window = Window((3, 3), (1, 1), (1, 1), (0, 0), (0, 0))
    y = builder.add(op, builder.add(Conv(normal(3, 1, 3, 3), normal(3), window), x))
    flat = builder.add(Reshape((48,)), y)
    return builder.graph(builder.add(Linear(normal(ROWS, 48), normal(ROWS)), flat))


def cut(graph: Graph, box: Box, options: JointOptions, steps: int = 5):
    """The plain final pass, the same with cuts, their estimate, and the cuts."""
    with torch.no_grad():
        bounds = inner_bounds(graph, [box], graph.outputs)
        target = graph.outputs[0]
        index = torch.arange(ROWS).unsqueeze(0)
        rows = Rows(index, torch.ones(1, ROWS, dtype=torch.float64), graph.nodes[target].shape)
        final = FinalPass(graph, [box], target, rows, ROWS, bounds)
        operator = max(final.operators)
        plain = final.ascend(AscentOptions(steps), record=[operator])
        own = {n: t.squeeze(1) for n, t in plain.leaves.get((target, operator), {}).items()}
        plane = plain.plane.coefficients[graph.inputs[0]]
        seen = Final(plane, plain.plane.constant, plain.coefficients[operator], own)
        made = joint_cuts(graph, operator, bounds, seen, options)
        assert made is not None
        with_cuts = FinalPass(graph, [box], target, rows, ROWS, bounds, cuts=made[0], warm=plain.leaves)
        again = with_cuts.ascend(AscentOptions(0))
    return plain, again, made[1], made[0]


def points(box: Box, count: int, generator: torch.Generator) -> torch.Tensor:
    """Corners and inner points of a box of batch 1."""
    inner = torch.rand(count, *box.shape, generator=generator, dtype=torch.float64)
    inner[::2] = inner[::2].round()
    return box.lower + (box.upper - box.lower) * inner


NETWORKS = {
    "dense relu": lambda g: dense(g, Relu()),
    "dense leaky": lambda g: dense(g, piecewise_linear([0.0], [0.1, 1.0], 0.0)),
    "dense abs": lambda g: dense(g, piecewise_linear([0.0], [-1.0, 1.0], 0.0)),
    "wide": lambda g: dense(g, Relu(), 30, 40),
    "convolution": lambda g: convolution(g, Relu()),
}


@pytest.mark.parametrize("size", [2, 4, 8])
@pytest.mark.parametrize("name", NETWORKS)
def test_cuts_hold_and_gain(name: str, size: int) -> None:
    generator = torch.Generator().manual_seed(size)
    graph = NETWORKS[name](generator)
    numel = graph.nodes[graph.inputs[0]].numel
    center = 0.2 * torch.randn(1, numel, generator=generator, dtype=torch.float64)
    box = Box(center - 0.7, center + 0.7)
    plain, again, estimate, cuts = cut(graph, box, JointOptions(size=size, steps=15))
    assert bool((again.lower >= plain.lower - 1e-5).all())
    assert torch.allclose(again.lower, estimate, rtol=1e-3, atol=1e-3)
    x = points(box, 4000, generator)
    nodes = sorted(cuts.terms)
    values = dict(zip(nodes, graph.evaluate([x], nodes), strict=True))
    for r in range(ROWS):
        left = torch.zeros(len(x), cuts.count, dtype=torch.float64)
        for i, (owner, column, terms) in cuts.terms.items():
            left.index_add_(1, owner, values[i].flatten(1)[:, column] * terms[0, r])
        assert bool((left >= cuts.least[0, r] - 1e-12).all())
    assert bool((graph.evaluate([x])[0] >= again.lower - 1e-12).all())


@pytest.mark.parametrize("seed", range(5))
def test_one_group_is_exact(seed: int) -> None:
    """All neurons in one group and a plane that is free: the bound is the minimum, which a fine grid finds."""
    generator = torch.Generator().manual_seed(seed)
    graph = dense(generator, Relu(), inputs=2, hidden=4)
    box = Box.around(torch.zeros(1, 2, dtype=torch.float64), 1.0)
    _, again, _, cuts = cut(graph, box, JointOptions(size=4, steps=1500, rate=0.05, decay=0.997))
    if cuts.count > 1:
        pytest.skip("more than one group of undecided neurons")
    axis = torch.linspace(-1, 1, 401, dtype=torch.float64)
    grid = torch.cartesian_prod(axis, axis)
    least = graph.evaluate([grid])[0].amin(0)
    scale = graph.evaluate([grid])[0].abs().amax()
    missed = [float(least[r] - again.lower[0, r]) for r in range(ROWS) if again.lower[0, r] < 0]
    assert all(-1e-12 <= m <= 0.03 * scale + 0.02 for m in missed)


def test_pairs_cover_every_row_once() -> None:
    generator = torch.Generator().manual_seed(0)
    for count in (2, 3, 7, 64):
        for rows in (torch.randn(count, 8, generator=generator), torch.ones(count, 8)):
            first, second = nearest_pairs(rows)
            seen = torch.cat([first, second])
            assert sorted(seen[seen < count].tolist()) == list(range(count))


def test_nearest_rows_are_paired() -> None:
    base = torch.eye(4)
    first, second = nearest_pairs(torch.cat([base, base + 0.01])[torch.tensor([0, 4, 1, 5, 2, 6, 3, 7])])
    assert bool((first // 2 == second // 2).all())
