"""Division: of anything by a constant, or by a value that depends on the network's input."""

from __future__ import annotations

from verifier.graph import Builder, Value
from verifier.graph.registry import OnnxNode, Unsupported, aten_op, onnx_op
from verifier.ops.arithmetic import as_value, divide
from verifier.ops.product import multiply
from verifier.ops.reciprocal import Reciprocal


def quotient(builder: Builder, a: Value, b: Value) -> Value:
    """a / b with numpy's broadcasting: a times the reciprocal of b, which `transforms.gates` joins. Where b may be zero
    nothing is known of the result."""
    if builder.tensor(b) is not None:
        return divide(builder, a, b)
    return multiply(builder, a, builder.add(Reciprocal(), b))


@onnx_op("Div")
def _div(builder: Builder, node: OnnxNode) -> Value:
    return quotient(builder, node.required(0), node.required(1))


@aten_op("div.Tensor", "div.Scalar")
def _aten_div(builder: Builder, a: Value | float, b: Value | float) -> Value:
    return quotient(builder, as_value(builder, a), as_value(builder, b))


@aten_op("div.Tensor_mode", "div.Scalar_mode")
def _aten_div_mode(builder: Builder, a: Value, b: Value | float, rounding_mode: str | None = None) -> Value:
    if rounding_mode is not None:
        raise Unsupported(f"division rounded by {rounding_mode!r}")
    return quotient(builder, a, as_value(builder, b))
