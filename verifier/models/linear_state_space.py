"""What the linear time-invariant models share: a filter applied as one matrix."""

from __future__ import annotations

import torch
from torch import Tensor

from verifier.models.layer import length


def filtered(u: Tensor, kernel: Tensor) -> Tensor:
    """y_t = sum over s <= t of kernel_(t-s) u_s per channel: u [B, T, H], kernel [H, T]."""
    steps = length(u)
    lags = torch.arange(steps)[:, None] - torch.arange(steps)
    matrix = kernel[:, lags.clamp(min=0)] * (lags >= 0).to(kernel)  # [H, T, T]
    return (matrix @ u.transpose(1, 2)[..., None]).squeeze(-1).transpose(1, 2)
