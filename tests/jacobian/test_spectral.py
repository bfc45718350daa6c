"""The 2-norm of several outputs: never below sampled norms, near enumerated ones, and tighter than Frobenius."""

from __future__ import annotations

import itertools
import time

import pytest
import torch
from torch import Tensor, nn

from verifier.frontends.torch import trace
from verifier.graph import Graph, Interval
from verifier.jacobian.enclosures import Effort, Method
from verifier.jacobian.lipschitz import lipschitz
from verifier.jacobian.objective import cover
from verifier.jacobian.spectral import _lengthened, spectral
from verifier.sets import Box

CROWN = (Method.INTERVAL, Method.CROWN)


def relu_net(seed: int, inputs: int, hidden: int, outputs: int) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(inputs, hidden), nn.ReLU(), nn.Linear(hidden, outputs))


def graph_of(net: nn.Module, inputs: int) -> Graph:
    return trace(net, torch.zeros(1, inputs)).graph(torch.float64)


def box(inputs: int, radius: float) -> Box:
    return Box.around(torch.zeros(1, 1, inputs), radius)


def jacobians(net: nn.Module, inputs: int, radius: float, count: int) -> Tensor:
    generator = torch.Generator().manual_seed(3)
    x = radius * (2 * torch.rand(count, inputs, generator=generator, dtype=torch.float64) - 1)
    return torch.func.vmap(torch.func.jacrev(net.double()))(x).detach()


@pytest.mark.parametrize("size", [2, 3, 4])
def test_covers_hold_the_sphere(size: int) -> None:
    """For every direction some point is at least as far: the hull of the points holds the ball."""
    points = cover(size).double()
    directions = torch.nn.functional.normalize(torch.randn(20_000, size, dtype=torch.float64), dim=1)
    corners = torch.tensor(list(itertools.product((-1.0, 0.0, 1.0), repeat=size)), dtype=torch.float64)
    corners = torch.nn.functional.normalize(corners[corners.any(1)], dim=1)
    for part in (directions, corners):
        assert float((part @ points.T).abs().amax(1).amin()) >= 1.0
    assert float(points.norm(dim=1).amax()) < {2: 1.0006, 3: 1.016, 4: 1.1}[size]


@pytest.mark.parametrize("shape", [(2, 5), (4, 3), (6, 20)])
def test_every_matrix_in_an_interval(shape: tuple[int, int]) -> None:
    torch.manual_seed(1)
    for scale in (0.0, 0.01, 1.0):
        center = torch.randn(*shape, dtype=torch.float64)
        radius = scale * torch.rand(*shape, dtype=torch.float64)
        bound = spectral(Interval(center - radius, center + radius))
        part = 2 * torch.rand(500, *shape, dtype=torch.float64) - 1
        signs = part.sign()
        for inside in (part, signs):
            assert bound >= float(torch.linalg.matrix_norm(center + radius * inside, 2).amax())
        if scale == 0.0:
            assert bound <= float(torch.linalg.matrix_norm(center, 2)) * (1 + 1e-9)
    assert spectral(Interval(center, center + torch.inf)) == torch.inf


def test_turns_are_orthogonal_up_to_what_is_counted() -> None:
    turn = torch.linalg.qr(torch.randn(30, 30, dtype=torch.float64))[0].float().double()
    inverse = float(torch.linalg.matrix_norm(torch.linalg.inv(turn), 2))
    assert inverse <= _lengthened(turn) <= inverse * (1 + 1e-5)
    assert _lengthened(2 * turn) == torch.inf  # far from it


@pytest.mark.parametrize("outputs", [2, 3, 4, 6])
@pytest.mark.parametrize("name", ["relu", "tanh"])
def test_never_below_a_sampled_norm(name: str, outputs: int) -> None:
    net = relu_net(1, 4, 10, outputs)
    if name == "tanh":
        net[1] = nn.Tanh()
    rows = torch.eye(outputs, dtype=torch.float64)
    effort = Effort(deadline=time.monotonic() + 2)
    local = lipschitz(graph_of(net, 4), [box(4, 0.5)], "2", rows, effort)
    everywhere = lipschitz(graph_of(net, 4), None, "2", rows, Effort(CROWN))
    found = jacobians(net, 4, 0.5, 3000)
    truth = float(torch.linalg.matrix_norm(found, 2).amax())
    assert all(b.value >= truth * (1 - 1e-9) for b in (*local.bounds, *everywhere.bounds))
    assert local.lower <= local.upper
    assert local.lower >= 0.9 * truth


@pytest.mark.parametrize(("outputs", "over"), [(2, 1.001), (3, 1.017)])
def test_near_the_enumerated_norm(outputs: int, over: float) -> None:
    """Branch and bound comes as near as the cover is to the sphere."""
    net = relu_net(2, 2, 8, outputs)
    truth = float(torch.linalg.matrix_norm(jacobians(net, 2, 1.0, 200_000), 2).amax())
    effort = Effort(deadline=time.monotonic() + 20, dtype=torch.float64, gap=1e-6)
    found = lipschitz(graph_of(net.float(), 2), [box(2, 1.0)], "2", torch.eye(outputs).double(), effort)
    assert truth * (1 - 1e-9) <= found.upper <= truth * over
    assert found.lower == pytest.approx(truth, rel=1e-3)


def test_tighter_than_the_entries_and_frobenius() -> None:
    net = relu_net(3, 16, 24, 6)
    rows = torch.eye(6, dtype=torch.float64)
    found = lipschitz(graph_of(net, 16), [box(16, 0.01)], "2", rows, Effort(CROWN))
    sampled = jacobians(net, 16, 0.01, 2000)
    frobenius = float(torch.linalg.matrix_norm(sampled).amax())
    assert float(torch.linalg.matrix_norm(sampled, 2).amax()) <= found.upper < 0.9 * frobenius
