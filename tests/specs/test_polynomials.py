"""Products of variables in properties: compiled margins against the independent evaluator, and verdicts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import verifier
from verifier import Box, Options, Property, Status, X, Y
from verifier.graph import Builder, Graph
from verifier.ops.linear import Linear
from verifier.ops.piecewise_linear import relu
from verifier.ops.product import Square
from verifier.specs import compile as compile_module
from verifier.specs.compile import Compiled, compile_query
from verifier.specs.errors import SpecError
from verifier.specs.evaluator import satisfies
from verifier.specs.load import parse_query


def network() -> tuple[Graph, int]:
    """Y = W relu(V X) with small integers, so that floats are exact; and the position of the relu, H."""
    b = Builder()
    x = b.input("x", (3,))
    v = torch.tensor([[1.0, -1, 0], [0, 2, 1]], dtype=torch.float64)
    h = relu(b, b.add(Linear(v), x))
    y = b.add(Linear(torch.tensor([[1.0, 1], [-2, 1]], dtype=torch.float64)), h)
    graph = b.graph(y, h)
    return Graph(graph.nodes, graph.inputs, graph.outputs[:1]), graph.outputs[1]


@dataclass(frozen=True)
class Net:
    graph: Graph = field(default_factory=lambda: network()[0])
    inputs: tuple[str, ...] = ("x",)
    outputs: tuple[str, ...] = ("y",)
    kept: Mapping[str, int] = field(default_factory=lambda: {"h": network()[1]})

    def values(self, points: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
        h, y = self.graph.evaluate([points], [self.kept["h"], self.graph.outputs[0]])
        return h.numpy(), y.numpy()


NET = Net()
TWO = """(vnnlib-version <2.0>) (declare-network f (declare-input X real [3]) (declare-hidden H real [2] "h")
(declare-output Y real [2])) """
VARIABLES = {
    1: [*[f"X_{i}" for i in range(3)], "Y_0", "Y_1"],
    2: [*[f"X[{i}]" for i in range(3)], "H[0]", "H[1]", "Y[0]", "Y[1]"],
}
DECLARED = {1: "".join(f"(declare-const {v} Real)" for v in VARIABLES[1]), 2: TWO}


def texts(version: int) -> st.SearchStrategy[str]:
    """Formulas over polynomials up to degree six with dyadic coefficients, in the words that both versions know."""
    variable = st.sampled_from(VARIABLES[version])
    number = st.sampled_from(["2.0", "0.5", "-1.0", "0.25"])
    power = st.builds(lambda v, n: f"(* {' '.join([v] * n)})", variable, st.integers(2, 4))
    product = st.lists(st.one_of(variable, variable, number), min_size=2, max_size=4).map(
        lambda p: f"(* {' '.join(p)})"
    )
    square = st.builds("(* (+ {0} {1}) (- {0} {1}))".format, variable, variable)
    term = st.one_of(variable, number, power, product, product, square)
    expr = st.one_of(
        term, st.builds("(+ {} {})".format, term, term), st.builds("(* {} {})".format, product, term)
    )
    relation = st.sampled_from(["<=", ">=", "<", ">"])
    atom = st.builds("({} {} {})".format, relation, expr, expr)
    several = st.lists(atom, min_size=1, max_size=3).map(" ".join)
    clause = st.one_of(atom, st.builds("({} {})".format, st.sampled_from(["and", "or"]), several))
    formula = st.lists(clause, min_size=1, max_size=3).map(lambda c: f"(or {' '.join(c)})")
    box = "".join(f"(assert (and (>= {v} -2.0) (<= {v} 2.0)))" for v in VARIABLES[version][:3])
    return st.lists(st.one_of(atom, formula).map("(assert {})".format), min_size=1, max_size=3).map(
        lambda parts: DECLARED[version] + box + "".join(parts)
    )


def holds(compiled: Compiled, x: torch.Tensor) -> torch.Tensor:
    """Whether some case holds at each point [P, n_in], from the compiled margins: [P]."""
    margins = compiled.graph.evaluate([x])[0]
    truth = torch.where(compiled.strict, margins < 0, margins <= 0)
    truth = torch.cat([truth, torch.ones(len(x), 1, dtype=torch.bool)], 1)  # -1: padding
    clauses = compiled.clauses
    met = truth[:, clauses].all(-1) & (clauses >= 0).any(-1)
    inside = ((x[:, None] >= compiled.lower) & (x[:, None] <= compiled.upper)).all(-1)
    return (met.any(-1) & inside).any(-1)


def agree(text: str, seed: int) -> None:
    """As disjunctive normal form; as minima up to ties."""
    query = parse_query(text)
    with mock.patch.object(compile_module, "MAX_EXPANDED", 1 << 20):
        compiled = compile_query(query, {query.networks[0].name: NET})
    grid = np.random.default_rng(seed).choice([-2, -1.5, -1, -0.5, 0, 0.25, 0.5, 1, 2], size=(40, 3))
    points = torch.from_numpy(grid)
    h, y = NET.values(points)
    expected = [satisfies(query, {"X": x, "H": a, "Y": b}) for x, a, b in zip(grid, h, y, strict=True)]
    if compiled.empty_reason is not None:
        assert not any(expected)
    else:
        assert holds(compiled, points).tolist() == expected
        with mock.patch.object(compile_module, "MAX_EXPANDED", 1):
            minima = compile_query(query, {query.networks[0].name: NET})
        found = holds(minima, points)
        assert not (torch.tensor(expected) & ~found).any()
        assert found.tolist() == expected or not bool(minima.strict.all())


SETTINGS = settings(max_examples=120, deadline=None, suppress_health_check=list(HealthCheck))


@given(texts(1), st.integers(0, 2**32))
@SETTINGS
def test_margins_agree_with_the_evaluator(text: str, seed: int) -> None:
    agree(text, seed)


@given(texts(2), st.integers(0, 2**32))
@SETTINGS
def test_margins_with_hidden_values_agree_with_the_evaluator(text: str, seed: int) -> None:
    pytest.importorskip("vnnlib", reason="VNN-LIB 2.0 needs the vnnlib package")
    agree(text, seed)


def test_even_powers_are_squares() -> None:
    text = DECLARED[1] + "".join(f"(assert (>= X_{i} -1))(assert (<= X_{i} 1))" for i in range(3))
    query = parse_query(text + "(assert (>= (+ (* X_0 X_0 X_0 X_0) (* X_0 X_1 X_0 X_1)) (* Y_0 Y_0 Y_0)))")
    graph = compile_query(query, {"f": NET}).graph
    kinds = [type(n.op).__name__ for n in graph.nodes]
    assert sum(n.numel for n in graph.nodes if isinstance(n.op, Square)) == 4  # x0^2, y0^2, x0^4, (x0 x1)^2
    assert kinds.count("Product") == 2  # x0 x1 and y0^2 y0, of two degrees


def test_hidden_values_that_are_not_there() -> None:
    pytest.importorskip("vnnlib", reason="VNN-LIB 2.0 needs the vnnlib package")
    box = "".join(f"(assert (and (>= X[{i}] -2.0) (<= X[{i}] 2.0)))" for i in range(3))
    query = parse_query(TWO.replace('"h"', '"elsewhere"') + box + "(assert (>= H[0] 1.0))")
    with pytest.raises(SpecError, match="no inner value 'elsewhere' for H"):
        compile_query(query, {"f": NET})
    query = parse_query(TWO.replace("H real [2]", "H real [5]") + box + "(assert (>= H[0] 1.0))")
    with pytest.raises(SpecError, match="declares 5 elements for H"):
        compile_query(query, {"f": NET})


@pytest.mark.parametrize(("limit", "expected"), [(0.9, Status.SAT), (1.01, Status.UNSAT)])
def test_verdicts_of_properties_in_python(limit: float, expected: Status) -> None:
    """x relu(x) - y^2 relu(x) on [-1, 1]^2 is largest, 1, at (1, 0)."""
    module = torch.nn.Sequential(torch.nn.Linear(2, 1, bias=False), torch.nn.ReLU())
    module[0].weight.data = torch.tensor([[1.0, 0.0]])
    net = verifier.trace(module, torch.zeros(1, 2))
    box = Box(-torch.ones(1, 2), torch.ones(1, 2))
    prop = Property(box, X[0] * Y[0] - X[1] * X[1] * Y[0] < limit)
    result = verifier.verify(net, prop, timeout=20, options=Options(seed=0))
    assert result.status is expected
