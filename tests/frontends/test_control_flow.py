"""ONNX's If, Loop and Scan against onnxruntime."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import GraphProto, TensorProto, helper, numpy_helper

from verifier.errors import ModelError, UnsupportedError
from verifier.frontends.onnx import OnnxModel, load
from verifier.frontends.replay import check, run
from verifier.ops.repeat import Repeat

FLOAT, INT, BOOL = TensorProto.FLOAT, TensorProto.INT64, TensorProto.BOOL
RANDOM = np.random.default_rng(0)
W, U = (RANDOM.standard_normal(s).astype(np.float32) for s in ((3, 3), (2, 3)))
N = helper.make_node


def info(name: str, shape: Sequence[int] | None, kind: int = FLOAT) -> Any:
    return helper.make_tensor_value_info(name, kind, shape)


def graph(
    nodes: Sequence[Any], inputs: Sequence[Any], outputs: Sequence[Any], **constants: Any
) -> GraphProto:
    stored = [numpy_helper.from_array(np.asarray(a), n) for n, a in constants.items()]
    return helper.make_graph(list(nodes), "graph", list(inputs), list(outputs), stored)


def model(main: GraphProto, opset: int = 17) -> bytes:
    proto = helper.make_model(main, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    return proto.SerializeToString()


def compared(data: bytes) -> OnnxModel:
    """The model, after its graph was held against onnxruntime."""
    loaded = load(data)
    check(loaded)
    at = [RANDOM.standard_normal((4, *s)).astype(np.float32) for s in loaded.input_shapes]
    ours = loaded.graph.evaluate([torch.from_numpy(x).double() for x in at])
    for value, other in zip(ours, run(loaded, at), strict=True):
        assert tuple(value.shape) == other.shape
        assert np.abs(value.numpy() - other).max() <= 1e-4
    return loaded


def loops(loaded: OnnxModel) -> list[Repeat]:
    return [n.op for n in loaded.graph.nodes if isinstance(n.op, Repeat)]


CELL = [
    N("MatMul", ["h", "W"], ["wh"]),
    N("MatMul", ["x_t", "U"], ["ux"]),
    N("Add", ["wh", "ux"], ["sum"]),
    N("Add", ["sum", "bias"], ["total"]),
    N("Tanh", ["total"], ["h_next"]),
    N("Neg", ["h_next"], ["shown"]),
]
"""h' = tanh(h W + x U + bias), emitting -h'."""


def scan(axis: int = 0, opset: int = 17, **attributes: Any) -> bytes:
    """A cell along `axis` of x; W and the bias are read from around the body, the bias being a second input."""
    body = graph(
        CELL, [info("h", (1, 3)), info("x_t", (1, 2))], [info("h_next", (1, 3)), info("shown", (1, 3))], U=U
    )
    shape = [1, 2]
    shape.insert(axis, 5)
    node = N("Scan", ["h0", "x"], ["last", "all"], name="scan", body=body, num_scan_inputs=1, **attributes)
    main = graph([node], [info("x", shape), info("bias", (1, 3))], [info("last", None), info("all", None)], W=W,
                 h0=np.ones((1, 3), np.float32))  # fmt: skip
    return model(main, opset)


@pytest.mark.parametrize("opset", [9, 11, 17])
@pytest.mark.parametrize(
    "form",
    [
        {},
        {"scan_input_directions": [1]},
        {"scan_output_directions": [1]},
        {"axis": 1, "scan_input_axes": [1]},
        {"axis": 2, "scan_input_axes": [2], "scan_output_axes": [1], "scan_input_directions": [1]},
    ],
    ids=str,
)
def test_scan(form: dict[str, Any], opset: int) -> None:
    (first, second) = loops(compared(scan(opset=opset, **form)))
    assert first.body is second.body and first.trips == 5


def test_negative_axes_of_scan() -> None:
    assert loops(compared(scan(2, scan_input_axes=[-1], scan_output_axes=[-1])))


def test_two_sequences_in_different_directions() -> None:
    body = graph(
        [N("Mul", ["a", "b"], ["ab"]), N("Add", ["h", "ab"], ["h_next"])],
        [info("h", (2,)), info("a", (2,)), info("b", (2,))],
        [info("h_next", (2,)), info("ab", (2,))],
    )
    node = N(
        "Scan", ["h0", "x", "y"], ["last", "all"], body=body, num_scan_inputs=2, scan_input_directions=[0, 1]
    )
    inputs = [info("h0", (2,)), info("x", (4, 2)), info("y", (4, 2))]
    assert len(loops(compared(model(graph([node], inputs, [info("last", None), info("all", None)]))))) == 2


def test_a_loop_in_a_scan() -> None:
    inner = graph(
        [N("Identity", ["go"], ["on"]), N("MatMul", ["s", "W"], ["ws"]), N("Add", ["ws", "x_t"], ["s_next"])],
        [info("i", (), INT), info("go", (), BOOL), info("s", (3,))],
        [info("on", (), BOOL), info("s_next", (3,))],
    )
    body = graph(
        [N("Loop", ["M", "", "h"], ["h_next"], body=inner)],
        [info("h", (3,)), info("x_t", (3,))],
        [info("h_next", (3,))],
    )
    node = N("Scan", ["h0", "x"], ["last"], body=body, num_scan_inputs=1)
    main = graph([node], [info("x", (4, 3)), info("h0", (3,))], [info("last", None)], W=W / 3, M=np.int64(2))
    (outer,) = loops(compared(model(main)))
    assert any(isinstance(n.op, Repeat) for n in outer.body.nodes)


def loop(nodes: Sequence[Any], *, trips: int | None = 4, go: bool | None = None, **constants: Any) -> bytes:
    """A Loop with one state s [3] that emits e; the body may read x [4, 3] and constants."""
    body = graph(
        nodes,
        [info("i", (), INT), info("go", (), BOOL), info("s", (3,))],
        [info("on", (), BOOL), info("s_next", (3,)), info("e", None)],
        **{"yes": np.array(True), **constants},
    )
    node = N("Loop", ["M" if trips is not None else "", "start" if go is not None else "", "s0"], ["last", "all"],
             name="loop", body=body)  # fmt: skip
    around = {} if trips is None else {"M": np.int64(trips)}
    around |= {} if go is None else {"start": np.array(go)}
    main = graph(
        [node], [info("x", (4, 3)), info("s0", (3,))], [info("last", None), info("all", None)], W=W, **around
    )
    return model(main)


STEP = [N("MatMul", ["s", "W"], ["ws"]), N("Tanh", ["ws"], ["s_next"]), N("Neg", ["s"], ["e"])]


@pytest.mark.parametrize("go", [None, True])
@pytest.mark.parametrize("condition", ["yes", "go"])
def test_a_loop_of_equal_rounds_stays_one(condition: str, go: bool | None) -> None:
    loaded = compared(loop([*STEP, N("Identity", [condition], ["on"])], go=go))
    assert [op.trips for op in loops(loaded)] == [4, 4]


def test_a_loop_that_counts_is_written_out() -> None:
    rows = [N("Gather", ["x", "i"], ["row"], axis=0), N("Cast", ["i"], ["number"], to=FLOAT)]
    step = [
        N("Mul", ["row", "number"], ["scaled"]),
        N("Add", ["s", "scaled"], ["s_next"]),
        N("Neg", ["s"], ["e"]),
    ]
    assert not loops(compared(loop([*rows, *step, N("Identity", ["go"], ["on"])])))


@pytest.mark.parametrize(("trips", "rounds"), [(None, 3), (2, 2), (9, 3)])
def test_a_loop_that_ends_by_its_condition(trips: int | None, rounds: int) -> None:
    nodes = [*STEP, N("Less", ["i", "two"], ["on"])]
    loaded = compared(loop(nodes, trips=trips, go=True, two=np.int64(2)))
    assert loaded.output_shapes[1] == (rounds, 3)


def test_a_loop_with_a_counter_among_its_states() -> None:
    body = graph(
        [
            N("Add", ["k", "one"], ["k_next"]),
            N("Gather", ["x", "k"], ["row"], axis=0),
            N("Add", ["s", "row"], ["s_next"]),
            N("Identity", ["go"], ["on"]),
        ],
        [info("i", (), INT), info("go", (), BOOL), info("k", (), INT), info("s", (3,))],
        [info("on", (), BOOL), info("k_next", (), INT), info("s_next", (3,))],
        one=np.int64(1),
    )
    node = N("Loop", ["M", "", "k0", "s0"], ["k1", "last"], body=body)
    main = graph(
        [node], [info("x", (4, 3)), info("s0", (3,))], [info("last", None)], M=np.int64(3), k0=np.int64(1)
    )
    compared(model(main))


def test_a_loop_whose_state_grows() -> None:
    body = graph(
        [N("Concat", ["s", "s0"], ["s_next"], axis=0), N("Identity", ["go"], ["on"])],
        [info("i", (), INT), info("go", (), BOOL), info("s", None)],
        [info("on", (), BOOL), info("s_next", None)],
    )
    node = N("Loop", ["M", "", "s0"], ["last"], body=body)
    main = graph([node], [info("s0", (3,))], [info("last", None)], M=np.int64(3))
    assert compared(model(main)).output_shapes == ((12,),)


def test_no_rounds() -> None:
    data = loop([*STEP, N("Identity", ["go"], ["on"])], go=False)
    with pytest.raises(UnsupportedError, match="it has no rounds"):
        load(data)


def test_no_rounds_and_nothing_collected() -> None:
    """An output without a name is not used, though inputs without one are."""
    proto = onnx.load_from_string(loop([*STEP, N("Identity", ["go"], ["on"])], trips=0))
    proto.graph.node[0].output[1] = ""
    del proto.graph.output[1]
    loaded = load(proto.SerializeToString())
    x = [torch.randn(2, *s, dtype=torch.float64) for s in loaded.input_shapes]
    assert torch.equal(loaded.graph.evaluate(x)[0], x[1])


@pytest.mark.parametrize("condition", [True, False])
def test_if(condition: bool) -> None:
    """The branch that is not taken is not even looked at."""
    then = graph([N("MatMul", ["x", "W"], ["a"])], [], [info("a", None)])
    other = graph([N("Det", ["x"], ["d"]), N("Neg", ["x"], ["b"])], [], [info("b", None)])
    first, second = (then, other) if condition else (other, then)
    main = graph(
        [N("If", ["c"], ["y"], then_branch=first, else_branch=second)],
        [info("x", (3, 3))],
        [info("y", None)],
        W=W,
        c=np.array(condition),
    )
    compared(model(main))


def test_an_if_on_a_shape() -> None:
    """As exporters write squeeze: the condition is computed of a shape, the branches read the value around them."""
    then = graph([N("Squeeze", ["x", "axis"], ["a"])], [], [info("a", None)])
    other = graph([N("Identity", ["x"], ["b"])], [], [info("b", None)])
    nodes = [
        N("Shape", ["x"], ["shape"]),
        N("Gather", ["shape", "zero"], ["size"]),
        N("Equal", ["size", "one"], ["c"]),
        N("If", ["c"], ["y"], then_branch=then, else_branch=other),
    ]
    constants = {"axis": np.array([0]), "zero": np.int64(0), "one": np.int64(1)}
    assert compared(
        model(graph(nodes, [info("x", (1, 4))], [info("y", None)], **constants))
    ).output_shapes == ((4,),)


def test_integers_that_depend_on_the_input_do_not_enter_unnoticed() -> None:
    """A body would take 7 / 2 of them for 3.5."""
    step = [N("Div", ["whole", "two"], ["half"]), N("Cast", ["half"], ["number"], to=FLOAT),
            N("Add", ["s", "number"], ["s_next"]), N("Neg", ["s"], ["e"])]  # fmt: skip
    body = graph(
        [*step, N("Identity", ["go"], ["on"])],
        [info("i", (), INT), info("go", (), BOOL), info("s", (3,))],
        [info("on", (), BOOL), info("s_next", (3,)), info("e", None)],
        two=np.int64(2),
    )
    nodes = [N("Cast", ["x"], ["whole"], to=INT), N("Loop", ["M", "", "x"], ["last", "all"], body=body)]
    with pytest.raises(UnsupportedError, match="integers that depend on the network's input"):
        load(model(graph(nodes, [info("x", (3,))], [info("last", None), info("all", None)], M=np.int64(2))))


def test_what_is_refused_inside_is_listed_by_its_place() -> None:
    with pytest.raises(UnsupportedError) as caught:
        load(loop([*STEP[:2], N("Det", ["x"], ["e"], name="odd"), N("Identity", ["go"], ["on"])]))
    assert [node.name for node in caught.value.nodes] == ["loop/odd", "loop"]


def test_conditions_that_depend_on_the_input() -> None:
    greater = [N("ReduceSum", ["s"], ["sum"], keepdims=0), N("Greater", ["sum", "zero"], ["on"])]
    with pytest.raises(UnsupportedError, match="condition for another round must be a constant"):
        load(loop([*STEP, *greater], zero=np.float32(0)))
    then = graph([N("Neg", ["x"], ["a"])], [], [info("a", None)])
    other = graph([N("Abs", ["x"], ["b"])], [], [info("b", None)])
    nodes = [N("Greater", ["x", "zero"], ["c"]), N("If", ["c"], ["y"], then_branch=then, else_branch=other)]
    with pytest.raises(UnsupportedError, match="the condition must be a constant"):
        load(model(graph(nodes, [info("x", (1,))], [info("y", None)], zero=np.float32(0))))


def test_infinite_weights_inside_a_body() -> None:
    nodes = [N("MatMul", ["s", "V"], ["ws"]), *STEP[1:], N("Identity", ["go"], ["on"])]
    with pytest.raises(ModelError, match="infinite weights"):
        load(loop(nodes, V=np.full((3, 3), np.inf, np.float32)))
