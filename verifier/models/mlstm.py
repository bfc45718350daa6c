"""C_t = f_t C_(t-1) + e^i_t k_t v_t^T, n_t = f_t n_(t-1) + e^i_t k_t, h_t = C_t^T q_t / max(|n_t . q_t|, 1)"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from verifier.models.layer import Form, length
from verifier.models.mlstm_layer import MLSTMLayer


class MLSTM(MLSTMLayer):
    """mLSTM with exponential input gates: [B, T, hidden_size] to the same.

    `stabilised` carries the largest exponent m_t so far and divides everything by exp(m_t), as implementations
    do; without, the same function (up to the 1e-6 in the quotient) is written out with fewer operators.
    """

    source = "Beck et al. 2024, arXiv 2405.04517; 2025, arXiv 2503.13427"
    layout = "mLSTMLayer of NX-AI/xlstm"

    def __init__(
        self,
        hidden_size: int,
        num_heads: int,
        stabilised: bool = True,
        expand_k: float = 0.5,
        form: Form = "recurrent",
    ) -> None:
        super().__init__(form)
        self.stabilised = stabilised
        self.build(hidden_size, num_heads, expand_k)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v, i, f = self.inputs(x)
        if not self.stabilised:
            return self.outputs(x, self.sums(q, k * i.exp()[..., None], v, f, normalise=True))
        steps = self._rows if self.form == "parallel" else self._steps
        return self.outputs(x, steps(q, k, v, i, functional.logsigmoid(f)))

    def _steps(self, q: Tensor, k: Tensor, v: Tensor, i: Tensor, log_f: Tensor) -> Tensor:
        top = i[:, 0]
        memory, keys = k[:, 0, ..., None] * v[:, 0, :, None], k[:, 0]  # e^(i - m) = 1
        outputs = []
        for t in range(length(q)):
            if t:
                largest = torch.maximum(log_f[:, t] + top, i[:, t])
                keep = (log_f[:, t] + top - largest).exp()[..., None]
                write = (i[:, t] - largest).exp()[..., None] * k[:, t]
                memory = keep[..., None] * memory + write[..., None] * v[:, t, :, None]
                keys, top = keep * keys + write, largest
            read = (q[:, t, ..., None] * memory).sum(-2)
            weight = (q[:, t] * keys).sum(-1, keepdim=True).abs()
            outputs.append(read / (torch.maximum(weight, (-top).exp()[..., None]) + 1e-6))
        return torch.stack(outputs, 1)

    def _rows(self, q: Tensor, k: Tensor, v: Tensor, i: Tensor, log_f: Tensor) -> Tensor:
        outputs = []
        for t in range(length(q)):
            rest = torch.ones(t + 1, t + 1).triu(1).to(log_f)  # sums log f over what comes after each token
            exponents = rest @ log_f[:, : t + 1] + i[:, : t + 1]
            top = exponents.amax(1, keepdim=True)
            scores = (q[:, t : t + 1] * k[:, : t + 1]).sum(-1) * (exponents - top).exp()
            read = (scores[..., None] * v[:, : t + 1]).sum(1)
            weight = torch.maximum(scores.sum(1).abs(), (-top[:, 0]).exp())
            outputs.append(read / (weight[..., None] + 1e-6))
        return torch.stack(outputs, 1)
