"""Atoms that compare a value of one network with the same value of another, written with their difference.

A margin c b - c a + ... becomes c d + ... with d = b - a a value of its own, which `transforms.pairs` finds and knows
how to bound.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch

from verifier.graph import Builder, Value
from verifier.ops.arithmetic import subtract
from verifier.ops.difference import Rate
from verifier.ops.linear import Linear
from verifier.ops.movement import take
from verifier.ops.select import concat
from verifier.specs.formula import And, Or, conjunction, disjunction
from verifier.specs.problem import Problem, Tree

Place = tuple[int, Value]


class ValuePair(NamedTuple):
    """Where two values, vectors of one size, start among the problem's columns, and the values."""

    first: Place
    second: Place


class Unit(NamedTuple):
    """The one input by which networks' inputs differ: its place in the vector x, and its sign."""

    x: Value
    place: int
    sign: int


def with_differences(
    builder: Builder,
    values: Value,
    first: int,
    problem: Problem,
    pairs: Iterable[ValuePair],
    unit: Unit | None = None,
) -> tuple[Value, Problem]:
    """`values` (v from place `first` on) with the differences behind it that atoms speak of, and the problem whose
    atoms are written with them. With a `unit`, strict atoms come with another one, see `_with_rates`."""
    rows = problem.rows.astype(np.int64)
    order = np.lexsort((problem.cols, rows))
    rows, cols, weights = rows[order], problem.cols[order], problem.values[order].copy()
    size = first + builder.shape(values)[0]
    found, added, spans = [values], [], []
    for (start, a), (other, b) in pairs:
        count = builder.shape(a)[0]
        mine = np.flatnonzero((cols >= start) & (cols < start + count))
        keys = rows * (size + 1) + cols
        wanted = keys[mine] + other - start
        place = np.searchsorted(keys, wanted).clip(max=len(keys) - 1)
        meets = keys[place] == wanted
        mine, place = mine[meets], place[meets]
        own, theirs = weights[mine], weights[place]
        shared = np.where(own * theirs < 0, np.sign(theirs) * np.minimum(np.abs(own), np.abs(theirs)), 0.0)
        # Only where nothing is rounded: what is left of the larger one might be small.
        exact = (own + shared - shared == own) & (theirs - shared + shared == theirs) & (shared != 0)
        mine, place, shared = mine[exact], place[exact], shared[exact]
        if not len(mine):
            continue
        weights[mine] += shared
        weights[place] -= shared
        added.append((rows[mine], cols[mine] - start + size, shared))
        found.append(subtract(builder, b, a))
        spans.append(_Span(size, count, a, b))
        size += count
    if not added:
        return values, problem
    columns = [(rows, cols, weights), *added]
    rows, cols, weights = (np.concatenate(part) for part in zip(*columns, strict=True))
    kept = weights != 0
    problem = replace(problem, rows=rows[kept], cols=cols[kept], values=weights[kept])
    if unit is not None:
        for span in spans:
            rates, problem = _with_rates(builder, span, problem, unit, size)
            found += rates
            size += sum(builder.shape(rate)[0] for rate in rates)
    return concat(builder, found, 0), problem


class _Span(NamedTuple):
    """Columns of differences b - a, from `start` on."""

    start: int
    count: int
    a: Value
    b: Value


def _with_rates(
    builder: Builder, span: _Span, problem: Problem, unit: Unit, size: int
) -> tuple[list[Value], Problem]:
    """For every strict atom that is a sum of these differences and nothing else, at column `size` and behind, the same
    sum in units of the one input that makes it, and an atom beside it that this is negative.

    Where that input is zero both sides are equal, and no strict atom holds. Elsewhere both have one sign; and only the
    sum in units can be told from zero near there (a monotone network has slopes, however close the inputs are).
    """
    inside = (problem.cols >= span.start) & (problem.cols < span.start + span.count)
    fits = problem.strict & (problem.constants == 0)
    fits[problem.rows[~inside]] = False
    fits &= np.bincount(problem.rows[inside], minlength=problem.atoms) > 0
    atoms = np.flatnonzero(fits)
    if not len(atoms):
        return [], problem
    mine = inside & fits[problem.rows]
    matrix = torch.zeros(len(atoms), span.count, dtype=torch.float64)
    matrix[np.searchsorted(atoms, problem.rows[mine]), problem.cols[mine] - span.start] = torch.from_numpy(
        problem.values[mine]
    )
    sums = Linear(matrix)
    copies = torch.full((len(atoms),), unit.place)
    arguments = [builder.add(sums, value) for value in (span.a, span.b)]
    arguments.append(take(builder, unit.x, lambda t: t[copies]))
    rate = builder.add(Rate(unit.sign), *arguments)
    fresh = problem.atoms + np.arange(len(atoms))
    beside = dict(zip(atoms.tolist(), fresh.tolist(), strict=True))
    return [rate], replace(
        problem,
        rows=np.concatenate([problem.rows, fresh]),
        cols=np.concatenate([problem.cols, size + np.arange(len(atoms))]),
        values=np.concatenate([problem.values, np.ones(len(atoms))]),
        constants=np.concatenate([problem.constants, np.zeros(len(atoms))]),
        strict=np.concatenate([problem.strict, np.ones(len(atoms), dtype=bool)]),
        coefficient_error=np.concatenate([problem.coefficient_error, problem.coefficient_error[atoms]]),
        formulas=tuple(_beside(tree, beside) for tree in problem.formulas),
    )


def _beside(tree: Tree, names: Mapping[int, int]) -> Tree:
    """The formula with another atom beside each of those named."""
    if isinstance(tree, And | Or):
        parts = (_beside(child, names) for child in tree.children)
        return conjunction(parts) if isinstance(tree, And) else disjunction(parts)  # type: ignore[return-value]
    return And((tree, names[tree])) if tree in names else tree
