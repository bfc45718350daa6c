"""What is asked of a solver of linear programs: proposals. Nothing that it says is believed."""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import Enum
from typing import Any, Protocol

from verifier.options import LinearSolver
from verifier.solvers.program import Program, Vector


class Method(Enum):
    """The dual simplex method starts well from a parent's basis, the primal one after a change of cost."""

    DUAL = 1
    PRIMAL = 4


@dataclass(frozen=True, eq=False)
class Proposal:
    """`multipliers` [R]; a `ray` [R] where the solver thinks the program infeasible; the columns' `point` [C]; and a
    `basis` to start from again. Any of them is None where there is none."""

    multipliers: Vector | None
    ray: Vector | None
    point: Vector | None
    basis: Any


class Solver(Protocol):
    """One instance of a solver."""

    def solve(self, program: Program, basis: Any = None, seconds: float = math.inf) -> Proposal:
        """What is found within `seconds`, starting from a `basis` of a program with the same pattern."""
        ...

    def prepare(self, program: Program, basis: Any = None) -> None:
        """Takes the constraints of `program` for calls of `least`."""
        ...

    def least(self, column: int, sign: float, seconds: float = math.inf) -> Proposal:
        """Minimises sign * column over the prepared constraints, from where the last call ended; without a basis."""
        ...


def solver(name: LinearSolver, method: Method = Method.DUAL) -> Solver:
    """A new instance. Raises OptionsError where it is not installed, or has no licence."""
    if name == "gurobi":
        from verifier.solvers.gurobi import Gurobi

        return Gurobi(method)
    from verifier.solvers.highs import Highs

    return Highs(method)
