"""Random networks with residual connections, and points to test enclosures with."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from verifier.graph import Builder, Graph, Interval, Value
from verifier.ops.arithmetic import add
from verifier.ops.linear import Linear
from verifier.ops.piecewise_linear import absolute, clip, leaky_relu, prelu, relu
from verifier.ops.sign import Sign
from verifier.sets import InputSet

Activation = Callable[[Builder, Value], Value]
ACTIVATIONS: dict[str, Activation] = {
    "relu": relu,
    "leaky": lambda b, x: leaky_relu(b, x, 0.1),
    "concave": lambda b, x: leaky_relu(b, x, 2.0),
    "abs": absolute,
    "clip": lambda b, x: clip(b, x, -0.5, 0.7),
    "prelu": lambda b, x: prelu(b, x, torch.linspace(-1, 2, b.shape(x)[0], dtype=torch.float64)),
    "sign": lambda b, x: b.add(Sign(), x),
}


def network(
    seed: int, activation: Activation = relu, sizes: Sequence[int] = (4, 12, 12, 12, 3), scale: float = 0.0
) -> Graph:
    """An MLP in float64; layers of equal width have a residual connection. `scale` > 0 multiplies every row
    of every matrix by 10^u, u uniform in [-scale, scale]."""
    generator = torch.Generator().manual_seed(seed)
    b = Builder()
    h = b.input("x", (sizes[0],))
    for k, (m, n) in enumerate(pairwise(sizes)):
        weight = torch.randn(n, m, generator=generator, dtype=torch.float64) / m**0.5
        bias = 0.3 * torch.randn(n, generator=generator, dtype=torch.float64)
        size = 10 ** (scale * (2 * torch.rand(n, 1, generator=generator, dtype=torch.float64) - 1))
        y = b.add(Linear(size * weight, size.squeeze(1) * bias), h)
        if k < len(sizes) - 2:
            y = activation(b, y)
        h = add(b, y, h) if m == n else y
    return b.graph(h)


def inside(sets: InputSet, count: int, seed: int = 0) -> Tensor:
    """Random points and corners of the sets: [B, count, *shape]."""
    generator = torch.Generator().manual_seed(seed)
    lower, upper = sets.box()
    random = torch.rand(lower.shape[0], count, *lower.shape[1:], generator=generator, dtype=torch.float64)
    random[:, ::2] = random[:, ::2].round()
    at = lower.unsqueeze(1) + random.to(lower) * (upper - lower).unsqueeze(1)
    return sets.project(at)


def attacked(graph: Graph, sets: InputSet, rows: Tensor, steps: int = 30) -> Tensor:
    """Points where gradient descent made each of the forms rows [R, *output shape] small: [B, R, *shape]."""
    count = len(rows)
    at = inside(sets, count, 5)
    width = (sets.box().upper - sets.box().lower).unsqueeze(1)
    for k in range(steps):
        x = at.flatten(0, 1).requires_grad_(True)
        value = (graph.evaluate([x])[0].view(-1, count, *rows.shape[1:]) * rows).sum()
        (gradient,) = torch.autograd.grad(value, x)
        step = gradient.sign().view(at.shape) * width * (0.25 * 0.85**k)
        at = sets.project((at - step).detach())
    return at


def assert_contains(found: Interval, values: Tensor) -> None:
    """`values` [B, P, *shape] lie in the intervals [B, *shape]."""
    assert (values >= found.lower.unsqueeze(1)).all(), (found.lower.unsqueeze(1) - values).max()
    assert (values <= found.upper.unsqueeze(1)).all(), (values - found.upper.unsqueeze(1)).max()


@pytest.fixture(scope="session")
def lab() -> SimpleNamespace:
    """The functions above."""
    return SimpleNamespace(
        activations=ACTIVATIONS,
        network=network,
        inside=inside,
        attacked=attacked,
        assert_contains=assert_contains,
    )
