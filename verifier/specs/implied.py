"""Bounds of inputs that follow from those of others: |x - u| <= d bounds u where x is bounded."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from verifier.specs.formula import And, Atom, Clauses, Formula, Relation

_SLACK = 4 * float(np.finfo(np.float64).eps)

Row = tuple[NDArray[np.int64], NDArray[np.float64], float]


def fill(
    lower: NDArray[np.float64],
    upper: NDArray[np.float64],
    parts: Sequence[Formula],
    position: NDArray[np.int64],
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Boxes [N, inputs] whose missing bounds are those that the linear inequalities between inputs in `parts`, all of
    which hold, leave room for; the others stay as they are. `position` gives the input of a flat index of the query.
    """
    if np.isfinite(lower).all() and np.isfinite(upper).all():
        return lower, upper
    lower, upper = lower.copy(), upper.copy()
    rows = [row for part in parts for row in _rows(part, position, lower.shape[1])]
    for _ in range(lower.shape[1]):
        missing = np.isinf(lower).sum() + np.isinf(upper).sum()
        for row in rows:
            _apply(row, lower, upper)
        if missing in (0, np.isinf(lower).sum() + np.isinf(upper).sum()):
            break
    return lower, upper


def _apply(row: Row, lower: NDArray[np.float64], upper: NDArray[np.float64]) -> None:
    """What constant + sum of coefficient * input <= 0 says of each of its inputs whose bound is missing."""
    index, coefficients, constant = row
    with np.errstate(invalid="ignore", over="ignore"):
        least = np.where(coefficients > 0, lower[:, index], upper[:, index]) * coefficients
    for k, (i, c) in enumerate(zip(index.tolist(), coefficients.tolist(), strict=True)):
        others = np.delete(least, k, axis=1)
        side = upper if c > 0 else lower
        known = np.isinf(side[:, i]) & np.isfinite(others).all(1)
        if not known.any():
            continue
        total = constant + others[known].sum(1)
        # Coefficients and sums are rounded: each to nearest, of as many terms as there are.
        off = (
            _SLACK * (len(index) + 2) * (abs(constant) + np.abs(others[known]).sum(1)) + np.finfo(float).tiny
        )
        end = -(total - off) / c
        end += np.sign(c) * (_SLACK * np.abs(end) + np.finfo(float).tiny)
        other = lower[known, i] if c > 0 else upper[known, i]
        side[known, i] = np.maximum(end, other) if c > 0 else np.minimum(end, other)


def _rows(part: Formula, position: NDArray[np.int64], inputs: int) -> Iterator[Row]:
    """The inequalities between several inputs that a formula is a conjunction of, as sums that are at most 0."""
    if isinstance(part, And):
        for child in part.children:
            yield from _rows(child, position, inputs)
    elif isinstance(part, Clauses) and len(part) == 1:
        between = np.flatnonzero(part.table.right[part.start : part.stop] >= 0) + part.start
        for row in between.tolist():
            yield from _of_atom(part.table.atom(row), position, inputs)
    elif isinstance(part, Atom):
        yield from _of_atom(part, position, inputs)


def _of_atom(atom: Atom, position: NDArray[np.int64], inputs: int) -> Iterator[Row]:
    places = position[sorted(atom.expr.variables)]
    if atom.relation is Relation.NE or atom.expr.degree != 1 or len(places) < 2 or (places >= inputs).any():
        return
    terms = [(int(position[m[0]]), float(c)) for m, c in atom.expr.terms if m]
    index = np.array([i for i, _ in terms], dtype=np.int64)
    coefficients = np.array([c for _, c in terms])
    constant = float(atom.expr.offset)
    yield index, coefficients, constant
    if atom.relation is Relation.EQ:
        yield index, -coefficients, -constant
