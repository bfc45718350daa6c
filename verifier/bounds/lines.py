"""Coefficients through the lines of a relaxation, with a hand-written gradient.

Selecting by sign is done by splitting coefficients into positive and negative parts: on CPUs that is several
times faster than boolean masks and `torch.where`, forwards and in the gradient, and this step is where
alpha-CROWN spends the time that is not spent in matrix products.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from verifier.graph import Relaxation
from verifier.graph.coefficients import (
    Coefficients,
    Dense,
    Factored,
    Rows,
    Scattered,
    columns,
    contract,
    dot,
    plain_dot,
    summed,
)
from verifier.graph.coefficients import rows as flat
from verifier.graph.op import Shape, negligible
from verifier.graph.patches import Patches


def through(
    coefficients: Coefficients, relaxation: Relaxation, shape: Shape, finite: bool = False
) -> tuple[list[Coefficients], Tensor | None]:
    """One step through an elementwise operator: positive coefficients take the lower line, negative the
    upper.

    Returns the coefficients of each argument and what the intercepts add, [B, R]. With `finite` the lines are taken to
    be so; where they are not, the bound is not a number.
    """
    if isinstance(coefficients, Factored):
        return _through_factored(coefficients, relaxation, finite)
    layout = _Layout.of(coefficients, relaxation, shape)
    wide = layout.wide
    parts: list[Coefficients] = []
    shift: Tensor | None = None
    for k, (low, high) in enumerate(zip(relaxation.lower_slopes, relaxation.upper_slopes, strict=True)):
        below = relaxation.lower_intercept if k == 0 else None
        above = relaxation.upper_intercept if k == 0 else None
        lines = [None if t is None else layout.line(t) for t in (low, high, below, above)]
        known = [t if finite or t is None or _is_finite(t) else _finite_part(t) for t in lines[2:]]
        out, added = _Lines.apply(wide, *lines[:2], *known)  # pyright: ignore[reportGeneralTypeIssues]
        parts.append(layout.rebuild(out))
        if added is not None:
            for sign, full, part in zip((1, -1), lines[2:], known, strict=True):
                if full is not None and full is not part:
                    added = added.masked_fill(_meets((sign * wide).clamp(min=0), full), -torch.inf)
            shift = added.flatten(1)
    return parts, shift


def keeps_factors(coefficients: Factored, relaxation: Relaxation, shape: Shape) -> bool:
    """Whether `through` can take them as they are: one term without a common factor, lines that all rows share."""
    lines = (*relaxation.lower_slopes, *relaxation.upper_slopes)
    return (
        len(coefficients.terms) == 1
        and coefficients.terms[0][1] is None
        and all(t.dim() == len(shape) + 1 or t.shape[1] == 1 for t in lines)
    )


def _shared(line: Tensor, shape: Shape) -> Tensor:
    """A line that all rows share as [B or 1, *shape]."""
    return line if line.dim() == len(shape) + 1 else line.squeeze(1)


def _through_factored(
    coefficients: Factored, relaxation: Relaxation, finite: bool
) -> tuple[list[Coefficients], Tensor | None]:
    """`through` where `keeps_factors` holds."""
    rows, shape = coefficients.terms[0][0], coefficients.shape
    signed = rows.clamp(min=0), rows.clamp(max=0)
    parts: list[Coefficients] = []
    for lines in zip(relaxation.lower_slopes, relaxation.upper_slopes, strict=True):
        terms = [(s, _shared(line, shape)) for s, line in zip(signed, lines, strict=True)]
        parts.append(Factored(tuple(terms), shape))
    shift: Tensor | None = None
    for sign, s, full in zip(
        (1, -1), signed, (relaxation.lower_intercept, relaxation.upper_intercept), strict=True
    ):
        if full is None:
            continue
        line = coefficients.gathered(_shared(full, shape))
        known = line if finite or _is_finite(line) else _finite_part(line)
        added = contract(s, known)
        if known is not line:
            meets = contract((sign * s > 0).to(line.dtype), (~line.isfinite()).to(line.dtype)) > 0
            added = added.masked_fill(meets, -torch.inf)
        shift = added if shift is None else shift + added
    return parts, shift


def through_error(
    coefficients: Coefficients,
    relaxation: Relaxation,
    sizes: Sequence[Tensor],
    shape: Shape,
    units: int,
) -> Tensor:
    """The sum over elements of |coefficient| (units (|slope| |x| + |intercept|) + roundings |intercept|), the last for
    the sum that `through` makes of the intercepts, with the line that each coefficient takes: [B, R]."""
    roundings = coefficients.roundings
    lower = _magnitude(relaxation.lower_slopes, relaxation.lower_intercept, sizes, units, roundings)
    upper = _magnitude(relaxation.upper_slopes, relaxation.upper_intercept, sizes, units, roundings)
    if isinstance(coefficients, Factored):
        rows = coefficients.terms[0][0]
        lower, upper = (coefficients.gathered(_shared(t, shape)) for t in (lower, upper))
        low, high = flat(rows.clamp(min=0), 2), flat(rows.clamp(max=0), 2)
        return plain_dot(low, flat(lower)) - plain_dot(high, flat(upper))
    layout = _Layout.of(coefficients, relaxation, shape)
    rising, falling = layout.wide.clamp(min=0), layout.wide.clamp(max=0)
    return (_plain(rising, layout.line(lower)) - _plain(falling, layout.line(upper))).flatten(1)


def _plain(a: Tensor, x: Tensor) -> Tensor:
    """`_dot` in one sum, which is enough for an error bound."""
    if x.shape[1] == 1:
        return plain_dot(a.flatten(1, 2), x.flatten(1)).view(-1, *a.shape[1:3])
    return (a * x).sum(3) if a.shape[2] == 1 else torch.matmul(a, x.mT).squeeze(3)


def _magnitude(
    slopes: Sequence[Tensor], intercept: Tensor | None, sizes: Sequence[Tensor], units: int, roundings: int
) -> Tensor:
    """units (|slope| |x| + |intercept|) + roundings |intercept| of one line, slope and intercept enlarged by what
    underflow may hide: [B, 1 or G, *shape]."""
    floor, rank = negligible(slopes[0].dtype), sizes[0].dim()
    lifted = [None if t is None else t.unsqueeze(1) if t.dim() == rank else t for t in (intercept, *slopes)]
    constant = floor if lifted[0] is None else lifted[0].abs() + floor
    total = (units + (0 if intercept is None else roundings)) * constant
    for slope, size in zip(lifted[1:], sizes, strict=True):
        if slope is not None:
            total = total + units * (slope.abs() + floor) * size.unsqueeze(1)
    return torch.as_tensor(total)


@dataclass(frozen=True, eq=False)
class _Layout:
    """Coefficients as [B, G, Q, N]: G groups of Q rows that have lines of their own, of N elements. Windows, and rows
    of one entry, are a group each."""

    coefficients: Coefficients
    wide: Tensor
    shape: Shape

    @classmethod
    def of(cls, coefficients: Coefficients, relaxation: Relaxation, shape: Shape) -> _Layout:
        if isinstance(coefficients, Patches):
            return cls(coefficients, coefficients.values.flatten(2).unsqueeze(2), shape)
        if isinstance(coefficients, Rows):
            return cls(coefficients, coefficients.scale[:, :, None, None], shape)
        if isinstance(coefficients, Scattered):
            return cls(coefficients, coefficients.values.unsqueeze(2), shape)
        lines = (*relaxation.lower_slopes, *relaxation.upper_slopes)
        groups = max(t.shape[1] if t.dim() > len(shape) + 1 else 1 for t in lines)
        dense = coefficients.dense()
        return cls(Dense(dense), dense.unflatten(1, (groups, -1)).flatten(3), shape)

    def line(self, line: Tensor) -> Tensor:
        """[B, *shape] or [B, G, *shape] as [B, 1 or G, 1, N]."""
        if isinstance(self.coefficients, Patches):
            return self.coefficients.pick(line).unsqueeze(2)
        if isinstance(self.coefficients, Scattered):
            return self.coefficients.pick(line).unsqueeze(2)
        if isinstance(self.coefficients, Rows):
            index = self.coefficients.index
            groups = line.flatten(1).unsqueeze(1) if line.dim() == len(self.shape) + 1 else line.flatten(2)
            batch = max(len(groups), len(index))
            index = index.unflatten(1, (groups.shape[1], -1)).expand(batch, -1, -1)
            return groups.expand(batch, -1, -1).gather(2, index).flatten(1)[:, :, None, None]
        flat = line.flatten(1).unsqueeze(1) if line.dim() == len(self.shape) + 1 else line.flatten(2)
        return flat.unsqueeze(2)

    def rebuild(self, wide: Tensor) -> Coefficients:
        """Coefficients of the same kind from [B, G, Q, N]."""
        if isinstance(self.coefficients, Patches):
            return self.coefficients.with_values(wide.flatten(1, 2))
        if isinstance(self.coefficients, Scattered):
            return Scattered(self.coefficients.index, wide.squeeze(2), self.shape)
        if isinstance(self.coefficients, Rows):
            return Rows(self.coefficients.index.expand(len(wide), -1), wide.flatten(1), self.shape)
        return Dense(wide.reshape(-1, wide.shape[1] * wide.shape[2], *self.shape))


def sane(relaxation: Relaxation) -> Relaxation:
    """Lines with a slope that is not finite say nothing: slope 0, and an infinite intercept (any number might be
    too small, for coefficients may be)."""
    if relaxation.finite or is_finite([relaxation]):
        return relaxation._replace(finite=True)
    lower = _finite(relaxation.lower_slopes, relaxation.lower_intercept, -torch.inf)
    upper = _finite(relaxation.upper_slopes, relaxation.upper_intercept, torch.inf)
    return Relaxation(*lower, *upper)


def is_finite(relaxations: Iterable[Relaxation]) -> bool:
    """Whether all their slopes and intercepts are finite, asked of the device once."""
    tensors = [
        t
        for r in relaxations
        for t in (*r.lower_slopes, *r.upper_slopes, r.lower_intercept, r.upper_intercept)
    ]
    sums = [t.detach().sum() for t in tensors if t is not None]
    return not sums or math.isfinite(float(torch.stack(sums).sum()))


def _is_finite(tensor: Tensor) -> bool:
    return math.isfinite(float(tensor.detach().sum()))


def _finite_part(tensor: Tensor) -> Tensor:
    return torch.where(tensor.isfinite(), tensor, torch.zeros_like(tensor))


def _meets(coefficients: Tensor, line: Tensor) -> Tensor:
    """Which rows have a coefficient that is not zero where the line is infinite: [B, G, Q]."""
    return _dot((coefficients != 0).to(line.dtype), (~line.isfinite()).to(line.dtype)) > 0


def _finite(
    slopes: tuple[Tensor, ...], intercept: Tensor | None, nothing: float
) -> tuple[tuple[Tensor, ...], Tensor | None]:
    lines = slopes if intercept is None else (*slopes, intercept)
    if all(math.isfinite(float(t.detach().sum())) for t in lines):
        return slopes, intercept
    known = torch.stack(torch.broadcast_tensors(*[t.isfinite() for t in lines])).all(0)
    constant = torch.zeros_like(slopes[0]) if intercept is None else intercept
    fixed = tuple(torch.where(known, t, torch.zeros_like(t)) for t in slopes)
    return fixed, torch.where(known, constant, torch.full_like(constant, nothing))


class _Lines(torch.autograd.Function):
    """(a [B, G, Q, N], low, high, below, above [B or 1, G or 1, 1, N], the last two possibly None) to
    max(a, 0) * low + min(a, 0) * high [B, G, Q, N], and the sum over N of max(a, 0) * below + min(a, 0) *
    above [B, G, Q] (None without intercepts)."""

    @staticmethod
    def forward(
        ctx: Any, a: Tensor, low: Tensor, high: Tensor, below: Tensor | None, above: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        rising, falling = a.clamp(min=0), a.clamp(max=0)
        shift = None
        if below is not None:
            shift = _dot(rising, below)
        if above is not None:
            shift = _dot(falling, above) if shift is None else shift + _dot(falling, above)
        if not any(ctx.needs_input_grad) and np.broadcast_shapes(a.shape, low.shape, high.shape) == a.shape:
            return rising.mul_(low).addcmul_(falling, high), shift
        out = torch.addcmul(rising * low, falling, high)
        ctx.save_for_backward(rising, falling, low, high, below, above)
        ctx.set_materialize_grads(False)
        return out, shift

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor | None, weight: Tensor | None) -> tuple[Tensor | None, ...]:
        rising, falling, low, high, below, above = ctx.saved_tensors
        needs = ctx.needs_input_grad
        a = d_low = d_high = d_below = d_above = None
        if needs[0]:
            up = _along(grad, low, weight, below)
            down = _along(grad, high, weight, above)
            if up is not None and down is not None:
                a = torch.addcmul(down, up.sub_(down), rising.sign()).sum_to_size(rising.shape)
        if grad is not None:
            d_low = (grad * rising).sum_to_size(low.shape) if needs[1] else None
            d_high = (grad * falling).sum_to_size(high.shape) if needs[2] else None
        if weight is not None:
            d_below = _weighted(weight, rising, below) if needs[3] else None
            d_above = _weighted(weight, falling, above) if needs[4] else None
        return a, d_low, d_high, d_below, d_above


def _along(
    grad: Tensor | None, slope: Tensor, weight: Tensor | None, intercept: Tensor | None
) -> Tensor | None:
    """The derivative in a coefficient that takes this line: grad * slope + weight * intercept."""
    total = None if grad is None else grad * slope
    if weight is None:
        return total
    wide = weight.unsqueeze(3)
    if intercept is None:
        return wide * torch.zeros_like(slope) if total is None else total
    return wide * intercept if total is None else torch.addcmul(total, wide, intercept)


def _dot(a: Tensor, x: Tensor) -> Tensor:
    """The sum over N of a [B, G, Q, N] times x [B or 1, G or 1, 1, N], in blocks as `dot` sums: [B, G, Q]."""
    if x.shape[1] == 1:
        return dot(a.flatten(1, 2), x.flatten(1)).view(-1, *a.shape[1:3])
    if a.shape[2] == 1:
        return summed(a * x)
    return torch.matmul(a, columns(x.squeeze(2))).sum(3)


def _weighted(weight: Tensor, a: Tensor, x: Tensor) -> Tensor:
    """The gradient of `_dot` in x: weight [B, G, Q] times a, summed down to x's shape."""
    if x.shape[1] == 1:
        total = torch.bmm(weight.flatten(1).unsqueeze(1), a.flatten(1, 2).expand(weight.shape[0], -1, -1))
        return total.unsqueeze(1).sum_to_size(x.shape)
    return (weight.unsqueeze(3) * a).sum_to_size(x.shape)
