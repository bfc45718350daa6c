"""The command line that the VNN-LIB 2.0 standard asks for."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

import verifier.api  # noqa: F401  (loaded here once, and not in every forked worker)
from verifier.specs.load import parse_query
from verifier.specs.witness import read_witness

QUERY = """(vnnlib-version <2.0>)
(declare-network f
  (declare-input A float32 [1,2]) (declare-hidden H float32 [1,2] "act") (declare-output Y float32 [1,2]))
(declare-network g (equal-to f) (declare-input C float32 [1,2]) (declare-output Z float32 [1,2]))
(assert (and (>= A[0,0] 0.5) (<= A[0,0] 1.0) (>= A[0,1] -1.0) (<= A[0,1] -0.5)))
(assert (and (== C[0,0] A[0,0]) (>= C[0,1] -1.0) (<= C[0,1] 0.25) (!= C[0,1] 0.0)))
"""


@pytest.fixture(scope="module")
def net(tmp_path_factory: pytest.TempPathFactory) -> str:
    """y = relu(x)."""
    x, y = (onnx.helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, (1, 2)) for n in "xy")
    graph = onnx.helper.make_graph([onnx.helper.make_node("Relu", ["x"], ["y"], name="act")], "net", [x], [y])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)
    path = tmp_path_factory.mktemp("standard") / "net.onnx"
    onnx.save(model, path)
    return str(path)


@pytest.mark.parametrize(
    ("capability", "lines"),
    [
        ("--onnx-opset-versions", ["9", "23"]),
        ("--onnx-element-types", ["real"]),
        ("--vnnlib-versions", ["2.0", "2.0"]),
        ("--hidden-node-theories", ["NH", "H"]),
        ("--multiple-input-output-theories", ["SIO", "MIO"]),
        ("--multiple-inputs-output-theories", ["SIO", "MIO"]),
        ("--multiple-network-theories", ["SNET", "MENET", "MINET", "MNET"]),
        ("--multiple-node-comparison-theories", ["SNC", "MNC"]),
        ("--arithmetic-complexity-theories", ["BND", "OUTC", "LIN", "POLY"]),
        ("--optimised-disjunctive-reasoning", ["true"]),
        ("--serialise-assignments", ["true"]),
        ("--unsat-proofs", ["false"]),
        ("--onnx-operators-unsat-proofs", []),
    ],
)
def test_capabilities(run, capability, lines):
    ran = run("supports", capability)
    assert (ran.code, ran.out.splitlines()) == (0, lines)


def test_operators_are_named_and_what_is_no_capability_is_refused(run):
    assert {"Conv", "Relu", "Gemm", "Softmax"} <= set(run("supports", "--onnx-operators").out.splitlines())
    ran = run("supports", "--colour")
    assert (ran.code, ran.out) == (2, "") and "--unsat-proofs" in ran.err


def test_an_assignment_as_text_and_as_tensors(run, net, tmp_path):
    pytest.importorskip("vnnlib", reason="VNN-LIB 2.0 needs the vnnlib package")
    path, folder = tmp_path / "q.vnnlib", tmp_path / "deep" / "out"
    path.write_text(QUERY + "(assert (and (> Z[0,1] Y[0,1]) (>= (* H[0,0] C[0,0]) 0.5)))")
    given = ("verify", path, "--network", f"f={net}", "--timeout", 30)
    ran = run(*given)
    assert ran.code == 0 and ran.out.startswith("sat\nA float32 [1,2]\n")
    query = parse_query(path.read_text())
    values = read_witness(query, ran.out)
    assert list(values) == ["A", "H", "Y", "C", "Z"]
    np.testing.assert_array_equal(values["Z"], np.maximum(values["C"], 0))

    ran = run(*given, "--serialise-assignments", folder)
    assert (ran.code, ran.out) == (0, "sat\n")
    files = {file.stem: onnx.TensorProto.FromString(file.read_bytes()) for file in folder.iterdir()}
    assert set(files) == set(values)
    for name, tensor in files.items():
        array = onnx.numpy_helper.to_array(tensor)
        assert array.dtype == np.float32
        np.testing.assert_array_equal(array, values[name])

    ran = run(*given, "--network", f"h={net}")
    assert (ran.code, ran.out) == (2, "") and "declares no network 'h', only f, g" in ran.err
    path.write_text(QUERY + "(assert (> Y[0,1] (+ Z[0,1] 0.1)))")
    assert run(*given).out == "unsat\n"


def test_tensors_are_of_version_2(run, files, tmp_path):
    ran = run("verify", *files, "--serialise-assignments", tmp_path / "out")
    assert (ran.code, ran.out) == (2, "") and "VNN-LIB 2.0" in ran.err
