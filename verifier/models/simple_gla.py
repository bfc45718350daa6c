"""S_t = a_t S_(t-1) + k_t v_t^T, a_t = sigmoid(w . x_t + b)^(1/16) a number per head, o_t = S_t^T q_t"""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional

from verifier.models.layer import (
    Form,
    GatedRMSNorm,
    SequenceLayer,
    ShortConv,
    accept_names,
    linear,
    split_heads,
)
from verifier.models.recurrence import decayed_attention


class SimpleGLA(SequenceLayer):
    """GLA with one gate per head: [B, T, hidden_size] to the same. `conv` is the short convolutions' width, 0
    for none."""

    source = "Yang et al. 2023, arXiv 2312.06635; Dao and Gu 2024, arXiv 2405.21060"
    layout = "SimpleGatedLinearAttention"

    def __init__(
        self,
        hidden_size: int,
        num_heads: int,
        expand_v: float = 1.0,
        conv: int = 4,
        gate_divisor: float = 16.0,
        form: Form = "recurrent",
    ) -> None:
        super().__init__(form)
        self.num_heads, self.conv, self.gate_divisor = num_heads, conv, gate_divisor
        value = int(hidden_size * expand_v)
        self.q_proj, self.k_proj = linear(hidden_size, hidden_size), linear(hidden_size, hidden_size)
        self.v_proj, self.g_proj = linear(hidden_size, value), linear(hidden_size, value)
        if conv:
            self.q_conv1d, self.k_conv1d = ShortConv(hidden_size, conv), ShortConv(hidden_size, conv)
            self.v_conv1d = ShortConv(value, conv)
        self.gk_proj = linear(hidden_size, num_heads, bias=True)
        self.o_proj = linear(value, hidden_size)
        self.g_norm_swish_gate = GatedRMSNorm(value // num_heads)
        accept_names(self, {"g_norm.": "g_norm_swish_gate."})

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.q_proj(x), self.k_proj(x), self.v_proj(x)
        if self.conv:
            q, k, v = self.q_conv1d(q), self.k_conv1d(k), self.v_conv1d(v)
        q, k, v, g = (split_heads(y, self.num_heads) for y in (q, k, v, self.g_proj(x)))
        log_decay = functional.logsigmoid(self.gk_proj(x))[..., None] / self.gate_divisor
        o = decayed_attention(
            q * q.shape[-1] ** -0.5, k, v, log_decay, self.form == "parallel", chunk=self.chunk
        )
        return self.o_proj(self.g_norm_swish_gate(o, g).flatten(-2))
