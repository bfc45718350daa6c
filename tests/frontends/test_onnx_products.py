"""Models of products, quotients, norms and attention: against onnxruntime, and their bounds against sampled points."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch
from onnx import NodeProto, TensorProto, helper, numpy_helper

from verifier.bounds.compute import compute_bounds
from verifier.frontends.onnx import OnnxModel, load
from verifier.frontends.replay import check, run
from verifier.options import BoundMethod
from verifier.sets import Box
from verifier.transforms.composites import write_out
from verifier.transforms.fold import fold
from verifier.transforms.gates import join_gates

RANDOM = np.random.default_rng(0)


def normal(*shape: int) -> np.ndarray:
    return RANDOM.standard_normal(shape).astype(np.float32)


def node(op: str, inputs: str, output: str = "y", **attributes: Any) -> NodeProto:
    names = ["" if name == "_" else name for name in inputs.split()]
    return helper.make_node(op, names, output.split(), name=f"{op}_{output.split()[0]}", **attributes)


@dataclass(frozen=True, eq=False)
class Case:
    """A model of the inputs x and, where `second` has a shape, z; its result is y."""

    name: str
    nodes: list[NodeProto]
    shape: tuple[int, ...] = (2, 3)
    second: tuple[int, ...] = ()
    constants: dict[str, np.ndarray] = field(default_factory=dict)
    opset: int = 17

    def model(self) -> OnnxModel:
        shapes = {"x": self.shape, **({"z": self.second} if self.second else {})}
        inputs = [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in shapes.items()]
        output = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
        stored = [numpy_helper.from_array(v, k) for k, v in self.constants.items()]
        graph = helper.make_graph(self.nodes, "g", inputs, [output], initializer=stored)
        opset = [helper.make_opsetid("", self.opset)]
        return load(
            helper.make_model(
                graph, opset_imports=opset, ir_version=8 if self.opset < 20 else 10
            ).SerializeToString()
        )


MASK = np.where(np.tril(np.ones((3, 4)), 1) > 0, normal(3, 4), -np.inf).astype(np.float32)
FAR = np.maximum(MASK, -1e9).astype(np.float32)
AFFINE = {"s": normal(3), "b": normal(3)}
POSITIVE = node("Exp", "z", "e")
CASES = [
    Case("quotient", [POSITIVE, node("Div", "x e")], second=(2, 3)),
    Case("quotient broadcast", [POSITIVE, node("Div", "x e")], second=(2, 1)),
    Case(
        "constant over variable", [POSITIVE, node("Div", "c e")], second=(3,), constants={"c": normal(2, 3)}
    ),
    Case("gated", [node("Exp", "x", "e"), node("Mul", "z e")], second=(2, 3)),
    Case("gated twice", [node("Exp", "x", "e"), node("Relu", "z", "r"), node("Mul", "e r")], second=(2, 3)),
    Case("square", [node("Mul", "x x")]),
    *[
        Case(f"LogSoftmax {o} {a}", [node("LogSoftmax", "x", axis=a)], opset=o)
        for o, a in ((11, 1), (13, 0), (17, -1))
    ],
    *[
        Case(f"{op} {keep}", [node(op, "x", axes=[1], keepdims=keep)])
        for op in ("ReduceLogSumExp", "ReduceL1", "ReduceL2", "ReduceSumSquare", "ReduceProd")
        for keep in (0, 1)
    ],
    Case("ReduceLogSum", [node("Exp", "x", "e"), node("ReduceLogSum", "e")]),
    Case(
        "ReduceProd all", [node("ReduceProd", "x a", keepdims=0)], opset=18, constants={"a": np.array([0, 1])}
    ),
    Case("LayerNormalization", [node("LayerNormalization", "x s b")], constants=AFFINE),
    Case(
        "LayerNormalization 0", [node("LayerNormalization", "x s b", axis=0, epsilon=0.1)], constants=AFFINE
    ),
    Case("RMSNormalization", [node("RMSNormalization", "x s")], opset=23, constants=AFFINE),
    Case("InstanceNormalization", [node("InstanceNormalization", "x s b")], (1, 3, 4), constants=AFFINE),
    Case(
        "GroupNormalization",
        [node("GroupNormalization", "x s b", num_groups=2)],
        (1, 4, 2, 2),
        constants={"s": normal(4), "b": normal(4)},
        opset=21,
    ),
    Case("MeanVarianceNormalization", [node("MeanVarianceNormalization", "x", axes=[1])]),
    *[Case(f"LpNormalization {p}", [node("LpNormalization", "x", p=p, axis=1)]) for p in (1, 2)],
    Case("Where", [node("Less", "x z", "c"), node("Where", "c x z")], second=(2, 3)),
    Case("Where constant", [node("Less", "x n", "c"), node("Where", "c x n")], constants={"n": normal(3)}),
    *[
        Case(f"Hardmax {o} {a}", [node("Hardmax", "x", axis=a)], opset=o)
        for o, a in ((11, 1), (13, 0), (17, -1))
    ],
    *[
        Case(
            f"TopK {largest} {axis}",
            [node("TopK", "x k", "y i", largest=largest, axis=axis)],
            shape=(4, 3),
            constants={"k": np.array([2])},
        )
        for largest, axis in ((1, 0), (0, 1))
    ],
    Case(
        "quadratic",
        [
            node("MatMul", "x w", "a"),
            node("MatMul", "x v", "b"),
            node("Mul", "a b", "p"),
            node("Mul", "x x", "q"),
            node("Add", "p q"),
        ],
        constants={"w": normal(3, 3), "v": normal(3, 3)},
    ),
    Case(
        "attention",
        [
            node("MatMul", "x q", "a"),
            node("MatMul", "x k", "b"),
            node("MatMul", "x v", "w"),
            node("Transpose", "b", "t", perm=[0, 2, 1]),
            node("MatMul", "a t", "s"),
            node("Softmax", "s", "p"),
            node("MatMul", "p w"),
        ],
        shape=(1, 3, 2),
        constants={"q": normal(2, 2), "k": normal(2, 2), "v": normal(2, 2)},
    ),
    Case("masked softmax", [node("Add", "x m", "s"), node("Softmax", "s")], (3, 4), constants={"m": MASK}),
    Case("far masked softmax", [node("Add", "x m", "s"), node("Softmax", "s")], (3, 4), constants={"m": FAR}),
    Case(
        "masked by Where",
        [node("Where", "c x m", "s"), node("Softmax", "s", axis=1)],
        (3, 4),
        constants={"c": np.isfinite(MASK), "m": np.array(-np.inf, np.float32)},
    ),
    *[
        Case(
            f"Attention {causal} {heads}",
            [node("Attention", "x x z", is_causal=causal, q_num_heads=heads[0], kv_num_heads=heads[1])],
            shape=(1, 3, 4),
            second=(1, 3, 4 // heads[0] * heads[1]),
            opset=23,
        )
        for causal in (0, 1)
        for heads in ((2, 2), (1, 1))
    ],
    Case(
        "Attention 4 dimensions",
        [node("Attention", "x z z c", is_causal=1, scale=0.3)],
        shape=(1, 2, 3, 2),
        second=(1, 1, 3, 2),
        constants={"c": np.array([[True, False, True], [True, True, False], [True, True, True]])},
        opset=23,
    ),
]
OPTIMISED = ("quotient", "gated twice", "attention", "LayerNormalization", "Where", "ReduceL2 0")
CASES = [pytest.param(case, id=case.name) for case in CASES]


@pytest.mark.parametrize("case", CASES)
def test_agrees_with_onnxruntime(case: Case) -> None:
    model = case.model()
    random = np.random.default_rng(1)
    inputs = [random.standard_normal((3, *s)).astype(np.float32) for s in model.input_shapes]
    for graph in (model.graph, write_out(model.graph), join_gates(write_out(model.graph))):
        ours = graph.evaluate([torch.from_numpy(x).double() for x in inputs])
        for a, b in zip(ours, run(model, inputs), strict=True):
            np.testing.assert_allclose(a.numpy(), b, rtol=2e-5, atol=2e-5)
    check(model)


def bounds_hold(model: OnnxModel, dtype: torch.dtype, method: BoundMethod, width: float) -> float:
    """Bounds of a few boxes hold at their corners and random points; returns the mean width of the outputs."""
    graph = fold(join_gates(write_out(model.graph)))
    generator = torch.Generator().manual_seed(2)
    sets, low, high = [], [], []
    for shape in model.input_shapes:
        center = torch.randn(2, *shape, generator=generator).to(dtype)
        radius = width * torch.rand(2, *shape, generator=generator).to(dtype)
        low.append((center - radius).double())
        high.append((center + radius).double())
        sets.append(Box((center - radius), (center + radius)))
    found = compute_bounds(graph.to(dtype), sets, method).outputs[0]
    assert not any(end.isnan().any() for end in found)
    for k in range(40):
        shares = [torch.rand(t.shape, generator=generator, dtype=torch.float64) for t in low]
        shares = [t.round() if k % 2 else t for t in shares]
        point = [a + s * (b - a) for a, b, s in zip(low, high, shares, strict=True)]
        (y,) = model.graph.evaluate(point)
        slack = 1e-12 * (1 + y.abs())
        assert (y >= found.lower.double() - slack).all() and (y <= found.upper.double() + slack).all()
    return float((found.upper - found.lower).mean())


@pytest.mark.parametrize("case", CASES)
def test_bounds_hold_and_shrink_with_the_box(case: Case) -> None:
    model = case.model()
    wide = bounds_hold(model, torch.float64, "crown", 0.3)
    assert np.isfinite(wide)
    if case.name in OPTIMISED:
        assert bounds_hold(model, torch.float64, "alpha-crown", 0.3) <= wide * (1 + 1e-9)
    for method in ("interval", "crown"):
        bounds_hold(model, torch.float32, method, 0.3)
    small = bounds_hold(model, torch.float64, "crown", 0.003)
    assert small < 0.05 * wide + 1e-9
