"""Causal softmax attention, row by row or with one mask, as gated attention models share it."""

from __future__ import annotations

import torch
from torch import Tensor

from verifier.models.layer import length


def causal_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    parallel: bool,
    log_forget: Tensor | None = None,
    window: int | None = None,
) -> Tensor:
    """Each token's mean of the values so far, by softmax of q . k / sqrt(K).

    q and k [B, T, H, K], v and the result [B, T, H, V]. Logits lose what `log_forget` [B, T, H] adds up to
    between the two tokens; only the last `window` tokens count. Row by row (as a decoder does) no logit is ever
    masked; in parallel, masked ones are minus infinity.
    """
    steps = length(q)
    q = q * q.shape[-1] ** -0.5
    if not parallel:
        rows = [_row(q, k, v, t, log_forget, window) for t in range(steps)]
        return torch.stack(rows, 1)
    logits = q.transpose(1, 2) @ k.permute(0, 2, 3, 1)  # [B, H, T, T]
    if log_forget is not None:
        times = torch.arange(steps)
        inside = (times > times[:, None, None].transpose(0, 1)) & (times <= times[:, None, None])
        logits = logits + (inside.to(q).flatten(0, 1) @ log_forget).transpose(1, 2).unflatten(
            -1, (steps, steps)
        )
    forbidden = torch.ones(steps, steps, dtype=torch.bool).triu(1)
    if window is not None:
        forbidden = forbidden | torch.ones(steps, steps, dtype=torch.bool).tril(-window)
    shares = logits.masked_fill(forbidden, -torch.inf).softmax(-1)
    return (shares @ v.transpose(1, 2)).transpose(1, 2)


def _row(q: Tensor, k: Tensor, v: Tensor, t: int, log_forget: Tensor | None, window: int | None) -> Tensor:
    start = 0 if window is None else max(0, t + 1 - window)
    logits = (q[:, t : t + 1] * k[:, start : t + 1]).sum(-1)  # [B, t + 1 - start, H]
    if log_forget is not None:
        size = t + 1 - start
        logits = logits + torch.ones(size, size).triu(1).to(q) @ log_forget[:, start : t + 1]
    return (logits.softmax(1)[..., None] * v[:, start : t + 1]).sum(1)
