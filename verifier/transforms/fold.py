"""Fusing chains of affine operators, so that the engines see as few nodes as possible.

Linear, Conv and ConvTranspose swallow the scalings and shifts around them; consecutive matrices are multiplied where
that saves work or they are small, and sums are exact; rearrangements are composed; what does nothing is dropped. Exact
but for rounding of the fused matrices, relative to themselves, and of the fused shifts, which is in the operators'
`doubt`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from verifier.graph import Graph, Node, Op, Univariate
from verifier.graph.op import Shape
from verifier.ops.arithmetic import ScaleShift
from verifier.ops.convolution import Conv, ConvTranspose
from verifier.ops.linear import Linear
from verifier.ops.movement import Permute, Reshape, Take
from verifier.ops.piecewise_linear import PiecewiseLinear
from verifier.transforms.exact import faithful_affine, faithful_product, sum_rounding

SMALL = 1 << 12
"""Entries of a matrix up to which one more costs less than one more node."""

Rule = Callable[[Any, Any, Shape, Shape], "tuple[Op, ...] | None"]


def fold(graph: Graph) -> Graph:
    """An equal graph with fewer nodes. Graph inputs and outputs keep their order; a fused node has the name of its
    last part."""
    folder = _Folder(graph)
    position = [folder.visit(i) for i in range(len(graph.nodes))]
    return folder.finish([position[i] for i in graph.inputs], [position[i] for i in graph.outputs])


class _Folder:
    """`nodes` grows node by node; `uses[p]` counts what consumes node p, outputs included."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.nodes: list[Node] = []
        self.uses: list[int] = []
        self.position: list[int] = []

    def visit(self, i: int) -> int:
        node = self.graph.nodes[i]
        uses = len(self.graph.users[i]) + self.graph.outputs.count(i)
        placed = self.place(replace(node, inputs=tuple(self.position[j] for j in node.inputs)), uses)
        self.position.append(placed)
        return placed

    def place(self, node: Node, uses: int) -> int:
        """Append the node, merged with its producer where a rule allows it and nothing else needs the producer."""
        if len(node.inputs) == 1:
            source = node.inputs[0]
            producer = self.nodes[source]
            if _does_nothing(node.op, producer.shape):
                self.uses[source] += uses - 1
                return source
            if len(producer.inputs) == 1 and self.uses[source] == 1:
                before = producer.inputs[0]
                shape = self.nodes[before].shape
                rule = _rule(producer.op, node.op)
                ops = rule(producer.op, node.op, shape, producer.shape) if rule else None
                if ops is not None:
                    return self._chain(ops, before, producer, node, uses)
        self.nodes.append(node)
        self.uses.append(uses)
        return len(self.nodes) - 1

    def _chain(self, ops: tuple[Op, ...], start: int, producer: Node, node: Node, uses: int) -> int:
        position = start
        for k, op in enumerate(ops):
            last = k == len(ops) - 1
            shape = op.output_shape(self.nodes[position].shape)
            # What stands in a producer's place in the middle has another value: it must not have the name.
            name, source = (node.name, node.source) if last else (f"{producer.name}_moved", producer.source)
            position = self.place(Node(name, op, (position,), shape, source), uses if last else 1)
        return position

    def finish(self, inputs: list[int], outputs: list[int]) -> Graph:
        needed = {*inputs, *outputs}
        for i in range(len(self.nodes) - 1, -1, -1):
            if i in needed:
                needed.update(self.nodes[i].inputs)
        new = {old: k for k, old in enumerate(sorted(needed))}
        nodes = tuple(
            replace(self.nodes[old], inputs=tuple(new[j] for j in self.nodes[old].inputs))
            for old in sorted(needed)
        )
        return Graph(nodes, tuple(new[i] for i in inputs), tuple(new[i] for i in outputs))


def _rule(first: Op, second: Op) -> Rule | None:
    if isinstance(first, Permute) and isinstance(second, Univariate):
        return _permute_univariate
    return _RULES.get((type(first), type(second)))


def _does_nothing(op: Op, shape: Shape) -> bool:
    if isinstance(op, Reshape):
        return op.shape == shape
    if isinstance(op, Permute):
        return op.axes == tuple(range(len(shape)))
    if isinstance(op, ScaleShift):
        return (
            (op.scale is None or bool((op.scale == 1).all()))
            and (op.shift is None or bool((op.shift == 0).all()))
            and op.doubt is None
        )
    return False


def _along(tensor: Tensor | None, shape: Shape, axis: int) -> Tensor | None:
    """A constant that varies only along `axis` of a value of `shape`, as [shape[axis]]; None where it varies more."""
    if tensor is None:
        return None
    full = tensor.reshape((1,) * (len(shape) - tensor.dim()) + tuple(tensor.shape))
    if any(n != 1 for d, n in enumerate(full.shape) if d != axis % len(shape)):
        return None
    return full.flatten().expand(shape[axis])


class _Vectors(NamedTuple):
    """Scale, shift and doubt of the shift along one axis."""

    scale: Tensor
    shift: Tensor
    doubt: Tensor | None

    def after(self, bias: Tensor | None, doubt: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """What becomes of a bias that comes first, and its doubt."""
        if bias is None:
            return self.shift, self.doubt
        rounding = sum_rounding(bias.unsqueeze(-1), self.scale.unsqueeze(-1), self.shift)
        own = None if doubt is None else doubt * self.scale.abs()
        return bias * self.scale + self.shift, _total(rounding, own, self.doubt)


def _total(*doubts: Tensor | None) -> Tensor | None:
    """The sum, rounded up; None where it is zero."""
    known = [d for d in doubts if d is not None and bool(d.any())]
    if not known:
        return None
    return sum(known[1:], known[0]) * (1 + 2 * len(known) * torch.finfo(known[0].dtype).eps)


def _vectors(op: ScaleShift, shape: Shape, axis: int) -> _Vectors | None:
    """Scale, shift and doubt as vectors along `axis`, or None where they are not."""
    tensors = (op.scale, op.shift, op.doubt)
    scale, shift, doubt = (_along(t, shape, axis) for t in tensors)
    known = scale if scale is not None else shift
    if known is None or any(
        (v is None) != (t is None) for v, t in zip((scale, shift, doubt), tensors, strict=True)
    ):
        return None
    return _Vectors(
        torch.ones_like(known) if scale is None else scale,
        torch.zeros_like(known) if shift is None else shift,
        doubt,
    )


def _linear_scale(first: Linear, second: ScaleShift, shape: Shape, middle: Shape) -> tuple[Op, ...] | None:
    vectors = _vectors(second, middle, -1)
    if vectors is None:
        return None
    weight = first.weight if second.scale is None else first.weight * vectors.scale.unsqueeze(1)
    return (Linear(weight, *vectors.after(first.bias, first.doubt)),)


def _scale_linear(first: ScaleShift, second: Linear, shape: Shape, middle: Shape) -> tuple[Op, ...] | None:
    vectors = _vectors(first, middle, -1)
    if vectors is None:
        return None
    moved = second.weight @ vectors.shift
    bias = moved if second.bias is None else second.bias + moved
    doubt = None if vectors.doubt is None else second.weight.abs() @ vectors.doubt
    doubt = _total(sum_rounding(second.weight, vectors.shift, second.bias), doubt, second.doubt)
    return (Linear(second.weight if first.scale is None else second.weight * vectors.scale, bias, doubt),)


def _linear_linear(first: Linear, second: Linear, shape: Shape, middle: Shape) -> tuple[Op, ...] | None:
    (inner, inputs), outputs = first.weight.shape, second.weight.shape[0]
    if outputs * inputs > max(SMALL, inner * (inputs + outputs)) or not faithful_product(
        second.weight, first.weight
    ):
        return None
    if first.bias is not None and not faithful_affine(second.weight, first.bias, second.bias):
        return None
    bias, doubt = second.bias, second.doubt
    if first.bias is not None:
        bias = second.weight @ first.bias if bias is None else second.weight @ first.bias + bias
        moved = None if first.doubt is None else second.weight.abs() @ first.doubt
        doubt = _total(sum_rounding(second.weight, first.bias, second.bias), moved, second.doubt)
    return (Linear(second.weight @ first.weight, bias, doubt),)


def _conv_scale(first: Conv, second: ScaleShift, shape: Shape, middle: Shape) -> tuple[Op, ...] | None:
    vectors = _vectors(second, middle, 1)
    if vectors is None:
        return None
    bias, doubt = vectors.after(first.bias, first.doubt)
    weight = first.weight * vectors.scale.view(-1, *[1] * (first.weight.dim() - 1))
    return (replace(first, weight=weight, bias=bias, doubt=doubt),)


def _conv_transpose_scale(
    first: ConvTranspose, second: ScaleShift, shape: Shape, middle: Shape
) -> tuple[Op, ...] | None:
    vectors = _vectors(second, middle, 1)
    if vectors is None:
        return None
    bias, doubt = vectors.after(first.bias, first.doubt)
    grouped = first.weight.unflatten(0, (first.groups, -1))
    factor = vectors.scale.view(first.groups, 1, -1, *[1] * (first.weight.dim() - 2))
    return (replace(first, weight=(grouped * factor).flatten(0, 1), bias=bias, doubt=doubt),)


def _scale_conv(first: ScaleShift, second: Conv, shape: Shape, middle: Shape) -> tuple[Op, ...] | None:
    """A shift before a padded convolution would have to change the padding: refused."""
    vectors = _vectors(first, middle, 1)
    padded = any(second.window.before) or any(second.window.after)
    if vectors is None or (padded and (first.shift is not None or first.doubt is not None)):
        return None
    view = (second.groups, 1, -1, *[1] * len(second.window.kernel))
    grouped = second.weight.unflatten(0, (second.groups, -1))

    def taps(vector: Tensor) -> Tensor:
        """[out, products of one output] what each product of a kernel with `vector` takes from it."""
        return vector.view(view).expand(grouped.shape).flatten(0, 1).flatten(1)

    kernel, shift = second.weight.flatten(1), taps(vectors.shift)
    moved = (kernel * shift).sum(1)
    bias = moved if second.bias is None else second.bias + moved
    doubt = None if vectors.doubt is None else (kernel.abs() * taps(vectors.doubt)).sum(1)
    doubt = _total(sum_rounding(kernel, shift, second.bias), doubt, second.doubt)
    weight = (grouped * vectors.scale.view(view)).flatten(0, 1)
    return (replace(second, weight=weight, bias=bias, doubt=doubt),)


def _scale_scale(first: ScaleShift, second: ScaleShift, shape: Shape, middle: Shape) -> tuple[Op, ...]:
    scale = first.scale if second.scale is None else second.scale
    if first.scale is not None and second.scale is not None:
        scale = first.scale * second.scale
    shift, doubt, rounding = first.shift, first.doubt, None
    if shift is not None and (second.scale is not None or second.shift is not None):
        factor = torch.ones_like(shift) if second.scale is None else second.scale
        rounding = sum_rounding(shift.unsqueeze(-1), factor.unsqueeze(-1), second.shift)
        shift = shift * factor
    if doubt is not None and second.scale is not None:
        doubt = doubt * second.scale.abs()
    if second.shift is not None:
        shift = second.shift if shift is None else shift + second.shift
    return (ScaleShift(scale, shift, _total(rounding, doubt, second.doubt)),)


def _scale_reshape(first: ScaleShift, second: Reshape, shape: Shape, middle: Shape) -> tuple[Op, ...] | None:
    """Reshape first: the scaling then stands next to what can swallow it."""
    tensors = [
        t if t is None or t.numel() == 1 else t.expand(middle).reshape(second.shape)
        for t in (first.scale, first.shift, first.doubt)
    ]
    tensors = [t.reshape(()) if t is not None and t.numel() == 1 else t for t in tensors]
    return (second, ScaleShift(*tensors))


def _reshape_reshape(first: Reshape, second: Reshape, shape: Shape, middle: Shape) -> tuple[Op, ...]:
    return (second,)


def _permute_permute(first: Permute, second: Permute, shape: Shape, middle: Shape) -> tuple[Op, ...]:
    return (Permute(tuple(first.axes[a] for a in second.axes)),)


def _permute_univariate(
    first: Permute, second: Univariate, shape: Shape, middle: Shape
) -> tuple[Op, ...] | None:
    """The other way round, so that permutations meet and cancel; networks made for another layout are full of them."""
    alike = isinstance(second, PiecewiseLinear) or all(t.numel() == 1 for t in second.tensors())
    return (second, first) if alike else None


def _take_take(first: Take, second: Take, shape: Shape, middle: Shape) -> tuple[Op, ...]:
    return (Take(first.index[second.index], second.shape),)


def _take_reshape(first: Take, second: Reshape, shape: Shape, middle: Shape) -> tuple[Op, ...]:
    return (Take(first.index, second.shape),)


def _reshape_take(first: Reshape, second: Take, shape: Shape, middle: Shape) -> tuple[Op, ...]:
    return (second,)


def _permute_take(first: Permute, second: Take, shape: Shape, middle: Shape) -> tuple[Op, ...]:
    index = (
        torch.arange(math.prod(shape), device=second.index.device).view(shape).permute(first.axes).flatten()
    )
    return (Take(index[second.index], second.shape),)


_RULES: dict[tuple[type[Op], type[Op]], Rule] = {
    (Linear, ScaleShift): _linear_scale,
    (ScaleShift, Linear): _scale_linear,
    (Linear, Linear): _linear_linear,
    (Conv, ScaleShift): _conv_scale,
    (ConvTranspose, ScaleShift): _conv_transpose_scale,
    (ScaleShift, Conv): _scale_conv,
    (ScaleShift, ScaleShift): _scale_scale,
    (ScaleShift, Reshape): _scale_reshape,
    (Reshape, Reshape): _reshape_reshape,
    (Permute, Permute): _permute_permute,
    (Take, Take): _take_take,
    (Take, Reshape): _take_reshape,
    (Reshape, Take): _reshape_take,
    (Permute, Take): _permute_take,
}
