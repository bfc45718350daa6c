"""What all models share: the choice of a form, heads, short convolutions, norms and low-rank maps.

Parameters are named and shaped as in the layers of flash-linear-attention.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

Form = Literal["recurrent", "parallel"]


class SequenceLayer(nn.Module):
    """A map from sequences [B, T, hidden_size] to sequences [B, T, hidden_size] that reads from left to right.

    `form` says how it is written out in operators; what it computes is the same up to rounding. Raises
    ValueError for a form that the model has not.
    """

    forms: ClassVar[tuple[Form, ...]] = ("recurrent", "parallel")
    source: ClassVar[str] = ""
    """Where the model was published."""
    layout: ClassVar[str] = ""
    """The public layer whose parameters `load_state_dict` takes; empty where there is none."""
    chunk: int | None = None
    """How many tokens the parallel form of gated linear attention takes at once; None for all. May be set."""

    def __init__(self, form: Form = "recurrent") -> None:
        super().__init__()
        if form not in self.forms:
            raise ValueError(
                f"{type(self).__name__} has no {form} form; choose from {', '.join(self.forms)}."
            )
        self.form: Form = form


def linear(inputs: int, outputs: int, bias: bool = False) -> nn.Linear:
    return nn.Linear(inputs, outputs, bias=bias)


def length(x: Tensor) -> int:
    """T of [B, T, ...]: a plain number under torch.jit.trace too, where shapes are tensors."""
    return len(x.unbind(1))


def split_heads(x: Tensor, heads: int) -> Tensor:
    """[B, T, heads * d] to [B, T, heads, d]."""
    return x.unflatten(-1, (heads, -1))


def token_shift(x: Tensor) -> Tensor:
    """[B, T, D] to what the token before holds, zero before the first."""
    return functional.pad(x, (0, 0, 1, 0))[:, :-1]


def rotated(x: Tensor, base: float = 10000.0) -> Tensor:
    """Rotary position embedding of [B, T, H, K]: element i turns with element i + K/2 by t base^(-2i/K)."""
    half = x.shape[-1] // 2
    angles = torch.arange(length(x))[:, None] * base ** (-torch.arange(half) / half)
    cos, sin = angles.cos()[:, None].to(x), angles.sin()[:, None].to(x)
    a, b = x[..., :half], x[..., half:]
    return torch.cat([a * cos - b * sin, a * sin + b * cos], -1)


def l2_normalised(x: Tensor, eps: float = 1e-6) -> Tensor:
    """x / sqrt(|x|^2 + eps) along the last axis."""
    return x / (x.square().sum(-1, keepdim=True) + eps).sqrt()


class RMSNorm(nn.Module):
    """x / sqrt(mean x^2 + eps) times a weight, along the last axis."""

    def __init__(self, size: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        # functional.rms_norm has no export to ONNX before opset 23
        return x / (x.square().mean(-1, keepdim=True) + self.eps).sqrt() * self.weight


class GatedRMSNorm(RMSNorm):
    """RMSNorm times silu of a gate."""

    def forward(self, x: Tensor, gate: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        return super().forward(x) * functional.silu(gate)


class GroupNorm(nn.Module):
    """Each of `groups` parts of the last axis less its mean over its deviation, then an affine map."""

    def __init__(self, groups: int, size: int, eps: float) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(size)), nn.Parameter(torch.zeros(size))
        self.groups, self.eps = groups, eps

    def forward(self, x: Tensor) -> Tensor:
        parts = x.unflatten(-1, (self.groups, -1))
        scaled = functional.layer_norm(parts, parts.shape[-1:], eps=self.eps)
        return scaled.flatten(-2) * self.weight + self.bias


class ShortConv(nn.Conv1d):
    """Depthwise causal convolution over [B, T, D], then silu or nothing."""

    def __init__(self, size: int, width: int = 4, silu: bool = True, bias: bool = False) -> None:
        super().__init__(size, size, width, groups=size, bias=bias)
        self.silu = silu

    def forward(self, x: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        padded = functional.pad(x.transpose(1, 2), (self.kernel_size[0] - 1, 0))
        y = super().forward(padded).transpose(1, 2)
        return functional.silu(y) if self.silu else y


class LoRA(nn.Module):
    """A map of low rank with an activation in the middle and a bias at the end, as `lora.0` and `lora.2`."""

    def __init__(
        self, inputs: int, outputs: int, rank: int, activation: nn.Module, bias: bool = True
    ) -> None:
        super().__init__()
        self.lora = nn.Sequential(linear(inputs, rank), activation, linear(rank, outputs, bias))

    def forward(self, x: Tensor) -> Tensor:
        return self.lora(x)


def decay_parameters(heads: int) -> tuple[nn.Parameter, nn.Parameter]:
    """A_log and dt_bias [heads] of a decay exp(-exp(A_log) softplus(x + dt_bias)): rates up to 16, steps of
    0.001 to 0.1."""
    rates = torch.empty(heads).uniform_(1, 16)
    steps = torch.empty(heads).uniform_(-6.9, -2.3).exp()
    return nn.Parameter(rates.log()), nn.Parameter(steps + torch.log(-torch.expm1(-steps)))


def log_decay_of(x: Tensor, a_log: Tensor, dt_bias: Tensor) -> Tensor:
    """The logarithm of that decay, -exp(A_log) softplus(x + dt_bias), for x [..., heads]."""
    return -a_log.exp() * functional.softplus(x + dt_bias)


def accept_names(module: nn.Module, names: Mapping[str, str]) -> None:
    """Let `load_state_dict` take parameters whose names begin otherwise: {begins with: is here}."""

    def rename(_: nn.Module, state: dict[str, Tensor], prefix: str, *rest: object) -> None:
        for old, new in names.items():
            for name in [n for n in state if n.startswith(prefix + old)]:
                state[prefix + new + name[len(prefix + old) :]] = state.pop(name)

    module.register_load_state_dict_pre_hook(rename)
