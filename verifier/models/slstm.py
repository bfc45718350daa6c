"""c_t = f_t c_(t-1) + i_t tanh(z_t), n_t = f_t n_(t-1) + i_t, h_t = sigmoid(o_t) c_t / n_t, i and f exponential"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from verifier.models.layer import Form, SequenceLayer, length
from verifier.models.mlstm_layer import HeadNorm


class SLSTM(SequenceLayer):
    """sLSTM: [B, T, hidden_size] to the same; all gates read the output before, within heads.

    The input gate is exp(i_t), the forget gate sigmoid(f_t), both divided by exp of the largest exponent so far.
    """

    forms: ClassVar[tuple[Form, ...]] = ("recurrent",)
    source = "Beck et al. 2024, arXiv 2405.04517"

    def __init__(self, hidden_size: int, num_heads: int, form: Form = "recurrent") -> None:
        super().__init__(form)
        self.num_heads = num_heads
        size = hidden_size // num_heads
        self.inputs = nn.Linear(hidden_size, 4 * hidden_size)  # i, f, z, o
        self.recurrent = nn.Parameter(torch.randn(num_heads, size, 4 * size) * size**-0.5)
        self.norm = HeadNorm(hidden_size, num_heads)

    def forward(self, x: Tensor) -> Tensor:
        driven = self.inputs(x).unflatten(-1, (4, self.num_heads, -1)).transpose(2, 3)  # [B, T, H, 4, d]
        outputs: list[Tensor] = []
        cell = weight = top = None
        for t in range(length(x)):
            gates = driven[:, t]
            if t:
                back = (outputs[-1][..., None, :] @ self.recurrent).squeeze(-2)
                gates = gates + back.unflatten(-1, (4, -1))
            i, f, z, o = gates.unbind(2)
            if cell is None or weight is None or top is None:
                cell, weight, top = z.tanh(), torch.ones_like(z), i
            else:
                kept = functional.logsigmoid(f) + top
                top = torch.maximum(kept, i)
                keep, write = (kept - top).exp(), (i - top).exp()
                # one of both factors is 1, so that the weight, which is 1 at first, never falls below
                cell, weight = keep * cell + write * z.tanh(), (keep * weight + write).clamp(min=1)
            outputs.append(o.sigmoid() * cell / weight)
        return self.norm(torch.stack(outputs, 1))
