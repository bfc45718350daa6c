"""Values of all tokens in parts, one per token."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from verifier.bounds.compute import compute_bounds
from verifier.bounds.crown import Effort, inner_bounds
from verifier.frontends import onnx as frontend
from verifier.graph import Builder, Elementwise, Graph, Value
from verifier.graph.graph import STAGES
from verifier.ops.arithmetic import ScaleShift, add
from verifier.ops.convolution import Conv, Window
from verifier.ops.linear import Linear
from verifier.ops.movement import Concat, Pad, broadcast, permute, reshape, take
from verifier.ops.product import multiply
from verifier.ops.reduction import Sum
from verifier.ops.sigmoid import sigmoid, tanh
from verifier.sets import Ball, Box
from verifier.transforms import prepare as prepare_module
from verifier.transforms.unbatch import leave_out_unread, unbatch

STEPS, WIDTH = STAGES + 3, 3


def randn(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed + sum(shape))
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def recurrence(keys: Callable[[Builder, Value], Value], whole: bool = False, together: int = 0) -> Graph:
    """s_t = sigmoid(A x)_t s_(t-1) + keys(x)_t with keys [STEPS, WIDTH], and a form of the last state, or of all;
    times a form of the last inputs `together`."""
    builder = Builder()
    x = builder.input("x", (STEPS, WIDTH))
    k = keys(builder, x)
    gates = sigmoid(builder, builder.add(Linear(randn(WIDTH, WIDTH)), x))
    states = [tanh(builder, take(builder, k, lambda t: t[0]))]
    for step in range(1, STEPS):
        gate, key = (take(builder, v, lambda t, s=step: t[s]) for v in (gates, k))
        states.append(add(builder, multiply(builder, gate, states[-1]), key))
    every = builder.add(Concat(0), *[reshape(builder, s, (1, WIDTH)) for s in states])
    every = multiply(builder, every, k)
    head = builder.add(Linear(randn(2, WIDTH)), every)
    head = head if whole else take(builder, head, lambda t: t[-1])
    if together:
        last = reshape(builder, take(builder, x, lambda t: t[-together:]), (together * WIDTH,))
        head = multiply(builder, head, builder.add(Linear(randn(2, together * WIDTH)), last))
    return builder.graph(head)


def plain(builder: Builder, x: Value) -> Value:
    return builder.add(Linear(randn(WIDTH, WIDTH, seed=1), randn(WIDTH)), x)


def convolved(builder: Builder, x: Value) -> Value:
    channels = reshape(builder, permute(builder, x, (1, 0)), (1, WIDTH, STEPS))
    window = Window((4,), (1,), (1,), (3,), (0,))
    y = builder.add(Conv(randn(WIDTH, 1, 4), randn(WIDTH), window, groups=WIDTH), channels)
    return permute(builder, reshape(builder, tanh(builder, y), (WIDTH, STEPS)), (1, 0))


def shifted(builder: Builder, x: Value) -> Value:
    y = tanh(builder, x)
    before = builder.add(Pad((1, 0), (-1, 0)), y)
    return add(builder, builder.add(ScaleShift(randn(WIDTH), randn(STEPS, 1)), before), y)


def normalised(builder: Builder, x: Value) -> Value:
    size = builder.add(Sum((1,)), tanh(builder, multiply(builder, x, x)))
    return multiply(builder, x, broadcast(builder, size, (STEPS, WIDTH)))


def summed_first(builder: Builder, x: Value) -> Value:
    """Over another axis than the last."""
    wide = reshape(builder, builder.add(Linear(randn(2 * WIDTH, WIDTH)), x), (STEPS, 2, WIDTH))
    return reshape(builder, builder.add(Sum((1,)), tanh(builder, wide)), (STEPS, WIDTH))


def joined(builder: Builder, x: Value) -> Value:
    """A sequence of twice the length, of which the second half is read by nothing."""
    y = builder.add(Linear(randn(WIDTH, WIDTH)), tanh(builder, x))
    return take(builder, builder.add(Concat(0), tanh(builder, x), y), lambda t: t[:STEPS])


KEYS = [plain, convolved, shifted, normalised, summed_first, joined]


@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize("keys", KEYS)
def test_the_network_stays_the_same(keys, whole: bool) -> None:
    graph = recurrence(keys, whole, together=0 if whole else 2)
    apart = unbatch(graph)
    x = randn(7, STEPS, WIDTH, seed=3)
    torch.testing.assert_close(apart.evaluate([x]), graph.evaluate([x]), rtol=1e-12, atol=1e-12)
    large = [n for n in apart.nodes if n.numel > 4 * WIDTH]
    assert whole or [n.name for n in large] == ["x"], "something is computed for all tokens at once"
    assert [n.shape for n in apart.nodes if n.name == "x"] == [(STEPS, WIDTH)]


@pytest.mark.parametrize("together", [0, 4])
@pytest.mark.parametrize("keys", [plain, convolved])
def test_bounds_hold_and_parts_of_a_box_lose_nothing(keys, together: int) -> None:
    graph, effort = unbatch(recurrence(keys, together=together)), Effort(depth=3)
    box = Box.around(randn(2, STEPS, WIDTH, seed=3), 0.05)
    found = inner_bounds(graph, [box], graph.outputs, effort=effort)
    part = torch.rand(100, *box.lower.shape, dtype=torch.float64)
    points = (box.lower + part * (box.upper - box.lower)).clamp(box.lower, box.upper).flatten(0, 1)
    for node, value in zip(graph.nodes, graph.evaluate([points], range(len(graph.nodes))), strict=True):
        values = value.expand(len(points), *node.shape).unflatten(0, (100, 2))
        bounds = found[graph.by_name[node.name]]
        assert (bounds.lower <= values).all() and (values <= bounds.upper).all(), node.name
    whole = replace(graph)
    assert len(graph.pieces) == STEPS
    whole.__dict__["pieces"] = frozenset()  # a cached property
    expected = inner_bounds(whole, [box], graph.outputs, effort=effort)
    for i, bounds in found.items():
        torch.testing.assert_close(bounds, expected[i], rtol=1e-9, atol=1e-9)


def test_other_sets_than_boxes_are_not_taken_apart() -> None:
    graph = unbatch(recurrence(plain))
    center = randn(1, STEPS, WIDTH, seed=3)
    last = max(
        i for i, node in enumerate(graph.nodes) if node.name.startswith("Add") and node.shape == (WIDTH,)
    )
    box = inner_bounds(graph, [Box.around(center, 0.05)], [last])
    ball = inner_bounds(graph, [Ball.around(center, 0.05, 2)], [last])
    inside = ball[last].upper - ball[last].lower
    assert (inside < 0.8 * (box[last].upper - box[last].lower)).all()


def test_short_networks_stay_as_they_are() -> None:
    builder = Builder()
    x = builder.input("x", (STEPS, WIDTH))
    y = sigmoid(builder, builder.add(Linear(randn(2, WIDTH)), x))
    total = take(builder, y, lambda t: t[0])
    for step in range(1, STEPS):
        total = add(builder, total, take(builder, y, lambda t, s=step: t[s]))
    graph = builder.graph(total)
    assert unbatch(graph) is graph


NETWORKS = sorted((Path(__file__).parents[2] / "vnncomp/benchmarks/gated_sequences/onnx").glob("*.onnx.gz"))


@pytest.mark.parametrize(
    "path",
    [pytest.param(p, marks=[pytest.mark.full] * ("rwkv_6_recurrent" not in p.name)) for p in NETWORKS],
    ids=lambda p: p.name.split(".")[0],
)
def test_networks_of_all_families_stay_the_same(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Short ones too, which are left as they are otherwise."""
    with monkeypatch.context() as context:
        context.setattr(prepare_module, "unbatch", lambda graph: graph)
        graph = prepare_module.prepare(frontend.load(path).graph)
    monkeypatch.setattr("verifier.graph.graph.STAGES", -1)
    monkeypatch.setattr("verifier.graph.graph.MANY", 0)
    monkeypatch.setattr("verifier.transforms.unbatch.MANY", 2)
    x = randn(3, *graph.nodes[graph.inputs[0]].shape)
    apart = unbatch(replace(graph))
    torch.testing.assert_close(apart.evaluate([x]), graph.evaluate([x]), rtol=1e-9, atol=1e-9)


def wide(chosen: list[int]) -> Graph:
    """Of a network with products, sums and tables of many elements the `chosen` outputs of 18."""
    builder = Builder()
    x = builder.input("x", (1, 4))
    h = tanh(builder, builder.add(Linear(randn(6, 4), randn(6)), x))
    head = reshape(builder, builder.add(Linear(randn(8, 6), randn(8)), h), (8,))
    pairs = [take(builder, head, lambda t, k=k: t[[k, (k + 3) % 8, (k + 5) % 8, 2, 2]]) for k in (0, 1)]
    product = multiply(builder, *pairs)
    scaled = builder.add(
        ScaleShift(randn(5, 3), randn(5, 1)),
        reshape(builder, broadcast(builder, reshape(builder, product, (5, 1)), (5, 3)), (5, 3)),
    )
    summed = reshape(builder, builder.add(Sum((1,)), sigmoid(builder, scaled)), (5,))
    every = builder.add(Concat(0), summed, sigmoid(builder, head), product)
    last = take(builder, every, lambda t: t[torch.tensor(chosen)])
    return builder.graph(builder.add(Linear(randn(1, len(chosen))), last))


@pytest.mark.parametrize("chosen", [[0], [3, 3], [6], [14, 1], [17, 5, 0]])
def test_what_nothing_reads_is_left_out(chosen: list[int]) -> None:
    graph = wide(chosen)
    small = leave_out_unread(graph)
    x = randn(5, 1, 4)
    assert torch.allclose(small.evaluate([x])[0], graph.evaluate([x])[0], atol=1e-12)
    box = [Box(x - 0.1, x + 0.1)]
    (before,), (after,) = (compute_bounds(g, box, "crown").outputs for g in (graph, small))
    assert torch.allclose(before.lower, after.lower, atol=1e-9)
    assert torch.allclose(before.upper, after.upper, atol=1e-9)

    def curved(g: Graph) -> int:
        return sum(
            g.nodes[i].numel for i in g.ancestors(g.outputs[0]) if isinstance(g.nodes[i].op, Elementwise)
        )

    assert curved(small) < 0.75 * curved(graph)


def test_a_network_of_which_all_is_read_stays_as_it_is() -> None:
    graph = wide(list(range(18)))
    assert leave_out_unread(graph) is graph
    builder = Builder()
    x = builder.input("x", (4,))
    affine = builder.graph(take(builder, builder.add(Linear(randn(6, 4)), x), lambda t: t[:1]))
    assert leave_out_unread(affine) is affine


def test_what_is_asked_for_by_name_stays_whole() -> None:
    graph = wide([6])
    kept = {n.name for n in leave_out_unread(graph).nodes}
    name = next(n.name for n in graph.nodes if isinstance(n.op, Elementwise) and n.name not in kept)
    prepared = prepare_module.prepare(graph, names=[name])
    assert prepared.nodes[prepared.by_name[name]].shape == graph.nodes[graph.by_name[name]].shape
