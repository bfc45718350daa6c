"""VNN-LIB 2.0 queries over hidden values and products, end to end: verdicts, replay and witness."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import verifier
from verifier import Options, Result, Status
from verifier.attack.replay import Judge
from verifier.errors import VerifierError
from verifier.frontends.onnx import load
from verifier.frontends.replay import check, run, run_inner
from verifier.specs.evaluator import satisfies
from verifier.specs.load import parse_query
from verifier.specs.witness import read_witness

pytest.importorskip("vnnlib", reason="VNN-LIB 2.0 needs the vnnlib package")

V = np.array([[1, -1], [0.5, 2], [-1, 1]], np.float32)
W = np.array([[1, 1, -2]], np.float32)


def network() -> bytes:
    """y = W relu(V x) [1, 1]; the hidden layer is the value "h", made by the node "act", before it "pre"."""
    nodes = [
        helper.make_node("Gemm", ["x", "v"], ["pre"], name="dense", transB=1),
        helper.make_node("Relu", ["pre"], ["h"], name="act"),
        helper.make_node("Gemm", ["h", "w"], ["y"], name="last", transB=1),
    ]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, (1, 2))
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, (1, 1))
    weights = [numpy_helper.from_array(V, "v"), numpy_helper.from_array(W, "w")]
    graph = helper.make_graph(nodes, "net", [x], [y], weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    return model.SerializeToString()


NET = network()
BOX = "".join(f"(assert (and (>= X[0,{i}] -1.0) (<= X[0,{i}] 1.0)))" for i in (0, 1))


def query(body: str, name: str = "act"):
    return parse_query(
        f"""(vnnlib-version <2.0>) (declare-network f (declare-input X float32 [1,2])
        (declare-hidden H float32 [1,3] "{name}") (declare-output Y float32 [1,1])) {BOX} {body}"""
    )


def solve(body: str, name: str = "act") -> Result:
    return verifier.verify(NET, query(body, name), timeout=30, options=Options(seed=0))


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("(assert (>= H[0,0] 1.5))", Status.SAT),
        ("(assert (>= H[0,0] 2.01))", Status.UNSAT),
        ("(assert (and (>= H[0,0] 0.1) (>= H[0,2] 0.1)))", Status.UNSAT),  # opposite neurons
        ("(assert (and (>= H[0,0] 0.5) (>= H[0,1] 0.5)))", Status.SAT),
        ("(assert (and (>= H[0,0] H[0,1]) (>= Y[0,0] 2.5)))", Status.UNSAT),  # y = 2.5 at (1, 1) has h0 = 0
        ("(assert (and (>= H[0,1] 1.0) (>= Y[0,0] 2.4)))", Status.SAT),
        ("(assert (>= (* H[0,0] H[0,2]) 0.5))", Status.UNSAT),
        ("(assert (>= (* H[0,0] H[0,1]) 0.1))", Status.SAT),
        ("(assert (>= (+ (* X[0,0] X[0,1] 3.0) (* -1.0 Y[0,0] Y[0,0])) 1.6))", Status.SAT),
        ("(assert (> (* X[0,0] X[0,0] X[0,0] X[0,1]) 1.01))", Status.UNSAT),
    ],
)
def test_verdicts(body: str, expected: Status) -> None:
    result = solve(body)
    assert result.status is expected, result.explanation
    if expected is Status.SAT:
        assert result.counterexample is not None
        values = read_witness(query(body), result.counterexample.assignment)
        assert satisfies(query(body), values)
        x = values["X"].astype(np.float32)[None]
        model = load(NET)
        np.testing.assert_array_equal(values["H"], run_inner(model, [x], ["h"])[0][0])
        np.testing.assert_array_equal(values["Y"], run(model, [x])[0][0])


@pytest.mark.parametrize(
    ("name", "expected"), [("act", Status.UNSAT), ("h", Status.UNSAT), ("dense", Status.SAT)]
)
def test_a_hidden_value_is_named_after_a_node_or_a_value(name: str, expected: Status) -> None:
    assert solve("(assert (<= H[0,0] -0.5))", name).status is expected


def test_unknown_names_and_wrong_sizes_say_so() -> None:
    with pytest.raises(VerifierError, match=r"'atc'.*does not exist.*Names like it: act"):
        solve("(assert (<= H[0,0] -0.5))", "atc")
    with pytest.raises(VerifierError, match="declares 3 elements for H, but the network's value 'last'"):
        solve("(assert (<= H[0,0] -0.5))", "last")


def test_equal_networks_may_expose_different_values() -> None:
    text = f"""(vnnlib-version <2.0>)
    (declare-network f (declare-input X float32 [1,2]) (declare-hidden P float32 [1,3] "pre")
      (declare-output Y float32 [1,1]))
    (declare-network g (equal-to f) (declare-input A float32 [1,2]) (declare-hidden Q float32 [1,3] "h")
      (declare-output B float32 [1,1]))
    {BOX} (assert (and (== X[0,0] A[0,0]) (== X[0,1] A[0,1])))"""
    for body, expected in (
        ("(assert (and (<= P[0,1] -0.2) (>= Q[0,1] 0.1)))", Status.UNSAT),
        ("(assert (and (<= P[0,1] -0.2) (>= Q[0,0] 0.1)))", Status.SAT),
    ):
        result = verifier.verify({"f": NET}, parse_query(text + body), timeout=30)
        assert result.status is expected


def test_the_judge_takes_hidden_values_from_onnxruntime() -> None:
    """Not from the graph that found the candidate: a point on the wrong side is refused."""
    spec = query("(assert (>= H[0,0] 1.5))")
    judge = Judge(spec, {"f": load(NET)})
    assert judge.confirm(np.array([1.0, -1.0])) is not None
    assert judge.confirm(np.array([1.0, 0.0])) is None


def test_kept_values_are_compared_with_onnxruntime() -> None:
    model = load(NET, ["act", "x"])
    check(model)
    assert list(model.kept) == ["act", "x"]
    x = np.random.default_rng(0).standard_normal((3, 1, 2)).astype(np.float32)
    hidden, same = run_inner(model, [x], ["act", "x"])
    np.testing.assert_allclose(hidden, np.maximum(x @ V.T, 0), rtol=1e-6)
    np.testing.assert_array_equal(same, x)
