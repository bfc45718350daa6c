"""ArgMax and ArgMin: which of several values is the largest, as a whole number.

The place is at least k where the largest from k on beats the largest before k, so it is a sum of jumps.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from verifier.graph import Builder, Value
from verifier.graph.registry import OnnxNode, Unsupported, aten_op, onnx_op
from verifier.ops.arithmetic import add, negate, scale_shift, subtract
from verifier.ops.extremum import maximum, tree
from verifier.ops.integers import whole
from verifier.ops.movement import Permute, Reshape, Take, reshape, take
from verifier.ops.sign import Sign

MOST = 64
"""Among more values than this no place is looked for."""


def argmax(builder: Builder, x: Value, axis: int, keep: bool, last: bool = False) -> Value:
    """The place along `axis` of the largest element: of several equal ones the first, or the `last`."""
    shape = builder.shape(x)
    axis %= len(shape)
    count = shape[axis]
    x = _earlier(builder, x, axis)
    if count > MOST:
        raise Unsupported(f"the place of the largest of {count} values, which are more than {MOST}")
    rest = tuple(1 if a == axis else n for a, n in enumerate(shape))
    parts = [reshape(builder, take(builder, x, _picked(axis, k)), rest) for k in range(count)]
    before, behind = [parts[0]], [parts[-1]]
    for k in range(1, count - 1):
        before.append(maximum(builder, before[-1], parts[k]))
        behind.append(maximum(builder, behind[-1], parts[-1 - k]))
    if count == 1:
        return builder.constant(
            torch.zeros(rest if keep else shape[:axis] + shape[axis + 1 :], dtype=torch.int64)
        )
    ahead = [subtract(builder, behind[count - 2 - k], before[k]) for k in range(count - 1)]
    jumps = [builder.add(Sign(1.0 if last else -1.0), d) for d in ahead]
    place = scale_shift(builder, tree(builder, jumps, add), scale=0.5, shift=(count - 1) / 2)
    place = whole(builder, place)
    return place if keep else reshape(builder, place, shape[:axis] + shape[axis + 1 :])


def _earlier(builder: Builder, x: Value, axis: int) -> Value:
    """What has its largest elements along `axis` at the same places as x, before operators that keep the order."""
    shape = builder.shape(x)
    found, source, place = x, x, torch.arange(math.prod(shape)).view(shape)
    while True:
        op, arguments = builder.made_by(source)
        if len(arguments) != 1:
            return found
        below = builder.shape(arguments[0])
        if isinstance(op, Reshape | Permute | Take):
            moved = op.forward(torch.arange(math.prod(below)).view(1, *below)).flatten()
            place = moved[place]
        elif below == builder.shape(source) and (groups := op.ordered(below)) is not None:
            mine = groups.flatten()[place]
            if bool((mine != mine.narrow(axis, 0, 1)).any()):
                return found
            found = builder.add(Take(place.flatten(), shape), arguments[0])
        else:
            return found
        source = arguments[0]


def _picked(axis: int, k: int) -> Callable[[Tensor], Tensor]:
    def select(t: Tensor) -> Tensor:
        return t.narrow(axis, k, 1)

    return select


@onnx_op("ArgMax", "ArgMin", note=f"among at most {MOST} values")
def _argmax(builder: Builder, node: OnnxNode) -> Value:
    x = node.required(0)
    signed = x if node.op_type == "ArgMax" else negate(builder, x)
    keep, last = node.attributes.get("keepdims", 1), node.attributes.get("select_last_index", 0)
    return argmax(builder, signed, node.attributes.get("axis", 0), bool(keep), bool(last))


@aten_op("argmax.default")
def _aten_argmax(builder: Builder, x: Value, dim: int | None = None, keepdim: bool = False) -> Value:
    if dim is None:
        flat = argmax(builder, reshape(builder, x, (math.prod(builder.shape(x)),)), 0, keep=False)
        return reshape(builder, flat, (1,) * len(builder.shape(x))) if keepdim else flat
    return argmax(builder, x, dim, keepdim)


@aten_op("argmin.default")
def _aten_argmin(builder: Builder, x: Value, dim: int | None = None, keepdim: bool = False) -> Value:
    return _aten_argmax(builder, negate(builder, x), dim, keepdim)
