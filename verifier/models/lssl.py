"""h_t = A' h_(t-1) + B' u_t, y_t = C h_t + D u_t per channel; A', B' the bilinear discretisation of HiPPO-LegS"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from verifier.models.layer import Form, SequenceLayer, length
from verifier.models.linear_state_space import filtered


class LSSL(SequenceLayer):
    """Linear state-space layer with fixed A and step sizes: [B, T, hidden_size] to the same. Linear in its input,
    then GELU and a linear map; in parallel it is one matrix per channel."""

    source = "Gu et al. 2021, arXiv 2110.13985"

    def __init__(self, hidden_size: int, state_size: int = 16, form: Form = "recurrent") -> None:
        super().__init__(form)
        steps = torch.logspace(-3, -1, hidden_size, dtype=torch.float64)
        transition, control = discretised(state_size, steps)
        self.register_buffer("transition", transition.to(torch.get_default_dtype()))
        self.register_buffer("control", control.to(torch.get_default_dtype()))
        self.C = nn.Parameter(torch.randn(hidden_size, state_size))
        self.D = nn.Parameter(torch.randn(hidden_size))
        self.output_linear = nn.Linear(hidden_size, hidden_size)

    transition: Tensor
    control: Tensor

    def forward(self, x: Tensor) -> Tensor:
        parallel = self.form == "parallel"
        y = filtered(x, self._kernel(length(x))) if parallel else self._steps(x)
        return self.output_linear(functional.gelu(y + self.D * x))

    def _steps(self, u: Tensor) -> Tensor:
        state, outputs = None, []
        for v in u.unbind(1):
            write = v[..., None] * self.control
            if state is None:
                state = write
            else:
                state = (self.transition @ state[..., None]).squeeze(-1) + write
            outputs.append((self.C * state).sum(-1))
        return torch.stack(outputs, 1)

    def _kernel(self, steps: int) -> Tensor:
        """[H, T]: C A'^l B'."""
        powers = [self.control]
        for _ in range(steps - 1):
            powers.append((self.transition @ powers[-1][..., None]).squeeze(-1))
        return (self.C[:, None] * torch.stack(powers, 1)).sum(-1)


def discretised(states: int, steps: Tensor) -> tuple[Tensor, Tensor]:
    """A' [H, N, N] and B' [H, N] of HiPPO-LegS for step sizes [H], in float64."""
    n = torch.arange(states, dtype=torch.float64)
    root = (2 * n + 1).sqrt()
    a = -(root[:, None] * root).tril(-1) - torch.diag(n + 1)
    half = steps[:, None, None] / 2 * a
    one = torch.eye(states, dtype=torch.float64)
    transition = torch.linalg.solve(one - half, one + half)
    control = torch.linalg.solve(one - half, (steps[:, None] * root)[..., None]).squeeze(-1)
    return transition, control
