"""Values of ONNX nodes that do not depend on the network's input.

The operators of shape computations are computed here; everything else by onnx.reference, whose import takes a third
of a second and therefore waits until it is needed.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from verifier.graph.registry import Unsupported

if TYPE_CHECKING:
    import onnx

Arrays = Sequence["np.ndarray | None"]
_KINDS = {1: np.float64, 11: np.float64, 9: np.bool_}
_INTEGERS = {
    2: np.uint8,
    3: np.int8,
    4: np.uint16,
    5: np.int16,
    6: np.int32,
    7: np.int64,
    12: np.uint32,
    13: np.uint64,
}

LAYERS = {
    "Attention", "AveragePool", "BatchNormalization", "Conv", "ConvTranspose", "GRU", "GlobalAveragePool",
    "GlobalMaxPool", "GroupNormalization", "InstanceNormalization", "LSTM", "LayerNormalization", "LpNormalization",
    "LpPool", "MaxPool", "MeanVarianceNormalization", "RMSNormalization", "RNN", "Resize", "Upsample",
}  # fmt: skip
"""Operators of which the reference implementation leaves out attributes (the clip and the activations of recurrent
layers, the absolute values of a norm) or differs from onnxruntime: constants go through their converters, too."""


def evaluate(
    node: onnx.NodeProto, inputs: Arrays, attributes: Mapping[str, Any], opset: int
) -> list[np.ndarray]:
    """The node's results. Floating arguments are float64 and stay so; raises Unsupported where it cannot be done."""
    rule = _RULES.get(node.op_type)
    if rule is not None:
        return [np.asarray(rule(inputs, attributes))]
    return _reference(node, inputs, opset)


def _reference(node: onnx.NodeProto, inputs: Arrays, opset: int) -> list[np.ndarray]:
    from onnx import helper
    from onnx.reference import ReferenceEvaluator

    if any(a.HasField("g") or a.graphs for a in node.attribute):
        raise Unsupported("control flow with subgraphs is not known")
    names = [n for n in node.input if n]
    undefined = helper.make_empty_tensor_value_info
    graph = helper.make_graph(
        [node],
        "constant",
        [undefined(n) for n in dict.fromkeys(names)],
        [undefined(n) for n in node.output if n],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)])
    feed = {n: v for n, v in zip(node.input, inputs, strict=True) if n}
    try:
        results = ReferenceEvaluator(model).run(None, feed)
    except Exception as error:  # the reference raises anything at all for what it cannot do
        raise Unsupported(
            f"its constant value cannot be computed ({type(error).__name__}: {error})"
        ) from error
    if any(not isinstance(r, np.ndarray | np.generic) for r in results):
        raise Unsupported("a constant that is not a tensor")
    return [np.asarray(r) for r in results]


def _constant(inputs: Arrays, attributes: Mapping[str, Any]) -> np.ndarray:
    from onnx import numpy_helper

    if "value" in attributes:
        return numpy_helper.to_array(attributes["value"])
    for name in ("value_float", "value_floats", "value_int", "value_ints"):
        if name in attributes:
            return np.array(attributes[name], dtype=np.float64 if "float" in name else np.int64)
    raise Unsupported("a constant that is neither a number nor a dense tensor of numbers")


def _shape(inputs: Arrays, attributes: Mapping[str, Any]) -> np.ndarray:
    return np.array(_first(inputs).shape[attributes.get("start", 0) : attributes.get("end")], dtype=np.int64)


def _cast(inputs: Arrays, attributes: Mapping[str, Any]) -> np.ndarray:
    """Between float and double nothing is rounded: constants are the stored numbers."""
    to, x = attributes["to"], _first(inputs)
    if to in _KINDS:
        return x.astype(_KINDS[to])
    if to in _INTEGERS:
        return x.astype(_INTEGERS[to]).astype(np.int64)
    raise Unsupported("a cast to a type other than float, double, bool and the integers")


def _constant_of_shape(inputs: Arrays, attributes: Mapping[str, Any]) -> np.ndarray:
    from onnx import numpy_helper

    value = (
        numpy_helper.to_array(attributes["value"]).reshape(-1)[0] if "value" in attributes else np.float64(0)
    )
    return np.full(tuple(_first(inputs).tolist()), value)


def _axes(inputs: Arrays, attributes: Mapping[str, Any]) -> list[int] | None:
    if "axes" in attributes:
        return list(attributes["axes"])
    axes = inputs[1] if len(inputs) > 1 else None
    return None if axes is None else [int(a) for a in axes.reshape(-1)]


def _unsqueeze(inputs: Arrays, attributes: Mapping[str, Any]) -> np.ndarray:
    return np.expand_dims(_first(inputs), tuple(_axes(inputs, attributes) or ()))


def _squeeze(inputs: Arrays, attributes: Mapping[str, Any]) -> np.ndarray:
    axes = _axes(inputs, attributes)
    return np.squeeze(_first(inputs), None if axes is None else tuple(axes))


def _gather(inputs: Arrays, attributes: Mapping[str, Any]) -> np.ndarray:
    return np.take(_first(inputs), _second(inputs), axis=attributes.get("axis", 0))


def _concat(inputs: Arrays, attributes: Mapping[str, Any]) -> np.ndarray:
    return np.concatenate([a for a in inputs if a is not None], axis=attributes["axis"])


def _divide(inputs: Arrays, attributes: Mapping[str, Any]) -> np.ndarray:
    a, b = _first(inputs), _second(inputs)
    if np.issubdtype(a.dtype, np.integer):  # ONNX divides integers as C does: towards zero
        return np.trunc(a / b).astype(a.dtype) if (np.abs(a) < 2**52).all() else a // b
    return a / b


def _slice(inputs: Arrays, attributes: Mapping[str, Any]) -> np.ndarray:
    """Numbers beyond the ends are moved to them: those before the first element by numpy only where it goes forward."""
    x = _first(inputs)
    given: list[list[int] | None] = [
        [int(v) for v in attributes[name]]
        if name in attributes
        else None
        if len(inputs) <= i or inputs[i] is None
        else [int(v) for v in np.asarray(inputs[i]).reshape(-1)]
        for i, name in enumerate(("starts", "ends", "axes", "steps"), start=1)
    ]
    starts, ends, axes, steps = given
    if starts is None or ends is None:
        raise Unsupported("starts or ends are missing")
    where = [slice(None)] * x.ndim
    for k, (start, end) in enumerate(zip(starts, ends, strict=True)):
        axis, step = k if axes is None else axes[k], 1 if steps is None else steps[k]
        # Before the first element, where a negative end means the last one to numpy.
        end = None if step < 0 and end < -x.shape[axis] else end
        where[axis] = slice(max(start, -x.shape[axis]), end, step)
    return x[tuple(where)]


def _reshape(inputs: Arrays, attributes: Mapping[str, Any]) -> np.ndarray:
    x = _first(inputs)
    shape = [int(n) for n in (attributes["shape"] if "shape" in attributes else _second(inputs))]
    if not attributes.get("allowzero", 0):
        shape = [x.shape[i] if n == 0 else n for i, n in enumerate(shape)]
    return x.reshape(shape)


def _expand(inputs: Arrays, attributes: Mapping[str, Any]) -> np.ndarray:
    x, shape = _first(inputs), tuple(int(n) for n in _second(inputs))
    return np.broadcast_to(x, np.broadcast_shapes(x.shape, shape))


def _scatter_nd(inputs: Arrays, attributes: Mapping[str, Any]) -> np.ndarray:
    data, indices, updates = _first(inputs).copy(), _second(inputs), inputs[2]
    if attributes.get("reduction", "none") != "none" or updates is None:
        raise Unsupported("a reduction while scattering")
    if indices.size and updates.shape != indices.shape[:-1] + data.shape[indices.shape[-1] :]:
        raise ValueError("The updates do not fit the indices.")
    data[tuple(np.moveaxis(indices, -1, 0))] = updates
    return data


def _first(inputs: Arrays) -> np.ndarray:
    if not inputs or inputs[0] is None:
        raise Unsupported("input 0 is missing")
    return inputs[0]


def _second(inputs: Arrays) -> np.ndarray:
    if len(inputs) < 2 or inputs[1] is None:
        raise Unsupported("input 1 is missing")
    return inputs[1]


def _binary(
    f: Callable[[np.ndarray, np.ndarray], np.ndarray],
) -> Callable[[Arrays, Mapping[str, Any]], np.ndarray]:
    return lambda inputs, attributes: f(_first(inputs), _second(inputs))


_RULES: dict[str, Callable[[Arrays, Mapping[str, Any]], np.ndarray]] = {
    "Constant": _constant,
    "Shape": _shape,
    "Size": lambda inputs, attributes: np.array(_first(inputs).size, dtype=np.int64),
    "Cast": _cast,
    "ConstantOfShape": _constant_of_shape,
    "Unsqueeze": _unsqueeze,
    "Squeeze": _squeeze,
    "Gather": _gather,
    "Concat": _concat,
    "Slice": _slice,
    "Reshape": _reshape,
    "Expand": _expand,
    "ScatterND": _scatter_nd,
    "Range": lambda inputs, attributes: np.arange(*[np.asarray(a).item() for a in inputs if a is not None]),
    "Where": lambda inputs, attributes: np.where(_first(inputs), _second(inputs), np.asarray(inputs[2])),
    "Neg": lambda inputs, attributes: -_first(inputs),
    "Not": lambda inputs, attributes: ~_first(inputs).astype(bool),
    "Less": _binary(np.less),
    "Greater": _binary(np.greater),
    "And": _binary(np.logical_and),
    "Or": _binary(np.logical_or),
    "Max": lambda inputs, attributes: functools.reduce(np.maximum, [a for a in inputs if a is not None]),
    "Min": lambda inputs, attributes: functools.reduce(np.minimum, [a for a in inputs if a is not None]),
    "Identity": lambda inputs, attributes: _first(inputs),
    "Transpose": lambda inputs, attributes: np.transpose(_first(inputs), attributes.get("perm")),
    "Add": _binary(np.add),
    "Sub": _binary(np.subtract),
    "Mul": _binary(np.multiply),
    "Div": _divide,
    "Equal": _binary(np.equal),
}
