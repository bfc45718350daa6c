"""S_t = H_n .. H_1 a_t S_(t-1), where H_j S = S + beta_j k_j (v_j - S^T k_j)^T with |k_j| = 1"""

from __future__ import annotations

from torch import Tensor

from verifier.models.delta_layer import DeltaLayer
from verifier.models.layer import Form, decay_parameters, linear, log_decay_of


class DeltaProduct(DeltaLayer):
    """Gated DeltaProduct: [B, T, hidden_size] to the same; each token makes `corrections` delta steps with keys,
    values and betas in [0, 2] of their own. Without `decay`, a_t is 1."""

    source = "Siems et al. 2025, arXiv 2502.10297"
    layout = "GatedDeltaProduct"

    def __init__(
        self,
        hidden_size: int,
        num_heads: int,
        head_dim: int,
        corrections: int = 2,
        decay: bool = True,
        conv: int = 4,
        form: Form = "recurrent",
    ) -> None:
        super().__init__(form)
        self.num_heads, self.corrections, self.decay = num_heads, corrections, decay
        self.build(hidden_size, head_dim, 2.0, conv, gate=True)
        if decay:
            self.a_proj = linear(hidden_size, num_heads)
            self.A_log, self.dt_bias = decay_parameters(num_heads)

    def forward(self, x: Tensor) -> Tensor:
        log_decay = None
        if self.decay:
            log_decay = log_decay_of(self.a_proj(x), self.A_log, self.dt_bias)
        return self.apply_rule(x, self.form, True, log_decay)
