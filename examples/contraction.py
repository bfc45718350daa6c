"""Contraction in a block-weighted metric, certified: a recurrent cell on a region, and a game that is not monotone.

    python examples/contraction.py        (a few seconds)

The cell forgets its state at a rate that is proved for all states and inputs of a box. The two players' game has a
pseudo-gradient that is not monotone in the Euclidean norm, as their couplings have very different sizes; in a weighted
one it is, so that simultaneous gradient play converges with the step size that is printed.
"""

import torch
from torch import Tensor, nn

from verifier import Box, trace
from verifier.jacobian.contraction import contraction, monotonicity


class Cell(nn.Module):
    """h -> tanh(U h + W u + b)."""

    def __init__(self, state: int, inputs: int) -> None:
        super().__init__()
        self.recurrent, self.drive = nn.Linear(state, state), nn.Linear(inputs, state, bias=False)

    def forward(self, state: Tensor, u: Tensor) -> Tensor:
        return torch.tanh(self.recurrent(state) + self.drive(u))


class Game(nn.Module):
    """The pseudo-gradient of costs |x|^2 / 2 + strong x'Ay and |y|^2 / 2 + weak y'Bx, two players of two numbers
    each."""

    def __init__(self, strong: float, weak: float) -> None:
        super().__init__()
        self.strong, self.weak = strong, weak
        self.register_buffer("a", torch.tensor([[0.8, 0.6], [-0.6, 0.8]]))

    def forward(self, z: Tensor) -> Tensor:
        x, y = z[:, :2], z[:, 2:]
        return torch.cat([x + self.strong * y @ self.a.T, y + self.weak * x @ self.a], 1)


def main() -> None:
    torch.manual_seed(0)
    cell = Cell(8, 3).double()
    scale = torch.tensor([0.1, 1, 10, 1, 0.1, 1, 10, 1]).double()  # states of very different sizes
    cell.recurrent.weight.data *= 0.6 * scale.unsqueeze(1) / scale
    graph = trace(cell, (torch.zeros(1, 8).double(), torch.zeros(1, 3).double())).graph()
    one = torch.ones(1, 1, 1, dtype=torch.float64)
    regions = [Box(-one.expand(1, 1, 8), one.expand(1, 1, 8)), Box(-one.expand(1, 1, 3), one.expand(1, 1, 3))]
    found = contraction(graph, regions)
    plain = float(found.gains.sum(1).max())
    print(f"cell: rate {plain:.3f} without weights, {found.rate:.3f} with")

    game = monotonicity(
        trace(Game(4.0, 0.1), torch.zeros(1, 4)).graph(),
        [Box(-one.expand(1, 1, 4), one.expand(1, 1, 4))],
        blocks=[[0, 1], [2, 3]],
    )
    print(f"game: Euclidean constant at most {game.weakest:.3f}: not monotone")
    print(f"      weights {game.weights}: rate {game.rate:.3f}")
    print(f"      metric {game.metric}: constant {game.monotone:.3f}")
    print(f"      step size {game.step:.3f} contracts by {game.step_rate:.3f}")


if __name__ == "__main__":
    main()
