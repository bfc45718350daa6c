"""h_t = (1 - z_t) h_(t-1) + z_t tanh(a_c r_t h_(t-1) + B_c x_t + b_c), z_t, r_t = sigmoid(a h_(t-1) + B x_t + b)"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from verifier.models.layer import Form, SequenceLayer


class ParaGRU(SequenceLayer):
    """The diagonal GRU of ParaRNN: [B, T, hidden_size] to states [B, T, states]; units do not read each other."""

    forms: ClassVar[tuple[Form, ...]] = ("recurrent",)
    source = "Danieli et al. 2025, arXiv 2510.21450"

    def __init__(self, hidden_size: int, states: int, form: Form = "recurrent") -> None:
        super().__init__(form)
        self.inputs = nn.Linear(hidden_size, 3 * states)  # z, r, c
        self.A = nn.Parameter(torch.randn(3, states) * 0.5)

    def forward(self, x: Tensor) -> Tensor:
        outputs: list[Tensor] = []
        for driven in self.inputs(x).unbind(1):
            z, r, c = driven.chunk(3, -1)
            if not outputs:
                outputs.append(z.sigmoid() * c.tanh())
                continue
            h = outputs[-1]
            z, r = (z + self.A[0] * h).sigmoid(), (r + self.A[1] * h).sigmoid()
            c = (c + self.A[2] * (r * h)).tanh()
            outputs.append((1 - z) * h + z * c)
        return torch.stack(outputs, 1)
