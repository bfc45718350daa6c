"""o_t = sum over s <= t of softmax(q_t . k_s / sqrt(K) + sum over (s, t] of log f_r) v_s, f = sigmoid(..)"""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional

from verifier.models.attention import causal_attention
from verifier.models.layer import Form, SequenceLayer, linear, split_heads


class ForgettingAttention(SequenceLayer):
    """Forgetting transformer: [B, T, hidden_size] to the same; logits fall by each token's log forget gate."""

    source = "Lin et al. 2025, arXiv 2503.02130"
    layout = "ForgettingAttention"

    def __init__(
        self, hidden_size: int, num_heads: int, gate: bool = False, form: Form = "recurrent"
    ) -> None:
        super().__init__(form)
        self.num_heads, self.gate = num_heads, gate
        self.q_proj, self.k_proj, self.v_proj, self.o_proj = (
            linear(hidden_size, hidden_size) for _ in range(4)
        )
        self.f_proj = linear(hidden_size, num_heads, bias=True)
        if gate:
            self.g_proj = linear(hidden_size, hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (split_heads(p(x), self.num_heads) for p in (self.q_proj, self.k_proj, self.v_proj))
        log_forget = functional.logsigmoid(self.f_proj(x))
        o = causal_attention(q, k, v, self.form == "parallel", log_forget).flatten(-2)
        return self.o_proj(self.g_proj(x).sigmoid() * o if self.gate else o)
