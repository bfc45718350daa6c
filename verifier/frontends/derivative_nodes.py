"""Derivatives of activations in ONNX files: functions of a domain of their own.

Each is a function of the file with a body of standard operators, which every runtime can run. A file's function that
is the same here, body included, is read as the operator that bounds it best; any other is inlined.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from verifier.graph import Builder, Value
from verifier.graph.registry import Unsupported
from verifier.ops.sigmoid import SigmoidDerivative
from verifier.ops.step import Step

if TYPE_CHECKING:
    import onnx

DOMAIN = "nn_verifier.derivatives"
OPSET, IR = 17, 8
STEP, SIGMOID = "Step", "SigmoidDerivative"
"""`Step<K>`(z, knots [K], levels [K + 1, ...]) is levels[k] for knot k < z <= knot k + 1. It stands for the slope of a
piecewise linear function: its value at a knot is the left side's, and what is proved with it holds for both sides'."""


def step(knots: int) -> onnx.FunctionProto:
    """The function for a number of knots."""
    from onnx import helper

    def take(source: str, k: int) -> list[onnx.NodeProto]:
        name = f"{source}{k}"
        return [
            helper.make_node("Constant", [], [f"{name}_at"], value_int=k),
            helper.make_node("Gather", [source, f"{name}_at"], [name], axis=0),
        ]

    nodes = take("levels", 0)
    y = "levels0"
    for k in range(knots):
        nodes += [*take("knots", k), *take("levels", k + 1)]
        after = "y" if k == knots - 1 else f"y{k}"
        nodes.append(helper.make_node("Greater", ["z", f"knots{k}"], [f"right{k}"]))
        nodes.append(helper.make_node("Where", [f"right{k}", f"levels{k + 1}", y], [after]))
        y = after
    return _function(f"{STEP}{knots}", ["z", "knots", "levels"], nodes)


def sigmoid_derivative() -> onnx.FunctionProto:
    """s(x) s(-x)."""
    from onnx import helper

    nodes = [
        helper.make_node("Sigmoid", ["x"], ["up"]),
        helper.make_node("Neg", ["x"], ["minus"]),
        helper.make_node("Sigmoid", ["minus"], ["down"]),
        helper.make_node("Mul", ["up", "down"], ["y"]),
    ]
    return _function(SIGMOID, ["x"], nodes)


def _function(name: str, inputs: Sequence[str], nodes: Sequence[onnx.NodeProto]) -> onnx.FunctionProto:
    from onnx import helper

    return helper.make_function(DOMAIN, name, inputs, ["y"], nodes, [helper.make_opsetid("", OPSET)])


def inlined(proto: onnx.ModelProto) -> onnx.ModelProto:
    """The model without functions but those that are here."""
    from onnx import inliner

    foreign = [(f.domain, f.name) for f in proto.functions if not _known(f)]
    return inliner.inline_selected_functions(proto, foreign) if foreign else proto


def _known(function: onnx.FunctionProto) -> bool:
    if function.domain != DOMAIN:
        return False
    knots = function.name.removeprefix(STEP)
    if knots.isdecimal() and 0 < int(knots) < 1000:
        return function == step(int(knots))
    return function.name == SIGMOID and function == sigmoid_derivative()


def convert(builder: Builder, name: str, inputs: Sequence[Value]) -> Value:
    """The operator behind a call of one of the functions."""
    if name == SIGMOID and len(inputs) == 1:
        return builder.add(SigmoidDerivative(1), inputs[0])
    if not name.startswith(STEP) or len(inputs) != 3:
        raise Unsupported(f"{DOMAIN} has no function {name} of {len(inputs)} values")
    knots, levels = (builder.tensor(x) for x in inputs[1:])
    if knots is None or levels is None:
        raise Unsupported("knots and levels must be constants")
    if knots.dim() != 1 or len(levels) != len(knots) + 1 or bool((knots.diff() <= 0).any()):
        raise ValueError("Its knots must increase, and there is one more level than knots.")
    if levels.dim() - 1 > len(builder.shape(inputs[0])):
        raise ValueError("Its levels have more dimensions than its argument.")
    return builder.add(Step(knots, levels), inputs[0])
