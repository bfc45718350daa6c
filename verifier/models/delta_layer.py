"""What the models with a delta rule share: keys and queries of length 1, values, corrections, output."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional

from verifier.models.layer import (
    Form,
    GatedRMSNorm,
    RMSNorm,
    SequenceLayer,
    ShortConv,
    l2_normalised,
    linear,
    split_heads,
)
from verifier.models.recurrence import delta_rule


class DeltaLayer(SequenceLayer):
    """Projections and output of a delta rule; `corrections` is how many keys and values there are per token.

    Heads have keys of head_dim and values of round(head_dim * expand_v); `conv` is the short convolutions'
    width, 0 for none; `negative` doubles beta, so that I - beta k k^T has eigenvalues in [-1, 1].
    """

    num_heads: int
    corrections = 1

    def build(self, hidden_size: int, head_dim: int, expand_v: float, conv: int, gate: bool) -> None:
        """Add the parameters; num_heads and corrections are set."""
        self.conv, self.gate = conv, gate
        key, value = self.num_heads * head_dim, self.num_heads * round(head_dim * expand_v)
        n = self.corrections
        self.q_proj, self.k_proj = linear(hidden_size, key), linear(hidden_size, key * n)
        self.v_proj, self.b_proj = linear(hidden_size, value * n), linear(hidden_size, self.num_heads * n)
        if conv:
            self.q_conv1d, self.k_conv1d = ShortConv(key, conv), ShortConv(key * n, conv)
            self.v_conv1d = ShortConv(value * n, conv)
        if gate:
            self.g_proj = linear(hidden_size, value)
        size = value // self.num_heads
        self.o_norm = GatedRMSNorm(size) if gate else RMSNorm(size)
        self.o_proj = linear(value, hidden_size)

    def apply_rule(self, x: Tensor, form: Form, negative: bool, log_decay: Tensor | None = None) -> Tensor:
        """[B, T, hidden_size] to the same; log_decay is [B, T, heads]."""
        q, k, v = self.q_proj(x), self.k_proj(x), self.v_proj(x)
        if self.conv:
            q, k, v = self.q_conv1d(q), self.k_conv1d(k), self.v_conv1d(v)
        else:
            q, k, v = functional.silu(q), functional.silu(k), functional.silu(v)
        beta = self.b_proj(x).sigmoid() * (2.0 if negative else 1.0)
        q = l2_normalised(split_heads(q, self.num_heads)) * (q.shape[-1] // self.num_heads) ** -0.5
        # [B, T, n * heads * d] to [B, T * n, heads, d]
        k, v, beta = (y.unflatten(-1, (self.corrections, -1)).flatten(1, 2) for y in (k, v, beta))
        k = l2_normalised(split_heads(k, self.num_heads))
        o = delta_rule(q, k, split_heads(v, self.num_heads), beta, form == "parallel", log_decay)
        if self.gate:
            o = self.o_norm(o, split_heads(self.g_proj(x), self.num_heads))
        else:
            o = self.o_norm(o)
        return self.o_proj(o.flatten(-2))
