"""S_t = a_t S' + beta_t k_t (v_t - a_t S'^T k_t)^T, S' = S_(t-1), a_t = exp(-exp(A) softplus(w . x_t + b))"""

from __future__ import annotations

from torch import Tensor

from verifier.models.delta_layer import DeltaLayer
from verifier.models.layer import Form, decay_parameters, linear, log_decay_of


class GatedDeltaNet(DeltaLayer):
    """Gated DeltaNet: [B, T, hidden_size] to the same; the state decays before it is corrected."""

    source = "Yang et al. 2024, arXiv 2412.06464"
    layout = "GatedDeltaNet"

    def __init__(
        self,
        hidden_size: int,
        num_heads: int,
        head_dim: int,
        expand_v: float = 2.0,
        negative: bool = False,
        conv: int = 4,
        form: Form = "recurrent",
    ) -> None:
        super().__init__(form)
        self.num_heads, self.negative = num_heads, negative
        self.build(hidden_size, head_dim, expand_v, conv, gate=True)
        self.a_proj = linear(hidden_size, num_heads)
        self.A_log, self.dt_bias = decay_parameters(num_heads)

    def forward(self, x: Tensor) -> Tensor:
        log_decay = log_decay_of(self.a_proj(x), self.A_log, self.dt_bias)
        return self.apply_rule(x, self.form, self.negative, log_decay)
