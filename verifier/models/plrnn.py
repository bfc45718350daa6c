"""z_t = A * z_(t-1) + W (z_1 .. z_(M-P), relu(z_(M-P+1)) .. relu(z_M)) + h + C x_t, y_t = B z_t"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from verifier.models.layer import Form, SequenceLayer


class PLRNN(SequenceLayer):
    """Almost-linear RNN: inputs [B, T, hidden_size] to outputs of that size, with ReLU on the last `relus` of
    `states` units. With all of them it is the piecewise-linear RNN. z_0 is 0."""

    forms: ClassVar[tuple[Form, ...]] = ("recurrent",)
    source = "Brenner et al. 2024, arXiv 2410.14240; Durstewitz 2017, arXiv 1612.07846"

    def __init__(self, hidden_size: int, states: int, relus: int, form: Form = "recurrent") -> None:
        super().__init__(form)
        self.linear_units = states - relus
        self.A = nn.Parameter(torch.empty(states).uniform_(0.5, 0.9))
        self.W = nn.Parameter(torch.randn(states, states) * 0.3 * states**-0.5)
        self.h = nn.Parameter(torch.randn(states) * 0.1)
        self.C = nn.Parameter(torch.randn(states, hidden_size) * hidden_size**-0.5)
        self.B = nn.Parameter(torch.randn(hidden_size, states) * states**-0.5)

    def forward(self, x: Tensor) -> Tensor:
        state, states = None, []
        for driven in (x @ self.C.T + self.h).unbind(1):
            if state is None:
                state = driven
            else:
                free, cut = state[:, : self.linear_units], state[:, self.linear_units :]
                state = self.A * state + torch.cat([free, functional.relu(cut)], 1) @ self.W.T + driven
            states.append(state)
        return torch.stack(states, 1) @ self.B.T
