"""Rows kept as lists of entries give what dense rows give, gradients included."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from verifier.bounds.backward import PassOptions, backward
from verifier.bounds.crown import inner_bounds
from verifier.bounds.interval import interval_bounds
from verifier.bounds.lines import through, through_error
from verifier.bounds.relaxations import relax
from verifier.frontends.torch import trace
from verifier.graph import Elementwise, Graph, Relaxation
from verifier.graph.coefficients import Coefficients, Dense, Rows, Scattered
from verifier.models import DeltaNet
from verifier.ops import reduction
from verifier.ops.movement import Permute, Reshape, Take
from verifier.ops.reduction import Sum
from verifier.sets import Box
from verifier.transforms.prepare import prepare

SHAPE, ROWS, ENTRIES = (2, 4, 5), 6, 3
SIZE = 40


def randn(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64)


def places() -> Tensor:
    return torch.rand(ROWS, SIZE).argsort(1)[:, :ENTRIES]


def scattered(batch: int = 2, index: Tensor | None = None) -> Scattered:
    return Scattered(places() if index is None else index, randn(batch, ROWS, ENTRIES), SHAPE)


def same(found: Coefficients, wanted: Tensor) -> None:
    torch.testing.assert_close(found.dense(), wanted)


def test_products_sums_and_values() -> None:
    for batch in (1, 2):
        one, factor, x = scattered(batch), randn(2, *SHAPE), randn(2, *SHAPE)
        same(one.multiply(factor), one.dense() * factor.unsqueeze(1))
        torch.testing.assert_close(one.contract(x), (one.dense() * x.unsqueeze(1)).flatten(2).sum(2))
        sizes = (one.dense().abs() * x.abs().unsqueeze(1)).flatten(2).sum(2)
        torch.testing.assert_close(one.contract(x.abs(), absolute=True), sizes)


def test_additions() -> None:
    one = scattered()
    index = torch.randint(SIZE, (1, ROWS))
    few = Rows(index.expand(2, -1), randn(2, ROWS), SHAPE)
    inside = Rows(one.index[:, :1].T, randn(1, ROWS), SHAPE)
    others = [scattered(), scattered(1), scattered(1, one.index), few, inside, Dense(randn(2, ROWS, *SHAPE))]
    for other in others:
        for found in (one.add(other), other.add(one)):
            same(found, one.dense() + other.dense())
            if isinstance(found, Scattered):
                entries = found.values.abs().amax(0) > 0
                for places, own in zip(found.index, entries, strict=True):
                    assert len(places[own].unique()) == int(own.sum())
    kept = one.add(inside)
    assert isinstance(kept, Scattered) and kept.index.shape == (ROWS, ENTRIES)


@pytest.mark.parametrize(
    ("op", "shape"),
    [
        (Reshape(SHAPE), (8, 5)),
        (Permute((1, 2, 0)), (5, 2, 4)),
        (Take(torch.randint(60, (SIZE,)), SHAPE), (60,)),
        (Take(torch.arange(8).repeat_interleave(5), SHAPE), (8,)),
        (Take(torch.arange(20).repeat(2), SHAPE), (20,)),
        (Sum((2,)), (2, 4, 30)),
        (Sum((0, 2)), (30, 4, 5)),
    ],
)
def test_movements_and_sums(op: Take | Permute | Reshape | Sum, shape: tuple[int, ...]) -> None:
    own = op.output_shape(shape)
    one = Scattered(
        torch.stack([torch.randperm(_size(own))[:ENTRIES] for _ in range(ROWS)]), scattered().values, own
    )
    same(op.backward(one, 0, shape), op.transpose(one.dense(), 0, shape))
    few = Rows(torch.randint(_size(own), (1, 9)).expand(2, -1), randn(2, 9), own)
    same(op.backward(few, 0, shape), op.transpose(few.dense(), 0, shape))


def _size(shape: tuple[int, ...]) -> int:
    return int(torch.Size(shape).numel())


@pytest.mark.parametrize("groups", [0, 1, 3])
def test_lines(groups: int) -> None:
    """Lines that all rows share, or groups of them."""
    lead = (2, groups) if groups else (2,)
    low, high = randn(*lead, *SHAPE), randn(*lead, *SHAPE)
    lines = Relaxation((low,), randn(*lead, *SHAPE), (high,), randn(*lead, *SHAPE))
    one = scattered()
    found, shift = through(one, lines, SHAPE)
    wanted, total = through(Dense(one.dense()), lines, SHAPE)
    assert isinstance(found[0], Scattered)
    same(found[0], wanted[0].dense())
    torch.testing.assert_close(shift, total)
    sizes = [randn(2, *SHAPE).abs()]
    error, most = (through_error(c, lines, sizes, SHAPE, 4) for c in (one, Dense(one.dense())))
    assert (error <= most).all() and (error >= 0.1 * most).all()


def delta() -> tuple[Graph, Box]:
    torch.manual_seed(0)
    module, x = DeltaNet(16, 2).eval().requires_grad_(False), torch.randn(1, 5, 16)
    graph = prepare(trace(module, x).graph(torch.float64), [x[None].double()])
    return graph, Box.around(x[None].double(), 0.01)


def test_bounds_of_a_delta_rule(monkeypatch: pytest.MonkeyPatch) -> None:
    graph, box = delta()
    met: list[type] = []
    add = Scattered.add
    monkeypatch.setattr(Scattered, "add", lambda a, b: met.append(type(b)) or add(a, b))
    kept = inner_bounds(graph, [box], graph.outputs)
    assert met
    monkeypatch.setattr(reduction, "SPARSE", 1 << 30)
    dense = inner_bounds(graph, [box], graph.outputs)
    for i, own in kept.items():
        torch.testing.assert_close(own.lower, dense[i].lower, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(own.upper, dense[i].upper, rtol=1e-9, atol=1e-9)


def test_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    graph, box = delta()
    bounds = interval_bounds(graph, [box.box()])
    target = max(i for i, n in enumerate(graph.nodes) if isinstance(n.op, Sum) and n.numel == 16)

    def run() -> list[Tensor]:
        lines = {}
        for i in graph.ancestors(target):
            if isinstance(graph.nodes[i].op, Elementwise):
                r = relax(graph, i, bounds, {})
                slopes = [
                    tuple(t.clone().requires_grad_() for t in s) for s in (r.lower_slopes, r.upper_slopes)
                ]
                lines[i] = Relaxation(slopes[0], r.lower_intercept, slopes[1], r.upper_intercept)
        rows = Rows(torch.arange(16)[None], box.lower.new_ones(1, 16), graph.nodes[target].shape)
        low = backward(graph, {target: rows}, lines, bounds, PassOptions()).minimum(graph, [box])
        leaves = [t for r in lines.values() for t in (*r.lower_slopes, *r.upper_slopes)]
        return [
            low.detach(),
            *[g for g in torch.autograd.grad(low.sum(), leaves, allow_unused=True) if g is not None],
        ]

    kept = run()
    monkeypatch.setattr(reduction, "SPARSE", 1 << 30)
    monkeypatch.setattr(reduction, "FEW_ROWS", 1 << 30)
    for one, other in zip(kept, run(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-7, atol=1e-9)


def test_too_many_entries_are_dense() -> None:
    wide = Scattered(torch.arange(SIZE // 2).expand(ROWS, -1), randn(1, ROWS, SIZE // 2), SHAPE)
    assert isinstance(wide.merged(), Dense)
    same(wide.merged(), wide.dense())
    few = Scattered(places(), randn(1, ROWS, ENTRIES), SHAPE)
    assert isinstance(few.merged(), Scattered)
    assert isinstance(few.moved(torch.arange(SIZE * 2).view(SIZE, 2), (SIZE * 2,)), Scattered)
    assert isinstance(few.moved(torch.arange(SIZE * 20).view(SIZE, 20) % 50, (50,)), Dense)
