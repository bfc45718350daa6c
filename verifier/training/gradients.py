"""Hand-written gradients of the two steps that interval losses spend their time on beside convolutions.

Autograd gives the same, with more passes over tensors of the size of the activations, or of a wide layer's weights.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional


class Rectified(torch.autograd.Function):
    """Center and radius of max(x, 0) from those of x."""

    @staticmethod
    def forward(ctx: Any, center: Tensor, radius: Tensor) -> tuple[Tensor, Tensor]:
        lower, upper = (center - radius).clamp_(min=0), (center + radius).clamp_(min=0)
        ctx.save_for_backward(lower, upper)
        middle = torch.lerp(lower, upper, 0.5)
        return middle, upper - middle

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor]:
        lower, upper = ctx.saved_tensors
        low = torch.ops.aten.threshold_backward(grads[0] - grads[1], lower, 0)
        high = torch.ops.aten.threshold_backward(grads[0] + grads[1], upper, 0)
        middle = torch.lerp(low, high, 0.5)
        return middle, high - middle


class Product(torch.autograd.Function):
    """Center and radius of W x from those of x, [..., in] to [..., out]."""

    @staticmethod
    def forward(ctx: Any, center: Tensor, radius: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        size = weight.abs()
        ctx.save_for_backward(center, radius, weight, size)
        return functional.linear(center, weight), functional.linear(radius, size)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        center, radius, weight, size = ctx.saved_tensors
        d_center = grads[0] @ weight if ctx.needs_input_grad[0] else None
        d_radius = grads[1] @ size if ctx.needs_input_grad[1] else None
        d_weight = None
        if ctx.needs_input_grad[2]:
            d_weight = _outer(grads[1], radius)
            # Times the weight's sign in one pass; where that is zero either sign is a subgradient.
            torch.ops.aten.leaky_relu_backward.grad_input(d_weight, weight, -1.0, False, grad_input=d_weight)
            d_weight.addmm_(grads[0].flatten(0, -2).T, center.flatten(0, -2))
        return d_center, d_radius, d_weight


class Folded(torch.autograd.Function):
    """The kernel [C, ...] and bias [C] of a convolution with the batch normalisation behind it; any of the biases and
    `gamma` may be None. Small tensors, but a dozen of launches per layer and direction by autograd."""

    @staticmethod
    def forward(
        ctx: Any,
        weight: Tensor,
        bias: Tensor | None,
        gamma: Tensor | None,
        beta: Tensor | None,
        mean: Tensor,
        variance: Tensor,
        eps: float,
    ) -> tuple[Tensor, Tensor]:
        root = (variance + eps).rsqrt_()
        scale = root if gamma is None else root * gamma
        away = mean if bias is None else mean - bias
        shift = -away * scale if beta is None else torch.addcmul(beta, away, scale, value=-1)
        ctx.save_for_backward(weight, root, scale, away)
        return weight * _per_row(scale, weight), shift

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        weight, root, scale, away = ctx.saved_tensors
        kernel, shift = grads
        _, asks_bias, asks_gamma, asks_beta, asks_mean, asks_variance, _ = ctx.needs_input_grad
        moved = shift * scale
        d_scale = d_variance = None
        if asks_gamma or asks_variance:
            d_scale = torch.addcmul((kernel * weight).flatten(1).sum(1), shift, away, value=-1)
        if asks_variance:
            d_variance = d_scale * scale * root * root * -0.5
        return (
            kernel * _per_row(scale, weight),
            moved if asks_bias else None,
            d_scale * root if asks_gamma else None,
            shift if asks_beta else None,
            -moved if asks_mean else None,
            d_variance,
            None,
        )


def _per_row(scale: Tensor, weight: Tensor) -> Tensor:
    return scale.view(-1, *[1] * (weight.dim() - 1))


def _outer(a: Tensor, b: Tensor) -> Tensor:
    """The sum of the outer products of the last dimensions."""
    return a.flatten(0, -2).T @ b.flatten(0, -2)
