"""S_t = diag(f_t) S_(t-1) + (1 - f_t) i_t^T, f_t = lb + (1 - lb) sigmoid(..), o_t = S_t^T silu(q_t)"""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional

from verifier.models.hgrn import forget_gate
from verifier.models.layer import Form, RMSNorm, SequenceLayer, linear, split_heads
from verifier.models.recurrence import decayed_attention


class HGRN2(SequenceLayer):
    """HGRN with a matrix as state: [B, T, hidden_size] to the same; keys are one less the forget gate."""

    source = "Qin et al. 2024, arXiv 2404.07904"
    layout = "HGRN2Attention"

    def __init__(
        self, hidden_size: int, num_heads: int, lower_bound: float = 0.0, form: Form = "recurrent"
    ) -> None:
        super().__init__(form)
        self.num_heads, self.lower_bound = num_heads, lower_bound
        self.q_proj, self.f_proj, self.i_proj, self.o_proj = (
            linear(hidden_size, hidden_size) for _ in range(4)
        )
        self.g_norm = RMSNorm(hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        q, f, v = (split_heads(p(x), self.num_heads) for p in (self.q_proj, self.f_proj, self.i_proj))
        q = functional.silu(q) * q.shape[-1] ** -0.5
        decay, log_decay = forget_gate(f, self.lower_bound)
        o = decayed_attention(q, 1 - decay, v, log_decay, self.form == "parallel", decay, chunk=self.chunk)
        return self.o_proj(self.g_norm(o.flatten(-2)))
