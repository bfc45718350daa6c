"""o_t = sum over the two likeliest memories e of p_e S_e^T q_t; only these two take the gated delta step of token t"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from verifier.models.layer import (
    Form,
    GatedRMSNorm,
    SequenceLayer,
    ShortConv,
    decay_parameters,
    l2_normalised,
    length,
    linear,
    log_decay_of,
)
from verifier.models.recurrence import corrected


class MixtureOfMemories(SequenceLayer):
    """Mixture of memories with a top-2 router: [B, T, hidden_size] to the same.

    Each memory is a gated delta rule over the tokens that are routed to it, its short convolutions (`conv` is
    their width, 0 for none) included. Shares are the softmax of the two largest of the router's logits. Where more
    than two are tied, all of them count, by half.
    """

    forms: ClassVar[tuple[Form, ...]] = ("recurrent",)
    source = "Du et al. 2025, arXiv 2502.13685"
    layout = "MomAttention"

    def __init__(
        self,
        hidden_size: int,
        num_heads: int,
        head_dim: int,
        memories: int = 4,
        conv: int = 4,
        form: Form = "recurrent",
    ) -> None:
        super().__init__(form)
        self.num_heads, self.memories, self.conv = num_heads, memories, conv
        key, value = num_heads * head_dim, num_heads * head_dim * 2
        self.q_proj, self.gate = linear(hidden_size, key), linear(hidden_size, memories)
        self.k_proj, self.v_proj = _maps(hidden_size, key, memories), _maps(hidden_size, value, memories)
        self.b_proj, self.a_proj = (_maps(hidden_size, num_heads, memories) for _ in range(2))
        self.A_log, self.dt_bias = decay_parameters(num_heads)
        if conv:
            self.q_conv1d, self.k_conv1d, self.v_conv1d = (ShortConv(n, conv) for n in (key, key, value))
        self.g_proj, self.o_proj = linear(hidden_size, value), linear(value, hidden_size)
        self.o_norm = GatedRMSNorm(value // num_heads)

    def forward(self, x: Tensor) -> Tensor:
        shares, chosen = self._route(x)  # [B, T, E]
        q = self.q_proj(x)[:, :, None].expand(-1, -1, self.memories, -1)
        k, v, b, a = (
            torch.stack([m(x) for m in maps], 2)
            for maps in (self.k_proj, self.v_proj, self.b_proj, self.a_proj)
        )
        if self.conv:
            layers = (self.q_conv1d, self.k_conv1d, self.v_conv1d)
            q, k, v = (_routed_conv(y, chosen, layer) for y, layer in zip((q, k, v), layers, strict=True))
        q, k, v = (functional.silu(y).unflatten(-1, (self.num_heads, -1)) for y in (q, k, v))
        q, k = l2_normalised(q) * q.shape[-1] ** -0.5, l2_normalised(k)
        decay = log_decay_of(a, self.A_log, self.dt_bias).exp()
        beta, outputs, state = b.sigmoid(), [], None
        for t in range(length(x)):
            old = None if state is None else decay[:, t, ..., None, None] * state
            new = corrected(old, k[:, t], v[:, t], beta[:, t])
            mask = chosen[:, t, :, None, None, None]
            state = torch.where(mask, new, torch.zeros_like(new) if state is None else state)
            read = (q[:, t, ..., None] * new).sum(-2)  # unchosen memories have share 0
            outputs.append((shares[:, t, :, None, None] * read).sum(1))
        o = torch.stack(outputs, 1)
        return self.o_proj(self.o_norm(o, self.g_proj(x).unflatten(-1, (self.num_heads, -1))).flatten(-2))

    def _route(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Shares of the memories and which are chosen, [B, T, E]."""
        logits = self.gate(x)
        # At most one other is above those chosen. That a number is not below itself, as the second largest in
        # logits >= largest[1], bounds and rounding cannot tell.
        others = 1 - torch.eye(self.memories).to(x)
        above = (logits[..., None, :] > logits[..., None]).to(x) * others
        chosen = above.sum(-1) < 1.5
        # of two, each has the sigmoid of what it is above the other
        shares = (2 * logits - logits.topk(2, -1).values.sum(-1, keepdim=True)).sigmoid()
        return torch.where(chosen, shares, torch.zeros_like(shares)), chosen


def _maps(inputs: int, outputs: int, count: int) -> nn.ModuleList:
    return nn.ModuleList(linear(inputs, outputs) for _ in range(count))


def _routed_conv(y: Tensor, chosen: Tensor, layer: ShortConv) -> Tensor:
    """Convolve each memory's own tokens: y [B, T, E, D], as at token t of those chosen so far and t itself."""
    weight = layer.weight[:, 0].T  # [width, D], the last for the token itself
    before = [torch.zeros_like(y[:, 0]) for _ in range(len(weight) - 1)]
    outputs = []
    for t in range(length(y)):
        window = [*before, y[:, t]]
        outputs.append(sum(w * item for w, item in zip(weight, window, strict=True)))
        mask = chosen[:, t, :, None]
        before = [torch.where(mask, new, old) for new, old in zip(window[1:], before, strict=True)]
    return torch.stack(outputs, 1)
