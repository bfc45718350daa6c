"""Cutting, joining and repeating: Concat, Split, Slice, Gather, Expand, Tile, Pad, Trilu, depth and space.

What picks elements is one `Take`; the index comes from applying the operation to the elements' positions.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from verifier.graph import Builder, Value
from verifier.graph.registry import OnnxNode, Unsupported, aten_op, onnx_op
from verifier.ops.arithmetic import scale_shift
from verifier.ops.movement import Concat, Pad, broadcast, joint_shape, permute, reshape, take


def concat(builder: Builder, values: Sequence[Value], axis: int) -> Value:
    """Values joined along `axis` (negative counts from the end); empty ones are left out."""
    kept = [v for v in values if math.prod(builder.shape(v)) > 0] or list(values[:1])
    rank = len(builder.shape(kept[0]))
    if not -rank <= axis < rank:
        raise ValueError(f"Axis {axis} does not exist in a value of shape {builder.shape(kept[0])}.")
    return kept[0] if len(kept) == 1 else builder.add(Concat(axis % rank), *kept)


def stack(builder: Builder, values: Sequence[Value], axis: int = 0) -> Value:
    """Values of one shape along a new `axis` (negative counts from the end)."""
    shape = builder.shape(values[0])
    axis %= len(shape) + 1
    rows = [reshape(builder, v, (*shape[:axis], 1, *shape[axis:])) for v in values]
    return rows[0] if len(rows) == 1 else builder.add(Concat(axis), *rows)


def flip(builder: Builder, x: Value, axis: int = 0) -> Value:
    """x with the elements of one axis in reverse order."""
    return take(builder, x, lambda t: t.flip(axis))


def split(builder: Builder, x: Value, sizes: Sequence[int], axis: int) -> list[Value]:
    if sum(sizes) != builder.shape(x)[axis]:
        raise ValueError(
            f"Sizes {list(sizes)} do not add up to axis {axis} of a value of shape {builder.shape(x)}."
        )
    return [take(builder, x, lambda t, i=i: t.split(list(sizes), dim=axis)[i]) for i in range(len(sizes))]


def slice_axis(builder: Builder, x: Value, axis: int, start: int, end: int, step: int) -> Value:
    """Like numpy's x[..., start:end:step, ...], out-of-range and negative numbers included; a start before the first
    element is moved to it."""
    start = max(start, -builder.shape(x)[axis])
    chosen = torch.tensor(range(builder.shape(x)[axis])[start:end:step], dtype=torch.int64)
    return take(builder, x, lambda t: t.index_select(axis, chosen))


def pad(builder: Builder, x: Value, before: Sequence[int], after: Sequence[int], value: float = 0.0) -> Value:
    """Constant padding; negative counts crop."""
    shape = builder.shape(x)
    if len(before) != len(shape) or len(after) != len(shape):
        raise ValueError(f"Pads {list(before)} and {list(after)} do not fit a value of shape {shape}.")
    y = builder.add(Pad(tuple(before), tuple(after)), x) if any(before) or any(after) else x
    if value == 0:
        return y
    pads = [n for b, a in zip(reversed(before), reversed(after), strict=True) for n in (b, a)]
    frame = torch.nn.functional.pad(torch.zeros(shape, dtype=torch.float64), pads, value=value)
    return scale_shift(builder, y, shift=frame)


def pad_copy(builder: Builder, x: Value, before: Sequence[int], after: Sequence[int], mode: str) -> Value:
    """Padding with the value's own elements, as numpy.pad's modes "reflect", "edge" and "wrap" do."""
    import numpy

    positions = numpy.arange(math.prod(builder.shape(x))).reshape(builder.shape(x))
    crops = tuple(
        slice(max(-b, 0), n - max(-a, 0)) for n, b, a in zip(positions.shape, before, after, strict=True)
    )
    grown = [(max(b, 0), max(a, 0)) for b, a in zip(before, after, strict=True)]
    chosen = torch.from_numpy(numpy.pad(positions[crops], grown, mode=mode))  # pyright: ignore[reportCallIssue, reportArgumentType]
    return take(builder, x, lambda t: chosen)


def tile(builder: Builder, x: Value, repeats: Sequence[int]) -> Value:
    return take(builder, x, lambda t: t.repeat(*repeats) if repeats else t)


@onnx_op("Concat")
def _concat(builder: Builder, node: OnnxNode) -> Value:
    return concat(
        builder, [node.required(i) for i in range(len(node.inputs))], node.attributes.get("axis", 1)
    )


@onnx_op("Split", note="constant sizes")
def _split(builder: Builder, node: OnnxNode) -> list[Value]:
    x = node.required(0)
    axis = _axis(builder, x, node.attributes.get("axis", 0))
    size = builder.shape(x)[axis]
    sizes = node.ints(builder, 1, "split")
    if sizes is None:
        parts = node.outputs
        each = -(-size // parts)
        sizes = [min(each, size - i * each) for i in range(parts)]
    return split(builder, x, sizes, axis)


@onnx_op("Slice", note="constant bounds")
def _slice(builder: Builder, node: OnnxNode) -> Value:
    x = node.required(0)
    starts, ends = node.ints(builder, 1, "starts"), node.ints(builder, 2, "ends")
    if starts is None or ends is None:
        raise Unsupported("starts or ends are missing")
    axes = node.ints(builder, 3, "axes") or range(len(starts))
    steps = node.ints(builder, 4, "steps") or [1] * len(starts)
    for axis, start, end, step in zip(axes, starts, ends, steps, strict=True):
        x = slice_axis(builder, x, _axis(builder, x, axis), start, end, step)
    return x


@onnx_op("Gather", note="constant indices")
def _gather(builder: Builder, node: OnnxNode) -> Value:
    x, indices = node.required(0), _indices(builder, node, 1)
    axis = _axis(builder, x, node.attributes.get("axis", 0))
    chosen = _wrapped(indices, builder.shape(x)[axis])
    if not chosen.dim():
        return take(builder, x, lambda t: t.select(axis, int(chosen)))
    return take(builder, x, lambda t: t.index_select(axis, chosen.flatten()).unflatten(axis, chosen.shape))


@onnx_op("GatherElements", note="constant indices")
def _gather_elements(builder: Builder, node: OnnxNode) -> Value:
    x, indices = node.required(0), _indices(builder, node, 1)
    axis = _axis(builder, x, node.attributes.get("axis", 0))
    chosen = _wrapped(indices, builder.shape(x)[axis])
    return take(builder, x, lambda t: t.gather(axis, chosen))


@onnx_op("GatherND", note="constant indices")
def _gather_nd(builder: Builder, node: OnnxNode) -> Value:
    x, indices = node.required(0), _indices(builder, node, 1)
    batch = node.attributes.get("batch_dims", 0)
    shape = builder.shape(x)
    depth = indices.shape[-1]
    parts = [_wrapped(indices[..., k], shape[batch + k]) for k in range(depth)]
    grid = [
        torch.arange(n).view(*[1] * d, n, *[1] * (indices.dim() - 2 - d))
        for d, n in enumerate(indices.shape[:batch])
    ]
    return take(builder, x, lambda t: t[(*grid, *parts)])


@onnx_op("Expand")
def _expand(builder: Builder, node: OnnxNode) -> Value:
    x, shape = node.required(0), node.ints(builder, 1, "shape") or []
    return broadcast(builder, x, joint_shape(builder.shape(x), shape))


@onnx_op("Tile")
def _tile(builder: Builder, node: OnnxNode) -> Value:
    return tile(builder, node.required(0), node.ints(builder, 1, "repeats") or [])


@onnx_op("Pad", note="modes constant, reflect, edge and wrap")
def _pad(builder: Builder, node: OnnxNode) -> Value:
    x = node.required(0)
    pads = node.ints(builder, 1, "pads") or node.ints(builder, -1, "paddings")
    if pads is None:
        raise Unsupported("the pads are missing")
    rank = len(builder.shape(x))
    axes = node.ints(builder, 3, "axes")
    before, after = [0] * rank, [0] * rank
    for k, axis in enumerate(range(rank) if axes is None else axes):
        before[axis], after[axis] = pads[k], pads[k + len(pads) // 2]
    mode = node.attributes.get("mode", "constant")
    if mode != "constant":
        if mode not in ("reflect", "edge", "wrap"):
            raise Unsupported(f"the mode {mode!r}")
        return pad_copy(builder, x, before, after, mode)
    if "value" in node.attributes:
        return pad(builder, x, before, after, float(node.attributes["value"]))
    value = node.constant(builder, 2, "value")
    return pad(builder, x, before, after, 0.0 if value is None else float(value))


@onnx_op("DepthToSpace")
def _depth_to_space(builder: Builder, node: OnnxNode) -> Value:
    x, b = node.required(0), node.attributes["blocksize"]
    n, c, h, w = builder.shape(x)
    if node.attributes.get("mode", "DCR") == "DCR":
        y = permute(builder, reshape(builder, x, (n, b, b, c // (b * b), h, w)), (0, 3, 4, 1, 5, 2))
    else:
        y = permute(builder, reshape(builder, x, (n, c // (b * b), b, b, h, w)), (0, 1, 4, 2, 5, 3))
    return reshape(builder, y, (n, c // (b * b), h * b, w * b))


@onnx_op("SpaceToDepth")
def _space_to_depth(builder: Builder, node: OnnxNode) -> Value:
    x, b = node.required(0), node.attributes["blocksize"]
    n, c, h, w = builder.shape(x)
    y = permute(builder, reshape(builder, x, (n, c, h // b, b, w // b, b)), (0, 3, 5, 1, 2, 4))
    return reshape(builder, y, (n, c * b * b, h // b, w // b))


@onnx_op("Trilu")
def _trilu(builder: Builder, node: OnnxNode) -> Value:
    x, k = node.required(0), node.constant(builder, 1, "k")
    keep = torch.ones(builder.shape(x)[-2:], dtype=torch.float64)
    triangle = torch.triu if node.attributes.get("upper", 1) else torch.tril
    return scale_shift(builder, x, scale=triangle(keep, diagonal=0 if k is None else int(k)))


def _axis(builder: Builder, x: Value, axis: int) -> int:
    rank = len(builder.shape(x))
    if not -rank <= axis < rank:
        raise ValueError(f"Axis {axis} does not exist in a value of shape {builder.shape(x)}.")
    return axis % rank


def _indices(builder: Builder, node: OnnxNode, i: int) -> Tensor:
    indices = node.constant(builder, i, "indices")
    if indices is None:
        raise Unsupported("the indices are missing")
    return indices


def _wrapped(indices: Tensor, size: int) -> Tensor:
    """Indices with negative ones counted from the end."""
    wrapped = torch.where(indices < 0, indices + size, indices)
    if bool(((wrapped < 0) | (wrapped >= size)).any()):
        raise ValueError(f"An index lies outside of a dimension of size {size}.")
    return wrapped


@aten_op("cat.default", "concat.default")
def _aten_cat(builder: Builder, tensors: Sequence[Value], dim: int = 0) -> Value:
    return concat(builder, tensors, dim)


@aten_op("stack.default")
def _aten_stack(builder: Builder, tensors: Sequence[Value], dim: int = 0) -> Value:
    return stack(builder, tensors, dim)


@aten_op("split.Tensor", "split.default")
def _aten_split(builder: Builder, x: Value, split_size: int, dim: int = 0) -> list[Value]:
    size = builder.shape(x)[dim]
    return split(
        builder, x, [min(split_size, size - i) for i in range(0, size, split_size)], _axis(builder, x, dim)
    )


@aten_op("split_with_sizes.default", "split.sizes")
def _aten_split_with_sizes(
    builder: Builder, x: Value, split_sizes: Sequence[int], dim: int = 0
) -> list[Value]:
    return split(builder, x, split_sizes, _axis(builder, x, dim))


@aten_op("chunk.default")
def _aten_chunk(builder: Builder, x: Value, chunks: int, dim: int = 0) -> list[Value]:
    size = builder.shape(x)[dim]
    return _aten_split(builder, x, -(-size // chunks), dim)


@aten_op("slice.Tensor")
def _aten_slice(
    builder: Builder, x: Value, dim: int = 0, start: int | None = None, end: int | None = None, step: int = 1
) -> Value:
    axis = _axis(builder, x, dim)
    return slice_axis(builder, x, axis, 0 if start is None else start, 2**62 if end is None else end, step)


@aten_op("select.int")
def _aten_select(builder: Builder, x: Value, dim: int, index: int) -> Value:
    return take(builder, x, lambda t: t.select(dim, index))


@aten_op("index_select.default")
def _aten_index_select(builder: Builder, x: Value, dim: int, index: Value) -> Value:
    chosen = builder.tensor(index)
    if chosen is None:
        raise Unsupported("indices that depend on the network's input")
    return take(builder, x, lambda t: t.index_select(dim, chosen))


@aten_op("index.Tensor")
def _aten_index(builder: Builder, x: Value, indices: Sequence[Value | None]) -> Value:
    chosen = [slice(None) if i is None else builder.tensor(i) for i in indices]
    if any(i is None for i in chosen):
        raise Unsupported("indices that depend on the network's input")
    return take(builder, x, lambda t: t[tuple(chosen)])


@aten_op("expand.default")
def _aten_expand(builder: Builder, x: Value, size: Sequence[int], implicit: bool = False) -> Value:
    return take(builder, x, lambda t: t.expand(*size))


@aten_op("repeat.default")
def _aten_repeat(builder: Builder, x: Value, repeats: Sequence[int]) -> Value:
    return tile(builder, x, repeats)


@aten_op("constant_pad_nd.default")
def _aten_pad(builder: Builder, x: Value, pad_: Sequence[int], value: float = 0.0) -> Value:
    rank = len(builder.shape(x))
    before, after = [0] * rank, [0] * rank
    for k in range(len(pad_) // 2):
        before[rank - 1 - k], after[rank - 1 - k] = pad_[2 * k], pad_[2 * k + 1]
    return pad(builder, x, before, after, float(value))


@aten_op("pad.default")
def _aten_pad_mode(
    builder: Builder, x: Value, pads: Sequence[int], mode: str = "constant", value: float | None = None
) -> Value:
    if mode == "constant":
        return _aten_pad(builder, x, pads, value or 0.0)
    return take(builder, x, lambda t: torch.nn.functional.pad(t.double(), list(pads), mode=mode).long())


def _aten_moved(f: Callable[..., Tensor]) -> Callable[..., Value]:
    def convert(builder: Builder, x: Value, *args: object, **kwargs: object) -> Value:
        return take(builder, x, lambda t: f(t, *args, **kwargs))

    return convert


aten_op("flip.default")(_aten_moved(torch.flip))
aten_op("roll.default")(_aten_moved(torch.roll))
aten_op("pixel_shuffle.default")(_aten_moved(torch.pixel_shuffle))
aten_op("pixel_unshuffle.default")(_aten_moved(torch.pixel_unshuffle))
aten_op("movedim.int", "movedim.intlist")(_aten_moved(torch.movedim))
aten_op("reflection_pad1d.default", "reflection_pad2d.default")(
    _aten_moved(lambda t, pads: torch.nn.functional.pad(t.double(), list(pads), mode="reflect").long())
)
aten_op("replication_pad1d.default", "replication_pad2d.default")(
    _aten_moved(lambda t, pads: torch.nn.functional.pad(t.double(), list(pads), mode="replicate").long())
)
