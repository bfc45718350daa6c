"""S_t = diag(a_t) S_(t-1) + k_t v_t^T, a_t = sigmoid(W2 W1 x_t + b)^(1/16) in R^K, o_t = S_t^T q_t"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional

from verifier.models.layer import Form, GatedRMSNorm, SequenceLayer, accept_names, linear, split_heads
from verifier.models.recurrence import decayed_attention


class GLA(SequenceLayer):
    """Gated linear attention: [B, T, hidden_size] to the same, a gate per key channel."""

    source = "Yang et al. 2023, arXiv 2312.06635"
    layout = "GatedLinearAttention"

    def __init__(
        self,
        hidden_size: int,
        num_heads: int,
        expand_k: float = 0.5,
        expand_v: float = 1.0,
        gate_rank: int = 16,
        gate_divisor: float = 16.0,
        form: Form = "recurrent",
    ) -> None:
        super().__init__(form)
        self.num_heads, self.gate_divisor = num_heads, gate_divisor
        key, value = int(hidden_size * expand_k), int(hidden_size * expand_v)
        self.q_proj, self.k_proj = linear(hidden_size, key), linear(hidden_size, key)
        self.v_proj, self.g_proj = linear(hidden_size, value), linear(hidden_size, value)
        self.gk_proj = nn.Sequential(linear(hidden_size, gate_rank), linear(gate_rank, key, bias=True))
        self.o_proj = linear(value, hidden_size)
        self.g_norm_swish_gate = GatedRMSNorm(value // num_heads)
        accept_names(self, {"g_norm.": "g_norm_swish_gate."})

    def forward(self, x: Tensor) -> Tensor:
        q, k, v, gk, g = (
            split_heads(p(x), self.num_heads)
            for p in (self.q_proj, self.k_proj, self.v_proj, self.gk_proj, self.g_proj)
        )
        log_decay = functional.logsigmoid(gk) / self.gate_divisor
        o = decayed_attention(
            q * q.shape[-1] ** -0.5, k, v, log_decay, self.form == "parallel", chunk=self.chunk
        )
        return self.o_proj(self.g_norm_swish_gate(o, g).flatten(-2))
