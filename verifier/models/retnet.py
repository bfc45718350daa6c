"""S_t = gamma_h S_(t-1) + k_t v_t^T, gamma_h = 1 - 2^(-5-h), o_t = S_t^T q_t with rotary q and k"""

from __future__ import annotations

import torch
from torch import Tensor

from verifier.models.layer import (
    Form,
    GatedRMSNorm,
    SequenceLayer,
    accept_names,
    length,
    linear,
    rotated,
    split_heads,
)
from verifier.models.recurrence import decayed_attention


class RetNet(SequenceLayer):
    """Multi-scale retention: [B, T, hidden_size] to the same; head h forgets at a fixed rate."""

    source = "Sun et al. 2023, arXiv 2307.08621"
    layout = "MultiScaleRetention"

    def __init__(
        self,
        hidden_size: int,
        num_heads: int,
        expand_k: float = 1.0,
        expand_v: float = 2.0,
        form: Form = "recurrent",
    ) -> None:
        super().__init__(form)
        self.num_heads = num_heads
        key, value = round(hidden_size * expand_k), round(hidden_size * expand_v)
        self.q_proj, self.k_proj = linear(hidden_size, key), linear(hidden_size, key)
        self.v_proj, self.g_proj = linear(hidden_size, value), linear(hidden_size, value)
        self.o_proj = linear(value, hidden_size)
        self.g_norm_swish_gate = GatedRMSNorm(value // num_heads)
        accept_names(self, {"g_norm.": "g_norm_swish_gate."})

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (split_heads(p(x), self.num_heads) for p in (self.q_proj, self.k_proj, self.v_proj))
        steps = length(x)
        q, k = rotated(q) * q.shape[-1] ** -0.5, rotated(k)
        rates = torch.log1p(-(2.0 ** (-5.0 - torch.arange(self.num_heads)))).to(x)
        log_decay = rates[:, None].expand(1, steps, -1, -1)
        o = decayed_attention(q, k, v, log_decay, self.form == "parallel", chunk=self.chunk)
        gated = self.g_norm_swish_gate(o, split_heads(self.g_proj(x), self.num_heads))
        return self.o_proj(gated.flatten(-2))
