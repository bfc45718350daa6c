"""Windows of coefficients give what dense coefficients give, gradients included."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from verifier.bounds.alpha import AlphaOptions, optimise
from verifier.bounds.backward import PassOptions, backward
from verifier.bounds.crown import Effort, inner_bounds, neuron_bounds
from verifier.bounds.interval import interval_bounds
from verifier.bounds.relaxations import Relaxations
from verifier.bounds.rows import Selection, refinable
from verifier.graph import Builder, Elementwise, Graph, Interval, Value, patches
from verifier.graph.coefficients import Coefficients, Dense, Rows, Several, contract, identity
from verifier.graph.patches import Grid, Patches
from verifier.ops.arithmetic import add, scale_shift
from verifier.ops.average_pool import average_pool
from verifier.ops.convolution import Conv, ConvTranspose, Window
from verifier.ops.extremum import max_pool
from verifier.ops.linear import Linear
from verifier.ops.maximum import Maximum
from verifier.ops.movement import Pad, reshape, take
from verifier.ops.piecewise_linear import leaky_relu, relu
from verifier.ops.select import concat
from verifier.sets import Box

GENERATOR = torch.Generator()


def randn(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=GENERATOR, dtype=torch.float64)


def conv(b: Builder, x: Value, out: int, k: int = 3, s: int = 1, p: int = 1, d: int = 1, g: int = 1) -> Value:
    rank, channels = len(b.shape(x)) - 2, b.shape(x)[1]
    weight = randn(out, channels // g, *[k] * rank) / (channels // g * k) ** 0.5
    window = Window((k,) * rank, (s,) * rank, (d,) * rank, (p,) * rank, (p,) * rank)
    return b.add(Conv(weight, 0.1 * randn(out), window, g), x)


def residual(b: Builder, x: Value) -> Value:
    h = relu(b, conv(b, reshape(b, x, (1, 3, 14, 14)), 4))
    y = conv(b, relu(b, conv(b, h, 6, s=2)), 6)
    h = relu(b, add(b, y, conv(b, h, 6, k=1, s=2, p=0)))  # 1x1 shortcut with stride 2
    y = scale_shift(b, conv(b, h, 6), randn(6, 1, 1), randn(6, 1, 1))
    return relu(b, add(b, y, h))  # identity shortcut


def uneven(b: Builder, x: Value) -> Value:
    h = reshape(b, x, (1, 3, 14, 14))
    window = Window((3, 2), (2, 1), (1, 2), (0, 1), (2, 0))  # differs by dimension and by side
    h = relu(b, b.add(Conv(randn(4, 3, 3, 2), None, window), h))
    h = leaky_relu(b, conv(b, h, 4, d=2, p=2, g=2), 0.1)
    h = conv(b, conv(b, h, 4, k=2, p=1), 4, s=3, p=0)  # two in a row: what sticks out must not leak
    return relu(b, h)


def joined(b: Builder, x: Value) -> Value:
    h = reshape(b, x, (1, 3, 14, 14))
    h = relu(b, concat(b, [conv(b, h, 2), conv(b, h, 3, k=1, p=0)], 1))
    h = b.add(Pad((0, 0, 1, 0), (0, 0, 0, 2)), relu(b, conv(b, h, 4)))
    window = Window((2, 2), (2, 2), (1, 1), (0, 0), (0, 0))
    return relu(b, conv(b, average_pool(b, h, window, False, False), 3))


def line(b: Builder, x: Value) -> Value:
    h = relu(b, conv(b, reshape(b, x, (1, 3, 196)), 4, s=2))
    h = relu(b, conv(b, h, 4, d=2))
    h = reshape(b, relu(b, conv(b, h, 2)), (1, 2, 8, 12))  # another map of the same elements
    return relu(b, conv(b, h, 3))


def pooled(b: Builder, x: Value) -> Value:
    h = conv(b, reshape(b, x, (1, 3, 14, 14)), 4, k=2, p=1)  # 15 x 15: a row and a column are left over
    h = max_pool(b, h, Window((2, 2), (2, 2), (1, 1), (0, 0), (0, 0)), False)
    h = relu(b, conv(b, h, 4))
    h = b.add(Maximum(2), *[take(b, conv(b, h, 3), lambda t, k=k: t[:, :, k:6:3, k::4]) for k in (0, 1)])
    h = relu(b, conv(b, reshape(b, take(b, h, lambda t: t.flip(3)), (1, 3, -1)), 2))
    return relu(b, conv(b, h, 2))


def sliced(b: Builder, x: Value) -> Value:
    """Some of the channels, in and out of order, of every second place or of all."""
    h = reshape(b, x, (1, 3, 14, 14))
    first = relu(b, conv(b, take(b, h, lambda t: t[:, 1:]), 4))
    turned = conv(b, take(b, first, lambda t: t[:, [3, 0, 1]]), 3, s=2)
    halved = take(b, conv(b, first, 5), lambda t: t[:, [4, 2], ::2, 1::2])
    h = relu(b, concat(b, [turned, halved], 1))
    return relu(b, conv(b, h, 2))


def upsampled(b: Builder, x: Value) -> Value:
    """Nearest upsampling and transposed convolutions, on both sides of a shortcut; cropped, padded, grouped."""
    h = relu(b, conv(b, reshape(b, x, (1, 3, 14, 14)), 4))
    small = relu(b, conv(b, h, 4, k=2, s=2, p=0))
    up = take(b, small, lambda t: t.repeat_interleave(2, 2).repeat_interleave(2, 3))
    wide = b.add(ConvTranspose(randn(4, 3, 2, 2), randn(3), square(2, 2, 0), (0, 0)), small)
    odd = b.add(ConvTranspose(randn(4, 1, 3, 3), None, square(3, 2, 1), (1, 1), 2), small)
    h = relu(b, conv(b, concat(b, [h, up, wide, odd], 1), 3))
    h = b.add(Pad((0, 0, 0, 0), (0, 0, 1, 1)), b.add(ConvTranspose(randn(3, 2, 2, 2), None, GAPS, (0, 0)), h))
    h = take(b, relu(b, conv(b, h, 2)), lambda t: t.repeat_interleave(3, 3))
    return relu(b, conv(b, h, 2, k=2, s=2))


def square(kernel: int, stride: int, before: int) -> Window:
    return Window((kernel,) * 2, (stride,) * 2, (1, 1), (before,) * 2, (before,) * 2)


GAPS = Window((2, 2), (3, 1), (1, 2), (0, 1), (1, 0))
"""Of a transposed convolution with a stride larger than its kernel, and a dilation."""


NETWORKS: dict[str, Callable[[Builder, Value], Value]] = {
    "residual": residual,
    "uneven": uneven,
    "joined": joined,
    "line": line,
    "pooled": pooled,
    "sliced": sliced,
    "upsampled": upsampled,
}


def network(name: str) -> Graph:
    GENERATOR.manual_seed(len(name))
    b = Builder()
    h = NETWORKS[name](b, b.input("x", (588,)))
    flat = reshape(b, h, (-1,))
    return b.graph(b.add(Linear(randn(3, b.shape(flat)[0]) / 10, randn(3)), flat))


def box(batch: int = 2) -> Box:
    GENERATOR.manual_seed(0)
    return Box.around(randn(batch, 588), 0.05)


@pytest.fixture(params=[0.5, 100.0])
def both(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable], tuple]:
    """Calls a function with windows (up to a part of the map, and always) and without."""

    def call(function: Callable) -> tuple:
        results = []
        for part in (request.param, 0.0):
            monkeypatch.setattr(patches, "WIDE", part)
            results.append(function())
        return tuple(results)

    return call


def close(a: Interval, b: Interval, tolerance: float) -> None:
    assert torch.allclose(a.lower, b.lower, rtol=tolerance, atol=tolerance)
    assert torch.allclose(a.upper, b.upper, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_inner_bounds_are_those_of_dense_coefficients(
    both: Callable, lab: SimpleNamespace, name: str, dtype: torch.dtype
) -> None:
    graph, inputs = network(name).to(dtype), box().to(dtype)
    with torch.no_grad():
        found, dense = both(lambda: inner_bounds(graph, [inputs], graph.outputs))
    intervals = interval_bounds(graph, [inputs.box()])
    for i in dense:
        # Long sums are counted with larger errors than short ones.
        close(found[i], dense[i], 1e-11 if dtype == torch.float64 else 2e-3)
    assert any((found[i].lower > intervals[i].lower + 1e-3).any() for i in found)
    at = lab.inside(inputs, 200)
    keep = sorted(found)
    values = graph.to(torch.float64).evaluate([at.flatten(0, 1).double()], keep=keep)
    for i, value in zip(keep, values, strict=True):
        lab.assert_contains(found[i].map(Tensor.double), value.view(2, 200, *value.shape[1:]))


def test_windows_are_used_and_become_dense_when_they_are_wide(monkeypatch: pytest.MonkeyPatch) -> None:
    op = Conv(torch.ones(2, 2, 3, 3), None, Window((3, 3), (1, 1), (1, 1), (1, 1), (1, 1)))
    coefficients: Coefficients = Rows(torch.arange(5).unsqueeze(0), torch.ones(1, 5), (1, 2, 8, 8))
    kinds = []
    for _ in range(3):
        coefficients = op.backward(coefficients, 0, (1, 2, 8, 8))
        kinds.append(type(coefficients))
    assert kinds == [Patches, Patches, Dense]


@pytest.mark.parametrize("name", ["residual", "uneven", "line"])
@pytest.mark.parametrize("shared", [True, False])
def test_gradients_in_slopes_and_in_bounds(both: Callable, name: str, shared: bool) -> None:
    graph, inputs = network(name), box()
    with torch.no_grad():
        plain = inner_bounds(graph, [inputs], graph.outputs)
    target = max(i for i in plain if refinable(graph, i, plain) is not None)
    GENERATOR.manual_seed(3)
    index = torch.randint(graph.nodes[target].numel, (2, 7), generator=GENERATOR)
    selection = Selection(index, graph.nodes[target].shape)
    weights = randn(2, 2, 7)
    below = [j for j in graph.ancestors(target) if isinstance(graph.nodes[j].op, Elementwise)]
    raw = {j: torch.rand(2, 2, 1 if shared else 7, *graph.nodes[j].shape, generator=GENERATOR) for j in below}

    def run() -> list[Tensor]:
        leaves = {j: t.double().clone().requires_grad_() for j, t in raw.items()}
        ends = {}
        for i, b in plain.items():
            ends[i] = b.map(lambda t: t.clone().requires_grad_())
        slopes = {(target, j): {"lower_slope": t} for j, t in leaves.items()}
        relaxations = Relaxations(graph, ends, slopes)
        found = neuron_bounds(graph, [inputs], target, selection, ends, relaxations, Effort(rounding=False))
        total = (weights[:, 0] * found.lower + weights[:, 1] * found.upper).sum()
        wanted = [*leaves.values(), *[t for b in ends.values() for t in (b.lower, b.upper)]]
        grads = torch.autograd.grad(total, wanted, allow_unused=True, materialize_grads=True)
        return [found.lower, found.upper, *grads]

    found, dense = both(run)
    assert sum(float(t.abs().sum()) for t in dense[2 : 2 + len(below)]) > 0
    for a, b in zip(found, dense, strict=True):
        assert torch.allclose(a, b, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("memory", [1 << 30, 1 << 20])
def test_optimised_bounds(both: Callable, memory: int) -> None:
    graph, inputs = network("uneven"), box(1)
    rows = identity((3,), inputs.lower)
    options = AlphaOptions(iterations=1, memory=memory)
    found, dense = both(lambda: optimise(graph, [inputs], graph.outputs[0], rows, options=options))
    assert torch.allclose(found.lower, dense.lower, rtol=1e-2)  # Adam amplifies rounding
    assert torch.allclose(found.plane.minimum(graph, [inputs]), found.lower)


def example(batch: int, kernel: tuple[int, int], start: tuple[int, int]) -> Patches:
    """Windows that stick out of a 6 x 7 map, with other values per instance where `batch` is 2."""
    GENERATOR.manual_seed(1)
    cell = torch.randint(12, (batch, 9), generator=GENERATOR)
    values = randn(2, 9, 2, *kernel)
    return Patches(values, cell, Grid((3, 4), (2, 2), start), (2, 6, 7), (1, 2, 6, 7))


@pytest.mark.parametrize("batch", [1, 2])
def test_every_operation_agrees_with_the_dense_tensor(batch: int) -> None:
    p = example(batch, (3, 4), (-1, -2))
    dense = p.dense()
    for b, r in [(0, 0), (1, 5), (1, 8)]:  # the definition, entry by entry
        place = int(p.cell[min(b, batch - 1), r])
        expected = torch.zeros(2, 6, 7, dtype=torch.float64)
        for i in range(3):
            for j in range(4):
                y, x = place // 4 * 2 - 1 + i, place % 4 * 2 - 2 + j
                if 0 <= y < 6 and 0 <= x < 7:
                    expected[:, y, x] = p.values[b, r, :, i, j]
        assert torch.equal(dense[b, r, 0], expected)
    for rows in (1, 2):
        x = randn(rows, 1, 2, 6, 7)
        assert torch.allclose(p.contract(x), contract(dense, x))
        assert torch.allclose(p.contract(x, absolute=True), contract(dense.abs(), x))
        assert torch.allclose(p.multiply(x).dense(), dense * x.unsqueeze(1))
        for groups in (3, 9):
            x = randn(rows, groups, 1, 2, 6, 7)
            wide = x.repeat_interleave(9 // groups, 1)
            assert torch.allclose(p.with_values(p.values.flatten(2) * p.pick(x)).dense(), dense * wide)


@pytest.mark.parametrize("batch", [1, 2])
def test_sums(batch: int) -> None:
    p, q = example(batch, (3, 4), (-1, -2)), example(batch, (2, 2), (0, -3))
    same = p.add(Patches(q.values, q.cell.clone(), q.grid, q.map, q.shape))
    assert isinstance(same, Patches) or same.dense().shape == p.dense().shape
    assert torch.allclose(same.dense(), p.dense() + q.dense())
    other = Patches(q.values, (q.cell + 1) % 12, q.grid, q.map, q.shape)
    assert torch.allclose(p.add(other).dense(), p.dense() + other.dense())
    assert torch.allclose(p.add(Dense(q.dense())).dense(), p.dense() + q.dense())
    index = torch.randint(84, (batch, 9), generator=GENERATOR)
    rows = Rows(index, randn(batch, 9), (1, 2, 6, 7))
    unit = Patches(p.values, index % 42, Grid((6, 7), (1, 1), (-1, -2)), p.map, p.shape)
    for total in (rows.add(unit), unit.add(rows)):
        assert isinstance(total, Patches)
        assert torch.allclose(total.dense(), rows.dense() + unit.dense())
    apart = Patches(q.values, (q.cell + 1) % 12, q.grid, q.map, q.shape)
    total = Patches(p.values[..., :2, :2], p.cell, p.grid, p.map, p.shape).add(apart)
    assert torch.allclose(
        total.dense(), Patches(p.values[..., :2, :2], p.cell, p.grid, p.map, p.shape).dense() + apart.dense()
    )


@pytest.mark.parametrize("batch", [1, 2])
def test_few_entries_are_kept_apart(batch: int) -> None:
    """Rows of a difference of two elements, one of them perhaps the same."""
    shape = (1, 2, 6, 7)
    first, second, third = (
        Rows(torch.randint(84, (batch, 9), generator=GENERATOR), randn(batch, 9), shape) for _ in range(3)
    )
    second = Rows(torch.where(second.index % 2 == 0, first.index, second.index), second.scale, shape)
    total = first.add(second).add(third)
    assert isinstance(total, Several)
    dense = first.dense() + second.dense() + third.dense()
    assert torch.allclose(total.dense(), dense)
    x = randn(batch, *shape)
    assert torch.allclose(total.multiply(x).dense(), dense * x.unsqueeze(1))
    assert torch.allclose(total.contract(x), contract(dense, x))
    assert bool((total.contract(x.abs(), absolute=True) >= contract(dense.abs(), x.abs()) - 1e-12).all())


def test_differences_of_channels_stay_windows() -> None:
    GENERATOR.manual_seed(0)
    b = Builder()
    h = relu(b, conv(b, reshape(b, b.input("x", (588,)), (1, 3, 14, 14)), 4))
    h = conv(b, h, 2)
    h = add(b, take(b, h, lambda t: t[0, 0]), scale_shift(b, take(b, h, lambda t: t[0, 1]), -1.0))
    graph = b.graph(reshape(b, h, (-1,)))
    ones = torch.ones(1, 196, dtype=torch.float64)
    rows = Rows(torch.arange(196).unsqueeze(0), ones, (196,))
    inputs = box(1)
    bounds = inner_bounds(graph, [inputs], graph.outputs)
    lines = Relaxations(graph, bounds).of(graph.outputs[0], slice(None), graph.window(graph.outputs[0], None))
    found = [
        backward(graph, {graph.outputs[0]: start}, lines, bounds, PassOptions(windows=True))
        for start in (rows, Dense(rows.dense()))
    ]
    assert found[0].patches
    assert not found[1].patches
    lows = [f.minimum(graph, [inputs]) for f in found]
    assert torch.allclose(*lows, rtol=1e-10)
    assert found[0].widest < found[1].widest / 4
