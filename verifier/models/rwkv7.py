"""S_t = diag(w_t) S' - (a_t * c_t) (c_t^T S') + k_t v_t^T, S' = S_(t-1), |c_t| = 1, o_t = S_t^T r_t"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from verifier.models.layer import Form, GroupNorm, LoRA, SequenceLayer, linear, split_heads, token_shift
from verifier.models.recurrence import low_rank_rule


class RWKV7(SequenceLayer):
    """RWKV-7 time mixing: [B, T, hidden_size] to the same.

    `first` is the layer whose values all later ones mix in: they take them as a second argument of
    `forward_from`, which returns its own values too. A layer that is called alone mixes in none. `norm_eps` is
    1e-5 per element of a head unless given.
    """

    source = "Peng et al. 2025, arXiv 2503.14456"
    layout = "RWKV7Attention"
    x_r: nn.Parameter
    x_w: nn.Parameter
    x_k: nn.Parameter
    x_v: nn.Parameter
    x_a: nn.Parameter
    x_g: nn.Parameter

    def __init__(
        self,
        hidden_size: int,
        num_heads: int,
        rank: int = 32,
        first: bool = True,
        norm_eps: float | None = None,
        form: Form = "recurrent",
    ) -> None:
        super().__init__(form)
        self.num_heads = num_heads
        for name in ("x_r", "x_w", "x_k", "x_v", "x_a", "x_g"):
            setattr(self, name, nn.Parameter(torch.full((1, 1, hidden_size), 0.5)))
        self.k_k, self.k_a = nn.Parameter(torch.ones(hidden_size)), nn.Parameter(torch.ones(hidden_size))
        self.r_k = nn.Parameter(torch.full((num_heads, hidden_size // num_heads), 0.1))
        self.r_proj, self.k_proj, self.v_proj, self.o_proj = (
            linear(hidden_size, hidden_size) for _ in range(4)
        )
        self.w_lora = LoRA(hidden_size, hidden_size, rank, nn.Tanh())
        self.v_lora = None if first else LoRA(hidden_size, hidden_size, rank, nn.Identity())
        self.a_lora = LoRA(hidden_size, hidden_size, rank, nn.Identity())
        self.g_lora = LoRA(hidden_size, hidden_size, rank, nn.Sigmoid(), bias=False)
        size = hidden_size // num_heads
        self.g_norm = GroupNorm(num_heads, hidden_size, 1e-5 * size if norm_eps is None else norm_eps)

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_from(x)[0]

    def forward_from(self, x: Tensor, first: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Output and values, both [B, T, hidden_size]; `first` are the first layer's values."""
        delta = token_shift(x) - x
        shares = (self.x_r, self.x_w, self.x_k, self.x_v, self.x_a, self.x_g)
        xr, xw, xk, xv, xa, xg = (x + delta * share for share in shares)
        r, k, v = self.r_proj(xr), self.k_proj(xk), self.v_proj(xv)
        values = v
        if self.v_lora is not None and first is not None:
            v = v + (first - v) * self.v_lora(xv).sigmoid()
        log_decay = -0.6065306597126334 * self.w_lora(xw).sigmoid()  # -exp(-1/2)
        rate = self.a_lora(xa).sigmoid()
        removed = split_heads(k * self.k_k, self.num_heads)
        removed = removed / removed.square().sum(-1, keepdim=True).sqrt().clamp(min=1e-12)
        k = k * (1 + (rate - 1) * self.k_a)
        r, w, k, v, rate = (split_heads(y, self.num_heads) for y in (r, log_decay, k, v, rate))
        o = low_rank_rule(r, k, v, -removed, removed * rate, w, self.form == "parallel")
        o = self.g_norm(o.flatten(-2)) + ((r * k * self.r_k).sum(-1, keepdim=True) * v).flatten(-2)
        return self.o_proj(o * self.g_lora(xg)), values


class RWKV7Model(nn.Module):
    """A small RWKV-7 language model: embeddings [B, T, width] to logits [B, T, vocabulary].

    `embed` turns tokens [B, T] into embeddings. A constant vector `shift` is added after each time mix.
    """

    def __init__(
        self, vocabulary: int, width: int, num_heads: int, rank: int, layers: int, form: Form = "recurrent"
    ) -> None:
        super().__init__()
        self.tokens = nn.Embedding(vocabulary, width)
        self.blocks = nn.ModuleList(_Block(width, num_heads, rank, i == 0, form) for i in range(layers))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, vocabulary)

    def embed(self, tokens: Tensor) -> Tensor:
        return self.tokens(tokens)

    def forward(self, x: Tensor) -> Tensor:
        first = None
        for block in self.blocks:
            x, values = block(x, first)
            first = values if first is None else first
        return self.head(self.norm(x))


class _Block(nn.Module):
    def __init__(self, width: int, num_heads: int, rank: int, first: bool, form: Form) -> None:
        super().__init__()
        self.norm_mix, self.norm_ffn = nn.LayerNorm(width), nn.LayerNorm(width)
        self.mix = RWKV7(width, num_heads, rank, first, 64e-5, form)
        self.shift = nn.Parameter(torch.zeros(width))
        self.x_k = nn.Parameter(torch.full((1, 1, width), 0.5))
        self.key, self.value = linear(width, 4 * width), linear(4 * width, width)

    def forward(self, x: Tensor, first: Tensor | None) -> tuple[Tensor, Tensor]:
        mixed, values = self.mix.forward_from(self.norm_mix(x), first)
        x = x + mixed + self.shift
        y = self.norm_ffn(x)
        y = y + (token_shift(y) - y) * self.x_k
        return x + self.value(functional.relu(self.key(y)).square()), values
