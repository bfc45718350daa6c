"""S_t = exp(-exp(A) d_t) S_(t-1) + d_t B_t x_t^T, d_t = softplus(..), y_t = S_t^T C_t + D x_t, per head"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from verifier.models.layer import Form, RMSNorm, SequenceLayer, ShortConv, decay_parameters, linear
from verifier.models.recurrence import decayed_attention


class Mamba2(SequenceLayer):
    """Mamba-2: [B, T, hidden_size] to the same; heads of head_dim channels share B and C of state_size."""

    source = "Dao and Gu 2024, arXiv 2405.21060"
    layout = "Mamba2"

    def __init__(
        self,
        hidden_size: int,
        num_heads: int,
        head_dim: int,
        state_size: int = 16,
        conv: int = 4,
        bias: bool = True,
        form: Form = "recurrent",
    ) -> None:
        super().__init__(form)
        self.num_heads, self.inner, self.state_size = num_heads, num_heads * head_dim, state_size
        mixed = self.inner + 2 * state_size
        self.in_proj = linear(hidden_size, self.inner + mixed + num_heads, bias)
        self.conv1d = ShortConv(mixed, conv)
        self.A_log, self.dt_bias = decay_parameters(num_heads)
        self.D = nn.Parameter(torch.ones(num_heads))
        self.norm = RMSNorm(self.inner)
        self.out_proj = linear(self.inner, hidden_size, bias)

    def forward(self, x: Tensor) -> Tensor:
        sizes = [self.inner, self.inner + 2 * self.state_size, self.num_heads]
        gate, mixed, dt = self.in_proj(x).split(sizes, -1)
        u, b, c = self.conv1d(mixed).split([self.inner, self.state_size, self.state_size], -1)
        dt = functional.softplus(dt + self.dt_bias)[..., None]
        u = u.unflatten(-1, (self.num_heads, -1))
        log_decay = dt * -self.A_log.exp()[:, None]
        y = decayed_attention(
            c[:, :, None], b[:, :, None], dt * u, log_decay, self.form == "parallel", chunk=self.chunk
        )
        y = (y + self.D[:, None] * u).flatten(-2)
        return self.out_proj(self.norm(y * functional.silu(gate)))
