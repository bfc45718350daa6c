"""h_t = exp(A d_t) h_(t-1) + d_t B_t x_t, d_t = softplus(..), y_t = C_t . h_t + D x_t, per channel"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from verifier.models.layer import Form, SequenceLayer, ShortConv, linear
from verifier.models.recurrence import decayed_attention


class Mamba(SequenceLayer):
    """Mamba: [B, T, hidden_size] to the same; each of intermediate_size channels has a state of state_size."""

    source = "Gu and Dao 2023, arXiv 2312.00752"
    layout = "Mamba"

    def __init__(
        self,
        hidden_size: int,
        intermediate_size: int,
        state_size: int = 16,
        time_rank: int = 4,
        conv: int = 4,
        bias: bool = True,
        form: Form = "recurrent",
    ) -> None:
        super().__init__(form)
        self.sizes = [time_rank, state_size, state_size]
        self.in_proj = linear(hidden_size, 2 * intermediate_size, bias)
        self.conv1d = ShortConv(intermediate_size, conv, bias=True)
        self.x_proj = linear(intermediate_size, sum(self.sizes))
        self.dt_proj = linear(time_rank, intermediate_size, bias=True)
        self.A_log = nn.Parameter(torch.arange(1.0, state_size + 1).log().repeat(intermediate_size, 1))
        self.D = nn.Parameter(torch.ones(intermediate_size))
        self.out_proj = linear(intermediate_size, hidden_size, bias)

    def forward(self, x: Tensor) -> Tensor:
        u, gate = self.in_proj(x).chunk(2, -1)
        u = self.conv1d(u)
        rate, b, c = self.x_proj(u).split(self.sizes, -1)
        dt = functional.softplus(self.dt_proj(rate))
        log_decay = dt[..., None] * -self.A_log.exp()
        # every channel is a head with values of size 1
        y = decayed_attention(
            c[:, :, None],
            b[:, :, None],
            (dt * u)[..., None],
            log_decay,
            self.form == "parallel",
            chunk=self.chunk,
        )
        y = y.squeeze(-1) + self.D * u
        return self.out_proj(y * functional.silu(gate))
