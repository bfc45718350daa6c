"""l2 and l1 balls."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from verifier.graph.coefficients import contract
from verifier.graph.interval import Interval
from verifier.sets.input_set import InputSet


@dataclass(frozen=True, eq=False)
class Ball(InputSet):
    """{x : |x - center|_p <= radius}, optionally cut by the box `clip` (lower, upper, each [B, *shape]).

    `center` is [B, *shape], `radius` [B], `p` 1 or 2. The support function uses the dual norm; with a clip the
    better of ball and box counts, form by form. The ball is over the whole tensor, channels included.
    """

    center: Tensor
    radius: Tensor
    p: Literal[1, 2]
    clip: tuple[Tensor, Tensor] | None = None

    @classmethod
    def around(
        cls, x: Tensor, radius: float | Tensor, p: Literal[1, 2], clip: tuple[float, float] | None = None
    ) -> Ball:
        """The ball around x [B, *shape]. Raises ValueError for a negative or non-finite radius."""
        r = torch.as_tensor(radius, dtype=x.dtype, device=x.device).expand(x.shape[0])
        if not bool((torch.isfinite(r) & (r >= 0)).all()):
            raise ValueError("The radius of a ball is finite and not negative.")
        if p not in (1, 2):
            raise ValueError(f"Balls have p = 1 or 2, got {p}; for the maximum norm use Box.around.")
        ends = None if clip is None else (torch.full_like(x, clip[0]), torch.full_like(x, clip[1]))
        return cls(x, r, p, ends)

    def _radius(self, rank: int) -> Tensor:
        return self.radius.view(-1, *([1] * (rank - 1)))

    def box(self) -> Interval:
        """The radius is stretched by two units of rounding, so that the ends are safe."""
        eps = torch.finfo(self.center.dtype).eps
        reach = self._radius(self.center.dim()) + 2 * eps * (
            self.center.abs() + self._radius(self.center.dim())
        )
        lower, upper = self.center - reach, self.center + reach
        if self.clip is not None:
            lower, upper = torch.maximum(lower, self.clip[0]), torch.minimum(upper, self.clip[1])
        return Interval(lower, upper)

    def _dual_norm(self, coefficients: Tensor) -> Tensor:
        """The l2 norm stretched by what the sum of its squares may lack: its rounding is relative to itself."""
        flat = coefficients.flatten(2)
        if self.p == 1:
            return flat.abs().amax(2)
        stretch = 1 + (flat.shape[2] / 2 + 4) * torch.finfo(flat.dtype).eps
        return torch.linalg.vector_norm(flat, dim=2) * stretch

    def minimum(self, coefficients: Tensor) -> Tensor:
        ball = contract(coefficients, self.center) - self._dual_norm(coefficients) * self.radius.unsqueeze(1)
        if self.clip is None:
            return ball
        lower, upper = self.box()
        box = contract(coefficients, (lower + upper) / 2) - contract(coefficients.abs(), (upper - lower) / 2)
        return torch.maximum(ball, box)

    def minimiser(self, coefficients: Tensor) -> Tensor:
        flat = coefficients.flatten(2)
        if self.p == 2:
            step = flat / self._dual_norm(coefficients).clamp(min=torch.finfo(flat.dtype).tiny).unsqueeze(2)
        else:
            largest = flat.abs().argmax(2, keepdim=True)
            step = torch.zeros_like(flat).scatter(2, largest, flat.gather(2, largest).sign())
        step = step.view(coefficients.shape) * self.radius.view(-1, *([1] * (coefficients.dim() - 1)))
        return self.project(self.center.unsqueeze(1) - step)

    def project(self, points: Tensor) -> Tensor:
        extra = points.dim() - self.center.dim()
        view = (self.center.shape[0], *([1] * extra), *self.center.shape[1:])
        if self.clip is not None:
            points = points.clamp(self.clip[0].view(view), self.clip[1].view(view))
        offset = points - self.center.view(view)
        flat = offset.flatten(extra + 1)
        norm = flat.abs().sum(-1) if self.p == 1 else torch.linalg.vector_norm(flat, dim=-1)
        radius = self.radius.view(-1, *([1] * extra))
        shrink = (radius / norm.clamp(min=torch.finfo(flat.dtype).tiny)).clamp(max=1)
        return self.center.view(view) + offset * shrink.view(
            *shrink.shape, *([1] * (offset.dim() - extra - 1))
        )

    def index(self, rows: Tensor) -> Ball:
        clip = None if self.clip is None else (self.clip[0][rows], self.clip[1][rows])
        return replace(self, center=self.center[rows], radius=self.radius[rows], clip=clip)

    def to(self, dtype: torch.dtype | None = None, device: torch.device | str | None = None) -> Ball:
        """The radius grows by the distance that rounding moves the center."""
        center = self.center.to(dtype=dtype, device=device)
        moved = (center.to(self.center) - self.center).flatten(1)
        moved = moved.abs().sum(1) if self.p == 1 else torch.linalg.vector_norm(moved, dim=1)
        eps = torch.finfo(center.dtype).eps
        radius = ((self.radius + moved) * (1 + 4 * eps)).to(center)
        if dtype is None or dtype == self.center.dtype:
            radius = self.radius.to(center)
        clip = None
        if self.clip is not None:
            ends = Interval(*self.clip) if dtype is None else Interval(*self.clip).narrow(dtype)
            clip = (ends.lower.to(center.device), ends.upper.to(center.device))
        return replace(self, center=center, radius=radius, clip=clip)
