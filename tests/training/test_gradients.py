"""Hand-written gradients against autograd's."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from verifier.training.gradients import Product, Rectified


def leaves(*shapes: tuple[int, ...]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(s, generator=generator, dtype=torch.float64).requires_grad_() for s in shapes]


def compare(ours: tuple[Tensor, ...], plain: tuple[Tensor, ...], given: list[Tensor]) -> None:
    weights = [torch.randn_like(t) for t in plain]
    grads = [
        torch.autograd.grad(
            sum((w * t).sum() for w, t in zip(weights, ts, strict=True)), given, retain_graph=True
        )
        for ts in (ours, plain)
    ]
    for a, b in zip(ours, plain, strict=True):
        assert torch.allclose(a, b, atol=1e-12)
    for a, b in zip(*grads, strict=True):
        assert torch.allclose(a, b, atol=1e-12)


def test_rectified() -> None:
    """Active, inactive and undecided elements."""
    given = leaves((5, 1, 40), (5, 1, 40))
    center, radius = given[0], given[1].abs()
    lower, upper = (center - radius).clamp(min=0), (center + radius).clamp(min=0)
    compare(Rectified.apply(center, radius), ((lower + upper) / 2, (upper - lower) / 2), given)


def test_product() -> None:
    given = leaves((5, 3, 7), (5, 3, 7), (4, 7))
    center, radius, weight = given[0], given[1].abs(), given[2]
    plain = (functional.linear(center, weight), functional.linear(radius, weight.abs()))
    compare(Product.apply(center, radius, weight), plain, given)
    compare(
        Product.apply(center.detach(), radius.detach(), weight),
        tuple(functional.linear(t.detach(), w) for t, w in ((center, weight), (radius, weight.abs()))),
        given[2:],
    )
