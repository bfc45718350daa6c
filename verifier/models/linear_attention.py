"""S_t = S_(t-1) + k_t v_t^T, o_t = S_t^T q_t (divided by q_t . sum of k_s, if wanted)"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from verifier.models.layer import Form, RMSNorm, SequenceLayer, length, linear, split_heads
from verifier.models.recurrence import spans

FEATURES = {
    "elu": lambda x: functional.elu(x) + 1,
    "relu": functional.relu,
    "softmax": lambda x: x.softmax(-1),
    "identity": lambda x: x,
}


class LinearAttention(SequenceLayer):
    """Linear attention: [B, T, hidden_size] to the same, per head a state [K, V] that only adds up.

    Keys and queries pass `feature_map`; with `normalise` the output is a weighted mean of the values.
    """

    source = "Katharopoulos et al. 2020, arXiv 2006.16236"
    layout = "LinearAttention"

    def __init__(
        self,
        hidden_size: int,
        num_heads: int,
        feature_map: Literal["elu", "relu", "softmax", "identity"] = "elu",
        normalise: bool = False,
        norm: bool = True,
        form: Form = "recurrent",
    ) -> None:
        super().__init__(form)
        self.num_heads, self.feature_map, self.normalise = num_heads, feature_map, normalise
        self.q_proj, self.k_proj, self.v_proj, self.o_proj = (
            linear(hidden_size, hidden_size) for _ in range(4)
        )
        self.norm = RMSNorm(hidden_size // num_heads) if norm else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (split_heads(p(x), self.num_heads) for p in (self.q_proj, self.k_proj, self.v_proj))
        features = FEATURES[self.feature_map]
        q, k = features(q) * q.shape[-1] ** -0.5, features(k)
        o, weight = self._sums(q, k, v)
        if self.normalise:
            o = o / (weight + 1e-10)
        return self.o_proj(self.norm(o).flatten(-2))

    def _sums(self, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """S^T q [B, T, H, V] and q . sum k [B, T, H, 1]."""
        if self.form == "recurrent":
            states = (k[..., None] * v[..., None, :]).cumsum(1)
            return (q[..., None] * states).sum(-2), (q * k.cumsum(1)).sum(-1, keepdim=True)
        late, early, _ = spans(length(q))
        scores = (q[:, late] * k[:, early]).sum(-1, keepdim=True)
        at = (torch.arange(length(q))[:, None] == late).to(scores)
        o = at @ (scores * v[:, early]).flatten(2)
        weight = at @ scores.flatten(2)
        return o.unflatten(2, v.shape[2:]), weight[..., None]
