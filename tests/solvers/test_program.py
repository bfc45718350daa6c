"""Bounds from multipliers: true for whatever the solver, or anybody else, proposes."""

from __future__ import annotations

import sys
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest

from verifier.errors import OptionsError
from verifier.options import LinearSolver, Options
from verifier.solvers.gurobi import environment
from verifier.solvers.program import Pattern, Program, lagrangian, refutes
from verifier.solvers.solver import Method, solver

SCALES = [1e-6, 1.0, 1e6]


@pytest.fixture(params=["highs", "gurobi"])
def name(request) -> LinearSolver:
    if request.param == "gurobi":
        pytest.importorskip("gurobipy", reason="Gurobi is not installed")
    return request.param


def random_program(random: np.random.Generator, spread: float = 1.0) -> tuple[Program, np.ndarray]:
    """A program whose rows all hold at the returned point, in exact arithmetic; numbers spread over `spread`."""
    rows, columns = int(random.integers(1, 12)), int(random.integers(1, 9))
    mask = random.random((rows, columns)) < 0.7
    row, column = mask.nonzero()
    values = random.standard_normal(len(row)) * spread ** random.uniform(-1, 1, len(row))
    point = random.standard_normal(columns) * spread ** random.uniform(-1, 1, columns)
    lower = point - random.random(columns) * random.integers(0, 2, columns) * np.abs(point)
    upper = point + random.random(columns) * random.integers(0, 2, columns) * np.abs(point)
    at = exact_rows(row, column, values, point, rows)
    low = np.array([np.nextafter(float(v), -np.inf) for v in at])
    high = np.array([np.nextafter(float(v), np.inf) for v in at])
    open_ = random.random((2, rows)) < 0.4
    low = np.where(open_[0], -np.inf, low - (random.random(rows) < 0.5) * np.abs(low))
    high = np.where(open_[1], np.inf, high + (random.random(rows) < 0.5) * np.abs(high))
    cost = random.standard_normal(columns) * spread ** random.uniform(-1, 1, columns)
    return Program(Pattern((rows, columns), row, column), values, cost, lower, upper, low, high), point


def exact_rows(row, column, values, point, rows: int) -> list[Fraction]:
    total = [Fraction(0)] * rows
    for r, c, v in zip(row.tolist(), column.tolist(), values.tolist(), strict=True):
        total[r] += Fraction(v) * Fraction(point[c])
    return total


def exact_cost(program: Program, point: np.ndarray) -> Fraction:
    return sum((Fraction(a) * Fraction(b) for a, b in zip(program.cost, point, strict=True)), Fraction(0))


@pytest.mark.parametrize("spread", [1.0, 1e3, 1e6])
def test_no_multipliers_prove_too_much(spread: float, name: LinearSolver) -> None:
    """Neither those of the solver nor random ones, on programs that are feasible by construction."""
    random = np.random.default_rng(int(spread))
    simplex = solver(name)
    tight = 0
    for _ in range(150):
        program, point = random_program(random, spread)
        proposal = simplex.solve(program)
        least = exact_cost(program, point)
        tries = [
            random.standard_normal(len(program.row_lower)) * 10.0 ** random.uniform(-8, 8) for _ in range(4)
        ]
        for found in (proposal.multipliers, proposal.ray, *tries):
            if found is None:
                continue
            bound = lagrangian(program, found)
            assert bound == -np.inf or Fraction(bound) <= least
            assert not refutes(program, found)
        if proposal.multipliers is not None and proposal.point is not None:
            value = float(program.cost @ proposal.point)
            tight += lagrangian(program, proposal.multipliers) >= value - 1e-6 * (1 + abs(value))
    assert tight > 100 or spread > 1e3


@pytest.mark.parametrize("scale", SCALES)
def test_infeasible_rows_are_refuted(scale: float, name: LinearSolver) -> None:
    """x + y >= 3 on the unit square, in any units; and not where 2 is asked for."""
    pattern = Pattern((1, 2), np.array([0, 0]), np.array([0, 1]))
    simplex = solver(name)

    def program(least: float) -> Program:
        ends = np.array([least * scale])
        return Program(
            pattern, np.ones(2) * scale, np.zeros(2), np.zeros(2), np.ones(2), ends, np.array([np.inf])
        )

    infeasible = program(3.0)
    ray = simplex.solve(infeasible).ray
    assert ray is None or refutes(infeasible, ray)
    assert refutes(infeasible, np.array([1.0 / scale]))
    assert not any(refutes(program(2.0), np.array([y])) for y in (1e-9, 1.0, 1e9))


def test_multipliers_that_are_not_finite() -> None:
    program, _ = random_program(np.random.default_rng(3))
    bad = np.full(len(program.row_lower), np.nan)
    least = lagrangian(program, np.zeros_like(bad))
    assert lagrangian(program, bad) == least
    assert not refutes(program, np.full_like(bad, np.inf))


def test_ends_of_columns(name: LinearSolver) -> None:
    """The primal solver's multipliers bound a column over x + y <= 1 on the unit square."""
    pattern = Pattern((1, 2), np.array([0, 0]), np.array([0, 1]))
    program = Program(
        pattern,
        np.ones(2),
        np.array([5.0, 0.0]),
        np.array([0.0, 0.75]),
        np.ones(2),
        np.array([-np.inf]),
        np.array([1.0]),
    )
    simplex = solver(name, Method.PRIMAL)
    simplex.prepare(program)
    found = simplex.least(0, -1.0)
    assert found.multipliers is not None and found.point is not None
    cost = np.array([-1.0, 0.0])
    aimed = Program(pattern, program.values, cost, program.lower, program.upper, *_rows(program))
    assert -0.25 - 1e-9 <= lagrangian(aimed, found.multipliers) <= -0.25


def test_a_basis_saves_nothing_but_time(name: LinearSolver) -> None:
    """The bound from a basis, of this program or of another one of its pattern, is the bound without."""
    random = np.random.default_rng(5)
    for _ in range(20):
        program, point = random_program(random)
        first = solver(name).solve(program)
        moved = replace(program, lower=program.lower - 0.1, cost=program.cost[::-1].copy())
        values = []
        for basis in (None, first.basis):
            found = solver(name).solve(moved, basis)
            assert found.multipliers is not None
            values.append(lagrangian(moved, found.multipliers))
        assert values[0] == pytest.approx(values[1], abs=1e-6)
        assert values[0] <= float(exact_cost(moved, point)) + 1e-12


def test_gurobi_is_asked_for_where_it_is_not(monkeypatch) -> None:
    import verifier

    environment.cache_clear()
    monkeypatch.setitem(sys.modules, "gurobipy", None)
    with pytest.raises(OptionsError, match=r"nn-verifier\[gurobi\]"):
        verifier.verify("net.onnx", "spec.vnnlib", options=Options(lp="gurobi"))


def test_gurobi_refuses_what_its_free_licence_excludes() -> None:
    """As an error of the request, never as a verdict; with a full licence there is a bound."""
    pytest.importorskip("gurobipy", reason="Gurobi is not installed")
    size = 2001
    every = np.arange(size)
    pattern = Pattern((size, size), every, every)
    ones = np.ones(size)
    program = Program(pattern, ones, ones, -ones, ones, 0 * ones, ones)
    gurobi = solver("gurobi")
    if not licence_is_full():
        with pytest.raises(OptionsError, match="lp='highs'"):
            gurobi.solve(program)
    else:
        found = gurobi.solve(program)
        assert found.multipliers is not None and lagrangian(program, found.multipliers) >= -1e-6


def licence_is_full() -> bool:
    import gurobipy

    model = gurobipy.Model(env=environment())
    model.addMVar(2001)
    try:
        model.optimize()
    except gurobipy.GurobiError:
        return False
    return True


def _rows(program: Program) -> tuple[np.ndarray, np.ndarray]:
    return program.row_lower, program.row_upper
