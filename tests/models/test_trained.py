"""Bounds of the trained digit classifiers of all families: finite, around everything that is reached, and narrow."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from benchmarks.families import held_out, network_file
from benchmarks.widths import attacked, climbed
from verifier.bounds.alpha import AlphaOptions
from verifier.bounds.compute import compute_bounds
from verifier.frontends import onnx as frontend
from verifier.frontends.torch import trace
from verifier.graph import Graph
from verifier.options import BoundMethod
from verifier.sets import Box
from verifier.transforms.prepare import prepare
from vnncomp.benchmarks.gated_sequences.networks import Classifier, build, families, forms, load_weights, slug

RADIUS = 0.01
METHODS: tuple[BoundMethod, ...] = ("interval", "crown", "alpha-crown")
ALL = [(family, form) for family in families() for form in forms(family)]
QUICK = [("linear attention, not normalised", "parallel"), ("HGRN", "parallel"), ("PLRNN", "recurrent")]


def module_of(family: str, form: str) -> Classifier:
    module = build(family, 8, 10, 8, form)
    module.load_state_dict(load_weights()[f"digits_{slug(family)}"])
    return module


def graph_of(family: str, form: str, source: str) -> Graph:
    if source == "onnx":
        return frontend.load(network_file(family, form)).graph
    return trace(module_of(family, form), torch.rand(1, 8, 8)).graph(torch.float64)


def reached(module: Classifier, graph: Graph, box: Box, count: int) -> tuple[Tensor, Tensor]:
    """The least and the greatest scores [classes] at random points and corners, `count` in all, and under attack."""
    generator = torch.Generator().manual_seed(0)
    ends = []
    for begin in range(0, count, 10_000):
        part = torch.rand(min(10_000, count - begin), *box.shape, generator=generator, dtype=torch.float64)
        part[::2] = part[::2].round()
        with torch.no_grad():
            values = module((box.lower + part * (box.upper - box.lower))[:, 0])
        ends.append(torch.stack([values.amin(0), values.amax(0)]))
    unit = torch.eye(10, dtype=torch.float64)
    climbs = climbed(graph, box.box(), torch.cat([-unit, unit])[None]).view(2, 10)
    all_ends = torch.stack([*ends, climbs * torch.tensor([[-1.0], [1.0]])])
    return all_ends[:, 0].amin(0), all_ends[:, 1].amax(0)


def check(family: str, form: str, sources: tuple[str, ...], count: int, iterations: int) -> float:
    """Bounds by all methods hold; the width of the optimised ones over the attacked width, of the last source."""
    module, ratio = module_of(family, form).double(), 0.0
    graph = graph_of(family, form, sources[0])
    x, _ = held_out(graph, 8)
    moves = attacked(prepare(graph, [x.double()]), Box.around(x.double(), RADIUS).box()).sum(1) > 0
    x = x[moves.nonzero()[:1, 0]]  # some networks are constant near some images
    box = Box.around(x.double(), RADIUS)
    least, greatest = reached(module, prepare(graph, [x.double()]), box, count)
    for source in sources:
        graph = prepare(graph_of(family, form, source), [x.double()])
        widths = []
        for method in METHODS:
            options = AlphaOptions(iterations=iterations)
            (found,) = compute_bounds(graph, [box], method, options=options).outputs
            lower, upper = found.lower.flatten(), found.upper.flatten()
            assert lower.isfinite().all() and upper.isfinite().all()
            assert (lower <= least + 1e-9).all() and (greatest - 1e-9 <= upper).all()
            widths.append(float((upper - lower).mean()))
        assert widths[0] >= widths[1] >= widths[2]
        ratio = widths[2] / float(attacked(graph, box.box()).mean())
    return ratio


@pytest.mark.parametrize(("family", "form"), QUICK)
def test_bounds_of_some_hold(family: str, form: str) -> None:
    assert 1 <= check(family, form, ("onnx",), 2000, 1) <= 5


@pytest.mark.full
@pytest.mark.parametrize(("family", "form"), ALL)
def test_bounds_of_all_hold_and_are_narrow(family: str, form: str) -> None:
    """10^5 points; at T = 8 and this radius optimised bounds are at most five times as wide as what attacks reach."""
    assert 1 <= check(family, form, ("onnx", "torch"), 100_000, 5) <= 5
