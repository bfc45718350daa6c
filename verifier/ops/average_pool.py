"""AveragePool, as a convolution of each channel by itself and a division by the number of elements."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from verifier.graph import Builder, Value
from verifier.graph.registry import OnnxNode, aten_op, onnx_op
from verifier.ops.arithmetic import scale_shift
from verifier.ops.convolution import Conv, Window, window_of
from verifier.ops.extremum import aten_window, pooled_size


def average_pool(
    builder: Builder, x: Value, window: Window, ceil: bool, include_pad: bool, divisor: int | None = None
) -> Value:
    """The mean over each window: of the elements inside the value, or inside it and its padding."""
    shape = builder.shape(x)
    counts = pooled_size(shape[2:], window, ceil)
    reach = zip(counts, window.stride, window.extent, window.before, shape[2:], strict=True)
    # The windows decide how far the padding must go; it may be less (or more, with `ceil`) than asked for.
    after = tuple((o - 1) * s + e - b - n for o, s, e, b, n in reach)
    full = replace(window, after=tuple(max(a, 0) for a in after))
    sums = torch.ones(shape[1], 1, *window.kernel, dtype=torch.float64)
    divisors = (
        _divisors(window, shape[2:], counts, include_pad) if divisor is None else torch.tensor(float(divisor))
    )
    if bool((divisors == divisors.flatten()[0]).all()):
        return builder.add(Conv(sums / divisors.flatten()[0].double(), None, full, shape[1]), x)
    return scale_shift(builder, builder.add(Conv(sums, None, full, shape[1]), x), scale=1.0 / divisors)


def _divisors(window: Window, size: Sequence[int], counts: Sequence[int], include_pad: bool) -> Tensor:
    """How many elements each window averages: [*counts], float64."""
    result = torch.ones((), dtype=torch.float64)
    for d, n in enumerate(size):
        at = torch.arange(counts[d]).unsqueeze(1) * window.stride[d] - window.before[d]
        at = at + torch.arange(window.kernel[d]) * window.dilation[d]
        low, high = (-window.before[d], n + window.after[d]) if include_pad else (0, n)
        inside = ((at >= low) & (at < high)).sum(1).double()
        result = result.unsqueeze(-1) * inside
    return result


@onnx_op("AveragePool")
def _average_pool(builder: Builder, node: OnnxNode) -> Value:
    x = node.required(0)
    window = window_of(node, node.attributes["kernel_shape"], builder.shape(x)[2:])
    ceil = bool(node.attributes.get("ceil_mode", 0))
    return average_pool(builder, x, window, ceil, bool(node.attributes.get("count_include_pad", 0)))


@aten_op("avg_pool1d.default", "avg_pool2d.default", "avg_pool3d.default")
def _aten_average_pool(
    builder: Builder,
    x: Value,
    kernel_size: Sequence[int],
    stride: Sequence[int] = (),
    padding: int | Sequence[int] = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> Value:
    window = aten_window(kernel_size, stride, padding, 1, len(builder.shape(x)) - 2)
    return average_pool(builder, x, window, ceil_mode, count_include_pad, divisor_override)
