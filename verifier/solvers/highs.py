"""HiGHS, the solver that is always there."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np

from verifier.solvers.program import Program, Vector
from verifier.solvers.solver import Method, Proposal


class Highs:
    """See `Solver`."""

    def __init__(self, method: Method = Method.DUAL) -> None:
        import highspy

        self._api = highspy
        self._highs: Any = highspy.Highs()
        options = {
            "output_flag": False,
            "threads": 1,
            "presolve": "off",
            "solver": "simplex",
            "simplex_strategy": method.value,
            "dual_feasibility_tolerance": 1e-9,
        }
        for name, value in options.items():
            self._highs.setOptionValue(name, value)

    def solve(self, program: Program, basis: Any = None, seconds: float = math.inf) -> Proposal:
        self._load(program)
        if basis is not None:
            self._highs.setBasis(basis)
        self._run(seconds)
        ray = None
        if self._highs.getModelStatus() == self._api.HighsModelStatus.kInfeasible:
            _, exists, found = self._highs.getDualRay()
            ray = np.array(found) if exists else None
        return Proposal(*self._solution(ray))

    def prepare(self, program: Program, basis: Any = None) -> None:
        self._load(replace(program, cost=np.zeros_like(program.cost)))
        if basis is not None:
            self._highs.setBasis(basis)

    def least(self, column: int, sign: float, seconds: float = math.inf) -> Proposal:
        self._highs.changeColCost(column, sign)
        self._run(seconds)
        found = Proposal(*self._solution(None, basis=False))
        self._highs.changeColCost(column, 0.0)
        return found

    def _solution(
        self, ray: Vector | None, basis: bool = True
    ) -> tuple[Vector | None, Vector | None, Vector | None, Any]:
        found = self._highs.getSolution()
        multipliers = np.array(found.row_dual) if found.dual_valid else None
        point = np.array(found.col_value) if found.value_valid else None
        return multipliers, ray, point, self._highs.getBasis() if basis else None

    def _run(self, seconds: float) -> None:
        if math.isfinite(seconds):
            self._highs.setOptionValue("time_limit", self._highs.getRunTime() + max(seconds, 1e-3))
        self._highs.run()

    def _load(self, program: Program) -> None:
        p, pattern = program, program.pattern
        rows, columns = pattern.shape
        self._highs.passModel(
            columns,
            rows,
            len(p.values),
            int(self._api.MatrixFormat.kRowwise),
            int(self._api.ObjSense.kMinimize),
            0.0,
            p.cost,
            p.lower,
            p.upper,
            p.row_lower,
            p.row_upper,
            pattern.start,
            pattern.column32,
            p.values,
            np.zeros(columns, dtype=np.int32),
        )
