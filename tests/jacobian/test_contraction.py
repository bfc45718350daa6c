"""Rates of contraction against simulated pairs, known games, and weights that one block alone would not need."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from examples.contraction import Cell, Game
from verifier import Box, trace
from verifier.jacobian.contraction import ContractionError, contraction, monotonicity


def box(n: int, radius: float = 1.0) -> Box:
    end = torch.full((1, 1, n), radius, dtype=torch.float64)
    return Box(-end, end)


def weighted(x: Tensor, blocks: list[list[int]], weights: tuple[float, ...]) -> Tensor:
    return torch.stack([x[:, b].norm(dim=1) / w for b, w in zip(blocks, weights, strict=True)]).amax(0)


@pytest.mark.parametrize("blocks", [None, [[0, 3], [1, 2, 4]], [[0, 1, 2, 3, 4]]])
@pytest.mark.parametrize("radius", [0.1, 1.0])
def test_steps_of_a_cell_shrink_distances_by_the_rate(blocks: list[list[int]] | None, radius: float) -> None:
    torch.manual_seed(4)
    cell = Cell(5, 2).double()
    graph = trace(cell, (torch.zeros(1, 5).double(), torch.zeros(1, 2).double())).graph()
    found = contraction(graph, [box(5, radius), box(2, radius)], blocks)
    pairs = radius * (2 * torch.rand(2, 4000, 5, dtype=torch.float64) - 1)
    u = radius * (2 * torch.rand(4000, 2, dtype=torch.float64) - 1)
    with torch.no_grad():
        after = cell(pairs[0], u) - cell(pairs[1], u)
    parts = blocks or [[k] for k in range(5)]
    ratio = weighted(after, parts, found.weights) / weighted(pairs[0] - pairs[1], parts, found.weights)
    assert float(ratio.max()) <= found.rate
    assert found.rate < 3 * float(ratio.max())


def test_weights_find_the_spectral_radius_of_the_gains() -> None:
    linear = nn.Linear(3, 3, bias=False).double()
    gains = torch.tensor([[0.2, 30.0, 0.0], [0.001, 0.3, 2.0], [0.01, 0.0, 0.1]], dtype=torch.float64)
    linear.weight.data = gains
    found = contraction(trace(linear, torch.zeros(1, 3).double()).graph(), [box(3)])
    radius = float(torch.linalg.eigvals(gains).abs().max())
    assert found.rate == pytest.approx(radius, rel=1e-3) and found.rate >= radius
    assert float(gains.sum(1).max()) > 30


def test_a_game_that_is_not_monotone_but_in_weights() -> None:
    """Gains 4 and 0.1: the Euclidean symmetric part has the eigenvalue 1 - 2.05, the weighted one 1 - sqrt(0.4)."""
    game = Game(4.0, 0.1).double()
    blocks = [[0, 1], [2, 3]]
    found = monotonicity(trace(game, torch.zeros(1, 4).double()).graph(), [box(4)], blocks)
    assert found.weakest == pytest.approx(1 - 2.05, abs=1e-5) and found.euclidean <= found.weakest + 1e-9
    best = 1 - 0.4**0.5
    assert best - 1e-3 < found.rate <= best + 1e-6 and best - 1e-3 < found.monotone <= best + 1e-6
    assert found.step > 0 and found.step_rate < 1
    x, y = 2 * torch.rand(2, 2000, 4, dtype=torch.float64) - 1
    for h in (found.step, found.step / 7):
        after = (x - h * game(x)) - (y - h * game(y))
        ratio = weighted(after, blocks, found.weights) / weighted(x - y, blocks, found.weights)
        assert float(ratio.max()) < 1
        assert h != found.step or float(ratio.max()) <= found.step_rate
    d = torch.tensor(found.metric, dtype=torch.float64)[[0, 0, 1, 1]]
    products = ((x - y) * (game(x) - game(y)) * d).sum(1) / ((x - y) ** 2 * d).sum(1)
    assert float(products.min()) >= found.monotone


class Curved(nn.Module):
    """A pseudo-gradient with derivatives that vary: players of one and two numbers."""

    def forward(self, z: Tensor) -> Tensor:
        x, y, w = z[:, :1], z[:, 1:2], z[:, 2:]
        return torch.cat([2 * x + torch.tanh(3 * y), 2 * y + x**2 / 8 + torch.sin(w) / 3, 2 * w + y / 4], 1)


def test_a_nonlinear_game_on_a_region() -> None:
    blocks = [[0], [1, 2]]
    found = monotonicity(trace(Curved(), torch.zeros(1, 3).double()).graph(), [box(3)], blocks)
    x, y = 2 * torch.rand(2, 4000, 3, dtype=torch.float64) - 1
    game = Curved()
    assert found.rate > 0
    after = (x - found.step * game(x)) - (y - found.step * game(y))
    ratio = weighted(after, blocks, found.weights) / weighted(x - y, blocks, found.weights)
    assert float(ratio.max()) <= found.step_rate < 1
    d = torch.tensor(found.metric, dtype=torch.float64)[[0, 1, 1]]
    products = ((x - y) * (game(x) - game(y)) * d).sum(1) / ((x - y) ** 2 * d).sum(1)
    assert float(products.min()) >= found.monotone
    whole = ((x - y) * (game(x) - game(y))).sum(1) / ((x - y) ** 2).sum(1)
    assert float(whole.min()) >= found.euclidean


def test_an_expanding_game_has_no_step() -> None:
    found = monotonicity(trace(Game(4.0, 4.0), torch.zeros(1, 4)).graph(), [box(4)], [[0, 1], [2, 3]])
    assert found.rate < 0 and found.monotone < 0 and (found.step, found.step_rate) == (0.0, 1.0)


class Jump(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.where(x > 0, x + 1, 0.5 * x)


def test_errors_say_what_is_wrong() -> None:
    graph = trace(Game(1.0, 1.0), torch.zeros(1, 4)).graph()
    with pytest.raises(ContractionError, match="each of the 4 elements once"):
        contraction(graph, [box(4)], [[0, 1], [1, 2, 3]])
    with pytest.raises(ContractionError, match="a set of one case for each"):
        contraction(graph, [box(4), box(4)])
    with pytest.raises(ContractionError, match="as many elements"):
        contraction(trace(nn.Linear(4, 3), torch.zeros(1, 4)).graph(), [box(4)])
    with pytest.raises(ContractionError, match="jump"):
        contraction(trace(Jump(), torch.zeros(1, 2).double()).graph(), [box(2)])
