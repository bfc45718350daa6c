"""Every form of every structural and affine ONNX operator against onnxruntime, and the affine facts of what it becomes.

One table row is one single-node model; `C(array)` among the inputs is a constant (an initializer), a tuple is the
shape of a variable input, None an omitted one.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from verifier.frontends.onnx import OnnxModel, intermediate, load
from verifier.frontends.replay import check, run
from verifier.graph import Affine, Interval
from verifier.graph.coefficients import Diagonal, Rows

RANDOM = np.random.default_rng(0)


def normal(*shape: int) -> np.ndarray:
    return RANDOM.standard_normal(shape).astype(np.float32)


def ints(*values: Any) -> np.ndarray:
    return np.array(
        values if len(values) != 1 or not isinstance(values[0], list) else values[0], dtype=np.int64
    )


@dataclass(frozen=True, eq=False)
class C:
    array: np.ndarray


@dataclass(frozen=True, eq=False)
class Case:
    op: str
    inputs: tuple[Any, ...]
    attributes: dict[str, Any] = field(default_factory=dict)
    opset: int = 17
    outputs: int = 1
    note: str = ""

    def __str__(self) -> str:
        shown = "-".join(f"{k}={str(v).replace(' ', '')}" for k, v in self.attributes.items() if k != "value")
        return f"{self.op}-{self.opset}-{shown}-{self.note}".replace("'", "")

    def model(self) -> bytes:
        names, variables, constants = [], [], []
        for i, x in enumerate(self.inputs):
            names.append("" if x is None else f"x{i}")
            if isinstance(x, C):
                constants.append(numpy_helper.from_array(x.array, f"x{i}"))
            elif x is not None:
                variables.append(helper.make_tensor_value_info(f"x{i}", TensorProto.FLOAT, x))
        outputs = [f"y{i}" for i in range(self.outputs)]
        node = helper.make_node(self.op, names, outputs, name="node", **self.attributes)
        return model_bytes([node], variables, outputs, constants, self.opset)


def model_bytes(nodes, variables, outputs, constants=(), opset: int = 17) -> bytes:
    results = [helper.make_tensor_value_info(o, TensorProto.FLOAT, None) for o in outputs]
    graph = helper.make_graph(list(nodes), "test", list(variables), results, initializer=list(constants))
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    return model.SerializeToString()


X = (1, 2, 5, 6)
CASES = [
    *[
        Case(op, (X, C(normal(*s))), note=str(s))
        for op in ("Add", "Sub", "Mul", "Div")
        for s in ((), (6,), (2, 1, 1), (3, 2, 5, 6))
    ],
    *[Case(op, (C(normal(2, 5, 1)), X), note="constant first") for op in ("Add", "Sub", "Mul")],
    Case("Add", (X, (5, 1)), note="two variables"),
    Case("Sub", (X, (2, 1, 6)), note="two variables"),
    Case("Mul", (X, (2, 1, 6)), note="two variables"),
    Case("Mul", ((), X), note="a scalar"),
    Case("Pow", (X, C(np.float32(2)))),
    Case("Pow", ((3,), C(ints([[2], [2]]))), note="broadcast"),
    Case("Pow", (X, C(np.float32(1))), opset=12),
    Case("Sum", (X, (1, 6), C(normal(6)))),
    Case("Mean", (X, (1, 6), C(normal(6)))),
    Case("Neg", (X,)),
    Case("Identity", (X,)),
    # Matrix products.
    Case("MatMul", ((2, 3, 4), C(normal(4, 5)))),
    Case("MatMul", ((2, 3, 4), C(normal(2, 4, 5))), note="batched"),
    Case("MatMul", ((3, 4), C(normal(2, 4, 5))), note="broadcast"),
    Case("MatMul", ((1, 3, 4), C(normal(2, 4, 5))), note="broadcast 1"),
    Case("MatMul", (C(normal(5, 3)), (2, 3, 4)), note="left"),
    Case("MatMul", (C(normal(2, 5, 3)), (3, 4)), note="left broadcast"),
    Case("MatMul", (C(normal(5, 3)), (3,)), note="left vector"),
    Case("MatMul", (C(normal(2, 5, 3)), (3,)), note="left batched vector"),
    Case("MatMul", (C(normal(3)), (3, 4)), note="constant vector left"),
    Case("MatMul", (C(normal(3)), (2, 3, 4)), note="constant vector left of batch"),
    Case("MatMul", ((4,), C(normal(4, 5))), note="vector"),
    Case("MatMul", ((3, 4), C(normal(4))), note="constant vector"),
    Case("MatMul", ((4,), C(normal(4))), note="dot product"),
    *[
        Case("MatMul", (a, b), note=f"two variables {a} {b}")
        for a, b in (
            ((2, 3, 4), (2, 4, 5)),
            ((3, 4), (2, 4, 5)),
            ((2, 1, 3, 4), (5, 4, 2)),
            ((3, 4), (4,)),
            ((4,), (2, 4, 5)),
            ((4,), (4,)),
        )
    ],
    Case(
        "Gemm",
        ((4, 3), (5, 4), (5,)),
        {"alpha": 0.5, "beta": 2.0, "transA": 1, "transB": 1},
        note="variables",
    ),
    Case("MatMul", ((4,), C(normal(2, 4, 5))), note="vector times batch"),
    Case("Gemm", ((3, 4), C(normal(4, 5)), C(normal(5))), {"alpha": 0.5, "beta": 2.0}),
    Case("Gemm", ((3, 4), C(normal(5, 4)), C(normal(3, 1))), {"transB": 1}),
    Case("Gemm", ((4, 3), C(normal(4, 5)), C(normal(3, 5))), {"transA": 1}),
    Case("Gemm", ((4, 3), C(normal(4, 5))), {"transA": 1}, opset=11),
    Case("Gemm", ((1, 4), C(normal(4, 5)), C(np.float32(1.5))), note="scalar bias"),
    Case("Gemm", (C(normal(3, 4)), (4, 5), C(normal(5))), {"alpha": 2.0}, note="left"),
    Case("Gemm", (C(normal(4, 3)), (5, 4), C(normal(1, 5))), {"transA": 1, "transB": 1}, note="left"),
    Case("Gemm", ((3, 4), C(normal(4, 5)), (3, 5)), {"beta": 3.0}, note="variable bias"),
    Case("Gemm", ((1, 4), C(normal(4, 5)), C(normal(5))), {}, opset=7),
    # Shapes.
    Case("Reshape", (X, C(ints(0, -1, 3)))),
    Case("Reshape", (X, C(ints(60))), opset=7),
    Case("Reshape", (X, C(ints(2, -1))), {"allowzero": 1}, opset=14),
    *[Case("Flatten", (X,), {"axis": a}) for a in (0, 1, 2, 4, -1)],
    Case("Flatten", (X,), opset=7),
    Case("Squeeze", ((1, 3, 1),), {"axes": [0]}, opset=11),
    Case("Squeeze", ((1, 3, 1), C(ints(-1))), opset=13),
    Case("Squeeze", ((1, 3, 1),), opset=13),
    Case("Unsqueeze", ((3, 4),), {"axes": [0, 2]}, opset=11),
    Case("Unsqueeze", ((3, 4), C(ints(-1, 0))), opset=13),
    Case("Transpose", (X,), {"perm": [0, 2, 3, 1]}),
    Case("Transpose", ((2, 3, 4),)),
    Case("Dropout", (X,), {"ratio": 0.5}, opset=7),
    Case("Dropout", (X, C(np.float32(0.5))), opset=13),
    Case("Cast", (X,), {"to": TensorProto.FLOAT}),
    Case("Expand", ((3, 1), C(ints(2, 1, 4)))),
    Case("Tile", ((2, 3), C(ints(2, 3)))),
    # Joining and cutting.
    Case("Concat", ((1, 2, 3), (1, 4, 3)), {"axis": 1}),
    Case("Concat", ((1, 2, 3), C(normal(1, 2, 1)), (1, 2, 2)), {"axis": -1}),
    Case("Split", ((1, 6, 2),), {"axis": 1, "split": [1, 3, 2]}, opset=11, outputs=3),
    Case("Split", ((1, 6, 2), C(ints(1, 3, 2))), {"axis": -2}, opset=13, outputs=3),
    Case("Split", ((6, 2),), {}, opset=13, outputs=3),
    Case("Split", ((7, 2),), {"num_outputs": 3}, opset=18, outputs=3),
    Case("Slice", (X,), {"starts": [1, -3], "ends": [2, 1000], "axes": [1, 3]}, opset=9),
    Case("Slice", (X,), {"starts": [0, 1], "ends": [1, 2]}, opset=9),
    Case("Slice", (X, C(ints(-1, 4)), C(ints(-1000, 0)), C(ints(2, 3)), C(ints(-2, -1)))),
    Case("Slice", (X, C(ints([1])), C(ints([2**31 - 1])), C(ints([-1])), C(ints([2])))),
    Case("Slice", (X, C(ints([-1])), C(ints([-(2**31)])), C(ints([3])), C(ints([-1])))),
    Case("Gather", (X, C(ints([-1, 0, 1]))), {"axis": 1}),
    Case("Gather", (X, C(np.array([[0, 2], [3, -1]]))), {"axis": 2}),
    Case("Gather", (X, C(np.array(1))), {"axis": -1}),
    Case("GatherElements", ((3, 4), C(np.array([[0, -1], [1, 1]]))), {"axis": 1}),
    Case("GatherND", ((2, 3, 4), C(np.array([[0, 1], [1, -1]])))),
    Case("GatherND", ((2, 3, 4), C(np.array([[1], [2]]))), {"batch_dims": 1}),
    Case("Pad", ((1, 2, 4),), {"pads": [0, 0, 1, 0, 1, 2], "value": 1.5}, opset=9),
    Case("Pad", ((1, 2, 4),), {"pads": [0, 0, 1, 0, 0, 2], "mode": "edge"}, opset=9),
    Case("Pad", ((1, 2, 4), C(ints(0, 0, -1, 0, 1, 2)), C(np.float32(-2)))),
    Case("Pad", ((1, 2, 4), C(ints(0, 0, 2, 0, 0, 3))), {"mode": "reflect"}),
    Case("Pad", ((1, 2, 4), C(ints(0, 0, 1, 0, 1, -1))), {"mode": "edge"}),
    Case("Pad", ((1, 2, 4), C(ints(1, 2)), None, C(ints([2]))), opset=18),
    Case("Pad", ((1, 2, 4), C(ints(0, 1, 2, 0, 0, 3))), {"mode": "wrap"}, opset=19),
    Case("DepthToSpace", ((1, 8, 2, 3),), {"blocksize": 2}),
    Case("DepthToSpace", ((1, 8, 2, 3),), {"blocksize": 2, "mode": "CRD"}),
    Case("SpaceToDepth", ((1, 2, 4, 6),), {"blocksize": 2}),
    Case("Trilu", ((2, 3, 4),)),
    Case("Trilu", ((4, 3), C(np.array(-1))), {"upper": 0}),
    # Reductions.
    *[
        Case(op, (X,), {"axes": [1, -1], "keepdims": k}, opset=11)
        for op in ("ReduceSum", "ReduceMean", "ReduceMax", "ReduceMin")
        for k in (0, 1)
    ],
    *[
        Case(op, ((2, 3, 2),), {"keepdims": k}, opset=11)
        for op in ("ReduceSum", "ReduceMean", "ReduceMax", "ReduceMin")
        for k in (0, 1)
    ],
    *[
        Case(op, (X, C(ints([2]))), {"keepdims": 0}, opset=18)
        for op in ("ReduceSum", "ReduceMean", "ReduceMax", "ReduceMin")
    ],
    Case("ReduceSum", (X, C(ints([]))), {"noop_with_empty_axes": 1}, opset=13),
    Case("ReduceSum", ((2, 3), C(ints([]))), {}, opset=13),
    Case("GlobalAveragePool", (X,)),
    Case("GlobalMaxPool", ((1, 2, 3, 3),)),
    *[
        Case("CumSum", ((2, 4), C(np.array(1))), {"exclusive": e, "reverse": r})
        for e in (0, 1)
        for r in (0, 1)
    ],
    # Convolutions.
    Case("Conv", ((1, 4, 9), C(normal(6, 2, 3)), C(normal(6))), {"group": 2, "pads": [1, 2], "strides": [2]}),
    Case("Conv", ((1, 2, 8, 7), C(normal(3, 2, 3, 2)), C(normal(3)))),
    Case(
        "Conv",
        ((2, 2, 8, 7), C(normal(3, 2, 3, 3))),
        {"strides": [2, 3], "pads": [1, 1, 1, 1], "kernel_shape": [3, 3]},
    ),
    Case("Conv", ((1, 2, 8, 7), C(normal(3, 2, 3, 2))), {"dilations": [2, 3], "pads": [0, 2, 3, 1]}),
    Case("Conv", ((1, 3, 6, 6), C(normal(3, 1, 3, 3))), {"group": 3, "pads": [1, 1, 1, 1]}),
    Case(
        "Conv",
        ((1, 2, 4, 5, 6), C(normal(2, 2, 2, 3, 2)), C(normal(2))),
        {"strides": [1, 2, 3], "pads": [1, 0, 0, 0, 1, 1]},
    ),
    *[
        Case("Conv", ((1, 1, 6, 7), C(normal(2, 1, 3, 4))), {"auto_pad": m, "strides": [2, 2]})
        for m in ("SAME_UPPER", "SAME_LOWER", "VALID")
    ],
    Case("ConvTranspose", ((1, 2, 5), C(normal(2, 3, 4)), C(normal(3))), {"strides": [3]}),
    Case(
        "ConvTranspose",
        ((1, 4, 3, 4), C(normal(4, 3, 3, 2)), C(normal(6))),
        {"group": 2, "strides": [2, 3], "pads": [1, 0, 0, 1]},
    ),
    Case(
        "ConvTranspose",
        ((1, 2, 3, 4), C(normal(2, 3, 3, 3)), C(normal(3))),
        {"strides": [2, 2], "pads": [1, 1, 1, 1], "output_padding": [1, 1]},
    ),
    Case(
        "ConvTranspose",
        ((1, 2, 3, 4), C(normal(2, 1, 2, 3))),
        {"dilations": [2, 1], "strides": [1, 3], "output_padding": [0, 2]},
    ),
    Case("ConvTranspose", ((1, 2, 3, 3), C(normal(2, 1, 3, 3))), {"strides": [3, 2], "output_shape": [8, 6]}),
    Case(
        "ConvTranspose", ((1, 2, 3, 3), C(normal(2, 1, 3, 3))), {"strides": [3, 2], "output_shape": [10, 8]}
    ),
    Case(
        "ConvTranspose", ((1, 2, 3, 3), C(normal(2, 1, 3, 3))), {"strides": [2, 2], "auto_pad": "SAME_UPPER"}
    ),
    Case(
        "ConvTranspose", ((1, 2, 3, 3), C(normal(2, 1, 3, 3))), {"strides": [2, 2], "auto_pad": "SAME_LOWER"}
    ),
    # Pooling.
    Case("MaxPool", ((1, 2, 6, 7),), {"kernel_shape": [2, 2], "strides": [2, 2]}),
    Case("MaxPool", ((1, 2, 6, 7),), {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1]}),
    Case("MaxPool", ((1, 1, 6, 7),), {"kernel_shape": [3, 2], "strides": [2, 2], "ceil_mode": 1}),
    Case("MaxPool", ((1, 1, 6, 7),), {"kernel_shape": [3, 2], "dilations": [2, 3], "pads": [1, 0, 2, 1]}),
    Case("MaxPool", ((2, 1, 9),), {"kernel_shape": [4], "strides": [3]}),
    Case("MaxPool", ((1, 1, 4, 4, 4),), {"kernel_shape": [2, 2, 2], "strides": [2, 2, 2]}),
    Case("MaxPool", ((1, 1, 5, 5),), {"kernel_shape": [2, 3], "strides": [2, 2], "auto_pad": "SAME_UPPER"}),
    Case("MaxPool", ((1, 1, 6, 6),), {"kernel_shape": [2, 2], "strides": [2, 2]}, opset=7),
    Case("AveragePool", ((1, 2, 6, 7),), {"kernel_shape": [2, 2], "strides": [2, 2]}),
    *[
        Case(
            "AveragePool",
            ((1, 2, 6, 7),),
            {
                "kernel_shape": [3, 3],
                "strides": [2, 2],
                "pads": [1, 0, 0, 1],
                "count_include_pad": i,
                "ceil_mode": c,
            },
            opset=19,
        )
        for i in (0, 1)
        for c in (0, 1)
    ],
    Case("AveragePool", ((1, 1, 7, 7),), {"kernel_shape": [3, 2], "dilations": [2, 2]}, opset=19),
    Case("AveragePool", ((1, 2, 9),), {"kernel_shape": [4], "strides": [3], "pads": [1, 2]}, opset=7),
    Case("AveragePool", ((1, 1, 5, 5),), {"kernel_shape": [2, 2], "auto_pad": "SAME_LOWER"}),
    Case(
        "BatchNormalization",
        (X, C(normal(2)), C(normal(2)), C(normal(2)), C(np.abs(normal(2)))),
        {"epsilon": 1e-3},
        opset=9,
    ),
    Case(
        "BatchNormalization",
        ((3, 2), C(normal(2)), C(normal(2)), C(normal(2)), C(np.abs(normal(2)))),
        opset=15,
    ),
    # Largest and smallest.
    *[Case(op, (X, (2, 1, 6))) for op in ("Max", "Min")],
    *[Case(op, (X, C(normal(5, 6)), (1, 6))) for op in ("Max", "Min")],
    Case("Max", (C(np.float32(0.2)), X), opset=8),
    Case("Min", (X,), note="one"),
    # Resizing.
    Case("Upsample", ((1, 2, 3, 4),), {"scales": [1.0, 1.0, 2.0, 3.0], "mode": "nearest"}, opset=7),
    Case("Upsample", ((1, 2, 3, 4), C(np.array([1, 1, 2, 1.5], np.float32))), {"mode": "nearest"}, opset=9),
    Case("Upsample", ((1, 2, 3, 4), C(np.array([1, 1, 2, 2], np.float32))), {"mode": "linear"}, opset=9),
    *[
        Case(
            "Resize",
            ((1, 2, 3, 4), C(np.array([1, 1, 2, r], np.float32))),
            {"mode": "nearest"},
            opset=10,
            note=str(r),
        )
        for r in (0.5, 0.6, 1.7)
    ],
    *[
        Case(
            "Resize",
            ((1, 2, 3, 7), None, None, C(ints(1, 2, 2, r))),
            {"mode": "nearest", "nearest_mode": "floor", "coordinate_transformation_mode": "asymmetric"},
            note=str(r),
        )
        for r in (3, 5, 9)
    ],
    *[
        Case(
            "Resize",
            ((1, 1, 4, 5), None, C(np.array([1, 1, 1.5, 0.6], np.float32))),
            {"mode": "nearest", "coordinate_transformation_mode": c, "nearest_mode": n},
        )
        for c in ("half_pixel", "pytorch_half_pixel", "align_corners", "asymmetric")
        for n in ("round_prefer_floor", "round_prefer_ceil", "floor", "ceil")
    ],
    *[
        Case(
            "Resize",
            ((1, 1, 3, 4), None, None, C(ints(1, 1, 5, 7))),
            {"mode": m, "coordinate_transformation_mode": c},
        )
        for m in ("linear", "cubic")
        for c in ("half_pixel", "pytorch_half_pixel", "align_corners", "asymmetric")
    ],
    Case(
        "Resize",
        ((1, 1, 6, 8), None, None, C(ints(1, 1, 3, 5))),
        {"mode": "cubic", "exclude_outside": 1, "cubic_coeff_a": -0.5},
    ),
    Case(
        "Resize",
        ((1, 1, 6, 8), None, C(np.array([0.5, 0.6], np.float32))),
        {"mode": "linear", "antialias": 1, "axes": [2, 3]},
        opset=18,
    ),
    # Nonlinear.
    *[
        Case("Softmax", ((2, 3, 4),), {} if a is None else {"axis": a}, opset=o)
        for o in (9, 11, 12, 13, 17)
        for a in (None, 0, 1, 2, *([-2] if o >= 11 else []))
    ],
    Case("Softmax", ((5,),), {"axis": 0}, opset=11, note="a vector"),
    Case("Softmax", ((2, 1),), note="one element"),
    *[Case("Sign", (X,), opset=o) for o in (9, 13)],
    *[Case("Exp", (X,), opset=o) for o in (9, 13)],
    *[Case("Reciprocal", (X,), opset=o) for o in (9, 13)],
    # Placing.
    Case("Where", (C(RANDOM.random((5, 6)) < 0.5), X, C(normal(6)))),
    Case("Where", (C(RANDOM.random((5, 1)) < 0.5), C(normal(2, 1, 1)), X)),
    Case("Where", (C(RANDOM.random((2, 5, 6)) < 0.5), X, (5, 6))),
    Case("ScatterND", ((4, 3), C(np.array([[1], [-1]])), (2, 3))),
    Case("ScatterND", (C(normal(4, 3)), C(np.array([[1, 0], [2, 2]])), (2,))),
    Case("ScatterND", ((4, 3), C(np.array([[1], [3]])), (2, 3)), {"reduction": "add"}),
    Case("ScatterElements", ((3, 4), C(np.array([[0, -1], [1, 2]])), (2, 2)), {"axis": 1}),
    Case("ScatterElements", (C(normal(3, 4)), C(np.array([[0, 1, 2, 0]])), (1, 4)), {"axis": 0}),
    Case("Einsum", ((2, 3, 4), C(normal(4, 5))), {"equation": "bij,jk->bik"}),
    Case("Einsum", (C(normal(3, 2, 4)), (2, 5, 4)), {"equation": "kbd,bqd->bqk"}),
    Case("Einsum", ((2, 3),), {"equation": "ij->ji"}),
    *[
        Case("Einsum", (a, b), {"equation": equation}, note="two variables")
        for a, b, equation in (
            ((2, 3, 4), (2, 5, 4), "bqd,bkd->bqk"),
            ((2, 3), (4,), "ij,k->kji"),
            ((2, 3, 4), (3, 5), "ijk,jl->li"),
            ((3,), (3,), "i,i"),
        )
    ],
    Case("Einsum", ((2, 3, 4), C(normal(4))), {"equation": "abc,c"}),
    Case("Einsum", ((2, 3), C(normal(4, 3))), {"equation": "ij,kj->k"}),
]


def points(model: OnnxModel, count: int) -> list[np.ndarray]:
    random = np.random.default_rng(1)
    return [random.standard_normal((count, *s)).astype(np.float32) for s in model.input_shapes]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_agrees_with_onnxruntime(case: Case) -> None:
    model = load(case.model())
    inputs = points(model, 3)
    ours = model.graph.evaluate([torch.from_numpy(x).double() for x in inputs])
    theirs = run(model, inputs)
    assert len(ours) == len(theirs) == case.outputs
    for a, b, shape in zip(ours, theirs, model.output_shapes, strict=True):
        assert tuple(a.shape[1:]) == shape
        np.testing.assert_allclose(a.numpy(), b, rtol=2e-5, atol=2e-5)
    check(model)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_affine_facts(case: Case) -> None:
    """Of each affine node that the operator becomes: `forward`, `offset`, `transpose`, `backward`, `absolute`,
    `fan_in` and `interval` tell of one and the same matrix."""
    graphs = [load(case.model()).graph, intermediate(load(case.model()))[1]]
    for graph in graphs:
        for node in graph.nodes:
            if isinstance(node.op, Affine):
                assert_affine_facts(node.op, [graph.nodes[j].shape for j in node.inputs])


def assert_affine_facts(op: Affine, shapes: list[tuple[int, ...]]) -> None:
    torch.manual_seed(0)
    out = op.output_shape(*shapes)
    size = int(np.prod(out))
    rows = torch.eye(size, dtype=torch.float64).view(1, size, *out)
    matrices = [op.transpose(rows, i, *shapes).reshape(size, -1) for i in range(len(shapes))]
    xs = [torch.randn(2, *s, dtype=torch.float64) for s in shapes]
    offset = op.offset(*shapes)
    expected = sum(x.reshape(2, -1) @ m.T for x, m in zip(xs, matrices, strict=True)).view(2, *out)
    expected = expected if offset is None else expected + offset
    torch.testing.assert_close(op.forward(*xs), expected)
    zero = op.forward(*[torch.zeros_like(x[:1]) for x in xs])[0]
    torch.testing.assert_close(
        zero, torch.zeros_like(zero) if offset is None else offset.expand(out).to(zero)
    )
    positive = [x.abs() for x in xs]
    absolute = sum(x.reshape(2, -1) @ m.abs().T for x, m in zip(positive, matrices, strict=True)).view(
        2, *out
    )
    torch.testing.assert_close(op.absolute(*positive), absolute)
    assert op.fan_in(*shapes) >= max(int((torch.cat(matrices, 1) != 0).sum(1).max()), 1)
    for i in range(len(shapes)):
        coefficients = torch.randn(2, 3, *out, dtype=torch.float64)
        by_hand = op.transpose(coefficients, i, *shapes)
        torch.testing.assert_close(by_hand, Affine.transpose(op, coefficients, i, *shapes))
        assert by_hand.shape == (2, 3, *shapes[i])
        chosen = Rows(torch.randint(0, size, (2, 4)), torch.randn(2, 4, dtype=torch.float64), out)
        spread = Diagonal(torch.randn(2, *out, dtype=torch.float64))
        for kind in (chosen, spread):
            dense = op.transpose(kind.dense(), i, *shapes)
            torch.testing.assert_close(op.backward(kind, i, *shapes).dense().expand_as(dense), dense)
    assert_interval(op, shapes)


def assert_interval(op: Affine, shapes: list[tuple[int, ...]]) -> None:
    """In both precisions sound against float64 at random points and corners, and not much wider than needed."""
    for dtype, slack in ((torch.float32, 1e-4), (torch.float64, 1e-10)):
        centers, radii = [torch.randn(4, *s) for s in shapes], [torch.rand(4, *s) for s in shapes]
        boxes = [Interval((c - r).to(dtype), (c + r).to(dtype)) for c, r in zip(centers, radii, strict=True)]
        bounds = op.to(dtype).interval(*boxes)
        for share in (torch.rand, torch.ones):  # inside, and at corners
            factors = [
                torch.sign(torch.randn(20, *b.lower.shape)).double() * share(20, *b.lower.shape)
                for b in boxes
            ]
            xs = [b.center.double() + f * b.radius.double() for b, f in zip(boxes, factors, strict=True)]
            xs = [torch.clamp(x, b.lower.double(), b.upper.double()) for x, b in zip(xs, boxes, strict=True)]
            y = op.forward(*[x.flatten(0, 1) for x in xs]).unflatten(0, (20, 4))
            assert bool(
                (bounds.lower.double() <= y + 1e-12).all() and (y <= bounds.upper.double() + 1e-12).all()
            )
        width = 2 * op.absolute(*[b.radius.double() for b in boxes])
        excess = (bounds.upper - bounds.lower).double() - width
        assert bool((excess <= slack * (1 + width)).all())


@pytest.mark.parametrize("field", ["weight", "transpose", "absolute"])
def test_a_wrong_convolution_is_noticed(field: str) -> None:
    """The checks above can fail: a convolution that is off by 1 % in one place does not pass them."""
    from verifier.ops.convolution import Conv

    class Wrong(Conv):
        def transpose(self, coefficients, index, *shapes):
            return super().transpose(coefficients, index, *shapes) * (1.01 if field == "transpose" else 1.0)

        def absolute(self, *xs):
            return super().absolute(*xs) * (0.99 if field == "absolute" else 1.0)

        def forward(self, *xs):
            return super().forward(*xs) * (1.01 if field == "weight" else 1.0)

    case = Case("Conv", ((1, 1, 4, 4), C(normal(1, 1, 2, 2))))
    good = next(n.op for n in load(case.model()).graph.nodes if isinstance(n.op, Conv))
    wrong = Wrong(good.weight, good.bias, good.window, good.groups)
    assert_affine_facts(good, [(1, 1, 4, 4)])
    with pytest.raises(AssertionError):
        assert_affine_facts(wrong, [(1, 1, 4, 4)])


def test_opset_range() -> None:
    """A Reshape, a Gemm and a Relu load from every opset from 7 on that onnxruntime still reads."""
    shape, weight = numpy_helper.from_array(ints(1, 4), "s"), numpy_helper.from_array(normal(4, 2), "w")
    variable = helper.make_tensor_value_info("x", TensorProto.FLOAT, (2, 2))
    nodes = [
        helper.make_node("Reshape", ["x", "s"], ["a"]),
        helper.make_node("Gemm", ["a", "w", "b"], ["c"]),
        helper.make_node("Relu", ["c"], ["y"]),
    ]
    bias = numpy_helper.from_array(normal(2), "b")
    for opset in range(7, min(onnx.defs.onnx_opset_version(), 23) + 1):
        model = load(model_bytes(nodes, [variable], ["y"], [shape, weight, bias], opset))
        assert model.opset == opset
        check(model)
