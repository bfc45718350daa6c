"""Float32 bounds hold for the numbers that exact arithmetic gives."""

from __future__ import annotations

import pytest
import torch

from verifier.bounds.backward import PassOptions, backward
from verifier.bounds.crown import inner_bounds
from verifier.bounds.relaxations import Relaxations
from verifier.graph import Builder, Graph, Relaxation, Value
from verifier.graph.coefficients import Dense, dot, identity, roundings
from verifier.ops.arithmetic import Add, scale_shift
from verifier.ops.convolution import Conv, ConvTranspose, Window
from verifier.ops.extremum import maximum
from verifier.ops.linear import Linear
from verifier.ops.movement import Concat, Pad, Reshape, Take
from verifier.ops.piecewise_linear import relu
from verifier.sets import Box


def wide(builder: Builder, size: int) -> Graph:
    """Fan-out: many products in one element of a transpose, of which the forward direction knows nothing."""
    x = builder.input("x", (1,))
    many = builder.add(Linear(torch.rand(size, 1) + 0.5), x)
    return builder.graph(builder.add(Linear(torch.rand(1, size) + 0.5), relu(builder, many)))


def popular(builder: Builder, size: int) -> Graph:
    """The same by taking one element often."""
    x = builder.input("x", (1,))
    many = builder.add(Take(torch.zeros(size, dtype=torch.int64), (size,)), x)
    return builder.graph(builder.add(Linear(torch.rand(1, size) + 0.5), many))


def cancelling(builder: Builder, size: int) -> Graph:
    """Coefficients that are summed at one node, and cancel there."""
    x = builder.input("x", (1,))
    y = relu(builder, scale_shift(builder, x, shift=10.0))
    total = y
    for k in range(size):
        total = builder.add(Add(), total, scale_shift(builder, y, scale=(-1) ** k * (1e4 + k / 7)))
    return builder.graph(total)


def deep(builder: Builder, size: int) -> Graph:
    """Many constants in turn."""
    value = builder.input("x", (1,))
    for k in range(size):
        value = relu(builder, scale_shift(builder, value, scale=1.0, shift=1 + 0.1 * (-1) ** k))
    return builder.graph(value)


@pytest.mark.parametrize("make", [wide, popular, cancelling, deep])
@pytest.mark.parametrize("size", [3, 40, 3000])
def test_rounding_is_covered(make, size: int) -> None:
    if make in (cancelling, deep):
        size = min(size, 200)
    torch.manual_seed(size)
    exact = make(Builder(), size).to(torch.float64)
    graph = exact.to(torch.float32)
    points = (torch.rand(6, 1) * 2 - 0.5).double()
    box = Box(points.float() - 1e-7, points.float() + 1e-7)
    values = exact.evaluate([(box.lower + box.upper).double() / 2])[0]
    bounds = inner_bounds(graph, [box], graph.outputs)[graph.outputs[0]]
    assert (bounds.lower.double() <= values).all() and (values <= bounds.upper.double()).all()


def test_a_constant_beside_many_boxes() -> None:
    """Enclosures of constants are shared by all subdomains."""
    builder = Builder()
    x = builder.input("x", (2,))
    constant = builder.constant(torch.tensor([0.3, -0.2], dtype=torch.float64), "c")
    y = builder.add(Add(), relu(builder, x), constant)
    z = maximum(builder, y, constant)
    graph = builder.graph(builder.add(Linear(torch.ones(1, 2, dtype=torch.float64)), z))
    lower = torch.randn(5, 2).double()
    bounds = inner_bounds(graph, [Box(lower, lower + 0.5)], graph.outputs)[graph.outputs[0]]
    for part in torch.linspace(0, 1, 5):
        value = graph.evaluate([lower + 0.5 * part])[0]
        assert (bounds.lower <= value).all() and (value <= bounds.upper).all()


def conv_network(seed: int, scale: float) -> Graph:
    """Strides, groups, gaps and a residual sum; channels scaled by up to 10^scale, biases that cancel against them."""
    generator = torch.Generator().manual_seed(seed)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    def conv(builder: Builder, x: Value, out: int, kernel: int, **geometry: int) -> Value:
        groups, stride, dilation = (geometry.get(k, 1) for k in ("groups", "stride", "dilation"))
        channels = builder.shape(x)[1]
        size = 10 ** (scale * (2 * torch.rand(out, 1, 1, 1, generator=generator, dtype=torch.float64) - 1))
        pad = (kernel - 1) * dilation // 2
        window = Window((kernel,) * 2, (stride,) * 2, (dilation,) * 2, (pad,) * 2, (pad,) * 2)
        weight = size * random(out, channels // groups, kernel, kernel)
        return builder.add(Conv(weight, size.flatten() * random(out), window, groups), x)

    b = Builder()
    x = b.input("x", (1, 3, 9, 9))
    y = relu(b, conv(b, x, 8, 3, stride=2))
    z = relu(b, conv(b, y, 8, 3, groups=2))
    y = relu(b, b.add(Add(), conv(b, z, 8, 3, dilation=2), y))
    y = relu(b, conv(b, y, 6, 5, stride=3))
    flat = b.add(Reshape((24,)), y)
    return b.graph(b.add(Linear(random(10, 24), random(10)), flat))


@pytest.mark.parametrize("scale", [0.0, 1.0, 3.0])
@pytest.mark.parametrize("radius", [0.0, 0.02])
@pytest.mark.parametrize("seed", range(4))
def test_the_error_of_a_convolutional_pass_is_covered(seed: int, radius: float, scale: float) -> None:
    """A float32 pass against the same lines and the same rows in float64, each margin's error by itself."""
    exact = conv_network(seed, scale)
    graph, target = exact.to(torch.float32), exact.outputs[0]
    exact = graph.to(torch.float64)  # the weights of the float32 network
    center = torch.randn(5, 1, 3, 9, 9, generator=torch.Generator().manual_seed(seed))
    box = Box(center - radius, center + radius)
    wide = Box(box.lower.double(), box.upper.double())
    bounds = inner_bounds(graph, [box], [target])
    lines = Relaxations(graph, bounds).of(target, slice(None), graph.window(target, None))
    rows = torch.randn(5, 40, 1, 10, generator=torch.Generator().manual_seed(seed))[:, :, 0]
    inner = max(i for i, node in enumerate(graph.nodes) if isinstance(node.op, Conv))
    shape = graph.nodes[inner].shape
    starts = [(target, Dense(rows), Dense(rows.double()))]
    starts.append((inner, identity(shape, box.lower), identity(shape, wide.lower)))
    double = {i: Relaxation(*[_double(part) for part in line[:4]]) for i, line in lines.items()}
    boxes = {i: b.to(torch.float64) for i, b in bounds.items()}
    for start, given, truth in starts:
        found = backward(graph, {start: given}, lines, bounds, PassOptions(windows=True))
        assert found.error is not None
        value = backward(exact, {start: truth}, double, boxes, PassOptions(rounding=False)).minimum(
            exact, [wide]
        )
        difference = (found.minimum(graph, [box]).double() + found.error - value).abs()
        assert (difference <= found.error).all()


def _double(part):
    if isinstance(part, tuple):
        return tuple(_double(p) for p in part)
    return None if part is None else part.double()


@pytest.mark.parametrize("size", [1, 7, 48, 1000, 3072])
@pytest.mark.parametrize("rows", [1, 100])
def test_long_sums_round_as_short_ones(size: int, rows: int) -> None:
    """`roundings` holds against float64, for sums that grow, cancel, and have terms of all magnitudes."""
    generator = torch.Generator().manual_seed(size)
    plain = torch.rand(2, rows, size, generator=generator) + 0.5
    cancelling = torch.cat([plain, -plain.flip(2)], 2)[..., :size]
    spread = plain * 10 ** (12 * torch.rand(2, rows, size, generator=generator) - 6)
    x = torch.rand(2, size, generator=generator) + 0.5
    for a in (plain, cancelling, spread):
        exact = torch.einsum("brn,bn->br", a.double(), x.double())
        size_of = torch.einsum("brn,bn->br", a.double().abs(), x.double())
        error = (dot(a, x).double() - exact).abs()
        assert (error <= roundings(size) * 2.0**-24 * 1.001 * size_of).all()
    assert size < 100 or roundings(size) < size / 8


@pytest.mark.parametrize("seed", range(30))
def test_fan_out_counts_the_products(seed: int) -> None:
    """No column of a convolution's matrix, or of its transpose's, has more entries than `fan_out` says."""
    g = torch.Generator().manual_seed(seed)

    def draw(low: int, high: int) -> int:
        return int(torch.randint(low, high + 1, (), generator=g))

    groups, kernel, stride, dilation = draw(1, 2), draw(1, 4), draw(1, 3), draw(1, 2)
    pad = draw(0, (kernel - 1) * dilation)
    window = Window((kernel,) * 2, (stride,) * 2, (dilation,) * 2, (pad,) * 2, (pad,) * 2)
    shape = (1, 2 * groups, 9, 9)
    conv = Conv(torch.ones(3 * groups, 2, kernel, kernel), None, window, groups)
    free = Window((kernel,) * 2, (stride,) * 2, (1, 1), (0, 0), (0, 0))
    transposed = ConvTranspose(torch.ones(2 * groups, 3, kernel, kernel), None, free, (0, 0), groups)
    for op in (conv, transposed):
        out = op.output_shape(shape)
        eye = torch.eye(torch.Size(out).numel()).view(1, -1, *out)
        entries = (op.transpose(eye, 0, shape) != 0).sum(1)
        assert int(entries.max()) <= op.fan_out(shape)


def test_moving_elements_costs_no_rounding() -> None:
    """Joining and padding are exact: an error bound that grew with the size of the result would only loosen bounds."""
    builder = Builder()
    x = builder.input("x", (64,))
    wide = builder.add(Pad((8,), (8,)), builder.add(Concat(0), x, x))
    graph = builder.graph(wide)
    box = Box(torch.zeros(1, 64), torch.ones(1, 64))
    start = {graph.outputs[0]: Dense(torch.eye(144)[:1].unsqueeze(0) + 0.5)}
    error = backward(graph, start, {}, inner_bounds(graph, [box], graph.outputs)).error
    taken = builder.graph(builder.add(Take(torch.arange(144) % 64, (144,)), x))
    start = {taken.outputs[0]: Dense(torch.eye(144)[:1].unsqueeze(0) + 0.5)}
    other = backward(taken, start, {}, inner_bounds(taken, [box], taken.outputs)).error
    assert error is not None and other is not None and (error < 2 * other).all()
