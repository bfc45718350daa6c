"""Condensed networks: equal at points up to their doubt, sound, and as tight as the network they come from."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from verifier.bounds.condense import condense
from verifier.bounds.crown import Effort, inner_bounds, specification_bound
from verifier.graph import Elementwise, Graph, Interval
from verifier.graph.coefficients import identity
from verifier.ops.combination import Combination
from verifier.sets import Box

ACTIVATIONS = ("relu", "leaky", "concave", "abs", "clip", "prelu", "sign")


def small(lab: SimpleNamespace, seed: int, activation: str, radius: float, scale: float = 0.0):
    graph: Graph = lab.network(seed, lab.activations[activation], scale=scale)
    generator = torch.Generator().manual_seed(seed)
    center = torch.randn(1, 4, generator=generator, dtype=torch.float64)
    box = Box(center - radius, center + radius)
    target = graph.outputs[0]
    bounds = inner_bounds(graph, [box], [target])
    found = condense(graph, target, bounds, 10**9)
    assert found is not None
    return graph, box, bounds, found


def doubts(graph: Graph) -> list[torch.Tensor]:
    return [n.op.doubt for n in graph.nodes if isinstance(n.op, Combination)]


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_values_agree_on_the_set(lab: SimpleNamespace, activation: str) -> None:
    for seed in range(6):
        graph, box, _, found = small(lab, seed, activation, 0.3)
        points = lab.inside(box, 200)[0]
        whole = graph.evaluate([points])[0]
        part = found.graph.evaluate([points])[0]
        assert torch.allclose(whole, part, rtol=0, atol=1e-10)
        for new, (old, index) in {**found.arguments, **found.operators}.items():
            expected = graph.evaluate([points], keep=[old])[0].flatten(1)[:, index]
            assert torch.allclose(expected, found.graph.evaluate([points], keep=[new])[0], rtol=0, atol=1e-10)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_nothing_decided_is_left(lab: SimpleNamespace, activation: str) -> None:
    """Every element kept is undecided, every undecided one is kept, and stable networks become one matrix."""
    for seed in range(4):
        graph, _, bounds, found = small(lab, seed, activation, 0.3)
        for e, node in enumerate(graph.nodes):
            if not isinstance(node.op, Elementwise):
                continue
            open_ = int(node.op.refinable(0, bounds[node.inputs[0]]).sum())
            kept = sum(len(index) for old, index in found.operators.values() if old == e)
            assert kept == open_
    _, _, _, found = small(lab, 0, "relu", 1e-9)
    assert [type(n.op).__name__ for n in found.graph.nodes] == ["Input", "Combination"]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("scale", [0.0, 3.0])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_bounds_hold_and_are_those_of_the_network(
    lab: SimpleNamespace, activation: str, scale: float, dtype: torch.dtype
) -> None:
    """Points of the original network in float64 against bounds of the condensed one in either precision, also where
    rows of the matrices differ by six orders of magnitude."""
    for seed in range(4):
        graph, box, bounds, found = small(lab, seed, activation, 0.3, scale)
        narrow = found.graph.to(dtype)
        target = narrow.outputs[0]
        ends = Interval(*box.box()).narrow(dtype)
        sets = [Box(ends.lower, ends.upper)]
        known = {
            new: Interval(
                bounds[old].lower.flatten(1)[:, index], bounds[old].upper.flatten(1)[:, index]
            ).narrow(dtype)
            for new, (old, index) in found.arguments.items()
        }
        inner = inner_bounds(narrow, sets, [target], known, effort=Effort(refine=False, inherit=True))
        rows = identity(narrow.nodes[target].shape, ends.lower)
        low = specification_bound(narrow, sets, target, rows, inner).minimum(narrow, sets)[0].double()
        values = graph.evaluate([lab.inside(box, 400)[0]])[0]
        assert (values >= low - 1e-300).all()
        assert (values >= inner[target].lower[0].double()).all()
        assert (values <= inner[target].upper[0].double()).all()
        if dtype == torch.float64:
            rows = identity(graph.nodes[graph.outputs[0]].shape, box.lower)
            whole = specification_bound(graph, [box], graph.outputs[0], rows, bounds).minimum(graph, [box])[0]
            size = values.abs().amax(0) + 1
            assert (low >= whole - 1e-9 * size).all()


def test_casting_is_paid_for(lab: SimpleNamespace) -> None:
    """In float32 the matrices differ from those in float64; the doubt covers it at every point of the set."""
    for seed in range(6):
        _, box, _, found = small(lab, seed, "relu", 0.3, 2.0)
        points = lab.inside(box, 200)[0]
        narrow = found.graph.to(torch.float32).to(torch.float64)
        position = {n.name: i for i, n in enumerate(narrow.nodes)}
        for i, node in enumerate(found.graph.nodes):
            if not isinstance(node.op, Combination):
                continue
            arguments = found.graph.evaluate([points], keep=list(node.inputs))
            other = narrow.nodes[position[node.name]].op
            assert isinstance(other, Combination)
            gap = (node.op.forward(*arguments) - other.forward(*arguments)).abs().amax(0)
            assert (gap + node.op.doubt <= other.doubt * (1 + 1e-12)).all()
            assert not torch.equal(gap, torch.zeros_like(gap)) or i == 0


def test_limits(lab: SimpleNamespace) -> None:
    graph = lab.network(0)
    box = Box(torch.full((1, 4), -0.3, dtype=torch.float64), torch.full((1, 4), 0.3, dtype=torch.float64))
    bounds = inner_bounds(graph, [box], [graph.outputs[0]])
    assert condense(graph, graph.outputs[0], bounds, 3) is None
