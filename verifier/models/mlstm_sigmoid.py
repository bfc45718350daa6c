"""C_t = f_t C_(t-1) + i_t k_t v_t^T, h_t = C_t^T q_t, with sigmoid gates f_t and i_t"""

from __future__ import annotations

from torch import Tensor

from verifier.models.layer import Form
from verifier.models.mlstm_layer import MLSTMLayer


class MLSTMSigmoid(MLSTMLayer):
    """mLSTM with sigmoid input gates, which needs no stabiliser: [B, T, hidden_size] to the same.

    `normalise` divides h_t by max(|n_t . q_t|, 1), n_t = f_t n_(t-1) + i_t k_t.
    """

    source = "Beck et al. 2025, arXiv 2503.14376"
    layout = "mLSTMLayer of NX-AI/xlstm"

    def __init__(
        self,
        hidden_size: int,
        num_heads: int,
        normalise: bool = False,
        expand_k: float = 0.5,
        form: Form = "recurrent",
    ) -> None:
        super().__init__(form)
        self.normalise = normalise
        self.build(hidden_size, num_heads, expand_k)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v, i, f = self.inputs(x)
        return self.outputs(x, self.sums(q, k * i.sigmoid()[..., None], v, f, self.normalise))
