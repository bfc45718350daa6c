"""o_t = (S_t^T softmax(q_t) + windowed softmax attention) / 2, S_t = diag(a_t) S_(t-1) + softmax(k_t) v_t^T"""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional

from verifier.models.attention import causal_attention
from verifier.models.layer import Form, SequenceLayer, linear, rotated, split_heads
from verifier.models.recurrence import decayed_attention


class Liger(SequenceLayer):
    """Liger: [B, T, hidden_size] to the same, the projections of a transformer used twice: by attention in a
    sliding window (with rotary positions of base `rotary`), and by a GLA whose gate is sigmoid(k_t)^(1/16), so that
    it has no parameters of its own."""

    source = "Lan et al. 2025, arXiv 2503.01496"
    layout = "LigerGatedLinearAttention of OpenSparseLLMs/Linearization"

    def __init__(
        self,
        hidden_size: int,
        num_heads: int,
        window: int = 64,
        share: float = 0.5,
        rotary: float = 10000.0,
        form: Form = "recurrent",
    ) -> None:
        super().__init__(form)
        self.num_heads, self.window, self.share, self.rotary = num_heads, window, share, rotary
        self.q_proj, self.k_proj, self.v_proj, self.o_proj = (
            linear(hidden_size, hidden_size) for _ in range(4)
        )

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (split_heads(p(x), self.num_heads) for p in (self.q_proj, self.k_proj, self.v_proj))
        parallel = self.form == "parallel"
        near = causal_attention(
            rotated(q, self.rotary), rotated(k, self.rotary), v, parallel, window=self.window
        )
        log_decay = functional.logsigmoid(k) / 16
        far = decayed_attention(q.softmax(-1), k.softmax(-1), v, log_decay, parallel, chunk=self.chunk)
        return self.o_proj((self.share * far + (1 - self.share) * near).flatten(-2))
