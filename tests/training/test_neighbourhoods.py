"""Perturbations other than a maximum norm of the input."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from tests.training.test_losses import check_gradient
from verifier.errors import OptionsError
from verifier.training import CROWNIBP, IBP, MTLIBP, SABR, Linf, Lp, token_radius, trace
from verifier.training.losses import worst_entropy
from verifier.training.task import Task


def in_ball(x: Tensor, eps: float, p: int, count: int) -> Tensor:
    """Points [count, B, ...] on the spheres around x; for l1 half of them corners."""
    generator = torch.Generator().manual_seed(0)
    way = torch.randn(count, *x.shape, generator=generator, dtype=x.dtype).flatten(2)
    if p == 1:
        corner = torch.zeros_like(way).scatter(2, way.abs().argmax(2, keepdim=True), 1.0) * way.sign()
        way = torch.where(torch.arange(count).view(-1, 1, 1) % 2 == 0, corner, way)
    way = way / torch.linalg.vector_norm(way, p, dim=2, keepdim=True)
    return x + eps * way.view(count, *x.shape)


@pytest.mark.parametrize("p", [1, 2])
@pytest.mark.parametrize("image", [False, True])
def test_balls_are_bounded(p: int, image: bool, modules, images, batches) -> None:
    """And more tightly than by the boxes around them."""
    module, (x, y) = (images if image else modules)().eval(), batches(image=image)
    net, near = trace(module, x), Lp(p)
    points = in_ball(x, 0.5, p, 300)
    scores = module(points.flatten(0, 1)).unflatten(0, points.shape[:2])
    task = Task(net, x, y, 0.5, near)
    margins = (task.rows @ scores.unsqueeze(3)).squeeze(3).amin(0)
    for bound in (task.margins(task.enclosures).lower, task.backward(task.rows)):
        assert bool((bound <= margins + 1e-12).all())
    wide = Task(net, x, y, 0.5, Linf())
    assert IBP().robust(wide).mean() > 1.03 * IBP().robust(task).mean()


def test_the_ball_of_a_linear_network_is_bounded_exactly() -> None:
    torch.manual_seed(0)
    module = nn.Linear(6, 2).double()
    x, y = torch.rand(3, 6).double(), torch.tensor([0, 1, 0])
    for p, dual in ((1, torch.inf), (2, 2)):
        task = Task(trace(module, x), x, y, 0.3, Lp(p))
        way = module.weight[0] - module.weight[1]
        sign = 1.0 - 2.0 * y
        gap = sign * (module(x) @ torch.tensor([1.0, -1.0]).double())
        exact = gap - 0.3 * torch.linalg.vector_norm(way, dual)
        assert torch.allclose(task.backward(task.rows)[:, 0], exact)


@pytest.mark.parametrize("p", [1, 2])
def test_gradients_in_balls(p: int, modules, images, batches) -> None:
    for loss in (IBP(near=Lp(p, (0, 1))), CROWNIBP(near=Lp(p)), MTLIBP(near=Lp(p), alpha=0.5)):
        check_gradient(loss, modules(), *batches(), 0.3)
    check_gradient(IBP(near=Lp(p)), images(), *batches(image=True), 0.3)


@pytest.mark.parametrize("image", [False, True])
def test_changed_weights_are_bounded(image: bool, modules, images, batches) -> None:
    """All entries by their own part, to the ends; and inputs, too."""
    module, (x, y) = (images if image else modules)().eval(), batches(image=image)
    near = Linf(weights=0.1)
    task = Task(trace(module, x), x, y, 0.05, near)
    bound = worst_entropy(task.margins(task.enclosures).lower)
    assert bool((bound > IBP().robust(Task(task.net, x, y, 0.05, Linf()))).all())
    generator = torch.Generator().manual_seed(0)
    kept = {n: p.detach().clone() for n, p in module.named_parameters()}
    for _ in range(100):
        with torch.no_grad():
            for name, p in module.named_parameters():
                sign = torch.randn(p.shape, generator=generator).sign() if p.dim() > 1 else 0
                p.copy_(kept[name] * (1 + 0.1 * sign))
            moved = x + 0.05 * torch.randn(x.shape, generator=generator).sign()
            found = nn.functional.cross_entropy(module(moved), y, reduction="none")
        assert bool((found <= bound + 1e-12).all())


def test_gradients_with_changed_weights(modules, batches) -> None:
    check_gradient(IBP(near=Linf(weights=0.05)), modules(), *batches(), 0.05)
    check_gradient(MTLIBP(near=Linf(weights=0.05), alpha=0.5), modules(), *batches(), 0.05)


def test_what_does_not_fit_is_refused(modules, batches) -> None:
    module, (x, y) = modules(), batches()
    net = trace(module, x)
    with pytest.raises(OptionsError, match="changed weights"):
        CROWNIBP(near=Linf(weights=0.1))(net, x, y, 0.1)
    with pytest.raises(OptionsError, match="maximum norm"):
        SABR(near=Lp(2))(net, x, y, 0.1)


class Reader(nn.Module):
    """Embeddings [B, T, 5] to three scores."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.head = nn.LSTM(5, 6, batch_first=True), nn.Linear(6, 3)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.layer(tokens)[0][:, -1])


def test_tokens_have_radii_of_their_own() -> None:
    """Where one token may change, no more is lost than by all inputs in which it does; without any, nothing."""
    torch.manual_seed(0)
    module = Reader().double()
    x, y = torch.randn(4, 3, 5).double(), torch.tensor([0, 1, 2, 0])
    net = trace(module, x)
    clean = nn.functional.cross_entropy(module(x), y, reduction="none")
    mask = torch.tensor([[True, False, False], [False, False, True], [False] * 3, [True] * 3])
    each = IBP().robust(Task(net, x, y, token_radius(mask, 0.1).double(), Linf())).detach()
    all_tokens = IBP().robust(Task(net, x, y, 0.1, Linf())).detach()
    assert each[2] == pytest.approx(clean[2].item(), rel=1e-6)
    assert each[3] == pytest.approx(all_tokens[3].item())
    assert bool((each[:2] < all_tokens[:2]).all())
    moved = x + 0.1 * mask.unsqueeze(-1) * torch.randn(100, *x.shape).sign()
    scores = module(moved.flatten(0, 1)).unflatten(0, (100, 4))
    worst = torch.stack([nn.functional.cross_entropy(s, y, reduction="none") for s in scores]).amax(0)
    assert bool((worst <= each + 1e-6).all())


def test_gradients_through_gates() -> None:
    """Products of gates and states, whose planes are searched for."""
    torch.manual_seed(0)
    module = Reader().double()
    x, y = torch.randn(4, 3, 5).double(), torch.tensor([0, 1, 2, 0])
    check_gradient(IBP(), module, x, y, 0.1, rel=1e-2)
