"""Coefficients kept as factors through sums of products give what dense coefficients give, gradients included."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from verifier.bounds.backward import LinearBound, backward
from verifier.bounds.crown import inner_bounds
from verifier.bounds.interval import interval_bounds
from verifier.bounds.relaxations import Relaxations, relax
from verifier.graph import Builder, Elementwise, Graph, Interval, Relaxation, Value
from verifier.graph.coefficients import Factored, contract, identity
from verifier.ops import reduction
from verifier.ops.arithmetic import add
from verifier.ops.exponential import Exp
from verifier.ops.linear import Linear
from verifier.ops.matmul import matmul
from verifier.ops.movement import permute, reshape, take
from verifier.ops.reduction import total
from verifier.sets import Box

NEVER = 1 << 30


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def attention(b: Builder, x: Value) -> Value:
    """Two heads over four tokens."""
    tokens = reshape(b, x, (1, 4, 6))
    q, k, v = (
        permute(b, reshape(b, b.add(Linear(randn(6, 6, seed=s) / 3), tokens), (1, 4, 2, 3)), (0, 2, 1, 3))
        for s in range(3)
    )
    weights = b.add(Exp(), matmul(b, q, permute(b, k, (0, 1, 3, 2))))
    mixed = reshape(b, permute(b, matmul(b, weights, v), (0, 2, 1, 3)), (24,))
    return b.add(Linear(randn(9, 24, seed=3) / 5), mixed)


def sums(b: Builder, x: Value) -> Value:
    """One value read by two products' copies, turned round and in part, and sums of functions of one argument."""
    rows = reshape(b, x, (4, 6))
    turned = take(b, rows, lambda t: t.flip(0)[:, ::2].unsqueeze(1).expand(4, 5, 3))
    gram = matmul(b, turned, permute(b, b.add(Exp(), turned), (0, 2, 1)))
    left = b.add(Linear(randn(9, 100, seed=5)), reshape(b, gram, (100,)))
    right = b.add(Linear(randn(9, 4, seed=6)), total(b, b.add(Exp(), rows), [1], keep=False))
    return add(b, left, right)


def network(name: str) -> Graph:
    b = Builder()
    return b.graph({"attention": attention, "sums": sums}[name](b, b.input("x", (24,))))


def box(batch: int) -> Box:
    center = randn(batch, 24, seed=9) / 2
    return Box(center - 0.2, center + 0.2)


def final(
    graph: Graph, inputs: Box, bounds: dict[int, Interval], lines: dict[int, Relaxation]
) -> LinearBound:
    rows = identity(graph.nodes[graph.outputs[0]].shape, inputs.lower)
    return backward(graph, {graph.outputs[0]: rows}, lines, bounds)


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("name", ["attention", "sums"])
def test_bounds_and_gradients(name: str, batch: int, monkeypatch: pytest.MonkeyPatch) -> None:
    graph, inputs = network(name), box(batch)
    bounds = interval_bounds(graph, [inputs.box()])
    elementwise = [i for i, n in enumerate(graph.nodes) if isinstance(n.op, Elementwise)]

    def run() -> list[Tensor]:
        lines = {i: _leaf(relax(graph, i, bounds, {})) for i in elementwise}
        found = final(graph, inputs, bounds, lines)
        assert found.error is not None
        low = found.minimum(graph, [inputs])
        leaves = [t for r in lines.values() for t in (*r.lower_slopes, *r.upper_slopes)]
        # Where intervals settle a line's side both ways give the same derivative; at 0 any is one.
        return [
            low.detach(),
            found.error.detach(),
            *torch.autograd.grad(low.sum(), leaves, allow_unused=True),
        ]

    factored = run()
    monkeypatch.setattr(reduction, "FEW_ROWS", NEVER)
    dense = run()
    torch.testing.assert_close(factored[0], dense[0], rtol=1e-9, atol=1e-9)
    assert bool((factored[1] < 4 * dense[1]).all())
    for one, other in zip(factored[2:], dense[2:], strict=True):
        torch.testing.assert_close(one, other, rtol=1e-7, atol=1e-9)


def _leaf(r: Relaxation) -> Relaxation:
    def leaves(slopes: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return tuple(t.detach().clone().requires_grad_() for t in slopes)

    return Relaxation(leaves(r.lower_slopes), r.lower_intercept, leaves(r.upper_slopes), r.upper_intercept)


@pytest.mark.parametrize("name", ["attention", "sums"])
def test_float32_bounds_hold(name: str) -> None:
    graph, inputs = network(name), box(2)
    own = graph.to(torch.float32)
    few = Box(inputs.lower.float(), inputs.upper.float())
    bounds = inner_bounds(own, [few], own.outputs)
    lines = dict(Relaxations(own, bounds).of(own.outputs[0], slice(None), own.window(own.outputs[0], None)))
    low = final(own, few, bounds, lines).minimum(own, [few]).double()
    exact = final(graph, inputs, *_double(bounds, lines)).minimum(
        graph, [Box(few.lower.double(), few.upper.double())]
    )
    assert bool((low <= exact).all())  # the same lines without the rounding of float32


def _double(
    bounds: dict[int, Interval], lines: dict[int, Relaxation]
) -> tuple[dict[int, Interval], dict[int, Relaxation]]:
    def cast(r: Relaxation) -> Relaxation:
        slopes = [tuple(t.double() for t in side) for side in (r.lower_slopes, r.upper_slopes)]
        ends = [None if t is None else t.double() for t in (r.lower_intercept, r.upper_intercept)]
        return Relaxation(slopes[0], ends[0], slopes[1], ends[1])

    return {i: b.to(torch.float64) for i, b in bounds.items()}, {i: cast(r) for i, r in lines.items()}


@pytest.mark.parametrize("shared", [True, False])
def test_the_kind_itself(shared: bool) -> None:
    """Sums, values and absolute values of factors are those of the tensor that they stand for."""
    shape, rows = (2, 1, 5, 4), randn(3, 7, 2, 1, 5, 1)
    common = randn(1 if shared else 3, *shape, seed=1)
    other = randn(3, 7, 2, 1, 1, 4, seed=2)[..., :1]
    kind = Factored(((rows, common), (other.expand_as(rows), None)), shape)
    dense = rows * common.unsqueeze(1) + other
    x = randn(3, *shape, seed=3)
    torch.testing.assert_close(kind.dense(), dense)
    torch.testing.assert_close(kind.contract(x), contract(dense, x))
    assert bool((kind.contract(x.abs(), absolute=True) >= contract(dense.abs(), x.abs()) - 1e-12).all())
    for axes in [(0,), (2,), (3,), (2, 3), (0, 2, 3)]:
        wanted = dense.sum([k + 2 for k in axes], keepdim=True)
        torch.testing.assert_close(kind.summed(axes), wanted)
    torch.testing.assert_close(kind.multiply(x).dense(), dense * x.unsqueeze(1))
