"""Every value of a network as an affine function of a program's columns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from verifier.bounds.forward import linear_part
from verifier.graph import Affine, Relaxation
from verifier.graph.op import Elementwise, negligible


@dataclass(frozen=True, eq=False)
class Form:
    """|value - terms . v - constant| <= error for all columns v within their reach: terms [C, *shape], the others
    [1, *shape], float64."""

    terms: Tensor
    constant: Tensor
    error: Tensor

    def size(self, reach: Tensor) -> Tensor:
        """A bound on the sum of the magnitudes of all terms, [1, *shape]; `reach` [C] bounds |v|."""
        wide = torch.tensordot(reach, self.terms.abs(), dims=1).unsqueeze(0)
        return wide + self.constant.abs() + self.error


def constant_form(value: Tensor, columns: int) -> Form:
    """A value [1, *shape] that depends on nothing."""
    value = value.double().clone()
    return Form(value.new_zeros(columns, *value.shape[1:]), value, torch.zeros_like(value))


def affine_form(op: Affine, xs: Sequence[Form], reach: Tensor) -> Form:
    """The form of an affine operator's result; rounding is bounded by its |L|."""
    shapes = [tuple(x.error.shape[1:]) for x in xs]
    offset = op.offset(*shapes)
    terms = linear_part(op, [x.terms for x in xs], offset is None, shapes)
    constant = op.forward(*[x.constant for x in xs])
    error = op.absolute(*[x.error for x in xs])
    size = op.absolute(*[x.size(reach) for x in xs])
    if offset is not None:
        size = size + offset.to(size).abs()
    doubt = op.uncertainty(*shapes)
    if doubt is not None:
        error = error + 2 * doubt.to(size)
    if op.exact and offset is None:
        return Form(terms, constant, error)
    units = 2 * (op.fan_in(*shapes) + 4) * torch.finfo(size.dtype).eps
    return Form(terms, constant, error + units * (size + error + _floor(reach)))


def settled_form(
    op: Elementwise, lines: Relaxation, error: Tensor, xs: Sequence[Form], reach: Tensor
) -> Form:
    """The result where the lower line and the upper line are one, up to `error` [1, *shape]."""
    intercept = lines.lower_intercept
    terms = torch.zeros_like(xs[0].terms)
    constant = torch.zeros_like(xs[0].constant) if intercept is None else intercept
    size = constant.abs() + _floor(reach)
    for slope, x in zip(lines.lower_slopes, xs, strict=True):
        terms = terms + slope * x.terms
        constant = constant + slope * x.constant
        error = error + slope.abs() * x.error
        size = size + slope.abs() * x.size(reach)
    units = 2 * (len(xs) + 4) * torch.finfo(size.dtype).eps
    return Form(terms, constant, error + units * (size + error))


def _floor(reach: Tensor) -> Tensor:
    """What products that underflow may lose, in units of rounding."""
    return negligible(reach.dtype) * (reach.sum() + 1)
