"""The linear inequalities of elementwise operators, for many boxes at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from verifier.bounds.lines import sane
from verifier.graph import Elementwise, Interval, Parameter, Relaxation
from verifier.graph.op import negligible

STEEPEST = 1e8
"""Slopes are no steeper where the operator has a choice: near a jump they have no limit, and solvers refuse 1e15."""


def settings(op: Elementwise, boxes: Sequence[Interval]) -> list[Relaxation]:
    """Relaxations at the ends of the free parameters' ranges and at their starting values: together they span what
    the parameters can reach. Intercepts are widened by the lines' rounding and never None."""
    parameters = op.parameters(*boxes)
    chosen: list[Mapping[str, Tensor]] = [
        {name: _tamed(getattr(p, end), p) for name, p in parameters.items()}
        for end in ("lower", "upper", "value")
    ]
    return [
        _widened(op, sane(op.relax(own, *boxes)), boxes) for own in (chosen if parameters else chosen[:1])
    ]


def _tamed(value: Tensor, parameter: Parameter) -> Tensor:
    """The value, or the nearest to it in the parameter's range that is not too steep."""
    return value.clamp(-STEEPEST, STEEPEST).clamp(parameter.lower, parameter.upper)


def _widened(op: Elementwise, lines: Relaxation, boxes: Sequence[Interval]) -> Relaxation:
    eps, floor = torch.finfo(boxes[0].lower.dtype).eps, negligible(boxes[0].lower.dtype)
    units = 2 * (op.relaxation_error + 4) * eps

    def error(slopes: Sequence[Tensor], intercept: Tensor) -> Tensor:
        size = intercept.abs() + floor
        for slope, box in zip(slopes, boxes, strict=True):
            size = size + (slope.abs() + floor) * (box.magnitude + floor)
        return units * size

    zero = torch.zeros_like(boxes[0].lower)
    low = zero if lines.lower_intercept is None else lines.lower_intercept + zero
    high = zero if lines.upper_intercept is None else lines.upper_intercept + zero
    return Relaxation(
        tuple(s + zero for s in lines.lower_slopes),
        low - error(lines.lower_slopes, low),
        tuple(s + zero for s in lines.upper_slopes),
        high + error(lines.upper_slopes, high),
    )


def settled(lines: Relaxation, boxes: Sequence[Interval], tolerance: float = 1e-12) -> tuple[Tensor, Tensor]:
    """Where the lower and the upper line are one line but for rounding (bool [B, *shape]), and how far the function
    may be from the lower line there."""
    low, high = lines.lower_intercept, lines.upper_intercept
    if low is None or high is None:
        raise ValueError("Widened lines have intercepts.")
    size = low.abs() + high.abs()
    same = torch.ones_like(low, dtype=torch.bool)
    for a, b, box in zip(lines.lower_slopes, lines.upper_slopes, boxes, strict=True):
        same &= a == b
        size = size + (a.abs() + 1) * box.magnitude
    gap = (high - low) * (1 + 4 * torch.finfo(low.dtype).eps)
    return same & (gap <= tolerance * size + torch.finfo(low.dtype).tiny) & gap.isfinite(), gap


def line_slopes(lines: Relaxation, above: bool) -> tuple[Tensor, ...]:
    """The slopes of the upper or of the lower lines."""
    return lines.upper_slopes if above else lines.lower_slopes


def line_end(lines: Relaxation, above: bool) -> Tensor:
    """The intercept of widened lines."""
    end = lines.upper_intercept if above else lines.lower_intercept
    if end is None:
        raise ValueError("Widened lines have intercepts.")
    return end
