"""Chains read from graphs: bounds of sampled Jacobians, the networks' own matrices, and what is no chain is refused."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from verifier.frontends.torch import trace
from verifier.jacobian import semidefinite
from verifier.jacobian.chain import ChainError
from verifier.jacobian.reading import chain
from verifier.models.sorting import GroupSort, Householder, MaxMin
from verifier.sets import Box


class Around(nn.Module):
    """Two activations on different levels with a way around both."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(n, n + 2), nn.Linear(n + 2, n + 1), nn.Linear(n + 1, n)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.c(torch.tanh(self.b(torch.relu(self.a(x)))))


class Beside(nn.Module):
    """Two different activations on one level."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x[:, :3]) - 2 * torch.sigmoid(x[:, 2:5]) + x[:, :3]


class Mixed(nn.Module):
    """A sort and a Relu on one level, and some of the largest of a group."""

    def forward(self, x: Tensor) -> Tensor:
        first = x[:, :4].unflatten(1, (2, 2)).sort(1, descending=True).values.flatten(1)
        return torch.cat([first, torch.relu(x[:, 2:])], 1)


NETWORKS = {
    "plain": lambda: nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3)),
    "one": lambda: nn.Sequential(nn.Linear(4, 6)),
    "ends": lambda: nn.Sequential(nn.Sigmoid(), nn.Linear(4, 5), nn.LeakyReLU(0.2)),
    "smooth": lambda: nn.Sequential(nn.Linear(4, 6), nn.GELU(), nn.Linear(6, 6), nn.SiLU(), nn.Linear(6, 2)),
    "around": lambda: nn.Sequential(nn.Linear(4, 5), nn.ReLU(), Around(5), nn.ReLU(), Around(5), nn.Linear(5, 2)),
    "beside": lambda: nn.Sequential(nn.Linear(4, 5), Beside(), nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)),
    "sorted": lambda: nn.Sequential(nn.Linear(4, 6), GroupSort(3), nn.Linear(6, 6), GroupSort(2), nn.Linear(6, 2)),
    "maxmin": lambda: nn.Sequential(nn.Linear(4, 6), MaxMin(), nn.Linear(6, 6), MaxMin(), nn.Linear(6, 2)),
    "reflected": lambda: nn.Sequential(nn.Linear(4, 6), Householder(6, 3), nn.Linear(6, 6), Householder(6)),
    "mixed": lambda: nn.Sequential(nn.Linear(4, 6), Mixed(), nn.Linear(8, 2)),
    "image": lambda: nn.Sequential(
        nn.Unflatten(1, (1, 2, 2)), nn.Conv2d(1, 3, 2, padding=1), nn.ReLU(), nn.Conv2d(3, 2, 2), nn.ReLU(),
        nn.Flatten(), nn.Linear(8, 2),
    ),
}  # fmt: skip


def network(name: str) -> nn.Module:
    torch.manual_seed(sorted(NETWORKS).index(name))
    return NETWORKS[name]().double().eval()


def steepest(module: nn.Module, x: Tensor, norm: float) -> float:
    x = x.clone().requires_grad_(True)
    y = module(x)
    rows = [torch.autograd.grad(y[:, k].sum(), x, retain_graph=True)[0] for k in range(y.shape[1])]
    return float(torch.linalg.matrix_norm(torch.stack(rows, 1), norm).amax())


@pytest.mark.parametrize("name", NETWORKS)
def test_bounds_are_never_below_sampled_jacobians(name: str) -> None:
    module = network(name)
    found = chain(trace(module, torch.zeros(1, 4, dtype=torch.float64)).graph())
    x = 2 * torch.randn(500, 4, dtype=torch.float64)
    for norm in (1, 2, math.inf):
        sampled = steepest(module, x, norm)
        assert sampled <= semidefinite.layerwise(found, norm) <= semidefinite.product_of_norms(found, norm)


@pytest.mark.parametrize("name", NETWORKS)
def test_programmes_on_read_chains(name: str) -> None:
    pytest.importorskip("cvxpy", reason="semidefinite programmes need cvxpy (extra sdp)")
    module = network(name)
    found = chain(trace(module, torch.zeros(1, 4, dtype=torch.float64)).graph())
    sampled = steepest(module, 2 * torch.randn(500, 4, dtype=torch.float64), 2)
    assert sampled * (1 - 1e-12) <= semidefinite.bound(found) <= semidefinite.layerwise(found)


def test_the_matrices_are_the_networks() -> None:
    module = network("plain")
    found = chain(trace(module, torch.zeros(1, 4, dtype=torch.float64)).graph())
    matrices = [*[layer.inner for layer in found.layers], found.last]
    for matrix, part in zip(matrices, [module[0], module[2], module[4]], strict=True):
        assert float((matrix.value - part.weight.detach()).norm()) <= matrix.doubt <= 1e-12
    assert all(layer.plain for layer in found.layers)


def test_a_way_around_two_levels_keeps_what_is_read_later() -> None:
    layers = chain(trace(network("around"), torch.zeros(1, 4, dtype=torch.float64)).graph()).layers
    assert [layer.outputs for layer in layers] == [5, 12, 5, 5, 12, 5]


@pytest.mark.parametrize("name", ["plain", "smooth", "around", "image", "maxmin", "mixed"])
def test_slopes_on_a_box(name: str) -> None:
    module = network(name)
    graph = trace(module, torch.zeros(1, 4, dtype=torch.float64)).graph()
    center = torch.randn(1, 4, dtype=torch.float64)
    whole = semidefinite.layerwise(chain(graph))
    for radius in (0.01, 0.3):
        local = semidefinite.layerwise(
            chain(graph, Box((center - radius).unsqueeze(0), (center + radius).unsqueeze(0)))
        )
        x = center + radius * (2 * torch.rand(500, 4, dtype=torch.float64) - 1)
        assert steepest(module, x, 2) <= local <= whole * (1 + 1e-9)
    assert local < whole or name == "image"


@pytest.mark.parametrize(
    "f", [nn.ReLU(), nn.Tanh(), nn.Sigmoid(), nn.GELU(), nn.SiLU(), nn.Softplus(), nn.ELU()]
)
def test_slopes_of_activations(f: nn.Module) -> None:
    found = chain(trace(f, torch.zeros(1, 1, dtype=torch.float64)).graph())
    steep = found.layers[0].activation.row_gain
    x = torch.linspace(-20, 20, 100001, dtype=torch.float64).unsqueeze(1)
    sampled = steepest(f, x, 2)
    assert sampled <= steep <= 1.01 * sampled


class Times(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x[:, :2] * x[:, 2:]


class Jump(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return (x > 0).double()


def test_what_is_no_chain_is_refused() -> None:
    x = torch.zeros(1, 4, dtype=torch.float64)
    with pytest.raises(ChainError, match="neither affine nor"):
        chain(trace(Times(), x).graph())
    with pytest.raises(ChainError, match=r"no derivative|not bounded"):
        chain(trace(Jump(), x).graph())
    with pytest.raises(ChainError, match="not bounded"):
        chain(trace(nn.Sequential(nn.ReLU(), nn.Linear(4, 2).double(), _Square()), x).graph())


class _Square(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x**2


@pytest.mark.parametrize(
    "module", [GroupSort(2), GroupSort(4), MaxMin(), Householder(4, 2), Householder(4, 4)]
)
def test_activations_alone_have_constant_one(module: nn.Module) -> None:
    pytest.importorskip("cvxpy", reason="semidefinite programmes need cvxpy (extra sdp)")
    found = chain(trace(module.double(), torch.zeros(1, 4, dtype=torch.float64)).graph())
    assert 1 - 1e-12 <= semidefinite.bound(found) <= 1 + 1e-6


class Largest(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.topk(2, 1).values


def test_the_largest_few_are_written_out() -> None:
    pytest.importorskip("cvxpy", reason="semidefinite programmes need cvxpy (extra sdp)")
    found = chain(trace(Largest(), torch.zeros(1, 4, dtype=torch.float64)).graph())
    assert 1 - 1e-12 <= semidefinite.bound(found) <= 1 + 1e-6
