"""o_t = sigmoid(g_t) * sum over s <= t of softmax(q_t . k_s / sqrt(K)) v_s, with RMS-normalised q and k"""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from verifier.models.attention import causal_attention
from verifier.models.layer import Form, RMSNorm, SequenceLayer, linear, rotated, split_heads


class GatedAttention(SequenceLayer):
    """Softmax attention with a gate on its output: [B, T, hidden_size] to the same. The gate is a slice of the
    query's projection, one number per head or one per element; `rotary` is the base of rotary positions, 0 for
    none."""

    source = "Qiu et al. 2025, arXiv 2505.06708"
    layout = "attention of qiuzh20/gated_attention"

    def __init__(
        self,
        hidden_size: int,
        num_heads: int,
        gate: Literal["elementwise", "headwise"] = "elementwise",
        norm: bool = True,
        rotary: float = 10000.0,
        form: Form = "recurrent",
    ) -> None:
        super().__init__(form)
        self.num_heads, self.norm, self.rotary = num_heads, norm, rotary
        self.size = hidden_size // num_heads
        extra = hidden_size if gate == "elementwise" else num_heads
        self.q_proj = linear(hidden_size, hidden_size + extra)
        self.k_proj, self.v_proj, self.o_proj = (linear(hidden_size, hidden_size) for _ in range(3))
        if norm:
            self.q_norm, self.k_norm = RMSNorm(self.size, 1e-6), RMSNorm(self.size, 1e-6)

    def forward(self, x: Tensor) -> Tensor:
        # per head: its query, then its gate
        both = split_heads(self.q_proj(x), self.num_heads)
        q, gate = both[..., : self.size], both[..., self.size :]
        k, v = split_heads(self.k_proj(x), self.num_heads), split_heads(self.v_proj(x), self.num_heads)
        if self.norm:
            q, k = self.q_norm(q), self.k_norm(k)
        if self.rotary:
            q, k = rotated(q, self.rotary), rotated(k, self.rotary)
        o = causal_attention(q, k, v, self.form == "parallel") * gate.sigmoid()
        return self.o_proj(o.flatten(-2))
