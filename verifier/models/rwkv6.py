"""o_t = (S_(t-1) + diag(u) k_t v_t^T)^T r_t, S_t = diag(exp(-exp(w_t))) S_(t-1) + k_t v_t^T"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from verifier.models.layer import Form, GroupNorm, LoRA, SequenceLayer, linear, split_heads, token_shift
from verifier.models.recurrence import bonus_attention


class RWKV6(SequenceLayer):
    """RWKV-6 time mixing: [B, T, hidden_size] to the same. How much of the token before is mixed in depends on
    the tokens, through a tanh of low rank."""

    source = "Peng et al. 2024, arXiv 2404.05892"
    layout = "RWKV6Attention"

    def __init__(
        self,
        hidden_size: int,
        num_heads: int,
        expand_k: float = 0.5,
        mix_rank: int = 32,
        gate_rank: int = 64,
        norm_eps: float = 1e-5,
        form: Form = "recurrent",
    ) -> None:
        super().__init__(form)
        self.num_heads = num_heads
        key = int(hidden_size * expand_k)
        self.x_proj = nn.Sequential(
            _Lerp(linear(hidden_size, mix_rank * 5), hidden_size),
            nn.Tanh(),
            linear(mix_rank * 5, hidden_size),
        )
        self.x_bias = nn.Parameter(torch.zeros(5, hidden_size))
        self.r_proj, self.k_proj = _Lerp(linear(hidden_size, key)), _Lerp(linear(hidden_size, key))
        self.w_proj = _Lerp(LoRA(hidden_size, key, gate_rank, nn.Tanh()))
        self.v_proj, self.g_proj = (_Lerp(linear(hidden_size, hidden_size)) for _ in range(2))
        self.bonus = nn.Parameter(torch.zeros(num_heads, key // num_heads))
        self.g_norm = GroupNorm(num_heads, hidden_size, norm_eps)
        self.o_proj = linear(hidden_size, hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        delta = token_shift(x) - x
        lerp, tanh, _ = self.x_proj
        mixed = tanh(lerp(x, delta)).unflatten(-1, (5, -1))
        weight = self.get_parameter("x_proj.2.weight").unflatten(-1, (5, -1))  # [hidden, 5, rank]
        shares = [mixed[:, :, i] @ weight[:, i].T + self.x_bias[i] for i in range(5)]
        maps = (self.r_proj, self.w_proj, self.k_proj, self.v_proj, self.g_proj)
        r, w, k, v, g = (m(x, delta, share) for m, share in zip(maps, shares, strict=True))
        r, w, k, v = (split_heads(y, self.num_heads) for y in (r, w, k, v))
        o = bonus_attention(r, k, v, -w.exp(), self.bonus, self.form == "parallel")
        return self.o_proj(self.g_norm(o.flatten(-2)) * functional.silu(g))


class _Lerp(nn.Module):
    """A map `linear` of x + delta * mu, with mu its own parameter or given."""

    def __init__(self, inner: nn.Module, size: int | None = None) -> None:
        super().__init__()
        self.linear = inner
        if size is not None:
            self.mu = nn.Parameter(torch.full((size,), 0.5))

    def forward(self, x: Tensor, delta: Tensor, mu: Tensor | None = None) -> Tensor:
        return self.linear(x + delta * (self.mu if mu is None else mu))
