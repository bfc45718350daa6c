"""Linear programs of networks: never above the true minimum, and verdicts that agree with exact optimisation."""

from __future__ import annotations

import math
import time
from collections import Counter
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from torch import Tensor

import verifier
from tests.verdicts.milp import Milp
from tests.verdicts.networks import (
    KINDS,
    Case,
    Join,
    Layer,
    Leaf,
    Net,
    larger_case,
    random_case,
    random_net,
    score,
    to_onnx,
)
from verifier.bounds.crown import inner_bounds
from verifier.frontends.onnx import load
from verifier.graph import Builder, Graph, Interval
from verifier.ops.linear import Linear
from verifier.ops.piecewise_linear import Relu
from verifier.ops.sign import Sign
from verifier.ops.step import Step
from verifier.options import LinearSolver, Options
from verifier.results import Counterexample, Status
from verifier.sets import Box
from verifier.solvers.encoding import Encoding, encode
from verifier.solvers.lines import settings
from verifier.solvers.program import lagrangian
from verifier.solvers.programs import Programs
from verifier.solvers.solve import LinearSearch, linear_search
from verifier.solvers.solver import Method, Solver, solver
from verifier.specs.compile import Compiled, compile_query
from verifier.specs.load import parse_query
from verifier.transforms.pairwise import pairwise

WITH_SIGNS = (*KINDS, "sign", "sign")
BINARY = ("relu", "pool", "binary", "binary")
NEAR = 1e-4
"""Scores closer to zero than this may be decided either way by the oracle's tolerances."""


def compiled_of(case: Case) -> Compiled:
    query = parse_query(case.text())
    return compile_query(query, {query.networks[0].name: load(to_onnx(case.net))})


def encoding_of(compiled: Compiled, case: int) -> Encoding:
    graph = compiled.graph_on(torch.float64, torch.device("cpu"))
    lower, upper = compiled.lower[case], compiled.upper[case]
    box = Box(lower.unsqueeze(0), upper.unsqueeze(0))
    return encode(graph, lower, upper, inner_bounds(graph, [box], graph.outputs))


def columns_at(encoding: Encoding, points: Tensor) -> Tensor:
    """The true values [B, C] of all columns at inputs [B, n_in]."""
    held = sorted(encoding.held)
    values = encoding.graph.evaluate([points], held)
    columns = torch.zeros(len(points), encoding.columns, dtype=torch.float64)
    columns[:, : len(encoding.inputs)] = points[:, encoding.inputs]
    for i, value in zip(held, values, strict=True):
        places, numbers = encoding.held[i]
        columns[:, numbers] = value.flatten(1)[:, places]
    return columns


def sample(random: np.random.Generator, lower: Tensor, upper: Tensor, count: int) -> Tensor:
    unit = torch.from_numpy(random.random((count, len(lower))))
    unit = torch.where(torch.from_numpy(random.random(unit.shape) < 0.2), unit.round(), unit)
    return (lower + (upper - lower) * unit).clamp(lower, upper)


@pytest.mark.parametrize("seed", range(12))
def test_every_point_satisfies_the_rows(seed: int) -> None:
    """And the certified bound is below every sampled margin, close to what the solver says, above intervals'."""
    random = np.random.default_rng(500 + seed)
    kinds = (*WITH_SIGNS, "windows") if seed % 2 else WITH_SIGNS if seed % 4 else BINARY
    compiled = compiled_of(random_case(random, random_net(random, 30, kinds)))
    compiled = replace(compiled, graph=pairwise(compiled.graph), _cast={})
    for case in range(min(2, len(compiled.lower))):
        encoding = encoding_of(compiled, case)
        points = sample(random, compiled.lower[case], compiled.upper[case], 300)
        columns = columns_at(encoding, points)
        atoms = compiled.clauses[case, 0]
        atoms = atoms[atoms >= 0]
        margins = encoding.graph.evaluate([points])[0][:, atoms].amax(1)
        programs = Programs(encoding, atoms)
        (program,), gaps = programs.build(encoding.lower.unsqueeze(0), encoding.upper.unsqueeze(0))
        assert np.isfinite(gaps).all()
        v = torch.cat([columns, margins.unsqueeze(1)], 1).numpy()
        matrix = np.zeros(program.pattern.shape)
        matrix[program.pattern.row, program.pattern.column] = program.values
        rows = v @ matrix.T
        slack = 1e-12 * (np.abs(v) @ np.abs(matrix).T + 1)  # of this evaluation
        assert (rows >= program.row_lower - slack).all() and (rows <= program.row_upper + slack).all()
        assert (v >= program.lower - 1e-12).all() and (v <= program.upper + 1e-12).all()
        proposal = solver("highs").solve(program)
        assert proposal.multipliers is not None and proposal.point is not None
        bound = lagrangian(program, proposal.multipliers)
        assert bound <= float(margins.min()) + 1e-12
        assert bound >= float(proposal.point[-1]) - 1e-6 * (1 + abs(bound))
        intervals = encoding.bounds[encoding.graph.outputs[0]].lower[0, atoms].max()
        assert bound >= float(intervals) - 1e-6 * (1 + abs(bound))


@pytest.mark.parametrize("seed", range(6))
def test_parts_of_boxes(seed: int) -> None:
    """Points stay inside their part's rows after splits and propagation."""
    random = np.random.default_rng(900 + seed)
    compiled = compiled_of(random_case(random, random_net(random, 24, WITH_SIGNS)))
    encoding = encoding_of(compiled, 0)
    programs = Programs(encoding, compiled.clauses[0, 0][:1].clamp(min=0))
    columns = columns_at(encoding, sample(random, compiled.lower[0], compiled.upper[0], 40))
    width = encoding.upper - encoding.lower
    noise = torch.from_numpy(random.random((2, *columns.shape)))
    lower = torch.maximum(encoding.lower, columns - 0.3 * noise[0] * width)
    upper = torch.minimum(encoding.upper, columns + 0.3 * noise[1] * width)
    lower, upper = encoding.tightened(lower, upper)
    tolerance = 1e-12 * (1 + columns.abs())
    assert bool((columns >= lower - tolerance).all() and (columns <= upper + tolerance).all())
    built, _ = programs.build(lower, upper)
    for program, own in zip(built, columns.numpy(), strict=True):
        matrix = np.zeros(program.pattern.shape)
        matrix[program.pattern.row, program.pattern.column] = program.values
        lines = slice(0, programs.lines.stop)
        rows, slack = matrix[lines, :-1] @ own, 1e-12 * (np.abs(matrix[lines, :-1]) @ np.abs(own) + 1)
        assert (rows >= program.row_lower[lines] - slack).all()
        assert (rows <= program.row_upper[lines] + slack).all()


@dataclass
class Seen:
    """An attempt that takes any point whose score is not positive, in float64."""

    compiled: Compiled
    least: float = math.inf

    def __call__(self, points: Tensor, cases: Tensor) -> Counterexample | None:
        graph = self.compiled.graph_on(torch.float64, torch.device("cpu"))
        margins = graph.evaluate([points])[0]
        table = self.compiled.clauses[cases]
        values = margins.gather(1, table.clamp(min=0).flatten(1)).view(table.shape)
        worst = torch.where(table >= 0, values, -torch.inf).amax(2)
        worst = torch.where((table >= 0).any(2), worst, torch.inf).amin(1)
        self.least = min(self.least, float(worst.min()))
        if self.least > 0:
            return None
        at = points[worst.argmin()].numpy()
        return Counterexample({"X": at}, {}, 0.0, "")


def decide(case: Case, seconds: float, lp: LinearSolver = "highs") -> tuple[str, LinearSearch | None]:
    compiled = compiled_of(case)
    if compiled.empty_reason is not None:
        return "unsat", None
    search = linear_search(compiled, Seen(compiled), time.monotonic() + seconds, lp=lp)
    if search is None:
        return "declined", None
    found = search.run(time.monotonic() + seconds)
    if found is not None:
        point = np.asarray(found.inputs["X"])[None]
        columns = np.concatenate([point, case.net.evaluate(point)], 1)
        assert score(case.formula, columns)[0] <= 1e-5
        return "sat", search
    return "unsat" if search.proved else "open", search


def agree(
    seeds: range, kinks: int, kinds: tuple[str, ...], seconds: float = 20.0, lp: LinearSolver = "highs"
) -> Counter[str]:
    counts: Counter[str] = Counter()
    for seed in seeds:
        random = np.random.default_rng(seed)
        case = random_case(random, random_net(random, kinks, kinds))
        least = Milp(case).minimum()
        verdict, search = decide(case, seconds, lp)
        counts[verdict] += 1
        where = f"seed {seed}: {verdict}, the least score is {least}"
        if verdict == "sat":
            assert least <= NEAR, where
        elif verdict == "unsat":
            assert least >= -1e-6, where
        elif search is not None and math.isfinite(search.bound):
            assert search.bound <= max(least, 0.0) + NEAR, where
    return counts


@pytest.mark.parametrize(("first", "kinds"), [(7002, KINDS), (7100, WITH_SIGNS), (7200, BINARY)])
def test_verdicts(first: int, kinds: tuple[str, ...]) -> None:
    found = agree(range(first, first + 8), 24, kinds)
    assert found["sat"] >= 1 and found["unsat"] >= 2 and found["sat"] + found["unsat"] >= 6


@pytest.mark.full
@pytest.mark.parametrize("first", range(8000, 8300, 30))
def test_many_verdicts(first: int) -> None:
    found = agree(range(first, first + 30), 60, WITH_SIGNS if first % 60 else KINDS)
    assert found["sat"] >= 3 and found["unsat"] >= 3 and found["sat"] + found["unsat"] >= 24


def test_pools() -> None:
    found = agree(range(7202, 7210), 24, (*WITH_SIGNS, "windows", "windows", "windows"))
    assert found["sat"] >= 1 and found["unsat"] >= 2 and found["sat"] + found["unsat"] >= 6


def test_verdicts_with_gurobi() -> None:
    pytest.importorskip("gurobipy", reason="Gurobi is not installed")
    found = agree(range(7100, 7108), 24, WITH_SIGNS, lp="gurobi")
    assert found["sat"] >= 1 and found["unsat"] >= 2 and found["sat"] + found["unsat"] >= 6


def test_the_option_reaches_the_tree(monkeypatch) -> None:
    """And linear programs have a turn at all where branch and bound has too little time."""
    asked = []

    def recorded(name: LinearSolver, method: Method = Method.DUAL) -> Solver:
        asked.append(name)
        return solver("highs", method)

    monkeypatch.setattr("verifier.strategy.SLICE", 0.05)
    monkeypatch.setattr("verifier.api.solver", recorded)
    monkeypatch.setattr("verifier.solvers.tree.solver", recorded)
    case = larger_case(28)
    options = Options(timeout=60, attack=False, lp="gurobi")
    result = verifier.verify(to_onnx(case.net), parse_query(case.text()), options=options)
    assert result.status is Status.UNSAT
    assert set(asked) == {"gurobi"} and len(asked) > 1


def test_noise_around_a_jump() -> None:
    """An enclosure that reaches 1e-17 beyond a jump has lines as steep as 1e17, which the solver would refuse."""
    sign = Sign()
    box = Interval(torch.tensor([[-1e-17]], dtype=torch.float64), torch.tensor([[1.0]], dtype=torch.float64))
    for lines in settings(sign, [box]):
        slopes = torch.cat([*lines.lower_slopes, *lines.upper_slopes])
        assert float(slopes.abs().max()) <= 1e8
        for x in (-1e-17, 0.0, 1e-17, 0.3, 1.0):
            value = float(torch.tensor(x).sign())
            assert lines.lower_intercept is not None and lines.upper_intercept is not None
            assert float(lines.lower_slopes[0]) * x + float(lines.lower_intercept) <= value
            assert float(lines.upper_slopes[0]) * x + float(lines.upper_intercept) >= value


def steps(random: np.random.Generator) -> Graph:
    """Of two inputs: Relus, then steps with levels in any order, then one margin without the last constant."""
    builder = Builder()
    x = builder.input("x", (2,))
    weights = [torch.from_numpy(random.standard_normal(s)) for s in ((5, 2), (5,), (3, 5), (3,), (1, 3))]
    hidden = builder.add(Relu(), builder.add(Linear(weights[0], weights[1]), x))
    knots = torch.from_numpy(np.sort(random.standard_normal(3)))
    step = Step(knots, torch.from_numpy(random.standard_normal(4)))
    y = builder.add(step, builder.add(Linear(weights[2], weights[3]), hidden))
    return builder.graph(builder.add(Linear(weights[4]), y))


@pytest.mark.parametrize("seed", range(6))
def test_steps(seed: int) -> None:
    """Proved just below what a fine grid attains, refuted just above; nothing is left open at a jump."""
    random = np.random.default_rng(seed)
    graph = steps(random)
    grid = torch.cartesian_prod(*[torch.linspace(-1, 1, 401, dtype=torch.float64)] * 2)
    values = graph.evaluate([grid])[0][:, 0]
    least = float(values.min())
    for shift, wanted in ((-least + 1e-3, "unsat"), (-least - 1e-3, "sat")):
        builder = Builder()
        x = builder.input("x", (2,))
        margin = builder.add(
            Linear(torch.ones(1, 1).double(), torch.tensor([shift]).double()), *builder.include(graph, {0: x})
        )
        ends = torch.ones(1, 2, dtype=torch.float64)
        strict = torch.zeros(1, dtype=torch.bool)
        compiled = Compiled(
            builder.graph(margin), -ends, ends, torch.zeros(1, 1, 1, dtype=torch.int64), strict
        )
        search = linear_search(compiled, Seen(compiled))
        assert search is not None
        found = search.run(time.monotonic() + 20)
        assert (found is not None) == (wanted == "sat"), f"{shift}: {search.bound}, {search.finished}"
        assert search.proved == (wanted == "unsat")


def test_symmetric_intervals() -> None:
    """On a symmetric interval the upper line of |x| is level, on its parts it is not."""
    net = Net(1, (Layer("abs", (0,), 1, {}),))
    for threshold, wanted in ((0.999, "sat"), (1.001, "unsat")):
        formula = Join(True, (Leaf(((1, -1.0),), threshold), Leaf(((0, 1.0),), 2.0 * threshold - 2.998)))
        verdict, _ = decide(Case(net, np.array([-1.0]), np.array([1.0]), formula), 10.0)
        assert verdict == wanted


def test_scaled_networks() -> None:
    """Weights of a layer times 1e-6 or 1e6, undone by the next: the same verdicts."""
    changed = 0
    for seed in range(16):
        random = np.random.default_rng(600 + seed)
        net = random_net(random, 18, ("relu",))
        case = random_case(random, net)
        for scale in (1e-6, 1e6):
            other = scaled(net, scale)
            if other is not net:
                same = Case(other, case.lower, case.upper, case.formula)
                assert decide(same, 20.0)[0] == decide(case, 20.0)[0]
                changed += 1
    assert changed >= 8


def scaled(net: Net, scale: float) -> Net:
    """The first layer of a ReLU network larger, whatever reads its ReLUs smaller by as much."""
    layers = list(net.layers)
    first = layers[0]
    grow = {k: (np.asarray(v) * scale).astype(np.float32) for k, v in first.constants.items()}
    layers[0] = replace(first, constants=grow)
    readers = [i for i, layer in enumerate(layers) if 2 in layer.inputs]
    if any(layers[i].kind != "affine" for i in readers) or any(1 in layer.inputs for layer in layers[2:]):
        return net
    for i in readers:
        constants = dict(layers[i].constants)
        constants["weight"] = (np.asarray(constants["weight"]) / scale).astype(np.float32)
        layers[i] = replace(layers[i], constants=constants)
    return Net(net.inputs, tuple(layers))
