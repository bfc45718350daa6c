"""h_t = relu(U h_(t-1) + W x_t + b), y_t = relu(V h_t + c) with U, W, V >= 0 of spectral norm at most 1"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from verifier.models.layer import Form, SequenceLayer


class LipschitzRNN(SequenceLayer):
    """Input-convex Lipschitz RNN: [B, T, hidden_size] to the same, convex and non-decreasing in every input.

    The published network projects its weights after each step of training; here any parameters do: negative
    entries count as 0, and a matrix is divided by the root of its largest row sum times its largest column sum,
    which no spectral norm exceeds, where that is above 1.
    """

    forms: ClassVar[tuple[Form, ...]] = ("recurrent",)
    source = "Wang et al. 2024, arXiv 2401.07494"

    def __init__(self, hidden_size: int, states: int, form: Form = "recurrent") -> None:
        super().__init__(form)
        self.U = nn.Parameter(torch.rand(states, states) / states)
        self.W = nn.Parameter(torch.rand(states, hidden_size) / hidden_size)
        self.V = nn.Parameter(torch.rand(hidden_size, states) / states)
        self.b, self.c = nn.Parameter(torch.zeros(states)), nn.Parameter(torch.zeros(hidden_size))

    def forward(self, x: Tensor) -> Tensor:
        u, w, v = (_contraction(m) for m in (self.U, self.W, self.V))
        state, states = None, []
        for driven in (x @ w.T + self.b).unbind(1):
            state = functional.relu(driven if state is None else state @ u.T + driven)
            states.append(state)
        return functional.relu(torch.stack(states, 1) @ v.T + self.c)


def _contraction(weight: Tensor) -> Tensor:
    positive = functional.relu(weight)
    return positive / (positive.sum(0).amax() * positive.sum(1).amax()).sqrt().clamp(min=1.0)
