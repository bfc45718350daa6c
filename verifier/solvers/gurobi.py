"""Gurobi, where it is installed and licensed: `pip install nn-verifier[gurobi]`."""

from __future__ import annotations

import math
from functools import cache
from typing import Any

import numpy as np

from verifier.errors import OptionsError
from verifier.solvers.program import Program, Vector
from verifier.solvers.solver import Method, Proposal

_TOO_LARGE = 10010
"""The error of the free licence where a model has more than 2000 rows or columns."""


@cache
def environment() -> Any:
    """Gurobi's environment, one per process. Raises OptionsError where it is not installed or not licensed."""
    try:
        import gurobipy  # pyright: ignore[reportMissingImports]
        import scipy.sparse  # noqa: F401  # without it Gurobi takes no sparse matrices
    except ImportError as error:
        raise OptionsError(
            "lp='gurobi' needs Gurobi for Python, which is not installed here: pip install 'nn-verifier[gurobi]', "
            "or use lp='highs'."
        ) from error
    try:
        env = gurobipy.Env(empty=True)
        env.setParam("OutputFlag", 0)
        env.start()
    except gurobipy.GurobiError as error:
        raise OptionsError(f"lp='gurobi' finds no licence: {error}. Use lp='highs'.") from error
    return env


class Gurobi:
    """See `Solver`. A row with two ends is two of Gurobi's; its multiplier is the sum of theirs."""

    def __init__(self, method: Method = Method.DUAL) -> None:
        env = environment()
        import gurobipy  # pyright: ignore[reportMissingImports]

        self._api, self._env = gurobipy, env
        self._method = 1 if method is Method.DUAL else 0
        self._model: Any = None
        self._columns: Any = None
        self._rows: list[tuple[np.ndarray, Any]] = []
        self._count = 0

    def solve(self, program: Program, basis: Any = None, seconds: float = math.inf) -> Proposal:
        self._load(program)
        if basis is not None:
            self._start(basis)
        return self._run(seconds)

    def prepare(self, program: Program, basis: Any = None) -> None:
        self._load(program)
        self._columns.Obj = np.zeros_like(program.cost)
        if basis is not None:
            self._start(basis)

    def least(self, column: int, sign: float, seconds: float = math.inf) -> Proposal:
        self._columns[column].Obj = sign
        found = self._run(seconds, basis=False)
        self._columns[column].Obj = 0.0
        return found

    def _load(self, program: Program) -> None:
        from scipy.sparse import csr_matrix

        p, pattern = program, program.pattern
        if self._model is not None:
            self._model.dispose()
        self._model = self._api.Model(env=self._env)
        for name, value in (
            ("Method", self._method),
            ("InfUnbdInfo", 1),
            ("OptimalityTol", 1e-9),
            ("Threads", 1),
        ):
            self._model.setParam(name, value)
        self._columns = self._model.addMVar(pattern.shape[1], lb=p.lower, ub=p.upper, obj=p.cost)
        matrix = csr_matrix((p.values, pattern.column32, pattern.start), shape=pattern.shape)
        same = p.row_lower == p.row_upper
        self._rows, self._count = [], pattern.shape[0]
        for mask, sense, ends in (
            (same, "=", p.row_lower),
            (~same & np.isfinite(p.row_lower), ">", p.row_lower),
            (~same & np.isfinite(p.row_upper), "<", p.row_upper),
        ):
            rows = mask.nonzero()[0]
            if len(rows):
                self._rows.append(
                    (rows, self._model.addMConstr(matrix[rows], self._columns, sense, ends[rows]))
                )

    def _start(self, basis: Any) -> None:
        columns, rows = basis
        if [len(r) for r in rows] == [len(r) for r, _ in self._rows]:
            self._columns.VBasis = columns
            for (_, own), start in zip(self._rows, rows, strict=True):
                own.CBasis = start

    def _run(self, seconds: float, basis: bool = True) -> Proposal:
        if math.isfinite(seconds):
            self._model.setParam("TimeLimit", max(seconds, 1e-3))
        try:
            self._model.optimize()
        except self._api.GurobiError as error:
            if error.errno != _TOO_LARGE:
                raise
            raise OptionsError(f"lp='gurobi': {error}. Use lp='highs'.") from error
        return Proposal(
            self._gathered("Pi"),
            self._gathered("FarkasDual"),
            self._attribute(self._columns, "X"),
            self._basis() if basis else None,
        )

    def _gathered(self, name: str) -> Vector | None:
        """One number per row of the program, from an attribute of Gurobi's rows."""
        total = np.zeros(self._count)
        for rows, own in self._rows:
            values = self._attribute(own, name)
            if values is None:
                return None
            total[rows] += values
        return total

    def _attribute(self, of: Any, name: str) -> Vector | None:
        """None where there is no such thing in the solver's present state."""
        try:
            return np.asarray(getattr(of, name), dtype=np.float64)
        except (AttributeError, self._api.GurobiError):
            return None

    def _basis(self) -> Any:
        columns = self._attribute(self._columns, "VBasis")
        rows = [self._attribute(own, "CBasis") for _, own in self._rows]
        return None if columns is None or any(r is None for r in rows) else (columns, rows)
