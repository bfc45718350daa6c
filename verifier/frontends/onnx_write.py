"""Graph to ONNX: what derivatives of networks are made of, as a file that every runtime can run.

Operators have one ONNX form each; affine ones without one of their own become a gathering of elements where they
only move these, and a matrix otherwise.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from verifier.errors import UnsupportedError
from verifier.frontends.derivative_nodes import DOMAIN, IR, OPSET, SIGMOID, STEP, sigmoid_derivative, step
from verifier.graph import Affine, Graph, Node, Op
from verifier.graph.op import Constant, Input, Shape, Transposed
from verifier.ops import (
    arithmetic,
    convolution,
    elu,
    erf,
    exponential,
    linear,
    maximum,
    piecewise_linear,
    power,
    product,
    reciprocal,
    reduction,
    self_gated,
    sigmoid,
    softplus,
    trigonometric,
)
from verifier.ops.combination import Combination
from verifier.ops.step import Step
from verifier.ops.within import Within

if TYPE_CHECKING:
    import onnx

MOST = 1 << 25
"""Numbers that a matrix or a table of positions may have."""


class _Refused(Exception):
    """Why an operator has no form."""


class Written(NamedTuple):
    """The file, and whether float32 holds all of the graph's numbers as they are."""

    data: bytes
    exact: bool


def write(graph: Graph, inputs: Sequence[str], outputs: Sequence[str], description: str = "") -> Written:
    """An ONNX file of a graph whose composite operators and loops are written out, in float32.

    Inputs and outputs have the names given and the nodes' shapes. Raises UnsupportedError that names all operators
    without a form.
    """
    return _Writer(graph, inputs, outputs).written(description)


class _Writer:
    """One file in the making. `value[i]` names what node i is there."""

    def __init__(self, graph: Graph, inputs: Sequence[str], outputs: Sequence[str]) -> None:
        self.graph, self.inputs, self.outputs = graph, inputs, outputs
        self.nodes: list[onnx.NodeProto] = []
        self.tensors: list[onnx.TensorProto] = []
        self.functions: dict[str, onnx.FunctionProto] = {}
        self.exact = True
        self.value: list[str] = []
        self._count = 0

    def written(self, description: str) -> Written:
        from onnx import TensorProto, helper

        refused = []
        given = dict(zip(self.graph.inputs, self.inputs, strict=True))
        for i, node in enumerate(self.graph.nodes):
            try:
                self.value.append(given[i] if isinstance(node.op, Input) else self._node(node))
            except _Refused as reason:
                refused.append((node.source or node.name, type(node.op).__name__, 0, str(reason)))
                self.value.append("")
        if refused:
            raise UnsupportedError(refused)
        for i, name in zip(self.graph.outputs, self.outputs, strict=True):
            self.nodes.append(helper.make_node("Identity", [self.value[i]], [name], name=name))
        ends = [
            [
                helper.make_tensor_value_info(name, TensorProto.FLOAT, self.graph.nodes[i].shape)
                for name, i in zip(names, places, strict=True)
            ]
            for names, places in ((self.inputs, self.graph.inputs), (self.outputs, self.graph.outputs))
        ]
        made = helper.make_graph(self.nodes, "network", *ends, initializer=self.tensors)
        imports = [helper.make_opsetid("", OPSET), helper.make_opsetid(DOMAIN, 1)]
        functions = list(self.functions.values())
        model = helper.make_model(made, opset_imports=imports, ir_version=IR, functions=functions)
        model.doc_string = description
        return Written(model.SerializeToString(), self.exact)

    def _node(self, node: Node) -> str:
        xs = [self.value[j] for j in node.inputs]
        shapes = [self.graph.nodes[j].shape for j in node.inputs]
        if any(not x for x in xs):
            return ""  # behind a refused one
        if isinstance(node.op, Constant):
            return self.tensor(node.op.value)
        form = _FORMS.get(type(node.op))
        if form is not None:
            return form(self, node.op, xs, shapes)
        if isinstance(node.op, Affine):
            return _affine(self, node.op, xs, shapes)
        raise _Refused("it has no form in ONNX here, as a part of a derivative")

    def name(self) -> str:
        self._count += 1
        name = f"v{self._count}"
        return self.name() if name in (*self.inputs, *self.outputs) else name

    def call(self, operator: str, *xs: str, domain: str = "", **attributes: Any) -> str:
        """The result of one more node."""
        from onnx import helper

        y = self.name()
        self.nodes.append(helper.make_node(operator, list(xs), [y], name=y, domain=domain, **attributes))
        return y

    def tensor(self, t: Tensor) -> str:
        """A constant, rounded to float32 where it is of floats."""
        from onnx import numpy_helper

        name = self.name()
        if t.is_floating_point():
            rounded = t.detach().float()
            self.exact = self.exact and bool((rounded.to(t.dtype) == t).all())
            t = rounded
        self.tensors.append(numpy_helper.from_array(t.cpu().contiguous().numpy(), name))
        return name

    def number(self, x: float) -> str:
        return self.tensor(torch.tensor(x, dtype=torch.float64))

    def reshaped(self, x: str, shape: Shape) -> str:
        return self.call("Reshape", x, self.tensor(torch.tensor(shape, dtype=torch.int64)))


_Form = Callable[[_Writer, Any, Sequence[str], Sequence[Shape]], str]


def _affine(w: _Writer, op: Affine, xs: Sequence[str], shapes: Sequence[Shape]) -> str:
    if op.exact and op.offset(*shapes) is None:
        return _moved(w, op, xs, shapes)
    if isinstance(op, Transposed):
        of = op.of
        if of.exact and of.offset(*op.shapes) is None:
            return _moved_back(w, op, xs[0])
        if isinstance(of, reduction.Sum):
            return w.call("Expand", xs[0], w.tensor(torch.tensor(op.shapes[0], dtype=torch.int64)))
        if isinstance(of, convolution.Conv):
            return _spread(w, of.weight, of.window, _rest(of, op.shapes[0], shapes[0]), of.groups, xs[0])
        if isinstance(of, convolution.ConvTranspose):
            return _convolved(w, of.weight, of.window, of.groups, xs[0])
    return _matrix(w, op, xs, shapes)


def _moved(w: _Writer, op: Affine, xs: Sequence[str], shapes: Sequence[Shape]) -> str:
    """The elements of all arguments, and a zero before them, by their positions."""
    index = _positions(op, shapes)
    flat = [w.reshaped(x, (-1,)) for x in xs]
    flat = [w.tensor(torch.zeros(1)), *flat] if bool((index == 0).any()) or len(flat) > 1 else flat
    if len(flat) == 1:
        source, index = flat[0], index - 1
    else:
        source = w.call("Concat", *flat, axis=0)
    return w.call("Gather", source, w.tensor(index), axis=0)


def _positions(op: Affine, shapes: Sequence[Shape]) -> Tensor:
    """For every element of the result the element of the arguments that it is, from 1 on; 0 for none."""
    sizes = [math.prod(s) for s in shapes]
    numbers = torch.arange(1, sum(sizes) + 1, dtype=torch.float64).split(sizes)
    return op.forward(*[n.view(1, *s) for n, s in zip(numbers, shapes, strict=True)]).squeeze(0).long()


def _moved_back(w: _Writer, op: Transposed, x: str) -> str:
    """Of every element the sum of those that it went to."""
    sizes = [math.prod(s) for s in op.shapes]
    target, start = _positions(op.of, op.shapes).flatten(), sum(sizes[: op.index])
    shape, size = op.shapes[op.index], sizes[op.index]
    mine = ((target > start) & (target <= start + size)).nonzero()[:, 0]
    owner, order = (target[mine] - 1 - start).sort(stable=True)
    counts = owner.bincount(minlength=size)
    most = max(int(counts.max()), 1)
    if size * most > MOST:
        raise _Refused("it adds up more elements than a file should list")
    rank = torch.arange(len(owner)) - (counts.cumsum(0) - counts)[owner]
    table = torch.zeros(size, most, dtype=torch.int64)
    table[owner, rank] = mine[order] + 1
    source = w.call("Concat", w.tensor(torch.zeros(1)), w.reshaped(x, (-1,)), axis=0)
    if most == 1:
        return w.call("Gather", source, w.tensor(table.view(shape)), axis=0)
    parts = w.call("Gather", source, w.tensor(table.view(*shape, most)), axis=0)
    axis = w.tensor(torch.tensor([len(shape)], dtype=torch.int64))
    return w.call("ReduceSum", parts, axis, keepdims=0)


def _matrix(w: _Writer, op: Affine, xs: Sequence[str], shapes: Sequence[Shape]) -> str:
    """Rows of the matrix of every argument."""
    shape = op.output_shape(*shapes)
    rows = math.prod(shape)
    if rows * sum(math.prod(s) for s in shapes) > MOST:
        raise _Refused("its matrix is too large for a file")
    unit = torch.eye(rows, dtype=torch.float64).view(1, rows, *shape)
    y = ""
    for k, (x, own) in enumerate(zip(xs, shapes, strict=True)):
        matrix = op.to(torch.float64).transpose(unit, k, *shapes).reshape(rows, -1)
        part = w.call("MatMul", w.tensor(matrix), w.reshaped(x, (math.prod(own),)))
        y = w.call("Add", y, part) if y else part
    offset = op.offset(*shapes)
    y = w.reshaped(y, shape)
    return y if offset is None else w.call("Add", y, w.tensor(offset.expand(shape)))


def _linear(w: _Writer, op: linear.Linear, xs: Sequence[str], shapes: Sequence[Shape]) -> str:
    y = w.call("MatMul", xs[0], w.tensor(op.weight.T))
    return y if op.bias is None else w.call("Add", y, w.tensor(op.bias))


def _constant_product(
    w: _Writer, op: linear.ConstantMatMul, xs: Sequence[str], shapes: Sequence[Shape]
) -> str:
    matrix = w.tensor(op.matrix)
    return w.call("MatMul", matrix, xs[0]) if op.left else w.call("MatMul", xs[0], matrix)


def _conv(w: _Writer, op: convolution.Conv, xs: Sequence[str], shapes: Sequence[Shape]) -> str:
    return _convolved(w, op.weight, op.window, op.groups, xs[0], op.bias)


def _conv_transpose(
    w: _Writer, op: convolution.ConvTranspose, xs: Sequence[str], shapes: Sequence[Shape]
) -> str:
    return _spread(w, op.weight, op.window, op.extra, op.groups, xs[0], op.bias)


def _convolved(
    w: _Writer, weight: Tensor, window: convolution.Window, groups: int, x: str, bias: Tensor | None = None
) -> str:
    return w.call("Conv", *_weighted(w, x, weight, bias), group=groups, **_geometry(window))


def _spread(
    w: _Writer,
    weight: Tensor,
    window: convolution.Window,
    extra: Sequence[int],
    groups: int,
    x: str,
    bias: Tensor | None = None,
) -> str:
    more = {"group": groups, "output_padding": list(extra), **_geometry(window)}
    return w.call("ConvTranspose", *_weighted(w, x, weight, bias), **more)


def _weighted(w: _Writer, x: str, weight: Tensor, bias: Tensor | None) -> list[str]:
    return [x, w.tensor(weight), *([] if bias is None else [w.tensor(bias)])]


def _geometry(window: convolution.Window) -> dict[str, Any]:
    return {
        "kernel_shape": list(window.kernel),
        "strides": list(window.stride),
        "dilations": list(window.dilation),
        "pads": [*window.before, *window.after],
    }


def _rest(op: convolution.Conv, shape: Shape, result: Shape) -> list[int]:
    """What lies beyond the last window of a convolution of a value of `shape`."""
    v = op.window
    numbers = zip(shape[2:], result[2:], v.stride, v.extent, v.before, v.after, strict=True)
    return [n + b + a - (p - 1) * s - e for n, p, s, e, b, a in numbers]


def _scale_shift(w: _Writer, op: arithmetic.ScaleShift, xs: Sequence[str], shapes: Sequence[Shape]) -> str:
    y = xs[0] if op.scale is None else w.call("Mul", xs[0], w.tensor(op.scale))
    return y if op.shift is None else w.call("Add", y, w.tensor(op.shift))


def _combination(w: _Writer, op: Combination, xs: Sequence[str], shapes: Sequence[Shape]) -> str:
    y = w.tensor(op.bias)
    for x, matrix in zip(xs, op.weights, strict=True):
        y = w.call("Add", y, w.call("MatMul", w.tensor(matrix), x))
    return y


def _sum(w: _Writer, op: reduction.Sum, xs: Sequence[str], shapes: Sequence[Shape]) -> str:
    return w.call("ReduceSum", xs[0], w.tensor(torch.tensor(op.axes, dtype=torch.int64)), keepdims=1)


def _piecewise(
    w: _Writer, op: piecewise_linear.PiecewiseLinear, xs: Sequence[str], shapes: Sequence[Shape]
) -> str:
    """A Clip where it is one; otherwise a line and a Relu for every change of its slope."""
    knots, slopes, values = (t.tolist() for t in (op.knots, op.slopes, op.values))
    if slopes == [0, 1, 0] and knots == values:
        return w.call("Clip", xs[0], *[w.number(k) for k in knots])
    shifted = w.call("Sub", xs[0], w.number(knots[0]))
    y = w.call("Add", w.call("Mul", shifted, w.number(slopes[0])), w.number(values[0]))
    for k, knot in enumerate(knots):
        turn = w.call("Relu", w.call("Sub", xs[0], w.number(knot)))
        y = w.call("Add", y, w.call("Mul", turn, w.number(slopes[k + 1] - slopes[k])))
    return y


def _step(w: _Writer, op: Step, xs: Sequence[str], shapes: Sequence[Shape]) -> str:
    count = len(op.knots)
    if op.chosen or not count:
        raise _Refused("it chooses among equal ones, which no element of a derivative stands for")
    w.functions.setdefault(f"{STEP}{count}", step(count))
    return w.call(f"{STEP}{count}", xs[0], w.tensor(op.knots), w.tensor(op.levels), domain=DOMAIN)


def _sigmoid_derivative(
    w: _Writer, op: sigmoid.SigmoidDerivative, xs: Sequence[str], shapes: Sequence[Shape]
) -> str:
    if op.order != 1:
        raise _Refused("only the sigmoid's first derivative has a form in ONNX here")
    w.functions.setdefault(SIGMOID, sigmoid_derivative())
    return w.call(SIGMOID, xs[0], domain=DOMAIN)


def _sine(w: _Writer, op: trigonometric.Sine, xs: Sequence[str], shapes: Sequence[Shape]) -> str:
    y = w.call("Cos" if op.quarter % 2 else "Sin", xs[0])
    return w.call("Neg", y) if op.quarter % 4 >= 2 else y


def _elu_derivative(w: _Writer, op: elu.EluDerivative, xs: Sequence[str], shapes: Sequence[Shape]) -> str:
    if op.jumps:
        raise _Refused("it jumps at 0; only the Elu with alpha 1 has a form in ONNX here")
    return w.call("Exp", w.call("Min", xs[0], w.number(0.0)))


def _silu(w: _Writer, op: self_gated.Silu, xs: Sequence[str], shapes: Sequence[Shape]) -> str:
    """x s(w), and s(w) (1 + x w' s(-w)) for w = linear x + cubic x^3."""
    if op.order > 1:
        raise _Refused("only its first derivative has a form in ONNX here")
    x, cube = xs[0], op.cubic
    inner = x if op.linear == 1 else w.call("Mul", x, w.number(op.linear))
    if cube:
        inner = w.call("Add", inner, w.call("Mul", w.call("Pow", x, w.number(3.0)), w.number(cube)))
    gate = w.call("Sigmoid", inner)
    if op.order == 0:
        return w.call("Mul", x, gate)
    run = w.call("Mul", x, w.number(op.linear))
    if cube:
        run = w.call("Add", run, w.call("Mul", w.call("Pow", x, w.number(3.0)), w.number(3 * cube)))
    rest = w.call("Sigmoid", w.call("Neg", inner))
    return w.call("Mul", gate, w.call("Add", w.call("Mul", run, rest), w.number(1.0)))


def _gelu(w: _Writer, op: self_gated.Gelu, xs: Sequence[str], shapes: Sequence[Shape]) -> str:
    """x P(x), and P(x) + x p(x) for the normal distribution's P and density p."""
    if op.order > 1:
        raise _Refused("only its first derivative has a form in ONNX here")
    x = xs[0]
    error = w.call("Erf", w.call("Mul", x, w.number(math.sqrt(0.5))))
    share = w.call("Mul", w.call("Add", error, w.number(1.0)), w.number(0.5))
    if op.order == 0:
        return w.call("Mul", x, share)
    bell = w.call("Exp", w.call("Mul", w.call("Mul", x, x), w.number(-0.5)))
    scaled = w.call("Mul", w.call("Mul", x, bell), w.number(1 / math.sqrt(2 * math.pi)))
    return w.call("Add", share, scaled)


def _power(w: _Writer, op: power.Power, xs: Sequence[str], shapes: Sequence[Shape]) -> str:
    return w.call("Sqrt", xs[0]) if op.exponent == 0.5 else w.call("Pow", xs[0], w.number(op.exponent))


def _plain(operator: str) -> _Form:
    """The ONNX operator of that name, on all arguments."""
    return lambda w, op, xs, shapes: w.call(operator, *xs)


_FORMS: dict[type[Op], _Form] = {
    arithmetic.Add: _plain("Add"),
    arithmetic.ScaleShift: _scale_shift,
    Combination: _combination,
    convolution.Conv: _conv,
    convolution.ConvTranspose: _conv_transpose,
    elu.Elu: lambda w, op, xs, shapes: w.call("Elu", xs[0], alpha=op.alpha),
    elu.EluDerivative: _elu_derivative,
    erf.Erf: _plain("Erf"),
    exponential.Exp: _plain("Exp"),
    linear.ConstantMatMul: _constant_product,
    linear.Linear: _linear,
    maximum.Maximum: _plain("Max"),
    piecewise_linear.PRelu: lambda w, op, xs, shapes: w.call("PRelu", xs[0], w.tensor(op.slope)),
    piecewise_linear.PiecewiseLinear: _piecewise,
    piecewise_linear.Relu: _plain("Relu"),
    power.Log: _plain("Log"),
    power.Power: _power,
    product.Product: _plain("Mul"),
    product.Square: lambda w, op, xs, shapes: w.call("Mul", xs[0], xs[0]),
    reciprocal.Reciprocal: _plain("Reciprocal"),
    reduction.Sum: _sum,
    self_gated.Gelu: _gelu,
    self_gated.Silu: _silu,
    sigmoid.Sigmoid: _plain("Sigmoid"),
    sigmoid.SigmoidDerivative: _sigmoid_derivative,
    sigmoid.Tanh: _plain("Tanh"),
    softplus.Softplus: _plain("Softplus"),
    Step: _step,
    trigonometric.Atan: _plain("Atan"),
    trigonometric.Sine: _sine,
    Within: lambda w, op, xs, shapes: xs[0],
}
