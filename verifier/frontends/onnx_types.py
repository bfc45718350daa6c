"""Element types of the values of an ONNX graph, from what it declares and the schemas of its operators."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from verifier.graph import Builder, Value
from verifier.graph.registry import Unsupported
from verifier.ops.integers import BITS, stored, whole

if TYPE_CHECKING:
    import onnx
    from onnx.defs import OpSchema

_INTEGERS = {*BITS, 2, 4, 12, 13, 21, 22, 25, 26}
_SHORT = {10, 16, 17, 18, 19, 20, 23, 24, 27}
"""Floating types of 16 bits and fewer."""
_EXACT = {
    "Abs", "Add", "ArgMax", "ArgMin", "Cast", "CastLike", "Clip", "Compress", "Concat", "CumSum", "DepthToSpace",
    "Einsum", "Expand", "Flatten", "Gather", "GatherElements", "GatherND", "Identity", "If", "Loop", "MatMul", "Max",
    "MaxPool", "Min", "Mul", "Neg", "OneHot", "Pad", "ReduceL1", "ReduceMax", "ReduceMin", "ReduceProd",
    "ReduceSum", "ReduceSumSquare", "Relu", "Reshape", "ReverseSequence", "Scan", "ScatterElements", "ScatterND",
    "Sign", "Slice", "SpaceToDepth", "Split", "Squeeze", "Sub", "Sum", "Tile", "TopK", "Transpose", "Trilu",
    "Unsqueeze", "Where",
}  # fmt: skip
"""Operators that do with integers what they do with real numbers, up to wrapping around."""
_GROWING = {
    "Abs", "Add", "CumSum", "Einsum", "MatMul", "Mul", "Neg", "ReduceL1", "ReduceProd", "ReduceSum",
    "ReduceSumSquare", "ScatterElements", "ScatterND", "Sub", "Sum",
}  # fmt: skip
"""Those whose results may be larger than their arguments. Sums and products may wrap around on the way: what comes
out is the same if it fits."""


class Types:
    """ONNX's codes of the types of a graph's values, by name; of `outer` are those around the graph."""

    def __init__(self, graph: onnx.GraphProto, opset: int, outer: Types | None = None) -> None:
        self._opset, self._codes = opset, {} if outer is None else dict(outer._codes)
        self._codes.update({i.name: i.type.tensor_type.elem_type for i in graph.input})
        self._codes.update({t.name: t.data_type for t in graph.initializer})

    def of(self, name: str) -> int | None:
        return self._codes.get(name) or None

    def note(self, node: onnx.NodeProto) -> None:
        """Find the types of a node's results; those of its arguments are known."""
        from onnx import defs

        try:
            schema = defs.get_schema(node.op_type, self._opset, "")
        except (defs.SchemaError, TypeError):  # a name that is not text is of a damaged file
            return
        bound = self._bound(node, schema)
        for k, name in enumerate(node.output):
            self._codes[name] = self._inside(node, k) or bound.get(_formal(schema.outputs, k), 0)

    def _bound(self, node: onnx.NodeProto, schema: OpSchema) -> dict[str | None, int]:
        """The type that each of the schema's names of types stands for."""
        bound: dict[str | None, int] = {}
        for constraint in schema.type_constraints:
            if len(constraint.allowed_type_strs) == 1:
                bound[constraint.type_param_str] = _code(constraint.allowed_type_strs[0])
        for k in range(len(node.output)):
            text = _formal(schema.outputs, k)
            bound[text] = bound.get(text, 0) or _code(text) or _attribute(node)
        given = {_formal(schema.inputs, k): self.of(name) for k, name in enumerate(node.input) if name}
        return {**bound, **{text: code for text, code in given.items() if code is not None}}

    def _inside(self, node: onnx.NodeProto, k: int) -> int:
        """The declared type of result k of a node that holds graphs, 0 for others."""
        for attribute in node.attribute:
            if attribute.name in ("body", "then_branch") and attribute.HasField("g"):
                outputs = attribute.g.output[1:] if node.op_type == "Loop" else attribute.g.output
                return outputs[k].type.tensor_type.elem_type if k < len(outputs) else 0
        return 0


def _formal(parameters: Sequence[OpSchema.FormalParameter], k: int) -> str | None:
    """The name of the type of parameter k; the last may stand for all that follow. None where these differ."""
    if not parameters:
        return None
    formal = parameters[min(k, len(parameters) - 1)]
    return formal.type_str if formal.is_homogeneous else None


def _code(text: str | None) -> int:
    """The code of a type's name, such as tensor(int64); 0 for others."""
    from onnx import TensorProto

    name = (text or "").removeprefix("tensor(").removesuffix(")").upper()
    return dict(TensorProto.DataType.items()).get(name, 0)


def _attribute(node: onnx.NodeProto) -> int:
    """The type that a node's attributes ask for, 0 where they do not."""
    for attribute in node.attribute:
        if attribute.name in ("to", "dtype", "output_dtype"):
            return attribute.i
        if attribute.name == "value":
            return attribute.t.data_type
        if attribute.name in ("value_int", "value_ints"):
            return 7
    return 1 if node.op_type in ("Constant", "ConstantOfShape") else 0


def as_typed(builder: Builder, op_type: str, x: Value, code: int | None) -> Value:
    """A result of an operator, of the type with that code; integers wrap around. Raises Unsupported for arithmetic
    that differs from that of real numbers."""
    if not builder.is_variable(x):
        return x
    if code in _SHORT:
        raise Unsupported("it computes in a floating type of 16 bits or fewer")
    if code not in _INTEGERS:
        return x
    if op_type not in _EXACT:
        raise Unsupported(f"{op_type} of integers that depend on the network's input")
    if op_type not in _GROWING:
        return whole(builder, x)
    if code not in BITS:
        raise Unsupported("arithmetic with unsigned integers that depend on the network's input")
    return stored(builder, x, BITS[code])
