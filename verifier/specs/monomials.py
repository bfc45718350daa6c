"""Products of variables in a property, as nodes of the graph."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import numpy as np
import torch

from verifier.graph import Builder, Value
from verifier.ops.movement import take
from verifier.ops.product import Product, Square
from verifier.ops.select import concat
from verifier.specs.problem import Problem

Monomial = tuple[int, ...]


def used_columns(problem: Problem) -> set[int]:
    """The places of v that some atom mentions."""
    used = set(problem.cols.tolist())
    return used.union(*[m for part in problem.nonlinear for m in part.monomials])


def linearised(builder: Builder, values: Value, first: int, problem: Problem) -> tuple[Value, Problem]:
    """`values` (v from place `first` on) with all monomials of degree two and more behind it, and the problem whose
    atoms are linear in that longer vector, its columns counted from the same start."""
    if not problem.nonlinear:
        return values, problem
    monomials = [m for part in problem.nonlinear for m in part.monomials]
    values, place = _append(builder, values, first, monomials)
    rows = [part.atom for part in problem.nonlinear for _ in part.monomials]
    coefficients = [c for part in problem.nonlinear for c in part.coefficients]
    return values, replace(
        problem,
        rows=np.concatenate([problem.rows, np.array(rows, dtype=np.int64)]),
        cols=np.concatenate([problem.cols, np.array([place[m] for m in monomials], dtype=np.int64)]),
        values=np.concatenate([problem.values, np.array(coefficients, dtype=np.float64)]),
        nonlinear=(),
    )


def _append(
    builder: Builder, values: Value, first: int, monomials: Iterable[Monomial]
) -> tuple[Value, dict[Monomial, int]]:
    """The vector with the monomials and the factors that they are made from, lower degrees first; where each is."""
    needed = set(monomials)
    pending = list(needed)
    while pending:
        new = {f for f in _factors(pending.pop()) if len(f) > 1} - needed
        needed |= new
        pending += new
    place: dict[Monomial, int] = {(i,): i for m in needed for i in m}

    def index(factors: Iterable[Monomial]) -> torch.Tensor:
        return torch.tensor([place[f] for f in factors], dtype=torch.int64) - first

    for degree in sorted({len(m) for m in needed}):
        level = sorted(m for m in needed if len(m) == degree)
        squares = [m for m in level if _is_square(m)]
        products = [m for m in level if not _is_square(m)]
        parts = [values]
        if squares:
            halves = index(m[::2] for m in squares)
            parts.append(builder.add(Square(), take(builder, values, lambda t, i=halves: t[i])))
        if products:
            pairs = [index(f) for f in zip(*[_factors(m) for m in products], strict=True)]
            left, right = (take(builder, values, lambda t, i=i: t[i]) for i in pairs)
            parts.append(builder.add(Product(), left, right))
        end = first + builder.shape(values)[0]
        place.update({m: end + k for k, m in enumerate([*squares, *products])})
        values = concat(builder, parts, 0)
    return values, place


def _is_square(monomial: Monomial) -> bool:
    return monomial[::2] == monomial[1::2]


def _factors(monomial: Monomial) -> tuple[Monomial, ...]:
    """Its root, of a square; else two factors, the first of them a square where there is one."""
    if _is_square(monomial):
        return (monomial[::2],)
    for k in range(len(monomial)):
        rest = monomial[:k] + monomial[k + 1 :]
        if len(rest) > 1 and _is_square(rest):
            return rest, monomial[k : k + 1]
    return monomial[:-1], monomial[-1:]
