"""Softmax: what it is made of computes the same, bounds hold on tens of thousands of boxes, and the test can fail."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import verifier.ops.softmax as module
from verifier.bounds.compute import compute_bounds
from verifier.graph import Builder, Graph, Interval, Value
from verifier.ops.arithmetic import scale_shift
from verifier.ops.softmax import Softmax
from verifier.options import BoundMethod
from verifier.sets import Box
from verifier.transforms.composites import write_out

CASES = 10_000
COUNT = 5


def network(axis: int = 0, shape: tuple[int, ...] = (COUNT,)) -> Graph:
    builder = Builder()
    return builder.graph(builder.add(Softmax(axis), builder.input("x", shape), name="y"))


def boxes(dtype: torch.dtype, cases: int = CASES) -> Interval:
    """[cases, COUNT]: of every size, far from zero, degenerate, and saturated."""
    generator = torch.Generator().manual_seed(0)

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand(*shape, generator=generator, dtype=torch.float64)

    center = uniform(-1, 1, cases, COUNT) * 10 ** uniform(-2, 3, cases, 1) + uniform(-100, 100, cases, 1)
    radius = uniform(0, 1, cases, COUNT) * 10 ** uniform(-4, 2, cases, 1)
    radius[::10] = 0
    ends = Interval((center - radius).to(dtype), (center + radius).to(dtype))
    return Interval(ends.lower, torch.maximum(ends.lower, ends.upper))


def check(dtype: torch.dtype, method: BoundMethod, cases: int = CASES) -> None:
    """Values at corners and at random points lie between the bounds."""
    box = boxes(dtype, cases)
    if method == "interval":
        found = Softmax(0).interval(box)
    else:
        bounds = compute_bounds(write_out(network()).to(dtype), [Box(*box)], method)
        found = bounds.outputs[0]
    assert not any(end.isnan().any() for end in found)
    generator = torch.Generator().manual_seed(1)
    low, high = box.to(torch.float64)
    for k in range(24):
        share = torch.rand(low.shape, generator=generator, dtype=torch.float64)
        y = (low + (share.round() if k % 2 else share) * (high - low)).softmax(1)
        slack = 1e-14 * y + 1e-300
        assert bool((found.lower <= y + slack).all()), "the lower end is too high"
        assert bool((found.upper >= y - slack).all()), "the upper end is too low"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("pairs", [module.PAIRS, 0])
@pytest.mark.parametrize("method", ["interval", "forward", "crown"])
def test_bounds_hold(
    monkeypatch: pytest.MonkeyPatch, method: BoundMethod, pairs: int, dtype: torch.dtype
) -> None:
    monkeypatch.setattr(module, "PAIRS", pairs)
    check(dtype, method)


def test_optimised_bounds_hold() -> None:
    check(torch.float64, "alpha-crown", 300)


@pytest.mark.parametrize("method", ["interval", "crown"])
@pytest.mark.parametrize("shift", [0.99, 1.01])
def test_a_constant_off_by_one_percent_is_found(
    monkeypatch: pytest.MonkeyPatch, method: BoundMethod, shift: float
) -> None:
    def wrong(builder: Builder, x: Value, scale: float | None = None, **_: float) -> Value:
        return scale_shift(builder, x, scale=scale, shift=shift)

    monkeypatch.setattr(module, "scale_shift", wrong)
    with pytest.raises(AssertionError, match=r"the (lower|upper) end"):
        check(torch.float32, method)


@pytest.mark.parametrize("pairs", [module.PAIRS, 0])
@pytest.mark.parametrize(("axis", "shape"), [(0, (4,)), (1, (2, 3, 4)), (2, (2, 3, 4)), (0, (1, 3))])
def test_written_out_it_computes_the_same(
    monkeypatch: pytest.MonkeyPatch, pairs: int, axis: int, shape: tuple[int, ...]
) -> None:
    monkeypatch.setattr(module, "PAIRS", pairs)
    graph = network(axis, shape)
    parts = write_out(graph)
    assert not any(isinstance(n.op, Softmax) for n in parts.nodes)
    assert parts.nodes[parts.outputs[0]].name == "y"
    x = 5 * torch.randn(50, *shape, dtype=torch.float64)
    torch.testing.assert_close(parts.evaluate([x]), graph.evaluate([x]))
    assert torch.equal(graph.evaluate([x])[0], x.softmax(axis + 1))


def test_intervals_are_the_exact_range() -> None:
    """One element at one end and all others at the other ends: differences lose nothing, unlike a shared sum."""
    low, high = boxes(torch.float64)
    found = Softmax(0).interval(Interval(low, high))
    own = torch.eye(COUNT, dtype=torch.bool)
    for ends, others, end in ((low, high, found.lower), (high, low, found.upper)):
        points = torch.where(own, ends.unsqueeze(1), others.unsqueeze(1))
        wanted = points.softmax(2).diagonal(dim1=1, dim2=2)
        torch.testing.assert_close(end, wanted, rtol=1e-10, atol=1e-13)


def test_infinite_and_huge_arguments_give_no_nan() -> None:
    low = torch.tensor([[-torch.inf, 0.0, 1.0, -1.0, 2.0], [-1e38, -3e38, 0.0, 1e30, 1e38]])
    high = torch.tensor([[torch.inf, 1.0, torch.inf, 1.0, 2.0], [3e38, -1e38, 0.0, 1e38, 2e38]])
    found = Softmax(0).interval(Interval(low, high))
    assert not any(end.isnan().any() for end in found)
    assert bool((found.lower >= 0).all()) and bool((found.upper <= 1 + 1e-5).all())
    bounds = compute_bounds(write_out(network()).to(low.dtype), [Box(low[1:], high[1:])], "crown")
    for end in (bounds.lower, bounds.upper):
        assert isinstance(end, Tensor) and not end.isnan().any()


def test_elements_of_one_sum_compare_as_their_logarithms() -> None:
    x = torch.randn(1000, 3, 4, dtype=torch.float64).round(decimals=1)
    for axis in (0, 1):
        op = Softmax(axis)
        groups = op.ordered((3, 4))
        y = op.forward(x)
        same = groups.flatten().unsqueeze(0) == groups.flatten().unsqueeze(1)
        assert int(same.sum()) == 12 * (3, 4)[axis]
        for a, b in same.nonzero().tolist():
            u, v = x.flatten(1), y.flatten(1)
            ties = u[:, a] == u[:, b]
            assert torch.equal((u[:, a] < u[:, b])[~ties], (v[:, a] < v[:, b])[~ties])
            torch.testing.assert_close(v[ties, a], v[ties, b])


def test_axes_that_do_not_exist_are_refused() -> None:
    with pytest.raises(ValueError, match="axis 2"):
        network(2, (3, 4))
