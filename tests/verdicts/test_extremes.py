"""Hand-made networks at the edges of floating point: no wrong verdict, whatever the arithmetic."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import pytest

import verifier
from tests.verdicts.networks import Layer, Net, to_onnx
from verifier.errors import ModelError
from verifier.options import Options
from verifier.results import Result
from verifier.specs.evaluator import satisfies
from verifier.specs.load import parse_query

Rows = list[list[float]]


def network(*parts: tuple[Rows, list[float]] | str) -> Net:
    """Alternating (weight, bias) and names of activations."""
    layers: list[Layer] = []
    for i, part in enumerate(parts):
        if isinstance(part, str):
            layers.append(Layer(part, (i,), layers[-1].size, {"alpha": 0.5}))
        else:
            weight, bias = (np.asarray(t, np.float32) for t in part)
            layers.append(Layer("affine", (i,), len(weight), {"weight": weight, "bias": bias}))
    return Net(np.asarray(layers[0].constants["weight"]).shape[1], tuple(layers))


RELU = network(([[1]], [0]), "relu", ([[1]], [0]))
HUGE = [([[1e38]], [0.0]), "relu"]
TINY = ([[1e-38]], [0.0])
BIG = 2.0**60


@dataclass(frozen=True)
class Edge:
    """`truth` over real numbers: sat, unsat, or float where it depends on the arithmetic."""

    name: str
    net: Net
    box: tuple[object, object]
    assertion: str
    truth: str

    def text(self) -> str:
        lines = [f"(declare-const X_{i} Real)" for i in range(self.net.inputs)]
        lines += [f"(declare-const Y_{i} Real)" for i in range(self.net.outputs)]
        for i in range(self.net.inputs):
            lines += [f"(assert (>= X_{i} {self.box[0]}))", f"(assert (<= X_{i} {self.box[1]}))"]
        return "\n".join([*lines, self.assertion and f"(assert {self.assertion})"])


EDGES = [
    # an interval whose width overflows in float32, or whose ends do
    Edge("width", network(*HUGE, ([[-1e-38]], [0])), (-2, 2), "(<= Y_0 -1)", "sat"),
    Edge("ends", network(*HUGE, ([[-1e-38]], [0])), (-20, 20), "(<= Y_0 -10)", "sat"),
    Edge("ends, leaky", network(HUGE[0], "leaky", ([[-1e-38]], [0])), (-20, 20), "(<= Y_0 -10)", "sat"),
    Edge("width, leaky", network(HUGE[0], "leaky", ([[-1e-38]], [0])), (-2, 2), "(<= Y_0 -1)", "sat"),
    Edge(
        "ends in float64",
        network(*HUGE * 9, ([[-1e-38]], [0]), *[TINY] * 8),
        (-20, 20),
        "(<= Y_0 -10)",
        "sat",
    ),
    # products that underflow in float32
    Edge(
        "underflow",
        network(
            ([[1e-30]], [0]), "relu", ([[1e-30]], [0]), "relu", ([[1e30]], [0]), "relu", ([[-1e30]], [0])
        ),
        (-2, 2),
        "(<= Y_0 -1)",
        "sat",
    ),
    Edge(
        "strict underflow", network(([[1e-30]], [0]), "relu", ([[-1e-30]], [0])), (-2, 2), "(< Y_0 0)", "sat"
    ),
    # scales
    Edge(
        "scales",
        network(([[1e6], [-1e6]], [1, -1]), "relu", ([[1e-6, -1e-6]], [0])),
        (-1, 1),
        "(<= Y_0 -0.5)",
        "sat",
    ),
    Edge("1e30", network(([[1e30]], [0]), "relu", ([[-1e-30]], [0])), (-1, 1), "(<= Y_0 -0.99)", "sat"),
    Edge(
        "1e30, none", network(([[1e30]], [0]), "relu", ([[-1e-30]], [0])), (-1, 1), "(<= Y_0 -1.01)", "unsat"
    ),
    # sums that cancel
    Edge(
        "sum of outputs",
        network(([[BIG], [1], [-BIG]], [0] * 3)),
        (-1, 1),
        "(<= (+ Y_0 Y_1 Y_2) -0.5)",
        "sat",
    ),
    Edge(
        "sum of outputs, relu",
        network(([[1], [-1]], [0, 0]), "relu", ([[BIG] * 2, [1] * 2, [-BIG] * 2], [0] * 3)),
        (-1, 1),
        "(>= (+ Y_0 Y_1 Y_2) 0.5)",
        "sat",
    ),
    Edge(
        "sum of biases",
        network(([[1]], [0]), "relu", ([[0]] * 3, [BIG, 1, -BIG])),
        (-1, 1),
        "(>= (+ Y_0 Y_1 Y_2) 0.5)",
        "sat",
    ),
    Edge(
        "two matrices",
        network(([[BIG], [1], [-BIG]], [0] * 3), ([[1] * 3], [0])),
        (-1, 1),
        "(>= Y_0 0.5)",
        "sat",
    ),
    Edge(
        "two biases", network(([[0]] * 3, [BIG, 1, -BIG]), ([[1] * 3], [0])), (-1, 1), "(>= Y_0 0.5)", "sat"
    ),
    # equality
    Edge("least 0", RELU, (-1, 1), "(<= Y_0 0)", "sat"),
    Edge("least 0, strict", RELU, (-1, 1), "(< Y_0 0)", "unsat"),
    Edge("most 1", RELU, (-1, 1), "(>= Y_0 1)", "sat"),
    Edge("most 1, strict", RELU, (-1, 1), "(> Y_0 1)", "unsat"),
    Edge("equal", RELU, (-1, 1), "(= Y_0 0.5)", "sat"),
    Edge("equal, outside", RELU, (-1, 1), "(= Y_0 1.5)", "unsat"),
    Edge("unequal", RELU, (-1, 0), "(distinct Y_0 0)", "unsat"),
    Edge("point", RELU, (0.5, 0.5), "(= Y_0 0.5)", "sat"),
    Edge("point, strict", RELU, (0.5, 0.5), "(< Y_0 0.5)", "unsat"),
    Edge("constant", network(([[0]], [1]), "relu", ([[1]], [0])), (-1, 1), "(<= Y_0 1)", "sat"),
    Edge("constant, strict", network(([[0]], [1]), "relu", ([[1]], [0])), (-1, 1), "(< Y_0 1)", "unsat"),
    Edge("dead", network(([[0], [1]], [-1, -5]), "relu", ([[1, 1]], [0])), (-1, 1), "(> Y_0 0)", "unsat"),
    # formulas
    Edge("true", RELU, (-1, 1), "", "sat"),
    Edge("false", RELU, (-1, 1), "(or)", "unsat"),
    Edge(
        "the same atom twice",
        RELU,
        (-1, 1),
        "(and (<= Y_0 -1) (<= Y_0 -1) (or (<= Y_0 -1) (<= Y_0 -1)))",
        "unsat",
    ),
    Edge(
        "a case without a formula",
        RELU,
        (-1, 1),
        "(or (and (<= X_0 0.5) (<= Y_0 -1)) (and (<= X_0 -0.5)))",
        "sat",
    ),
    # boxes
    Edge("huge box", RELU, (-1e38, 1e38), "(<= Y_0 -1)", "unsat"),
    Edge("box beyond float32", RELU, (-1e300, 1e300), "(<= Y_0 -1)", "unsat"),
    Edge("box of infinite width", RELU, (-1.7e308, 1.7e308), "(>= Y_0 1e308)", "float"),
    Edge(
        "one ulp",
        network(([[1], [-1]], [-1, 1]), "relu", ([[1, 1]], [0])),
        (1, "1.00000011920928955078125"),
        "(>= Y_0 1e-7)",
        "sat",
    ),
    Edge("no float inside", RELU, ("1.00000001", "1.00000002"), "(<= Y_0 1)", "float"),
    Edge("empty", RELU, (1, 0), "(<= Y_0 1)", "unsat"),
    Edge(
        "empty by a digit", RELU, ("0.30000000000000000002", "0.30000000000000000001"), "(<= Y_0 1)", "unsat"
    ),
]


def check(edge: Edge, result: Result) -> None:
    verdict = result.status.value
    if edge.truth != "float":
        assert verdict in (edge.truth, "unknown", "timeout")
    if result.counterexample is not None:
        found = result.counterexample
        assert satisfies(parse_query(edge.text()), {**found.inputs, **found.outputs}, found.tolerance)
    assert result.bound is None or not math.isnan(result.bound)


@pytest.mark.parametrize("attack", [False, pytest.param(True, marks=pytest.mark.full)])
@pytest.mark.parametrize("dtype", ["auto", "float64"])
@pytest.mark.parametrize("edge", EDGES, ids=lambda e: e.name)
def test_edge(edge: Edge, dtype, attack: bool) -> None:
    options = Options(timeout=5, max_domains=64, batch_size=32, dtype=dtype, attack=attack)
    check(edge, verifier.verify(to_onnx(edge.net), parse_query(edge.text()), options=options))


@pytest.mark.parametrize(
    "name",
    ["scales", "1e30", "1e30, none", "least 0", "most 1", "equal, outside", "huge box", "one ulp"],
)
def test_easy_edges_are_decided(name: str) -> None:
    edge = next(e for e in EDGES if e.name == name)
    result = verifier.verify(to_onnx(edge.net), parse_query(edge.text()), options=Options(timeout=20))
    assert result.status.value == edge.truth


@pytest.mark.parametrize(
    "net",
    [
        network(([[3e38]], [0]), ([[3e38], [-3e38]], [0, 0]), ([[1, 1]], [0.5])),
        network(([[1]] * 4, [1e38] * 4), ([[3, 3, -3, -3]], [-1])),
    ],
)
def test_a_network_that_overflows_is_refused(net: Net) -> None:
    """onnxruntime gives NaN, real arithmetic a number: no verdict could mean both."""
    edge = Edge("", net, (-1, 1), "(<= Y_0 0)", "float")
    with pytest.raises(ModelError):
        verifier.verify(to_onnx(net), parse_query(edge.text()), options=Options(timeout=20))
