"""o_t = sigmoid(r_t) (a + e^(u + k_t) v_t) / (b + e^(u + k_t)), then a, b = e^-w (a, b) + e^k_t (v_t, 1)"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from verifier.models.layer import Form, SequenceLayer, length, linear, token_shift


class RWKV4(SequenceLayer):
    """RWKV-4 time mixing: [B, T, hidden_size] to the same, a weighted mean of values per channel.

    The recurrent form carries the largest exponent so far, as implementations do; the parallel one is a softmax
    over the tokens read. The rate of decay is exp(time_decay).
    """

    source = "Peng et al. 2023, arXiv 2305.13048"
    layout = ""

    def __init__(self, hidden_size: int, form: Form = "recurrent") -> None:
        super().__init__(form)
        self.time_decay = nn.Parameter(torch.linspace(-3, 1, hidden_size))
        self.time_first = nn.Parameter(torch.full((hidden_size,), 0.3))
        self.time_mix_k, self.time_mix_v, self.time_mix_r = (
            nn.Parameter(torch.full((1, 1, hidden_size), 0.5)) for _ in range(3)
        )
        self.key, self.value, self.receptance, self.output = (
            linear(hidden_size, hidden_size) for _ in range(4)
        )

    def forward(self, x: Tensor) -> Tensor:
        before = token_shift(x)
        k = self.key(x * self.time_mix_k + before * (1 - self.time_mix_k))
        v = self.value(x * self.time_mix_v + before * (1 - self.time_mix_v))
        r = self.receptance(x * self.time_mix_r + before * (1 - self.time_mix_r)).sigmoid()
        mean = self._parallel(k, v) if self.form == "parallel" else self._steps(k, v)
        return self.output(r * mean)

    def _parallel(self, k: Tensor, v: Tensor) -> Tensor:
        rate = self.time_decay.exp()
        outputs = []
        for t in range(length(k)):
            since = torch.arange(t - 1, -2, -1).to(k)[:, None]  # -1 for the token itself, replaced below
            bonus = torch.cat([-since[:-1] * rate, self.time_first[None]])
            outputs.append(((k[:, : t + 1] + bonus).softmax(1) * v[:, : t + 1]).sum(1))
        return torch.stack(outputs, 1)

    def _steps(self, k: Tensor, v: Tensor) -> Tensor:
        rate = self.time_decay.exp()
        a, b, top = v[:, 0], torch.ones_like(v[:, 0]), k[:, 0]
        outputs = [v[:, 0]]  # the first token reads itself alone
        for t in range(1, length(k)):
            now = self.time_first + k[:, t]
            largest = torch.maximum(top, now)
            old, new = (top - largest).exp(), (now - largest).exp()
            outputs.append((old * a + new * v[:, t]) / (old * b + new))
            largest = torch.maximum(top - rate, k[:, t])
            old, new = (top - rate - largest).exp(), (k[:, t] - largest).exp()
            a, b, top = old * a + new * v[:, t], old * b + new, largest
        return torch.stack(outputs, 1)
