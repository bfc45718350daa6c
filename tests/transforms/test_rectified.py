"""Comparisons before and after a last Relu: the same answers, and proofs where both sides are zero."""

from __future__ import annotations

from pathlib import Path

import torch

from benchmarks.common import exported
from verifier import Options, verify
from verifier.graph import Builder, Graph
from verifier.ops.linear import Linear
from verifier.ops.movement import reshape, take
from verifier.ops.piecewise_linear import Relu
from verifier.results import Status
from verifier.transforms.rectified import compare_before_relu

ROWS = [
    [1.0, -1.0, 0.0, 0.0],  # relu(b) < relu(a)
    [2.0, 0.5, -3.0, 0.0],
    [0.0, 0.0, -1.0, 0.0],  # relu(c) > 1, or >= 1
    [1.0, -1.0, -1.0, 0.0],  # two are to be larger
    [1.0, -1.0, 0.0, 0.0],  # relu(b) < relu(a) + 1
    [1.0, 1.0, 0.0, 1.0],
]
BIAS = [0.0, 0.0, 1.0, 0.0, -1.0, 0.0]


def graph_of(rows: list[list[float]], bias: list[float]) -> Graph:
    builder = Builder()
    weight, shift = (torch.tensor(t, dtype=torch.float64) for t in (rows, bias))
    y = builder.add(Relu(), reshape(builder, builder.input("x", (4,)), (2, 2)))
    turned = take(builder, reshape(builder, y, (4,)), lambda t: t[torch.tensor([0, 1, 2, 3])])
    return builder.graph(builder.add(Linear(weight, shift), turned))


def test_signs_stay() -> None:
    """On a grid with zeros, ties and negative numbers."""
    line = torch.tensor([-1.0, -0.5, 0.0, 0.5, 1.0, 2.0], dtype=torch.float64)
    x = torch.cartesian_prod(line, line, line, line)
    graph = graph_of(ROWS, BIAS)
    before = graph.evaluate([x])[0]
    for strict in (True, False):
        changed = compare_before_relu(graph, torch.full((6,), strict))
        after = changed.evaluate([x])[0]
        holds = [m < 0 if strict else m <= 0 for m in (before, after)]
        assert torch.equal(*holds)
        moved = (before != after).any(0).tolist()
        assert moved == [strict, strict, True, False, False, False]


def test_nothing_changes_elsewhere() -> None:
    graph = graph_of(ROWS[3:], BIAS[3:])
    assert compare_before_relu(graph, torch.ones(3, dtype=torch.bool)) is graph
    builder = Builder()
    plain = builder.graph(builder.add(Linear(torch.tensor([[1.0, -1.0]])), builder.input("x", (2,))))
    assert compare_before_relu(plain, torch.ones(1, dtype=torch.bool)) is plain


def test_a_strict_comparison_of_values_that_may_both_be_zero(tmp_path: Path) -> None:
    """relu(x - 1) is never above relu(x - 0.5), though both are zero on half of the box."""
    layer = torch.nn.Linear(2, 2)
    layer.weight.data.fill_(1.0)
    layer.bias.data = torch.tensor([-1.0, -0.5])
    data = exported(torch.nn.Sequential(layer, torch.nn.ReLU()).eval(), torch.zeros(1, 2))
    spec = tmp_path / "spec.vnnlib"
    declared = "".join(f"(declare-const {v} Real)" for v in ("X_0", "X_1", "Y_0", "Y_1"))
    box = "".join(f"(assert (>= X_{i} -1.0))(assert (<= X_{i} 1.0))" for i in range(2))
    spec.write_text(f"{declared}{box}(assert (> Y_0 Y_1))")
    found = verify(data, spec, 20, Options(attack=False))
    assert found.status is Status.UNSAT
    spec.write_text(f"{declared}{box}(assert (>= Y_0 Y_1))")
    assert verify(data, spec, 20).status is Status.SAT
