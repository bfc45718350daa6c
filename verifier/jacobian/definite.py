"""Proofs that symmetric matrices have no negative eigenvalue, and norms that are bounds, in float64.

A Cholesky factorisation that runs to its end proves it of the matrix plus what its roundings can amount to (Rump,
"Verification of positive definiteness", BIT 2006). Eigenvalues are computed, too, but only to know what to try.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

EPS = torch.finfo(torch.float64).eps
TINY = torch.finfo(torch.float64).tiny


@dataclass(frozen=True, eq=False)
class Matrix:
    """A matrix [n, m], float64, that is known up to a matrix whose spectral norm is at most `doubt`."""

    value: Tensor
    doubt: float = 0.0

    @property
    def size(self) -> float:
        """At least the Frobenius norm, and so the spectral norm, of the matrix that is meant."""
        return frobenius(self.value) + self.doubt

    @property
    def T(self) -> Matrix:
        return Matrix(self.value.T, self.doubt)

    def __matmul__(self, other: Matrix) -> Matrix:
        inner = self.value.shape[1]
        rounding = (inner + 2) * EPS * frobenius(self.value) * frobenius(other.value) + _underflow(self.value)
        known = self.doubt * other.size + frobenius(self.value) * other.doubt
        return Matrix(
            self.value @ other.value, up(known + rounding) if known or not _one_term(self, other) else 0.0
        )

    def __add__(self, other: Matrix) -> Matrix:
        value = self.value + other.value
        plain = not bool(self.value.any()) or not bool(other.value.any())
        return Matrix(value, up(self.doubt + other.doubt + (0.0 if plain else EPS * frobenius(value))))

    @property
    def norm(self) -> float:
        """A bound on the spectral norm, close to it."""
        w = self.value if self.value.shape[0] <= self.value.shape[1] else self.value.T
        if not w.numel():
            return self.doubt
        return up(math.sqrt(up(largest_eigenvalue(*product(w, torch.ones_like(w[0]))))) + self.doubt)

    @property
    def row_norm(self) -> float:
        """A bound on the largest sum of the absolute values of a row."""
        rows, columns = self.value.shape
        most = float(self.value.abs().sum(1).amax()) if rows and columns else 0.0
        return up(most * (1 + columns * EPS) + math.sqrt(columns) * self.doubt)


def up(x: float) -> float:
    """At least x, whatever a few operations rounded away."""
    return x * (1 + 8 * EPS)


def frobenius(x: Tensor) -> float:
    return float(x.norm()) * (1 + (x.numel() + 4) * EPS)


def product(outer: Tensor, inner: Tensor) -> tuple[Tensor, float]:
    """outer inner outer^T [n, n] for a symmetric inner matrix [m, m] or a diagonal one [m], and a bound on what
    rounding changed (spectral norm)."""
    m = outer.shape[1]
    if inner.dim() == 1:
        value, size = (outer * inner) @ outer.T, (outer * inner).abs() @ outer.abs().T
    else:
        value, size = outer @ inner @ outer.T, outer.abs() @ inner.abs() @ outer.abs().T
    error = (2 * m + 8) * EPS * float(size.norm()) + _underflow(outer)
    return (value + value.T) / 2, up(error)


def nonnegative(matrix: Tensor, error: float) -> bool:
    """Whether it is proved that every symmetric matrix within `error` (spectral norm) of `matrix` [n, n] has no
    negative eigenvalue."""
    n = len(matrix)
    if n == 0:
        return True
    trace = float(matrix.diagonal().abs().sum())
    if not (math.isfinite(trace) and bool(matrix.isfinite().all()) and math.isfinite(error)):
        return False
    slack = up(error + 2 * (n + 4) * EPS * trace + 8 * n * (n + 4) * TINY)
    lowered = matrix - slack * torch.eye(n, dtype=matrix.dtype)
    _, info = torch.linalg.cholesky_ex(lowered)
    return int(info) == 0


def missing(matrix: Tensor, error: float) -> float:
    """About how much must be added to the diagonal of a matrix for `nonnegative` to hold of it."""
    n = len(matrix)
    if n == 0:
        return 0.0
    lowest = float(torch.linalg.eigvalsh(matrix)[0])
    slack = error + 3 * (n + 4) * EPS * float(matrix.diagonal().abs().sum()) + 16 * n * (n + 4) * TINY
    return max(0.0, -lowest * (1 + 16 * EPS) + 2 * slack) if lowest < 2 * slack else 0.0


def largest_eigenvalue(matrix: Tensor, error: float) -> float:
    """A bound on the largest eigenvalue of every symmetric matrix within `error` of `matrix`; infinite where none is
    proved."""
    if not len(matrix):
        return 0.0
    if not bool(matrix.isfinite().all()):
        return math.inf
    top = max(float(torch.linalg.eigvalsh(matrix)[-1]), 0.0)
    room = error + 4 * (len(matrix) + 4) * len(matrix) * EPS * top + 32 * len(matrix) ** 2 * TINY
    eye = torch.eye(len(matrix), dtype=matrix.dtype)
    for _ in range(60):
        value = top + room
        # The difference rounds on the diagonal only.
        if nonnegative(value * eye - matrix, error + 2 * EPS * (value + frobenius(matrix))):
            return value
        room = 2 * room
    return math.inf


def _one_term(a: Matrix, b: Matrix) -> bool:
    """Whether no sum of products has more than one term and no product rounds: one factor only moves and negates."""
    return any(
        bool(((m.value == 0) | (m.value.abs() == 1)).all())
        and bool(((m.value != 0).sum(1 if m is a else 0) <= 1).all())
        for m in (a, b)
    )


def _underflow(like: Tensor) -> float:
    return like.numel() * len(like) * TINY / EPS
