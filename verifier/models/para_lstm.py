"""c_t = f_t c_(t-1) + (1 - f_t) tanh(z_t), h_t = o_t tanh(c_t); f_t reads c_(t-1) and o_t reads c_t, all diagonal"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from verifier.models.layer import Form, SequenceLayer


class ParaLSTM(SequenceLayer):
    """The diagonal LSTM of ParaRNN, with coupled gates and peepholes: [B, T, hidden_size] to outputs
    [B, T, states]; units do not read each other."""

    forms: ClassVar[tuple[Form, ...]] = ("recurrent",)
    source = "Danieli et al. 2025, arXiv 2510.21450"

    def __init__(self, hidden_size: int, states: int, form: Form = "recurrent") -> None:
        super().__init__(form)
        self.inputs = nn.Linear(hidden_size, 3 * states)  # f, o, z
        self.A = nn.Parameter(torch.randn(3, states) * 0.5)
        self.peepholes = nn.Parameter(torch.randn(2, states) * 0.5)  # f, o

    def forward(self, x: Tensor) -> Tensor:
        outputs: list[Tensor] = []
        cell = None
        for driven in self.inputs(x).unbind(1):
            f, o, z = driven.chunk(3, -1)
            if outputs:
                f, o, z = (g + a * outputs[-1] for g, a in zip((f, o, z), self.A, strict=True))
            if cell is None:
                cell = (1 - f.sigmoid()) * z.tanh()
            else:
                f = (f + self.peepholes[0] * cell).sigmoid()
                cell = f * cell + (1 - f) * z.tanh()
            outputs.append((o + self.peepholes[1] * cell).sigmoid() * cell.tanh())
        return torch.stack(outputs, 1)
