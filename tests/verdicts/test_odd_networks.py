"""Networks that random ones found: outputs that depend on nothing, or only through comparisons, and windows in gaps."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

import verifier
from verifier import Box, Options, Property, Status, Y
from verifier.errors import VerifierError
from verifier.graph import Builder
from verifier.graph.op import Constant

N = helper.make_node


def model(nodes: list, shape: list[int], output: list[int], **constants: np.ndarray) -> bytes:
    """From x to y."""
    stored = [numpy_helper.from_array(np.asarray(a), n) for n, a in constants.items()]
    ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in (("x", shape), ("y", output))]
    graph = helper.make_graph(nodes, "graph", ends[:1], ends[1:], stored)
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return made.SerializeToString()


ONE = np.ones(1, np.float32)
ODD = {
    "constant": (
        [N("ArgMax", ["x"], ["i"], axis=2), N("Cast", ["i"], ["f"], to=1), N("Add", ["f", "one"], ["y"])],
        [1, 3, 1],
        [1, 3, 1],
    ),
    "compared": (
        [N("Greater", ["x", "one"], ["b"]), N("Cast", ["b"], ["f"], to=1), N("Add", ["f", "one"], ["y"])],
        [1, 3],
        [1, 3],
    ),
    "equal": (
        [N("Equal", ["x", "one"], ["b"]), N("Cast", ["b"], ["f"], to=1), N("Add", ["f", "one"], ["y"])],
        [1, 3],
        [1, 3],
    ),
}


@pytest.mark.parametrize("name", ODD)
def test_outputs_without_gradients_are_decided(name: str) -> None:
    nodes, shape, output = ODD[name]
    data = model(nodes, shape, output, one=ONE)
    box = Box(torch.zeros(shape), torch.full(shape, 2.0))
    for most, wanted in ((2.5, Status.UNSAT), (0.5, Status.SAT)):
        found = verifier.verify(data, Property(box, ensures=Y[0] < most), options=Options(timeout=10))
        assert found.status is wanted


def test_constant_outputs_are_decided_without_an_attack() -> None:
    nodes, shape, output = ODD["constant"]
    data = model(nodes, shape, output, one=ONE)
    box = Box(torch.zeros(shape), torch.full(shape, 2.0))
    wanted = ((Y[0] < 0.5) | (Y[1] > 3)) & (Y[2] < 2.5)
    found = verifier.verify(data, Property(box, ensures=wanted), options=Options(timeout=10, attack=False))
    assert found.status is Status.SAT


def test_a_constant_that_a_cast_changes_is_in_its_interval() -> None:
    value = torch.tensor([-0.1211642745810737, 1.7270940814505398, 0.5, 1e300], dtype=torch.float64)
    found = Constant(value).to(torch.float32).interval()
    assert (found.lower[0].double() <= value).all() and (value <= found.upper[0].double()).all()
    assert float(found.lower[0, 2]) == float(found.upper[0, 2]) == 0.5


@pytest.mark.parametrize("method", ["interval", "forward", "crown", "alpha-crown"])
def test_bounds_hold_folded_constants(method) -> None:
    """A sigmoid of weights is no float32."""
    weight = np.asarray([[0.3, -1.7]], np.float32)
    nodes = [N("Sigmoid", ["w"], ["s"]), N("Mul", ["x", "zero"], ["o"]), N("Max", ["o", "s"], ["y"])]
    data = model(nodes, [1, 2], [1, 2], w=weight, zero=0 * ONE)
    bounds = verifier.compute_bounds(data, Box(-torch.ones(1, 2), torch.ones(1, 2)), method).outputs[0]
    value = torch.from_numpy(weight).double().sigmoid()
    assert (bounds.lower.double() <= value).all() and (value <= bounds.upper.double()).all()


@pytest.mark.parametrize("kernel", [1, 2, 3])
@pytest.mark.parametrize("stride", [2, 3])
@pytest.mark.parametrize("last", [1, 2])
def test_windows_between_the_taps_of_transposed_convolutions(kernel: int, stride: int, last: int) -> None:
    """Where a kernel is smaller than the stride, some elements of the large map come from nowhere."""
    torch.manual_seed(kernel)
    module = torch.nn.Sequential(
        torch.nn.ConvTranspose2d(2, 2, kernel, stride, output_padding=stride - 1),
        torch.nn.Tanh(),
        torch.nn.ConvTranspose2d(2, 2, last, stride),
        torch.nn.Conv2d(2, 1, last, stride),
        torch.nn.ReLU(),
        torch.nn.Conv2d(1, 2, 1),
    )
    box = Box.around(torch.zeros(1, 2, 2, 3), 0.5)
    bounds = verifier.compute_bounds(verifier.trace(module, torch.zeros(1, 2, 2, 3)), box, "crown").outputs[0]
    with torch.no_grad():
        values = module(torch.rand(500, 2, 2, 3) - 0.5)
    assert (values >= bounds.lower - 1e-5).all() and (values <= bounds.upper + 1e-5).all()


def test_a_doubt_survives_in_graphs() -> None:
    builder = Builder()
    graph = builder.graph(builder.constant(torch.tensor([0.1], dtype=torch.float64)))
    op = graph.to(torch.float32).to(torch.float64).nodes[graph.outputs[0]].op
    low, high = op.interval()
    assert float(low) < 0.1 < float(high)


@pytest.mark.parametrize("ends", [("nan", 1.0), (1.0, 0.0), ("-inf", 1.0), (0.0, "inf")])
def test_boxes_that_are_none_are_errors(ends) -> None:
    data = model([N("Relu", ["x"], ["y"])], [1, 2], [1, 2])
    box = Box(*[torch.full((1, 2), float(end)) for end in ends])
    with pytest.raises(VerifierError, match="finite ends"):
        verifier.compute_bounds(data, box)


def test_integer_boxes_are_errors() -> None:
    data = model([N("Relu", ["x"], ["y"])], [1, 2], [1, 2])
    with pytest.raises(VerifierError, match="convert them to floats"):
        verifier.compute_bounds(data, Box(torch.zeros(1, 2).int(), torch.ones(1, 2).int()))
