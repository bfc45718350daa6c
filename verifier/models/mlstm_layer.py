"""What the mLSTM models share: projections, soft-capped gates, and the output's norm and gate."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from verifier.models.layer import SequenceLayer, linear, split_heads
from verifier.models.recurrence import decayed_attention


class MLSTMLayer(SequenceLayer):
    """Parameters as in the mLSTM layer of xLSTM-7B; keys have expand_k times the width of values, gates are capped
    to 15 tanh(x / 15)."""

    cap = 15.0

    def build(self, hidden_size: int, num_heads: int, expand_k: float) -> None:
        """Add the parameters."""
        self.num_heads = num_heads
        key = int(hidden_size * expand_k)
        self.q, self.k = linear(hidden_size, key), linear(hidden_size, key)
        self.v, self.ogate_preact = linear(hidden_size, hidden_size), linear(hidden_size, hidden_size)
        self.igate_preact = linear(hidden_size, num_heads, bias=True)
        self.fgate_preact = linear(hidden_size, num_heads, bias=True)
        self.multihead_norm = HeadNorm(hidden_size, num_heads)
        self.out_proj = linear(hidden_size, hidden_size)

    def inputs(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """q (scaled), k and v [B, T, H, d]; both gates before their functions [B, T, H]."""
        q, k, v = (split_heads(p(x), self.num_heads) for p in (self.q, self.k, self.v))
        i, f = (self.cap * (p(x) / self.cap).tanh() for p in (self.igate_preact, self.fgate_preact))
        return q * q.shape[-1] ** -0.5, k, v, i, f

    def sums(self, q: Tensor, k: Tensor, v: Tensor, f: Tensor, normalise: bool) -> Tensor:
        """h_t = C_t^T q_t with C_t = sigmoid(f_t) C_(t-1) + k_t v_t^T; to `normalise` divides it by
        max(|n_t . q_t|, 1), n_t = sigmoid(f_t) n_(t-1) + k_t."""
        if normalise:
            v = torch.cat([v, torch.ones_like(v[..., :1])], -1)  # the ones sum up n . q
        log_decay, decay = functional.logsigmoid(f)[..., None], f.sigmoid()[..., None]
        h = decayed_attention(q, k, v, log_decay, self.form == "parallel", decay, chunk=self.chunk)
        return h[..., :-1] / (h[..., -1:].abs().clamp(min=1.0) + 1e-6) if normalise else h

    def outputs(self, x: Tensor, h: Tensor) -> Tensor:
        """Norm, gate and projection of h [B, T, H, d]."""
        return self.out_proj(self.multihead_norm(h) * self.ogate_preact(x).sigmoid())


class HeadNorm(nn.Module):
    """LayerNorm of each head of [B, T, H, d] by itself, with one weight for all [H * d] and no bias."""

    def __init__(self, size: int, heads: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.heads, self.eps = heads, eps

    def forward(self, h: Tensor) -> Tensor:
        scaled = functional.layer_norm(h, h.shape[-1:], eps=self.eps)
        return scaled.flatten(-2) * self.weight
