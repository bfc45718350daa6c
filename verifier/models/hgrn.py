"""h_t = f_t * h_(t-1) + (1 - f_t) * silu(W x_t), f_t = lb + (1 - lb) sigmoid(..), elementwise"""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional

from verifier.models.layer import Form, GatedRMSNorm, SequenceLayer, linear
from verifier.models.recurrence import decayed_sum, scan


class HGRN(SequenceLayer):
    """Hierarchically gated recurrent network: [B, T, hidden_size] to the same. `lower_bound` of the forget gate
    grows with a layer's place in its stack."""

    source = "Qin et al. 2023, arXiv 2311.04823"
    layout = "HGRNAttention"

    def __init__(
        self, hidden_size: int, expand: int = 1, lower_bound: float = 0.0, form: Form = "recurrent"
    ) -> None:
        super().__init__(form)
        self.lower_bound = lower_bound
        inner = hidden_size * expand
        self.i_proj, self.f_proj, self.g_proj = (linear(hidden_size, inner) for _ in range(3))
        self.g_norm = GatedRMSNorm(inner)
        self.o_proj = linear(inner, hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        decay, log_decay = forget_gate(self.f_proj(x), self.lower_bound)
        writes = functional.silu(self.i_proj(x)) * (1 - decay)
        parallel = self.form == "parallel"
        h = decayed_sum(writes, log_decay) if parallel else scan(writes, log_decay, decay)
        return self.o_proj(self.g_norm(h, self.g_proj(x)))


def forget_gate(f: Tensor, lower_bound: float) -> tuple[Tensor, Tensor]:
    """The gate lb + (1 - lb) sigmoid(f) and its logarithm."""
    decay = f.sigmoid()
    if not lower_bound:
        return decay, functional.logsigmoid(f)
    decay = lower_bound + (1 - lower_bound) * decay
    return decay, decay.log()
