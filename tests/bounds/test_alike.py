"""Lines of several nodes made at once are those of each, and the steps of an ascent claim nothing."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from verifier.bounds import alike as module
from verifier.bounds.alike import alike, parameters_of, relaxations_of
from verifier.bounds.crown import inner_bounds
from verifier.bounds.final import AscentOptions, FinalPass
from verifier.frontends.torch import trace
from verifier.graph import Elementwise, Graph, Interval
from verifier.graph.coefficients import Rows
from verifier.ops.gated import Gated
from verifier.ops.piecewise_linear import Relu
from verifier.ops.product import Product
from verifier.ops.sigmoid import Sigmoid, Tanh
from verifier.sets import Box
from verifier.transforms.prepare import prepare

SHAPE = (3, 2)


class Reader(nn.Module):
    """Six steps of an LSTM, and what its last state says."""

    def __init__(self, units: int = 5) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer, self.head = nn.LSTM(3, units, batch_first=True), nn.Linear(units, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layer(2 * x)[0][:, -1])


def reader() -> Graph:
    graph = trace(Reader().requires_grad_(False), torch.zeros(1, 6, 3)).graph()
    return prepare(graph, [torch.zeros(1, 1, 6, 3, dtype=torch.float64)])


def some(batch: int, seed: int) -> Interval:
    ends = torch.randn(2, batch, *SHAPE, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return Interval(ends.amin(0), ends.amax(0))


@pytest.mark.parametrize("op", [Sigmoid(), Gated(Sigmoid()), Gated(Sigmoid(), Tanh()), Product(), Relu()])
@pytest.mark.parametrize("sketch", [False, True])
def test_many_at_once_are_each(op: Elementwise, sketch: bool) -> None:
    arguments = 1 if isinstance(op, (Sigmoid, Relu)) else 2
    boxes = [[some(1 + 3 * (k > 0), 10 * k + j) for j in range(arguments)] for k in range(3)]
    own = [op.parameters(*b) for b in boxes]
    together = parameters_of(op, boxes)
    ranges = parameters_of(op, boxes, start=False)
    for one, all_, limits in zip(own, together, ranges, strict=True):
        assert one.keys() == all_.keys() == limits.keys()
        for name, p in one.items():
            for a, b in zip((p.value, p.lower, p.upper), vars(all_[name]).values(), strict=True):
                assert torch.allclose(a.expand_as(b), b, rtol=0, atol=1e-14)
            assert bool((limits[name].value >= limits[name].lower).all())
    chosen = [{n: p.value for n, p in mine.items()} for mine in own]
    for values, box, found in zip(chosen, boxes, relaxations_of(op, chosen, boxes, sketch), strict=True):
        alone = (op.sketch(values, *box) if sketch else None) or op.relax(values, *box)
        pairs = [*zip(alone.lower_slopes, found.lower_slopes, strict=True)]
        pairs += zip(alone.upper_slopes, found.upper_slopes, strict=True)
        pairs += [
            (alone.lower_intercept, found.lower_intercept),
            (alone.upper_intercept, found.upper_intercept),
        ]
        for a, b in pairs:
            assert (a is None) == (b is None)
            if a is not None and b is not None:
                assert torch.allclose(a.expand_as(b), b, rtol=0, atol=1e-12)


def test_gates_are_grouped_and_large_ones_are_not(monkeypatch: pytest.MonkeyPatch) -> None:
    graph = reader()
    nodes = [i for i, n in enumerate(graph.nodes) if isinstance(n.op, Elementwise)]
    groups = alike(graph, nodes, 1)
    assert sorted(i for group in groups for i in group) == nodes
    assert len(groups) < len(nodes) / 3
    for group in groups:
        assert len({(repr(graph.nodes[i].op), graph.nodes[i].shape) for i in group}) == 1
    monkeypatch.setattr(module, "TOGETHER", 10)
    assert max(map(len, alike(graph, nodes, 1))) == 2  # of five elements each
    assert max(map(len, alike(graph, nodes, 2))) == 1


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_optimised_final_passes_hold_and_help(dtype: torch.dtype) -> None:
    graph = reader().to(dtype)
    x = torch.rand(3, 1, 6, 3, generator=torch.Generator().manual_seed(0), dtype=dtype)
    box = Box.around(x, 0.1)
    rows = Rows(torch.tensor([[0, 1]]), torch.ones(1, 2, dtype=dtype), graph.nodes[graph.outputs[0]].shape)
    final = FinalPass(graph, [box], graph.outputs[0], rows, 2, inner_bounds(graph, [box], graph.outputs))
    plain, better = final.ascend(AscentOptions(0)), final.ascend(AscentOptions(20))
    assert bool((better.lower > plain.lower + 1e-4).all())
    shape = (400, *box.box().lower.shape)
    points = torch.rand(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    ends = [end.double() for end in box.box()]
    at = (ends[0] + points * (ends[1] - ends[0])).flatten(0, 1)
    seen = graph.to(torch.float64).evaluate([at])[0].view(400, 3, -1).amin(0)
    assert bool((seen >= better.lower.double()).all())
