"""Loading models: files, shapes, folding, refusals and their texts, the comparison with onnxruntime."""

from __future__ import annotations

import contextlib
import dataclasses
import gzip
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from verifier.errors import ModelError, UnsupportedError
from verifier.frontends.onnx import load
from verifier.frontends.replay import check, run, session
from verifier.graph import Graph
from verifier.ops.linear import Linear


def build(nodes, inputs, outputs=("y",), constants=None, opset=17, **dimensions) -> bytes:
    """A model of float values; `inputs` maps names to shapes whose entries may be None or strings."""
    infos = [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in inputs.items()]
    results = [helper.make_tensor_value_info(n, TensorProto.FLOAT, None) for n in outputs]
    stored = [numpy_helper.from_array(np.asarray(v), k) for k, v in (constants or {}).items()]
    graph = helper.make_graph(nodes, "test", infos, results, initializer=stored)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    return model.SerializeToString()


def kinds(graph: Graph) -> str:
    return " ".join(type(n.op).__name__ for n in graph.nodes)


W = np.arange(12, dtype=np.float32).reshape(3, 4) / 10
MLP = build(
    [
        helper.make_node("Sub", ["x", "mean"], ["a"], name="sub"),
        helper.make_node("Flatten", ["a"], ["b"], name="flatten"),
        helper.make_node("MatMul", ["b", "w"], ["c"], name="matmul"),
        helper.make_node("Add", ["c", "bias"], ["d"], name="add"),
        helper.make_node("Relu", ["d"], ["e"], name="relu"),
        helper.make_node("MatMul", ["e", "v"], ["y"], name="last"),
    ],
    {"x": ("batch", 1, 1, 3)},
    constants={"mean": np.float32([1, 2, 3]), "w": W, "bias": np.float32([1, 2, 3, 4]), "v": W.T.copy()},
    opset=8,
)


def test_mlp_becomes_linear_and_relu() -> None:
    model = load(MLP)
    assert kinds(model.graph) == "Input Reshape Linear Relu Linear"
    assert model.inputs == ("x",) and model.outputs == ("y",)
    assert model.input_shapes == ((1, 1, 1, 3),) and model.output_shapes == ((1, 3),)
    assert model.input_dtypes == (np.dtype(np.float32),) == model.output_dtypes
    assert model.opset == 8
    check(model)


def test_weights_are_float64_and_exact() -> None:
    graph = load(
        build([helper.make_node("MatMul", ["x", "w"], ["y"])], {"x": (1, 3)}, constants={"w": W})
    ).graph
    (linear,) = [n.op for n in graph.nodes if isinstance(n.op, Linear)]
    assert linear.weight.dtype == torch.float64
    assert np.array_equal(linear.weight.numpy(), W.T.astype(np.float64))


def test_gzip_and_paths(tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_bytes(MLP)
    (tmp_path / "m.onnx.gz").write_bytes(gzip.compress(MLP))
    for model in (load(tmp_path / "m.onnx"), load(str(tmp_path / "m.onnx.gz")), load(gzip.compress(MLP))):
        assert model.data == MLP


def test_the_packed_file_is_found_beside_a_missing_one_and_the_other_way_round(tmp_path: Path) -> None:
    (tmp_path / "packed.onnx.gz").write_bytes(gzip.compress(MLP))
    (tmp_path / "plain.onnx").write_bytes(MLP)
    for name in ("packed.onnx", "packed.onnx.gz", "plain.onnx", "plain.onnx.gz"):
        assert load(tmp_path / name).data == load(str(tmp_path / name)).data == MLP
    with pytest.raises(ModelError, match=r"There is no model file at .*none\.onnx"):
        load(tmp_path / "none.onnx")


def test_run_replays_points_one_by_one() -> None:
    model = load(MLP)
    x = np.random.default_rng(0).random((5, 1, 1, 1, 3))
    (y,) = run(model, [x])
    assert y.shape == (5, 1, 3) and y.dtype == np.float32
    alone = session(model).run(None, {"x": x[3].astype(np.float32)})[0]
    assert np.array_equal(y[3], alone)
    assert session(model) is session(model)


def test_kept_values_survive_the_fusions() -> None:
    model = load(MLP, keep=("matmul", "e", "y"))
    x = torch.tensor([[[[[1.0, 3.0, 2.0]]]]], dtype=torch.float64)
    positions = [model.kept[name] for name in ("matmul", "e", "y")]
    product, hidden, out = model.graph.evaluate([x], keep=positions)
    expected = (x.flatten() - torch.tensor([1.0, 2, 3])) @ torch.from_numpy(W).double()
    torch.testing.assert_close(product.flatten(), expected)
    torch.testing.assert_close(hidden.flatten(), (expected + torch.tensor([1.0, 2, 3, 4])).clamp(min=0))
    assert model.graph.outputs == (positions[2],) and out.shape == (1, 1, 3)
    check(model)
    with pytest.raises(
        ModelError, match=r"The node 'matmal' of the model .* does not exist. Names like it: matmul"
    ):
        load(MLP, keep=["matmal"])
    with pytest.raises(ModelError, match=r"The node 'w' of the model .* is constant"):
        load(MLP, keep=["w"])


def test_double_precision() -> None:
    """A double model runs in double everywhere; casts between the two precisions change nothing."""
    nodes = [
        helper.make_node("Cast", ["x"], ["f"], to=TensorProto.FLOAT),
        helper.make_node("Cast", ["f"], ["d"], to=TensorProto.DOUBLE),
        helper.make_node("MatMul", ["d", "w"], ["y"]),
    ]
    info = helper.make_tensor_value_info("x", TensorProto.DOUBLE, (1, 3))
    out = helper.make_tensor_value_info("y", TensorProto.DOUBLE, None)
    weight = numpy_helper.from_array(W.astype(np.float64), "w")
    graph = helper.make_graph(nodes, "g", [info], [out], initializer=[weight])
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    model = load(proto.SerializeToString())
    assert model.input_dtypes == (np.dtype(np.float64),) == model.output_dtypes
    assert kinds(model.graph) == "Input Linear"
    check(model)


def test_several_inputs_and_outputs() -> None:
    nodes = [helper.make_node("Add", ["a", "b"], ["s"]), helper.make_node("Relu", ["s"], ["r"])]
    model = load(build(nodes, {"a": (1, 2), "b": (1, 2)}, outputs=("r", "s")))
    check(model)
    r, s = model.graph.evaluate([torch.tensor([[[1.0, -3.0]]]), torch.tensor([[[1.0, 1.0]]])])
    assert r.tolist() == [[[2, 0]]] and s.tolist() == [[[2, -2]]]


def test_shapes_computed_from_a_dynamic_batch() -> None:
    """The way exporters flatten: Shape, Gather, Unsqueeze, Concat, Reshape; nothing of it stays in the graph."""
    nodes = [
        helper.make_node("Shape", ["x"], ["shape"]),
        helper.make_node("Constant", [], ["zero"], value_int=0),
        helper.make_node("Gather", ["shape", "zero"], ["n"], axis=0),
        helper.make_node("Unsqueeze", ["n", "axis"], ["n1"]),
        helper.make_node("Concat", ["n1", "rest"], ["target"], axis=0),
        helper.make_node("Reshape", ["x", "target"], ["flat"]),
        helper.make_node("Cast", ["n"], ["nf"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["flat", "nf"], ["scaled"]),
        helper.make_node("Relu", ["scaled"], ["y"]),
    ]
    constants = {"axis": np.int64([0]), "rest": np.int64([-1])}
    model = load(build(nodes, {"x": ("n", 2, 3)}, constants=constants))
    assert kinds(model.graph) == "Input Reshape Relu"
    assert model.output_shapes == ((1, 6),)
    check(model)


def test_constants_by_the_reference_implementation() -> None:
    nodes = [
        helper.make_node("Range", ["start", "limit", "delta"], ["r"]),
        helper.make_node("Sin", ["r"], ["s"]),
        helper.make_node("NonZero", ["r"], ["z"]),
        helper.make_node("Gather", ["x", "z"], ["h"], axis=1),
        helper.make_node("Reshape", ["h", "three"], ["g"]),
        helper.make_node("Slice", ["s", "one", "four"], ["tail"]),
        helper.make_node("Mul", ["g", "tail"], ["y"]),
    ]
    constants = {"start": np.float32(0), "limit": np.float32(4), "delta": np.float32(1)}
    constants |= {"three": np.int64([1, 3]), "one": np.int64([1]), "four": np.int64([4])}
    model = load(build(nodes, {"x": (1, 4)}, constants=constants))
    check(model)


def test_loading_an_mlp_imports_neither_the_reference_nor_onnxruntime() -> None:
    code = (
        "import sys; from verifier.frontends.onnx import load; load(bytes.fromhex(sys.stdin.read()));"
        "bad = {'onnx.reference', 'onnxruntime', 'torch._dynamo', 'sympy', 'scipy'} & set(sys.modules); "
        "sys.exit(str(bad) if bad else 0)"
    )
    subprocess.run([sys.executable, "-c", code], input=MLP.hex(), text=True, check=True, timeout=60)


def test_all_unsupported_nodes_at_once() -> None:
    """Also those behind a refused node, as long as shapes are known; descendants without a shape are left out."""
    nodes = [
        helper.make_node("Det", ["x"], ["a"], name="first"),
        helper.make_node("Unsqueeze", ["a", "axis"], ["b"], name="fine"),
        helper.make_node("Pow", ["b", "b"], ["c"], name="power"),
        helper.make_node("Frobnicate", ["c"], ["d"], name="odd", domain="com.example"),
        helper.make_node("Relu", ["d"], ["e"], name="unseen"),
        helper.make_node("Cast", ["x"], ["f"], name="cast", to=TensorProto.UINT8),
        helper.make_node("Conv", ["x4", "x4"], ["g"]),
        helper.make_node("Identity", ["e"], ["y"]),
    ]
    data = build(nodes, {"x": (1, 3, 3), "x4": (1, 1, 3, 3)}, constants={"axis": np.int64([0])})
    with pytest.raises(UnsupportedError) as caught:
        load(data)
    assert [(n.name, n.operator, n.opset) for n in caught.value.nodes] == [
        ("first", "Det", 17),
        ("power", "Pow", 17),
        ("odd", "com.example.Frobnicate", 0),
        ("cast", "Cast", 17),
        ("Conv_6", "Conv", 17),
    ]
    assert str(caught.value).splitlines()[:6] == [
        "5 nodes of the network are not supported:",
        "  first: Det (opset 17): the operator is not known",
        "  power: Pow (opset 17): a variable base with a variable exponent",
        "  odd: com.example.Frobnicate (opset 0): operators of the domain com.example are not known",
        "  cast: Cast (opset 17): a cast to UINT8 of a value that depends on the network's input",
        "  Conv_6: Conv (opset 17): input 1 (weight) must be a constant, but depends on the network's input",
    ]


RELU = [helper.make_node("Relu", ["x"], ["y"], name="relu")]


def _weights(w: np.ndarray) -> bytes:
    return build(
        [helper.make_node("MatMul", ["x", "w"], ["y"], name="mm")], {"x": (1, 2)}, constants={"w": w}
    )


def _int_input() -> bytes:
    info = helper.make_tensor_value_info("ids", TensorProto.INT64, (1, 3))
    out = helper.make_tensor_value_info("y", TensorProto.INT64, None)
    graph = helper.make_graph([helper.make_node("Neg", ["ids"], ["y"])], "g", [info], [out])
    return helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8
    ).SerializeToString()


BAD = {
    "empty": (b"", "The model given as bytes is empty (0 bytes); fetch or export it again."),
    "text": (b"hello, a text", "given as bytes is not an ONNX model, or it is damaged; fetch or export it again."),
    "cut": (MLP[: len(MLP) // 2], "given as bytes is not an ONNX model, or it is damaged; fetch or export it again."),
    "gzip": (
        gzip.compress(MLP)[:60],
        "The gzip file given as bytes is damaged (Compressed file ended before the end-of-stream marker was reached); "
        "fetch or compress it again.",
    ),
    "nan": (
        _weights(np.float32([[1], [np.nan]])),
        "The constant 'w' of the model given as bytes holds NaN; nothing can be proved about it.",
    ),
    "infinite": (
        _weights(np.float32([[1], [np.inf]])),
        "Node 'mm' of the model given as bytes has infinite weights; nothing can be proved about such a network.",
    ),
    "shape": (
        _weights(np.float32([[1], [2], [3]])),
        "Node 'mm' (MatMul) of the model given as bytes does not fit its inputs: A matrix with 3 columns cannot "
        "multiply a value of shape (1, 2). The model is inconsistent; export it again.",
    ),
    "no input": (
        build([helper.make_node("Identity", ["w"], ["y"])], {}, constants={"w": W}),
        "The model given as bytes has no inputs, so there is nothing to verify.",
    ),
    "no output": (
        build([helper.make_node("Relu", ["x"], ["z"])], {"x": (1, 2)}),
        "No node of the model given as bytes computes its output 'y'.",
    ),
    "dangling": (
        build([helper.make_node("Add", ["x", "nowhere"], ["y"], name="add")], {"x": (1, 2)}),
        "Node 'add' (Add) of the model given as bytes reads 'nowhere', which nothing before it computes. The model is "
        "damaged; export it again.",
    ),
    "dynamic": (
        build(RELU, {"x": (None, 3, "height", None)}),
        "The input 'x' of the model given as bytes has unknown dimensions besides the batch: 2 (height), 3 (no name). "
        "Export the model with fixed sizes.",
    ),
    "integers": (
        _int_input(),
        "The input 'ids' of the model given as bytes has type INT64; only FLOAT and DOUBLE inputs can be verified.",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_bad_models(name: str) -> None:
    data, message = BAD[name]
    with pytest.raises(ModelError) as caught:
        load(data)
    assert str(caught.value) == message


def test_missing_file_and_folder(tmp_path: Path) -> None:
    with pytest.raises(ModelError) as caught:
        load(tmp_path / "nothing.onnx")
    assert str(caught.value) == f"There is no model file at {tmp_path / 'nothing.onnx'}; check the path."
    with pytest.raises(ModelError, match="cannot be read: Is a directory"):
        load(tmp_path)


def test_mutated_models_raise_only_model_errors() -> None:
    """Random bytes changed anywhere: every outcome is a graph or a ModelError, never another exception."""
    random = np.random.default_rng(0)
    outcomes = {"loaded": 0, "refused": 0}
    for _ in range(150):
        data = bytearray(MLP)
        for position in random.integers(0, len(data), size=random.integers(1, 4)):
            data[position] = random.integers(0, 256)
        try:
            load(bytes(data))
            outcomes["loaded"] += 1
        except ModelError:
            outcomes["refused"] += 1
    assert min(outcomes.values()) > 0


def test_check_names_the_first_differing_node(monkeypatch: pytest.MonkeyPatch) -> None:
    """A converter that is 1 % off is found, and the message names the node it converted."""
    from verifier.graph import registry
    from verifier.ops.arithmetic import scale_shift
    from verifier.ops.piecewise_linear import relu

    def wrong(builder, node):
        return scale_shift(builder, relu(builder, node.required(0)), scale=1.01)

    monkeypatch.setitem(registry._registry.onnx, "Relu", wrong)
    with pytest.raises(ModelError, match=r"first at node 'relu' \(Relu\), value 'e'"):
        check(load(MLP))


def test_check_notices_a_wrong_fusion() -> None:
    model = load(MLP)
    nodes = [
        dataclasses.replace(n, op=Linear(n.op.weight * 1.01, n.op.bias)) if isinstance(n.op, Linear) else n
        for n in model.graph.nodes
    ]
    broken = dataclasses.replace(model, graph=dataclasses.replace(model.graph, nodes=tuple(nodes)))
    with pytest.raises(ModelError, match="a fusion after the import is wrong"):
        check(broken)


def test_local_functions_are_inlined() -> None:
    body = [helper.make_node("Relu", ["a"], ["t"]), helper.make_node("Add", ["t", "a"], ["b"])]
    function = helper.make_function("test", "Twice", ["a"], ["b"], body, [helper.make_opsetid("", 17)])
    proto = onnx.ModelProto()
    proto.ParseFromString(build([helper.make_node("Twice", ["x"], ["y"], domain="test")], {"x": (1, 3)}))
    proto.functions.append(function)
    proto.opset_import.append(helper.make_opsetid("test", 1))
    model = load(proto.SerializeToString())
    assert kinds(model.graph) == "Input Relu Add"
    check(model)


@pytest.mark.full
def test_dev_models(shared: Path) -> None:
    """Every real model loads and agrees with onnxruntime, or is refused, in seconds."""
    files = sorted((shared / "vnncomp-dev").rglob("*.onnx*"))
    assert files
    for file in files:
        start = time.monotonic()
        with contextlib.suppress(UnsupportedError):
            check(load(file))
        assert time.monotonic() - start < 10, file
