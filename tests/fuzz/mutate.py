"""Damaged files: bytes, tokens of specs, and fields of models."""

from __future__ import annotations

import re

import numpy as np
import onnx
from google.protobuf.message import DecodeError

_TOKENS = [
    "(", ")", "and", "or", "not", "=>", "assert", "declare-const", "declare-fun", "Real", "<=", ">=", "<", ">", "=",
    "distinct", "+", "-", "*", "/", "X_0", "X_1", "X_7", "Y_0", "Y_1", "Y_99999999", "0", "-1", "1e400", "-1e-400",
    "0.1", "1/3", "nan", "inf", "1e308", ";", '"', "|", "()", "(- 1)", "true", "false", "0x1p3", "1_000", "é", "X_-1",
]  # fmt: skip


def damaged_bytes(random: np.random.Generator, data: bytes) -> bytes:
    """A few bytes changed, removed, repeated or cut off."""
    buffer = bytearray(data)
    for _ in range(int(random.integers(1, 5))):
        at = int(random.integers(0, max(len(buffer), 1)))
        size = int(random.integers(1, 9))
        match int(random.integers(0, 6)):
            case 0 | 1 if buffer:
                buffer[at] = int(random.integers(0, 256))
            case 2 if buffer:
                buffer[at] ^= 1 << int(random.integers(0, 8))
            case 3:
                del buffer[at : at + size]
            case 4:
                buffer[at:at] = buffer[max(0, at - size) : at]
            case 5 if random.random() < 0.2:
                del buffer[at:]
    return bytes(buffer)


def damaged_text(random: np.random.Generator, text: str) -> str:
    """A few tokens changed, removed, repeated or exchanged."""
    tokens = re.findall(r"[()]|[^\s()]+|\s+", text)
    for _ in range(int(random.integers(1, 4))):
        if not tokens:
            break
        at, other = (int(i) for i in random.integers(0, len(tokens), 2))
        match int(random.integers(0, 6)):
            case 0 | 1:
                tokens[at] = str(random.choice(_TOKENS))
            case 2:
                del tokens[at]
            case 3:
                tokens.insert(at, tokens[other])
            case 4:
                tokens[at], tokens[other] = tokens[other], tokens[at]
            case 5:
                tokens[at] = damaged_bytes(random, tokens[at].encode()).decode(errors="replace")
    return "".join(tokens)


def damaged_model(random: np.random.Generator, data: bytes) -> bytes:
    """One field of the model changed: an operator, an edge, an attribute, a shape, a weight."""
    proto = onnx.ModelProto()
    try:
        proto.ParseFromString(data)
    except DecodeError:
        return data
    graph = proto.graph
    node = graph.node[int(random.integers(0, len(graph.node)))]
    names = [n for part in graph.node for n in (*part.input, *part.output)]
    numbers = [0, 1, -1, 2, 3, 5, 7, -(2**31), 2**31, 2**40]
    match int(random.integers(0, 10)):
        case 0:
            kinds = [
                "Relu",
                "Abs",
                "Add",
                "Sub",
                "MatMul",
                "Gemm",
                "Concat",
                "MaxPool",
                "Reshape",
                "Exp",
                "Sign",
                "Neg",
            ]
            node.op_type = str(
                random.choice([*kinds, "Nothing", "Transpose", "Identity", "Clip", "Flatten", "Div"])
            )
        case 1 if node.input:
            node.input[int(random.integers(0, len(node.input)))] = str(random.choice([*names, "", "?"]))
        case 2 if node.output:
            node.output[0] = str(random.choice([*names, ""]))
        case 3 if node.attribute:
            attribute = node.attribute[int(random.integers(0, len(node.attribute)))]
            attribute.i, attribute.f = (
                int(random.choice(numbers)),
                float(random.choice([0.0, -1.0, 1e38, np.nan, np.inf])),
            )
            if attribute.ints:
                attribute.ints[int(random.integers(0, len(attribute.ints)))] = int(random.choice(numbers))
            if random.random() < 0.3:
                attribute.name = str(
                    random.choice(["axis", "alpha", "transA", "transB", "pads", "strides", "beta"])
                )
        case 4:
            value = (graph.input, graph.output)[int(random.integers(0, 2))][0]
            dims = value.type.tensor_type.shape.dim
            if dims:
                dims[int(random.integers(0, len(dims)))].dim_value = int(random.choice(numbers))
            if random.random() < 0.3:
                value.type.tensor_type.elem_type = int(random.integers(0, 22))
        case 5 | 6 if graph.initializer:
            tensor = graph.initializer[int(random.integers(0, len(graph.initializer)))]
            array = onnx.numpy_helper.to_array(tensor).copy()
            if array.size:
                position = int(random.integers(0, array.size))
                if np.issubdtype(array.dtype, np.integer):
                    array.reshape(-1)[position] = int(random.choice(numbers))
                else:
                    array.reshape(-1)[position] = random.choice(
                        [0.0, -1e30, 1e30, 1e-40, np.nan, np.inf, 3e38]
                    )
                tensor.CopyFrom(onnx.numpy_helper.from_array(array, tensor.name))
        case 7 if graph.initializer:
            tensor = graph.initializer[int(random.integers(0, len(graph.initializer)))]
            if tensor.dims:
                tensor.dims[int(random.integers(0, len(tensor.dims)))] = int(random.choice(numbers))
            if random.random() < 0.3:
                tensor.data_type = int(random.integers(0, 22))
        case 8:
            other = graph.node[int(random.integers(0, len(graph.node)))]
            copy = onnx.NodeProto()
            copy.CopyFrom(other)
            node.CopyFrom(copy)
        case 9:
            proto.opset_import[0].version = int(random.choice([0, 1, 7, 9, 11, 13, 18, 23, 99]))
            if random.random() < 0.3:
                del graph.node[int(random.integers(0, len(graph.node)))]
    return proto.SerializeToString()
