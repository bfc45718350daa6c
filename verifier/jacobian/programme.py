"""The semidefinite programmes behind `semidefinite.bound`, solved by Clarabel through cvxpy. They only propose."""

from __future__ import annotations

import math
import warnings
from typing import Any

import numpy as np
import torch
from torch import Tensor

from verifier.errors import OptionsError
from verifier.jacobian.chain import ChainError
from verifier.jacobian.steps import Ellipsoid, Scaled, Step

WIDEST = 260
"""Rows of one matrix inequality, at most; a solver takes minutes for half as many, and hours for more."""


def _cvxpy() -> Any:
    try:
        import clarabel  # noqa: F401  # pyright: ignore[reportMissingImports]
        import cvxpy  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise OptionsError(
            "Semidefinite bounds need cvxpy and Clarabel, which are not installed here: pip install "
            "'nn-verifier[sdp]', or use the layer-wise bound, which needs no solver."
        ) from error
    return cvxpy


def ellipsoids(scaled: Scaled, joint: bool, seconds: float = math.inf) -> list[Ellipsoid] | None:
    """Ellipsoids of all layers for the unit ball of the Euclidean norm, those with the smallest last axis; None where
    the solver finds none."""
    cp = _cvxpy()
    model = _Model(cp, scaled, joint)
    size = cp.Variable(nonneg=True)
    last = model.build(lambda left, right: size * (left @ right.T))
    model.keep(np.eye(len(last)) - last @ model.shape @ last.T if scaled.steps else None, len(last))
    if not model.solve(cp.Maximize(size), seconds) or not size.value or size.value <= 0:
        return None
    return model.found(1 / float(size.value))


def weighted(scaled: Scaled, joint: bool, seconds: float = math.inf) -> tuple[Tensor, list[Ellipsoid]] | None:
    """Squared axes [inputs] of an ellipsoid around the unit box, and the ellipsoids of all layers, for one output. None
    where the solver finds none."""
    cp = _cvxpy()
    model = _Model(cp, scaled, joint)
    if not scaled.steps:
        return None
    first = scaled.steps[0]
    read = (torch.cat([first.skip.value, first.inner.value]) != 0).any(0).numpy()
    axes = cp.Variable(int(read.sum()), nonneg=True)

    def first_product(left: np.ndarray, right: np.ndarray) -> Any:
        left, right = left[:, read], right[:, read]
        table = (left[:, None, :] * right[None, :, :]).reshape(-1, left.shape[1])
        return cp.reshape(table @ axes, (len(left), len(right)), order="C")

    last = model.build(first_product)
    model.constraints.append(last @ model.shape @ last.T <= 1)
    if not read.any() or not model.solve(cp.Minimize(cp.sum(cp.inv_pos(axes))), seconds):
        return None
    start = np.full(len(read), np.inf)
    start[read] = axes.value
    if not (start > 0).all():
        return None
    # Inputs that nothing reads may have any axis.
    start[~read] = 1e6 * start[read].max()
    return torch.from_numpy(start), model.found(1.0)


class _Model:
    """Variables and constraints of a chain, layer by layer."""

    def __init__(self, cp: Any, scaled: Scaled, joint: bool) -> None:
        self._cp, self._scaled, self._joint = cp, scaled, joint
        self.constraints: list[Any] = []
        self._found: list[tuple[Any, Any]] = []
        self.shape: Any = None

    def build(self, first: Any) -> np.ndarray:
        """Constraints of all steps; `first(a, b)` is a X b' for the first ellipsoid X. Returns the last matrix."""
        for step in self._scaled.steps:
            self._step(step, first if self.shape is None else self._through)
        return self._scaled.last.value.numpy()

    def _through(self, left: np.ndarray, right: np.ndarray) -> Any:
        return left @ self.shape @ right.T

    def keep(self, matrix: Any, size: int) -> None:
        """`matrix` >= 0."""
        if size > WIDEST:
            raise ChainError(
                f"A layer makes a matrix inequality of {size} rows, and more than {WIDEST} take too long: use the "
                "layer-wise bound."
            )
        if matrix is not None:
            self.constraints.append((matrix + matrix.T) / 2 >> 0)

    def _step(self, step: Step, before: Any) -> None:
        cp, k = self._cp, len(step.group)
        outer, inner = step.outer.value.numpy(), step.inner.value.numpy()
        radius = cp.Variable(step.groups, nonneg=True) if step.groups else None
        diagonal = None if radius is None else cp.diag(np.eye(step.groups)[step.group.numpy()] @ radius)
        if step.kept is not None:
            columns, top = (t.numpy() for t in step.kept)
            core = self._kept_shape(step)
            after, rows = columns @ core @ columns.T, core
        else:
            top = step.skip.value.numpy()
            after = rows = cp.Variable((len(top), len(top)), symmetric=True)
        size = top.shape[0] + k
        left = rows - before(top, top)
        if diagonal is not None:
            corner = -before(top, inner)
            moved = outer @ diagonal @ outer.T
            if step.kept is not None:
                after = after + moved
            else:
                left = left - moved
            left = cp.bmat([[left, corner], [corner.T, diagonal - before(inner, inner)]])
        self.keep(left, size)
        self.shape = after
        self._found.append((after, radius))

    def _kept_shape(self, step: Step) -> Any:
        """A symmetric matrix for what is kept: any, or without `joint` one block per group."""
        cp = self._cp
        assert step.kept is not None and step.kept_group is not None
        n = step.kept[0].shape[1]
        free = cp.Variable((n, n), symmetric=True)
        if self._joint:
            return free
        same = (step.kept_group.unsqueeze(1) == step.kept_group).numpy()
        if (same == np.eye(n, dtype=bool)).all():
            return cp.diag(cp.Variable(n))
        return cp.multiply(same.astype(float), free)

    def solve(self, objective: Any, seconds: float) -> bool:
        """Whether there is something to propose, however good."""
        problem = self._cp.Problem(objective, self.constraints)
        try:
            with warnings.catch_warnings():  # that a solution may be inaccurate: it is checked
                warnings.simplefilter("ignore")
                limit = {} if seconds == math.inf else {"time_limit": seconds}
                problem.solve(solver="CLARABEL", **limit)
        except self._cp.SolverError:
            return False
        values = [v.value for v in problem.variables()]
        return all(v is not None and np.isfinite(v).all() for v in values)

    def found(self, factor: float) -> list[Ellipsoid]:
        shapes = []
        for shape, radius in self._found:
            k = np.zeros(0) if radius is None else radius.value
            shapes.append(
                Ellipsoid(
                    torch.from_numpy(np.array(shape.value * factor)), torch.from_numpy(np.array(k * factor))
                )
            )
        return shapes
