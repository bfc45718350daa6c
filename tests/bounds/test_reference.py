"""Against auto_LiRPA, where a compatible copy is importable (it is not a dependency)."""

from __future__ import annotations

import pytest
import torch

from verifier.bounds.alpha import AlphaOptions
from verifier.bounds.compute import compute_bounds
from verifier.graph import Builder
from verifier.ops.linear import Linear
from verifier.ops.piecewise_linear import relu
from verifier.sets import Box

auto_lirpa = pytest.importorskip("auto_LiRPA", reason="auto_LiRPA is not installed; it is optional")


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [("interval", "IBP"), ("crown-ibp", "CROWN-IBP"), ("crown", "CROWN"), ("alpha-crown", "CROWN-Optimized")],
)
def test_same_bounds(ours: str, theirs: str) -> None:
    torch.manual_seed(0)
    layers = [
        torch.nn.Linear(6, 20),
        torch.nn.ReLU(),
        torch.nn.Linear(20, 20),
        torch.nn.ReLU(),
        torch.nn.Linear(20, 3),
    ]
    net = torch.nn.Sequential(*layers).eval()
    x = torch.randn(4, 6)
    model = auto_lirpa.BoundedModule(net, x, bound_opts={"optimize_bound_args": {"iteration": 20}})
    region = auto_lirpa.PerturbationLpNorm(norm=float("inf"), eps=0.1)
    lower, upper = model.compute_bounds(x=(auto_lirpa.BoundedTensor(x, region),), method=theirs)
    b = Builder()
    h = b.input("x", (6,))
    for layer in layers:
        linear = isinstance(layer, torch.nn.Linear)
        h = b.add(Linear(layer.weight.detach(), layer.bias.detach()), h) if linear else relu(b, h)
    graph = b.graph(h)
    found = compute_bounds(graph, [Box.around(x, 0.1)], ours, (), AlphaOptions())
    tolerance = 0.02 * float((upper - lower).mean()) if ours == "alpha-crown" else 1e-4
    assert (found.lower >= lower - tolerance).all() and (found.upper <= upper + tolerance).all()
