"""Hand-written gradients against autograd's."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from verifier.training.gradients import Folded, Product, Rectified


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


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("affine", [True, False])
def test_a_folded_normalisation(bias: bool, affine: bool) -> None:
    """It is the convolution and the normalisation one after the other; gradients by finite differences."""
    torch.manual_seed(0)
    weight = torch.randn(4, 2, 3, 3).double()
    vectors = [torch.randn(4).double() for _ in range(4)]
    given = [vectors[0] if bias else None, *(vectors[1:3] if affine else (None, None)), vectors[3]]
    parts = [weight, *given, torch.rand(4).double() + 0.1]
    parts = [t if t is None else t.requires_grad_() for t in parts]
    x = torch.randn(2, 2, 5, 5).double()
    kernel, shift = Folded.apply(*parts, 1e-3)  # pyright: ignore[reportGeneralTypeIssues]
    mean, variance = (t.detach() for t in parts[4:] if t is not None)
    apart = functional.batch_norm(
        functional.conv2d(x, weight, parts[1]), mean, variance, *parts[2:4], eps=1e-3
    )
    assert torch.allclose(functional.conv2d(x, kernel, shift), apart)
    assert torch.autograd.gradcheck(lambda *p: Folded.apply(*p, 1e-3), tuple(parts))
    frozen = [t if t is None or k % 2 else t.detach() for k, t in enumerate(parts)]
    assert torch.autograd.gradcheck(lambda *p: Folded.apply(*p, 1e-3), tuple(frozen))
