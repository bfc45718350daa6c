"""Parameters that change by a part of their size: bounds against samples, in every kind of layer."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from verifier.errors import ModelError
from verifier.training import IBP, Linf, trace
from verifier.training.task import Task

PART, EPS = 0.1, 0.05


class Sequence(nn.Module):
    """Embeddings [B, 3, 4] with learned positions through a recurrent layer, or attention."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.places, self.layer = nn.Embedding(3, 4), layer
        self.head = nn.Linear(5 if isinstance(layer, nn.RNNBase) else 12, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.places(torch.arange(3, device=x.device))
        if isinstance(self.layer, nn.RNNBase):
            return self.head(self.layer(x)[0][:, -1])
        return self.head(self.layer(x, x, x, need_weights=False)[0].flatten(1))


def image(*layers: nn.Module, size: int) -> nn.Module:
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(size, 3))


MODULES: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "biases": (lambda: nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)), (6,)),
    "layer norm": (lambda: nn.Sequential(nn.Linear(6, 8), nn.LayerNorm(8), nn.Tanh(), nn.Linear(8, 3)), (6,)),
    "last a norm": (lambda: nn.Sequential(nn.Linear(6, 3), nn.BatchNorm1d(3)), (6,)),
    "convolution and batch norm": (
        lambda: image(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.ReLU(), size=18),
        (1, 5, 5),
    ),
    "transposed convolution": (lambda: image(nn.ConvTranspose2d(1, 2, 2), nn.ReLU(), size=32), (1, 3, 3)),
    "group norm": (lambda: image(nn.Conv2d(1, 2, 3), nn.GroupNorm(1, 2), nn.ReLU(), size=18), (1, 5, 5)),
    "RNN": (lambda: Sequence(nn.RNN(4, 5, batch_first=True)), (3, 4)),
    "LSTM": (lambda: Sequence(nn.LSTM(4, 5, batch_first=True)), (3, 4)),
    "GRU": (lambda: Sequence(nn.GRU(4, 5, batch_first=True)), (3, 4)),
    "LSTM, two layers": (
        lambda: Sequence(nn.LSTM(4, 5, 2, batch_first=True)),
        (3, 4),
    ),
    "attention": (lambda: Sequence(nn.MultiheadAttention(4, 2, batch_first=True)), (3, 4)),
}


def network(name: str) -> tuple[nn.Module, Tensor, Tensor]:
    """With biases, scales and statistics that are not 0 or 1."""
    torch.manual_seed(0)
    build, shape = MODULES[name]
    module = build().double().eval()
    with torch.no_grad():
        for p in module.parameters():
            p.add_(0.3 * torch.randn_like(p))
        for b in module.buffers():
            if b.is_floating_point():
                b.add_(0.5 * torch.rand_like(b))
    return module, torch.rand(4, *shape).double(), torch.tensor([0, 1, 2, 0])


@pytest.mark.parametrize("name", list(MODULES))
def test_bounds_hold_for_changed_parameters(name: str) -> None:
    """All at once, to their ends; and each kind alone, along its gradient, which moves the margins furthest."""
    module, x, y = network(name)
    near = Linf(weights=PART)
    task = Task(trace(module, x), x, y, EPS, near)
    with torch.no_grad():  # whether gradients are recorded or not
        lower = task.margins(task.enclosures).lower
    generator = torch.Generator().manual_seed(1)
    moved = copy.deepcopy(module)
    kept = {n: p.detach().clone() for n, p in module.named_parameters()}
    for k in range(60):
        margins = (task.rows @ moved(x).unsqueeze(2)).squeeze(2)
        gradients = dict(
            zip(kept, torch.autograd.grad(margins[k % 4].amin(), moved.parameters()), strict=True)
        )
        chosen = list(kept)[k % len(kept)] if k % 3 == 2 else None
        with torch.no_grad():
            for n, p in moved.named_parameters():
                random = torch.randn(p.shape, generator=generator).double()
                way = random if k % 3 == 0 else -gradients[n] * kept[n]
                p.copy_(kept[n] * (1 + PART * way.sign()) if chosen in (None, n) else kept[n])
            at = x + EPS * torch.randn(x.shape, generator=generator).sign()
            found = (task.rows @ moved(at).unsqueeze(2)).squeeze(2)
        assert bool((found >= lower - 1e-9).all())


@pytest.mark.parametrize("name", list(MODULES))
def test_every_parameter_counts(name: str) -> None:
    """Freezing any one of them makes the bounds tighter, unless nothing depends on it."""
    module, x, y = network(name)
    net = trace(module, x)
    whole = IBP(near=Linf(weights=PART))(net, x, y, EPS)
    gradients = torch.autograd.grad(whole, tuple(module.parameters()), allow_unused=True)
    for (key, p), gradient in zip(module.named_parameters(), gradients, strict=True):
        if "weight_hh" in key:  # what is left of its product with the first state cannot be told from a sum
            continue
        p.requires_grad_(False)
        less = IBP(near=Linf(weights=PART))(net, x, y, EPS)
        p.requires_grad_(True)
        assert less <= whole + 1e-12
        if gradient is not None and bool(gradient.abs().sum() > 1e-9):
            assert less < whole


def test_batch_statistics_stay() -> None:
    """In training mode the statistics are the clean pass's; gradients go through them."""
    module, x, y = network("convolution and batch norm")
    module.train()
    near = Linf(weights=PART)
    task = Task(trace(module, x), x, y, 0.0, near)
    plain = Task(task.net, x, y, 0.0, Linf())
    narrow = Task(task.net, x, y, 0.0, Linf(weights=1e-9))
    assert torch.allclose(
        narrow.margins(narrow.enclosures).lower, plain.margins(plain.enclosures).lower, atol=1e-6
    )
    assert bool((task.margins(task.enclosures).lower < plain.margins(plain.enclosures).lower).all())
    IBP(near=near)(task.net, x, y, EPS).backward()
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in module.parameters())


class Summed(nn.Module):
    def __init__(self, how: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.a, self.b, self.how = nn.Parameter(torch.randn(3, 6)), nn.Parameter(torch.randn(3, 6)), how

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.how(self.a, self.b))


@pytest.mark.parametrize(
    "how", [lambda a, b: a + b, lambda a, b: a * b, lambda a, b: a.exp(), lambda a, b: 2 / a]
)
def test_parameters_that_are_not_read_as_they_are(how: Callable[[Tensor, Tensor], Tensor]) -> None:
    x, y = torch.rand(2, 6), torch.tensor([0, 1])
    net = trace(Summed(how), x)
    with pytest.raises(ModelError, match="one by one"):
        IBP(near=Linf(weights=0.1))(net, x, y, 0.1)


def test_a_slope_is_refused_and_may_be_frozen() -> None:
    x, y = torch.rand(2, 6), torch.tensor([0, 1])
    module = nn.Sequential(nn.Linear(6, 4), nn.PReLU(), nn.Linear(4, 3))
    net, loss = trace(module, x), IBP(near=Linf(weights=0.1))
    with pytest.raises(ModelError, match="PRelu"):
        loss(net, x, y, 0.1)
    next(module[1].parameters()).requires_grad_(False)
    assert loss(net, x, y, 0.1) > IBP()(net, x, y, 0.1)
