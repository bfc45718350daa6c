"""Norms and logarithms of sums: what they are made of computes the same, and bounds hold on boxes of every size."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

import verifier.ops.norms as norms
from verifier.bounds.compute import compute_bounds
from verifier.graph import Builder, Composite, Graph, Interval, Value
from verifier.ops.log_sum import LogSoftmax, LogSumExp
from verifier.ops.norms import Standardised
from verifier.ops.softmax import Softmax
from verifier.options import BoundMethod
from verifier.sets import Box
from verifier.transforms.composites import write_out
from verifier.transforms.differentiate import differentiate

CASES, COUNT = 4000, 5
MASK = torch.tensor([1.0, 0.0, 1.0, 1.0, 0.0], dtype=torch.float64)
OPS = {
    "layer": Standardised((0,), 1e-5, True),
    "rms": Standardised((0,), 1e-5, False),
    "log sum": LogSumExp((0,)),
    "log softmax": LogSoftmax(0),
    "masked softmax": Softmax(0, MASK),
}

FORMS = [(name, 1 << 20) for name in OPS] + [(name, 0) for name in ("log softmax", "masked softmax")]


def network(op: Composite) -> Graph:
    builder = Builder()
    return builder.graph(builder.add(op, builder.input("x", (COUNT,)), name="y"))


def boxes(dtype: torch.dtype) -> Interval:
    """[CASES, COUNT]: of every size, far from zero, degenerate, and saturated."""
    generator = torch.Generator().manual_seed(0)

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand(*shape, generator=generator, dtype=torch.float64)

    center = uniform(-1, 1, CASES, COUNT) * 10 ** uniform(-3, 2, CASES, 1) + uniform(-30, 30, CASES, 1)
    radius = uniform(0, 1, CASES, COUNT) * 10 ** uniform(-4, 1.5, CASES, 1)
    radius[::10] = 0
    lower, upper = (center - radius).to(dtype), (center + radius).to(dtype)
    return Interval(lower, torch.maximum(lower, upper))


def check(op: Composite, dtype: torch.dtype, method: BoundMethod) -> None:
    """Values at corners and at random points lie between the bounds."""
    box, graph = boxes(dtype), network(op)
    written = write_out(graph)
    found = compute_bounds(written.to(dtype), [Box(*box)], method).outputs[0]
    assert not any(end.isnan().any() for end in found)
    generator = torch.Generator().manual_seed(1)
    low, high = box.to(torch.float64)
    for k in range(16):
        share = torch.rand(low.shape, generator=generator, dtype=torch.float64)
        (y,) = graph.evaluate([low + (share.round() if k % 2 else share) * (high - low)])
        slack = 1e-11 * (1 + y.abs())
        assert bool((found.lower <= y + slack).all()), "the lower end is too high"
        assert bool((found.upper >= y - slack).all()), "the upper end is too low"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("method", ["interval", "crown"])
@pytest.mark.parametrize(("name", "pairs"), FORMS)
def test_bounds_hold(
    monkeypatch: pytest.MonkeyPatch, name: str, method: BoundMethod, pairs: int, dtype: torch.dtype
) -> None:
    for module in ("softmax", "log_sum"):
        monkeypatch.setattr(f"verifier.ops.{module}.PAIRS", pairs)
    check(OPS[name], dtype, method)


@pytest.mark.parametrize("wrong", [0.9, 1.1])
def test_a_range_that_is_wrong_is_found(monkeypatch: pytest.MonkeyPatch, wrong: float) -> None:
    true = norms.power

    def broken(builder: Builder, x: Value, exponent: float) -> Value:
        return true(builder, x, exponent * wrong)

    monkeypatch.setattr(norms, "power", broken)
    with pytest.raises(AssertionError, match=r"the (lower|upper) end"):
        check(OPS["layer"], torch.float64, "crown")


@pytest.mark.parametrize(("name", "pairs"), FORMS)
def test_written_out_it_computes_the_same(monkeypatch: pytest.MonkeyPatch, name: str, pairs: int) -> None:
    for module in ("softmax", "log_sum"):
        monkeypatch.setattr(f"verifier.ops.{module}.PAIRS", pairs)
    graph = network(OPS[name])
    x = 3 * torch.randn(200, COUNT, dtype=torch.float64)
    torch.testing.assert_close(write_out(graph).evaluate([x]), graph.evaluate([x]))


def test_no_standardised_number_is_larger_than_it_can_be() -> None:
    """Whatever the box: wide, infinite, or around numbers that are all the same."""
    low = torch.tensor([[-1e3] * COUNT, [-torch.inf] * COUNT, [1.0] * COUNT], dtype=torch.float64)
    high = torch.tensor([[1e3] * COUNT, [torch.inf] * COUNT, [1.0] * COUNT], dtype=torch.float64)
    for name, most in (("layer", math.sqrt(COUNT - 1)), ("rms", math.sqrt(COUNT))):
        found = OPS[name].interval(Interval(low, high))
        assert not any(end.isnan().any() for end in found)
        assert float(found.upper.max()) <= most * (1 + 1e-9) and float(found.lower.min()) >= -most * (
            1 + 1e-9
        )
        wide = compute_bounds(write_out(network(OPS[name])), [Box(low[:1], high[:1])], "crown").outputs[0]
        assert float(wide.upper.max()) <= most * (1 + 1e-9)


def test_elements_of_one_group_compare_as_before() -> None:
    x = torch.randn(1000, COUNT, dtype=torch.float64)
    for name in ("layer", "rms", "log softmax"):
        groups = OPS[name].ordered((COUNT,))
        assert groups is not None and bool((groups == 0).all())
        assert torch.equal(OPS[name].forward(x).argsort(1), x.argsort(1))
    assert OPS["masked softmax"].ordered((COUNT,)) is None


@pytest.mark.parametrize("name", OPS)
def test_derivatives(name: str) -> None:
    graph = network(OPS[name])
    x = torch.randn(20, COUNT, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(graph.nodes[graph.outputs[0]].shape, dtype=torch.float64)
    (y,) = graph.evaluate([x])
    expected = torch.autograd.grad((y * weight).sum(), x)[0]
    (found,) = differentiate(graph, cotangent=weight).evaluate([x.detach()])
    torch.testing.assert_close(found, expected)
