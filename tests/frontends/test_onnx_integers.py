"""Models that compare, cast and count: against onnxruntime, and their bounds against sampled points."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch
from onnx import NodeProto, TensorProto, helper, numpy_helper

from verifier.bounds.compute import compute_bounds
from verifier.errors import UnsupportedError
from verifier.frontends.onnx import load
from verifier.frontends.replay import check, run
from verifier.graph import Builder, Interval
from verifier.ops.integers import Integral, whole
from verifier.ops.softmax import Softmax
from verifier.sets import Box
from verifier.transforms.composites import write_out

F, INT, B = TensorProto.FLOAT, TensorProto.INT64, TensorProto.BOOL


def node(op: str, inputs: str, output: str = "y", **attributes: Any) -> NodeProto:
    return helper.make_node(op, inputs.split(), output.split(), name=f"{op}_{output}", **attributes)


@dataclass(frozen=True, eq=False)
class Case:
    """A model of the inputs x [2, 3] and, where `second`, z [2, 3]; its result y has the type `result`."""

    name: str
    nodes: list[NodeProto]
    result: int = B
    second: bool = False
    constants: dict[str, np.ndarray] = field(default_factory=dict)
    opset: int = 17

    def model(self) -> bytes:
        names = ("x", "z") if self.second else ("x",)
        inputs = [helper.make_tensor_value_info(n, F, (2, 3)) for n in names]
        output = helper.make_tensor_value_info("y", self.result, None)
        stored = [numpy_helper.from_array(v, k) for k, v in self.constants.items()]
        graph = helper.make_graph(self.nodes, "g", inputs, [output], initializer=stored)
        opset = [helper.make_opsetid("", self.opset)]
        return helper.make_model(graph, opset_imports=opset, ir_version=8).SerializeToString()


def _whole(name: str, op: str, result: int = B) -> Case:
    nodes = [node("Cast", "x", "a", to=INT), node("Cast", "z", "b", to=TensorProto.INT32)]
    return Case(name, [*nodes, node("Cast", "b", "c", to=INT), node(op, "a c")], result, second=True)


def _logic(op: str) -> Case:
    return Case(op, [node("Less", "x z", "a"), node("Cast", "x", "b", to=B), node(op, "a b")], second=True)


NUMBERS = {"n": np.array([[2, -1, 0]])}
CASES = [
    Case("truncate", [node("Cast", "x", to=INT)], INT),
    Case("to bool", [node("Cast", "x", to=B)]),
    Case("int to bool", [node("Cast", "x", "a", to=INT), node("Cast", "a", to=B)]),
    Case("to int of int", [node("Cast", "x", "a", to=INT), node("Cast", "a", to=TensorProto.INT32)], TensorProto.INT32),
    Case("like", [node("CastLike", "x n")], INT, constants=NUMBERS),
    Case("like bool", [node("CastLike", "x n")], constants={"n": np.array(True)}),
    *[Case(op, [node(op, "x z")], second=True) for op in ("Less", "LessOrEqual", "Greater", "GreaterOrEqual")],
    *[_whole(f"whole {op}", op) for op in ("Less", "LessOrEqual", "Greater", "GreaterOrEqual", "Equal")],
    *[_whole(f"whole {op}", op, INT) for op in ("Add", "Sub", "Max", "Min")],
    Case("Equal", [node("Cast", "x", "a", to=INT), node("Cast", "a", "b", to=F), node("Equal", "b z")], second=True),
    Case(
        "with constants",
        [node("Cast", "x", "a", to=INT), node("Add", "a n", "b"), node("Equal", "b n")],
        constants=NUMBERS,
    ),
    Case("times", [node("Cast", "x", "a", to=INT), node("Mul", "a n")], INT, constants=NUMBERS),
    Case("Not", [node("Less", "x z", "a"), node("Not", "a")], second=True),
    *[_logic(op) for op in ("And", "Or", "Xor")],
    Case(
        "And const",
        [node("Cast", "x", "a", to=B), node("And", "a n")],
        constants={"n": np.array([True, False, True])},
    ),
    *[
        Case(f"{op} {axis} {keep} {last}", [node(op, "x", axis=axis, keepdims=keep, select_last_index=last)], INT)
        for op in ("ArgMax", "ArgMin")
        for axis, keep, last in ((0, 1, 0), (1, 0, 0), (-1, 1, 1))
    ],
    Case("ArgMax of Softmax", [node("Softmax", "x", "s", axis=1), node("ArgMax", "s", axis=-1)], INT),
    Case("ArgMax across Softmax", [node("Softmax", "x", "s", axis=0), node("ArgMax", "s", axis=1)], INT),
    *[
        Case(
            f"OneHot {axis} {depth}",
            [node("ArgMax", "x", "i", axis=1, keepdims=0), node("OneHot", "i d v", axis=axis)],
            F,
            constants={"d": np.array(depth), "v": np.array([-0.5, 2.0], np.float32)},
        )
        for axis in (0, 1, -1)
        for depth in (3, 5)
    ],
    Case(
        "OneHot of the last",
        [node("Less", "x z", "l"), node("Cast", "l", "i", to=INT), node("Neg", "i", "m"), node("OneHot", "m d v")],
        INT,
        second=True,
        constants={"d": np.array(2), "v": np.array([0, 1])},
    ),
    Case(
        "counting",
        [
            node("ArgMax", "x", "i", axis=1),
            node("Cast", "z", "w", to=TensorProto.INT32),
            node("Cast", "i", "j", to=TensorProto.INT32),
            node("Equal", "j w", "e"),
            node("Cast", "e", "c", to=INT),
            node("ReduceSum", "c", keepdims=0),
        ],
        INT,
        second=True,
    ),
]  # fmt: skip


def samples(model, count: int) -> list[np.ndarray]:
    random = np.random.default_rng(2)
    found = [2 * random.standard_normal((count, *s)) for s in model.input_shapes]
    return [np.where(random.random(x.shape) < 0.3, x.round(), x).astype(np.float32) for x in found]


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
def test_agrees_with_onnxruntime(case: Case) -> None:
    model = load(case.model())
    inputs = samples(model, 60)
    (ours,) = model.graph.evaluate([torch.from_numpy(x).double() for x in inputs])
    (theirs,) = run(model, inputs)
    np.testing.assert_array_equal(ours.numpy(), theirs.astype(np.float64))
    check(model)


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
def test_bounds_hold(case: Case) -> None:
    """Random boxes of all sizes, points among them, where the bounds settle nearly everything but ties of floats."""
    model = load(case.model())
    graph = write_out(model.graph)
    centers = [torch.from_numpy(x).double() for x in samples(model, 40)]
    random = torch.Generator().manual_seed(5)
    width = 10 ** (4 * torch.rand(40, 1, 1, generator=random, dtype=torch.float64) - 3)
    width[::4] = 0
    sets = [Box(c - width, c + width) for c in centers]
    for method in ("interval", "crown"):
        (found,) = compute_bounds(graph, sets, method).outputs
        for _ in range(20):
            moves = [2 * torch.rand(c.shape, generator=random, dtype=torch.float64) - 1 for c in centers]
            (value,) = graph.evaluate([c + width * m for c, m in zip(centers, moves, strict=True)])
            assert (value >= found.lower - 1e-9).all() and (value <= found.upper + 1e-9).all()
        settled = (found.upper - found.lower)[::4] < 1e-9
        assert settled.double().mean() > 0.8


def test_marks_of_whole_numbers_shrink_enclosures_and_never_cross_them() -> None:
    x = Interval(torch.tensor([[1.5, 2.0, -0.1, 0.2]]), torch.tensor([[3.5, 2.0, 0.1, 0.4]]))
    found = Integral().interval(x)
    assert found.lower[0, :3].tolist() == [2.0, 2.0, 0.0] and found.upper[0, :3].tolist() == [3.0, 2.0, 0.0]
    assert (found.lower <= found.upper).all()
    rows = torch.randn(2, 3, 4)
    assert torch.equal(Integral().transpose(rows, 0, (4,)), rows)
    b = Builder()
    marked = whole(b, b.input("x", (4,)))
    assert whole(b, marked) == marked


REFUSED = {
    "a division of integers": ([node("Cast", "x", "a", to=INT), node("Div", "a n")], NUMBERS),
    "too many values": ([node("Tile", "x n", "t"), node("ArgMax", "t", axis=1)], {"n": np.array([1, 40])}),
    "a cast to text": ([node("Cast", "x", to=TensorProto.STRING)], {}),
    "indices that are no integers": (
        [node("OneHot", "x d v")],
        {"d": np.array(2), "v": np.array([0, 1], np.float32)},
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name: str) -> None:
    nodes, constants = REFUSED[name]
    with pytest.raises(UnsupportedError):
        load(Case(name, nodes, F, constants=constants).model())


def test_an_argmax_looks_at_what_comes_before_a_softmax() -> None:
    """Through rearrangements, but not where it compares elements of different sums."""
    turned = [
        node("Transpose", "x", "t"),
        node("Softmax", "t", "s", axis=0),
        node("Transpose", "s", "u"),
        node("Slice", "u one three one", "v"),
    ]
    for axis, expected in ((1, 0), (0, 1)):
        case = Case("turned", [*turned, node("ArgMax", "v", axis=axis)], INT, constants=SLICE)
        model = load(case.model())
        check(model)
        assert sum(isinstance(n.op, Softmax) for n in model.graph.nodes) == expected


SLICE = {"one": np.array([1]), "three": np.array([3])}


OVERFLOWS = {
    "a cast to 8 bits": ([node("Cast", "x", "i", to=TensorProto.INT8)], 150.0, 200.0),
    "a cast to 16 bits": ([node("Cast", "x", "i", to=TensorProto.INT16)], 40000.0, 50000.0),
    "a cast of integers": (
        [node("Cast", "x", "a", to=INT), node("Cast", "a", "i", to=TensorProto.INT32)], 2.2e9, 2.3e9,
    ),
    "a product": ([node("Cast", "x", "a", to=TensorProto.INT32), node("Mul", "a a", "i")], 48000.0, 50000.0),
    "a sum": ([node("Cast", "x", "a", to=TensorProto.INT32), node("Add", "a a", "i")], 1.5e9, 1.6e9),
    "a sum of sizes": (
        [node("Cast", "x", "a", to=TensorProto.INT32), node("Abs", "a", "b"), node("Add", "b b", "i")], 1.5e9, 1.6e9,
    ),
    "a long product": ([node("Cast", "x", "a", to=INT), node("Mul", "a a", "i")], 3.8e9, 4e9),
}  # fmt: skip


@pytest.mark.parametrize("name", OVERFLOWS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_nothing_is_known_of_integers_that_do_not_fit(name: str, dtype: torch.dtype) -> None:
    """onnxruntime's wrap around to negative numbers."""
    nodes, low, high = OVERFLOWS[name]
    model = load(Case(name, [*nodes, node("Cast", "i", to=F)], F).model())
    inputs = np.full((1, 2, 3), high, np.float32)
    (theirs,) = run(model, [inputs])
    assert (theirs < 0).all()
    graph = write_out(model.graph).to(dtype)
    ends = [torch.full((1, 2, 3), end, dtype=dtype) for end in (low, high)]
    for method in ("interval", "crown", "alpha-crown"):
        (found,) = compute_bounds(graph, [Box(*ends)], method).outputs
        assert (found.lower <= torch.from_numpy(theirs)).all()
        (small,) = compute_bounds(graph, [Box(0 * ends[0], 0 * ends[0] + 10.5)], method).outputs
        assert small.lower.abs().max() < 1 and small.upper.max() < 250


_LESS = [node("Cast", "x", "a", to=INT), node("Less", "x z", "c")]
_BYTES = {"u": np.array([[2, 2, 2]], np.uint8), "v": np.array([[3, 3, 3]], np.uint8)}
_SHORT = {"u": np.array([[2, 2, 2]], np.float16), "v": np.array([[3, 3, 3]], np.float16)}
DIFFERENT = {
    "quotient": ([*_LESS, node("Abs", "a", "b"), node("Add", "b n", "d"), node("Div", "a d", "i")], {}),
    "mean": ([*_LESS, node("ReduceMean", "a", "i", axes=[1], keepdims=1)], {}),
    "reciprocal": ([*_LESS, node("Abs", "a", "b"), node("Add", "b n", "d"), node("Pow", "d m", "i")], {}),
    "bytes": ([*_LESS, node("Where", "c u v", "w"), node("Sub", "w v", "i")], _BYTES),
    "short": ([*_LESS, node("Where", "c u v", "w"), node("Sub", "w v", "i")], _SHORT),
    "like integers": (
        [
            *_LESS,
            node("Cast", "c", "t", to=TensorProto.INT32),
            node("CastLike", "x t", "d"),
            node("Div", "d d", "i"),
        ],
        {},
    ),
}


@pytest.mark.parametrize("name", DIFFERENT)
def test_arithmetic_of_other_types_is_not_taken_for_that_of_real_numbers(name: str) -> None:
    """Quotients of integers are rounded, unsigned ones wrap around below 0."""
    nodes, constants = DIFFERENT[name]
    constants = {**constants, "n": np.array([[2, 2, 2]]), "m": np.array(-1)}
    case = Case(name, [*nodes, node("Cast", "i", to=F)], F, constants=constants, second=True, opset=15)
    with pytest.raises(UnsupportedError, match=r"integers|16 bits"):
        load(case.model())


def test_a_choice_among_integers_is_an_integer() -> None:
    nodes = [*_LESS, node("Where", "c u v", "w"), node("Cast", "w", to=F)]
    graph = load(Case("choice", nodes, F, constants=_BYTES, second=True).model()).graph
    x = torch.tensor([[[1.0, 2, 3], [4, 5, 6]]], dtype=torch.float64)
    (found,) = compute_bounds(graph, [Box(x, x + 0.1), Box(x + 1.0, x + 1.5)], "crown").outputs
    assert (found.lower <= 2 + 1e-5).all() and (found.upper < 3 + 1e-5).all()


def test_the_place_of_one_value_is_an_index() -> None:
    nodes = [node("ReduceSum", "x", "s", keepdims=1), node("ArgMax", "s", "i", axis=0), node("Gather", "n i")]
    model = load(Case("one", nodes, F, constants={"n": np.array([0.5, 2.0], np.float32)}).model())
    check(model)
    nodes = [*nodes[:2], node("Gather", "x i")]
    check(load(Case("one", nodes, F).model()))
