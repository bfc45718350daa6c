"""o_t = S_t^T f(q_t) / (z_t . f(q_t)) + windowed softmax attention, f(x) = (e^(W x), e^(-W x)), S gated per head"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from verifier.models.attention import causal_attention
from verifier.models.layer import Form, SequenceLayer, linear, split_heads
from verifier.models.recurrence import decayed_attention


class Lizard(SequenceLayer):
    """Lizard: [B, T, hidden_size] to the same: gated linear attention with learned features for all tokens, plus
    softmax attention in a sliding window. The learned tokens that its window also sees are left out."""

    source = "Nguyen et al. 2025, arXiv 2507.09025"

    def __init__(
        self, hidden_size: int, num_heads: int, window: int = 64, features: int = 8, form: Form = "recurrent"
    ) -> None:
        super().__init__(form)
        self.num_heads, self.window = num_heads, window
        self.q_proj, self.k_proj, self.v_proj, self.o_proj = (
            linear(hidden_size, hidden_size) for _ in range(4)
        )
        self.gate_proj = linear(hidden_size, num_heads, bias=True)
        size = hidden_size // num_heads
        self.feature_q, self.feature_k = (
            nn.Parameter(torch.randn(num_heads, size, features) * size**-0.5) for _ in range(2)
        )

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (split_heads(p(x), self.num_heads) for p in (self.q_proj, self.k_proj, self.v_proj))
        parallel = self.form == "parallel"
        near = causal_attention(q, k, v, parallel, window=self.window)
        gate = self.gate_proj(x)[..., None]
        both = torch.cat([v, torch.ones_like(v[..., :1])], -1)  # the ones sum up the weights
        queries, keys = _features(q, self.feature_q), _features(k, self.feature_k)
        far = decayed_attention(
            queries, keys, both, functional.logsigmoid(gate), parallel, gate.sigmoid(), chunk=self.chunk
        )
        return self.o_proj((far[..., :-1] / far[..., -1:] + near).flatten(-2))


def _features(x: Tensor, weight: Tensor) -> Tensor:
    """[B, T, H, d] by [H, d, F] to positive [B, T, H, 2 F]."""
    y = (x[..., None, :] @ weight).squeeze(-2)
    return torch.cat([y.exp(), (-y).exp()], -1)
