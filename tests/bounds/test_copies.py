"""Neurons that are functions of single elements of another node: bounded once, where they come from."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from verifier.bounds.alpha import AlphaOptions, optimise
from verifier.bounds.crown import inner_bounds
from verifier.bounds.rows import wanted
from verifier.graph import Builder, Graph, Value
from verifier.graph.coefficients import Dense
from verifier.ops.arithmetic import ScaleShift, add
from verifier.ops.linear import Linear
from verifier.ops.maximum import Maximum
from verifier.ops.movement import Pad, Permute, Reshape, Take
from verifier.ops.piecewise_linear import relu
from verifier.ops.product import Product
from verifier.sets import Box

INDEX = torch.tensor([3, 0, 3, 1, 5, 5, 2, 3, 4, 0, 2, 1])


def randn(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def scale_and_shift(seed: int) -> tuple[Tensor, Tensor]:
    """Of both signs; every fifth scale is zero."""
    scale, shift = randn(12, seed=seed + 10), 0.5 * randn(12, seed=seed + 11)
    scale[::5] = 0.0
    return scale, shift


def copied(seed: int, matrix: bool) -> Graph:
    """A network that copies, scales and shifts inner values; with `matrix` one product does what looks like copying
    otherwise."""
    b = Builder()
    h = relu(b, b.add(Linear(randn(8, 4, seed=seed), randn(8, seed=seed + 1)), b.input("x", (4,))))
    h = b.add(Linear(randn(6, 8, seed=seed + 2) / 3, 0.2 * randn(6, seed=seed + 3)), h)
    scale, shift = scale_and_shift(seed)
    if matrix:
        one_hot = torch.nn.functional.one_hot(INDEX, 6).double()
        y = b.add(Linear(scale.unsqueeze(1) * one_hot, shift), h)
    else:
        y = b.add(ScaleShift(scale, shift), b.add(Take(INDEX, (12,)), h))
    out = add(b, _behind(b, y, seed), b.add(Linear(randn(3, 6, seed=seed + 4)), h))
    return b.graph(out)


def _behind(b: Builder, y: Value, seed: int) -> Value:
    """Operators of one, two and three arguments."""
    kinked = relu(b, y)
    parts = [b.add(Take(torch.arange(4) + 4 * k, (4,)), kinked) for k in range(3)]
    largest = b.add(Maximum(3), *parts)
    product = b.add(Product(), parts[0], parts[1])
    return add(
        b,
        b.add(Linear(randn(3, 4, seed=seed + 5)), largest),
        add(
            b,
            b.add(Linear(randn(3, 12, seed=seed + 6)), kinked),
            b.add(Linear(randn(3, 4, seed=seed + 7)), product),
        ),
    )


def box(batch: int = 3, dtype: torch.dtype = torch.float64) -> Box:
    return Box.around(0.5 * randn(batch, 4, seed=9).to(dtype), 0.3)


def test_origins_look_through_what_keeps_elements_apart() -> None:
    b = Builder()
    x = b.input("x", (2, 3))
    y = b.add(Linear(randn(3, 3, seed=0)), x)
    z = b.add(Pad((0, 1), (0, 0)), b.add(Permute((1, 0)), y))
    z = relu(b, b.add(ScaleShift(torch.tensor(-2.0)), b.add(Reshape((9,)), z)))
    z = b.add(Take(torch.tensor([0, 1, 4, 4, 8]), (5,)), z)
    graph = b.graph(z)
    origin = graph.origin(z.position)
    assert origin is not None and origin.node == y.position
    # Padded and transposed: the columns of [3, 3] are zeros, and the rows of y.
    assert origin.sign.tolist() == [0, -1, -1, -1, -1]
    assert origin.index[1:].tolist() == [0, 1, 1, 5]
    assert graph.origin(y.position) is None


@pytest.mark.parametrize("seed", range(5))
def test_copies_get_the_bounds_of_matrices_that_copy(seed: int) -> None:
    fast, slow = copied(20 * seed, matrix=False), copied(20 * seed, matrix=True)
    copy, product = (
        next(i for i, n in enumerate(g.nodes) if n.shape == (12,) and g.users[i] and type(n.op) is kind)
        for g, kind in ((fast, ScaleShift), (slow, Linear))
    )
    # One instance: selections of several are filled up with other neurons.
    first = inner_bounds(fast, [box(1)], fast.outputs)[copy]
    second = inner_bounds(slow, [box(1)], slow.outputs)[product]
    assert (first.lower >= second.lower - 1e-9).all() and (first.upper <= second.upper + 1e-9).all()
    open_ = (second.lower < 0) & (second.upper > 0)  # of which no matrix is settled by intervals alone
    assert open_.any()
    torch.testing.assert_close(first.lower[open_], second.lower[open_])
    torch.testing.assert_close(first.upper[open_], second.upper[open_])
    rows = Dense(torch.eye(3, dtype=torch.float64).unsqueeze(0))
    options = AlphaOptions(iterations=12)
    tuned = [optimise(g, [box()], g.outputs[0], rows, options=options).lower for g in (fast, slow)]
    plain = optimise(fast, [box()], fast.outputs[0], rows, options=AlphaOptions(iterations=0)).lower
    assert (tuned[0] >= plain).all() and (tuned[0] > plain).any()
    # The ascents differ in their steps, for shared neurons have one slope instead of one per copy.
    assert float((tuned[0] - tuned[1]).mean()) > -0.05


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("seed", range(4))
def test_every_enclosure_holds_at_points(lab: SimpleNamespace, seed: int, dtype: torch.dtype) -> None:
    graph, inputs = copied(20 * seed + 7, matrix=False), box(dtype=dtype)
    own = graph.to(dtype)
    rows = Dense(torch.eye(3, dtype=dtype).unsqueeze(0))
    plain = inner_bounds(own, [inputs], own.outputs)
    tuned = optimise(own, [inputs], own.outputs[0], rows, options=AlphaOptions(iterations=5))
    at = lab.inside(inputs, 3000).double()
    for bounds in (plain, tuned.bounds):
        keep = sorted(bounds)
        for i, value in zip(keep, own.to(torch.float64).evaluate([at.flatten(0, 1)], keep), strict=True):
            value = value.unflatten(0, at.shape[:2])
            assert (value >= bounds[i].lower.double().unsqueeze(1)).all()
            assert (value <= bounds[i].upper.double().unsqueeze(1)).all()
    values = own.to(torch.float64).evaluate([at.flatten(0, 1)])[0].unflatten(0, at.shape[:2])
    assert (values.amin(1) >= tuned.lower.double()).all()


def test_the_source_is_bounded_for_its_copies() -> None:
    graph = copied(3, matrix=False)
    bounds = inner_bounds(graph, [box()], graph.outputs)
    kinked = next(i for i, n in enumerate(graph.nodes) if n.shape == (12,) and graph.origin(i) is not None)
    origin = graph.origin(kinked)
    shift = next(i for i, n in enumerate(graph.nodes) if isinstance(n.op, ScaleShift))
    ask = wanted(graph, shift, bounds, {})
    assert origin is not None and ask is not None and ask[0] == origin.node
    assert ask[1].shape == (3, 6)
