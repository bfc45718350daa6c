"""S_t = S_(t-1) + beta_t k_t (v_t - S_(t-1)^T k_t)^T with |k_t| = 1, o_t = S_t^T q_t"""

from __future__ import annotations

from torch import Tensor

from verifier.models.delta_layer import DeltaLayer
from verifier.models.layer import Form


class DeltaNet(DeltaLayer):
    """DeltaNet: [B, T, hidden_size] to the same, per head a state [K, V] that is corrected towards each value."""

    source = "Yang et al. 2024, arXiv 2406.06484; negative eigenvalues: Grazzi et al. 2024, arXiv 2411.12537"
    layout = "DeltaNet"

    def __init__(
        self,
        hidden_size: int,
        num_heads: int,
        negative: bool = False,
        gate: bool = False,
        conv: int = 4,
        form: Form = "recurrent",
    ) -> None:
        super().__init__(form)
        self.num_heads, self.negative = num_heads, negative
        self.build(hidden_size, hidden_size // num_heads, 1.0, conv, gate)

    def forward(self, x: Tensor) -> Tensor:
        return self.apply_rule(x, self.form, self.negative)
