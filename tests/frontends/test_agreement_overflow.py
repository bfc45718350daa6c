"""Models that overflow in onnxruntime at usual points are compared where they do not."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from verifier.errors import ModelError
from verifier.frontends import replay
from verifier.frontends.onnx import load

F = TensorProto.FLOAT


def gate(steep: float) -> bytes:
    """exp(log(sigmoid(steep x)) / 16): 0 in onnxruntime where the sigmoid underflows."""
    nodes = [
        helper.make_node("Mul", ["x", "steep"], ["z"]),
        helper.make_node("Sigmoid", ["z"], ["s"]),
        helper.make_node("Log", ["s"], ["l"]),
        helper.make_node("Mul", ["l", "part"], ["p"]),
        helper.make_node("Exp", ["p"], ["y"]),
    ]
    numbers = {"steep": steep, "part": 1 / 16}
    stored = [numpy_helper.from_array(np.array(v, np.float32), k) for k, v in numbers.items()]
    ends = [helper.make_tensor_value_info(n, F, (1, 40)) for n in ("x", "y")]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], initializer=stored)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return model.SerializeToString()


@pytest.mark.parametrize("steep", [1.0, 100.0])
def test_points_nearer_to_zero_are_taken(steep: float) -> None:
    model = load(gate(steep))
    points = replay.random_points(model, 4, 0)
    assert (replay.run(model, points)[0] == 0).any() == (steep > 1)
    replay.check(model)


def test_what_differs_everywhere_is_still_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    model = load(gate(100.0))
    honest = replay.run
    monkeypatch.setattr(replay, "run", lambda *a: [1.01 * y for y in honest(*a)])
    with pytest.raises(ModelError, match="disagrees"):
        replay.check(model)
