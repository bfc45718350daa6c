"""When a product of constant matrices may be stored instead of being computed anew.

Rounding in a fused matrix is an error of the network itself, which no bound accounts for. It is harmless while it is
relative to the stored number, as in one product; but a sum that cancels keeps the errors of its terms. What shifts are
off by is bounded (`sum_rounding`) and stored with them.
"""

from __future__ import annotations

import torch
from torch import Tensor


def grain(values: Tensor) -> Tensor:
    """The largest power of two that divides each number (infinite for zero), in float64."""
    some = values.detach() != 0  # large matrices are mostly zero where this is asked
    size = values.detach()[some].double().abs()
    bits = size.view(torch.int64)
    shorter = (bits & (bits - 1)).view(
        torch.float64
    )  # without the last digit, if there is one behind the point
    power = torch.where(bits & ((1 << 52) - 1) == 0, size, size - shorter)
    return torch.full(values.shape, torch.inf, dtype=torch.float64, device=values.device).masked_scatter_(
        some, power
    )


def exact_product(a: Tensor, b: Tensor) -> Tensor:
    """Which elements of the matrix product a @ b are not rounded at all, in whatever order they are summed: all
    partial sums are multiples of one power of two, and fit the mantissa."""
    a, b = a.detach(), b.detach()
    unit = grain(a).amin(1, keepdim=True) * grain(b).amin(0, keepdim=True)
    return (a.abs() @ b.abs()).double() <= 2 * unit / torch.finfo(a.dtype).eps


def faithful_product(a: Tensor, b: Tensor) -> bool:
    """Whether every element of a @ b is exact, or one product, which is rounded relative to itself."""
    exact = exact_product(a, b)
    if bool(exact.all()):
        return True
    terms = (a != 0).to(a.dtype) @ (b != 0).to(a.dtype)
    return bool((exact | (terms <= 1)).all())


def faithful_affine(a: Tensor, b: Tensor, shift: Tensor | None) -> bool:
    """The same for a @ b + shift with a vector b: after an exact product the sum is rounded once."""
    column = b.unsqueeze(1)
    if shift is None or not bool(shift.any()):
        return faithful_product(a, column)
    return bool(exact_product(a, column).all())


def sum_rounding(a: Tensor, b: Tensor, c: Tensor | None = None) -> Tensor:
    """How far the sum over the last dimension of a * b, plus c, may be from what it is without rounding, in whatever
    order it is summed; zero where nothing is rounded. `a` and `b` broadcast to each other, `c` to the sum."""
    a, b = a.detach(), b.detach()
    terms = (a * b).abs()
    if not terms.is_floating_point():
        return torch.zeros_like(terms.sum(-1), dtype=torch.float64)
    size, unit = terms.sum(-1), (grain(a) * grain(b)).amin(-1)
    if c is not None:
        size, unit = size + c.detach().abs(), torch.minimum(unit, grain(c))
    eps = torch.finfo(terms.dtype).eps
    bound = (terms.shape[-1] + 2) * eps * size
    return torch.where(size.double() <= 2 * unit / eps, torch.zeros_like(bound), bound)


def exact_sums(values: Tensor, group: Tensor, groups: int) -> bool:
    """Whether the columns of `values` [R, N] can be summed by `group` [N] without rounding."""
    values = values.detach()
    grains, eps = grain(values), torch.finfo(values.dtype).eps
    if bool((values.abs().sum(1).double() <= 2 * grains.amin(1) / eps).all()):
        return True  # whatever the groups are, which is quicker to see
    unit = values.new_full((values.shape[0], groups), torch.inf, dtype=torch.float64)
    unit = unit.scatter_reduce(1, group.expand_as(values), grains, "amin")
    size = torch.zeros_like(unit).index_add(1, group, values.abs().double())
    single = torch.bincount(group, minlength=groups) <= 1
    return bool(((size <= 2 * unit / eps) | single).all())
