"""Boxes: independent intervals per element."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from verifier.graph.coefficients import Coefficients, contract, summed
from verifier.graph.interval import Interval
from verifier.graph.patches import Patches
from verifier.sets.input_set import InputSet


@dataclass(frozen=True, eq=False)
class Box(InputSet):
    """{x : lower <= x <= upper}; both tensors [B, *shape].

    Raises ValueError for NaN, infinite or crossing ends.
    """

    lower: Tensor
    upper: Tensor

    def __post_init__(self) -> None:
        if self.lower.shape != self.upper.shape:
            raise ValueError(
                f"The ends of a box have shapes {tuple(self.lower.shape)} and {tuple(self.upper.shape)}."
            )

    @classmethod
    def checked(cls, lower: Tensor, upper: Tensor) -> Box:
        """A box from a caller's tensors. Raises ValueError for NaN, infinite or crossing ends."""
        box = cls(lower, upper)
        if not bool(torch.isfinite(lower).all() & torch.isfinite(upper).all()):
            raise ValueError("A box needs finite ends; at least one is infinite or NaN.")
        if bool((lower > upper).any()):
            raise ValueError("A box needs lower <= upper everywhere.")
        return box

    @classmethod
    def around(cls, x: Tensor, eps: float | Tensor, clip: tuple[float, float] | None = None) -> Box:
        """All points within `eps` of `x` in the maximum norm, cut to `clip`.

        `x` is [B, *shape]; `eps`, in the units of x, is a scalar or broadcasts to x (per channel, say).
        """
        lower, upper = x - eps, x + eps
        if clip is not None:
            lower, upper = lower.clamp(*clip), upper.clamp(*clip)
        return cls.checked(lower, upper)

    def box(self) -> Interval:
        return Interval(self.lower, self.upper)

    def minimum(self, coefficients: Tensor) -> Tensor:
        return _Minimum.apply(coefficients, self.lower, self.upper)  # pyright: ignore[reportReturnType]

    def minimum_of(self, coefficients: Coefficients) -> Tensor:
        if not isinstance(coefficients, Patches):
            return super().minimum_of(coefficients)
        lower, upper = coefficients.pick(self.lower), coefficients.pick(self.upper)
        values = coefficients.values.flatten(2)
        return summed(values.clamp(min=0) * lower + values.clamp(max=0) * upper)

    def minimiser(self, coefficients: Tensor) -> Tensor:
        return torch.where(coefficients > 0, self.lower.unsqueeze(1), self.upper.unsqueeze(1))

    def project(self, points: Tensor) -> Tensor:
        extra = points.dim() - self.lower.dim()
        view = (self.lower.shape[0], *([1] * extra), *self.lower.shape[1:])
        return points.clamp(self.lower.view(view), self.upper.view(view))

    def index(self, rows: Tensor) -> Box:
        return Box(self.lower[rows], self.upper[rows])

    def to(self, dtype: torch.dtype | None = None, device: torch.device | str | None = None) -> Box:
        interval = self.box() if dtype is None else self.box().narrow(dtype)
        return Box(interval.lower.to(device=device), interval.upper.to(device=device))


class _Minimum(torch.autograd.Function):
    """The minimum of linear forms a [B or 1, R, *shape] over boxes: [B, R]. Its gradient is the minimising
    corner, which autograd would assemble in twice as many passes over tensors of the size of `a`."""

    @staticmethod
    def forward(ctx: Any, a: Tensor, lower: Tensor, upper: Tensor) -> Tensor:
        center, radius = (lower + upper) / 2, (upper - lower) / 2
        ctx.save_for_backward(a, center, radius)
        return contract(a, center) - contract(a.abs(), radius)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        a, center, radius = ctx.saved_tensors
        wide = grad.view(*grad.shape, *([1] * (a.dim() - 2)))
        d_a = d_lower = d_upper = None
        if ctx.needs_input_grad[0]:
            corner = torch.copysign(radius.unsqueeze(1), a).neg_().add_(center.unsqueeze(1))
            d_a = corner.mul_(wide).sum_to_size(a.shape)
        if ctx.needs_input_grad[1]:
            d_lower = (a.clamp(min=0) * wide).sum(1).sum_to_size(center.shape)
        if ctx.needs_input_grad[2]:
            d_upper = (a.clamp(max=0) * wide).sum(1).sum_to_size(center.shape)
        return d_a, d_lower, d_upper
