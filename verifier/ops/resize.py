"""Resize and Upsample, axis by axis: an index for nearest, else a matrix that is the reference implementation's own
answer on unit vectors, hence right for every mode it has."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from verifier.graph import Builder, Value
from verifier.graph.registry import OnnxNode, Unsupported, aten_op, onnx_op
from verifier.ops.movement import take
from verifier.ops.reduction import along

_OPTIONS = ("antialias", "coordinate_transformation_mode", "cubic_coeff_a", "exclude_outside", "nearest_mode")


def nearest(size: int, scale: float, target: int | None, options: Mapping[str, Any]) -> Tensor:
    """Which element each result takes: int64 [out].

    Computed in float32 as onnxruntime does: where a position is a tie in real numbers, its rounding decides.
    """
    out = int(np.floor(size * scale)) if target is None else target
    at, ratio = np.arange(out, dtype=np.float32), np.float32(scale)
    half, one = np.float32(0.5), np.float32(1)
    mode = options.get("coordinate_transformation_mode", "half_pixel")
    if mode == "align_corners":
        x = at * np.float32(size - 1) / np.float32(out - 1) if out > 1 else np.zeros_like(at)
    elif mode == "asymmetric":
        x = at / ratio
    elif mode == "tf_half_pixel_for_nn":
        x = (at + half) / ratio
    elif mode in ("half_pixel", "pytorch_half_pixel", "half_pixel_symmetric"):
        x = (at + half) / ratio - half
        if mode == "pytorch_half_pixel" and out == 1:
            x = np.zeros_like(at)
        if mode == "half_pixel_symmetric":
            x = x + np.float32(size) / 2 * (one - np.float32(out) / (ratio * np.float32(size)))
    else:
        raise Unsupported(f"the coordinate mode {mode!r}")
    roundings: dict[str, Any] = {
        "round_prefer_floor": lambda x: np.ceil(x - half),
        "round_prefer_ceil": lambda x: np.floor(x + half),
        "floor": np.floor,
        "ceil": np.ceil,
        "simple": np.ceil if ratio < 1 else np.floor,  # onnxruntime's choice where opset 10 leaves it open
    }
    chosen = roundings[options.get("nearest_mode", "round_prefer_floor")](x)
    return torch.from_numpy(chosen.clip(0, size - 1).astype(np.int64))


def interpolation(
    size: int, scale: float, target: int | None, mode: str, options: Mapping[str, Any]
) -> Tensor:
    """The matrix of a one-dimensional resize: [out, size], float64."""
    from onnx import helper
    from onnx.reference import ReferenceEvaluator

    names = ["x", "", "scales", ""] if target is None else ["x", "", "", "sizes"]
    feed: dict[str, np.ndarray] = {"x": np.eye(size)}
    if target is None:
        feed["scales"] = np.array([1.0, scale])
    else:
        feed["sizes"] = np.array([size, target], dtype=np.int64)
    node = helper.make_node("Resize", names, ["y"], mode=mode, **options)
    inputs = [helper.make_empty_tensor_value_info(n) for n in feed]
    graph = helper.make_graph([node], "resize", inputs, [helper.make_empty_tensor_value_info("y")])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)])
    (result,) = ReferenceEvaluator(model).run(None, feed)
    y = np.asarray(result, dtype=np.float64)
    return torch.from_numpy(y).T.contiguous()


def resize(
    builder: Builder,
    x: Value,
    scales: Sequence[float],
    sizes: Sequence[int | None],
    mode: str,
    options: Mapping[str, Any],
) -> Value:
    """`x` resized along every axis whose scale is not 1; where a size is given, it rather than the scale decides."""
    for axis, (scale, size) in enumerate(zip(scales, sizes, strict=True)):
        n = builder.shape(x)[axis]
        if scale != 1 or (size is not None and size != n):
            if mode == "nearest":
                chosen = nearest(n, scale, size, options)
                x = take(builder, x, lambda t, a=axis, c=chosen: t.index_select(a, c))
            else:
                x = along(builder, x, axis, interpolation(n, scale, size, mode, options))
    return x


@onnx_op("Upsample", note="constant scales")
def _upsample(builder: Builder, node: OnnxNode) -> Value:
    x = node.required(0)
    scales = node.attributes.get("scales")
    if scales is None:
        tensor = node.constant(builder, 1, "scales")
        if tensor is None:
            raise Unsupported("the scales are missing")
        scales = tensor.tolist()
    options = {"coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
    mode = node.attributes.get("mode", "nearest")
    if mode not in ("nearest", "linear"):
        raise Unsupported(f"the mode {mode!r}")
    return resize(builder, x, scales, [None] * len(scales), mode, options)


@onnx_op("Resize", note="constant scales or sizes; without tf_crop_and_resize")
def _resize(builder: Builder, node: OnnxNode) -> Value:
    x = node.required(0)
    mode = node.attributes.get("mode", "nearest")
    options = {k: v for k, v in node.attributes.items() if k in _OPTIONS}
    if node.opset < 11:
        options = {"coordinate_transformation_mode": "asymmetric", "nearest_mode": "simple"}
    if mode not in ("nearest", "linear", "cubic"):
        raise Unsupported(f"the mode {mode!r}")
    if options.get("coordinate_transformation_mode") == "tf_crop_and_resize":
        raise Unsupported("the coordinate mode tf_crop_and_resize")
    if node.attributes.get("keep_aspect_ratio_policy", "stretch") != "stretch":
        raise Unsupported("a policy for the aspect ratio")
    shape = builder.shape(x)
    position = 1 if node.opset < 11 else 2
    axes = [a % len(shape) for a in node.attributes.get("axes", range(len(shape)))]
    scales, sizes = [1.0] * len(shape), [None] * len(shape)
    given = node.constant(builder, position, "scales")
    wanted = node.constant(builder, 3, "sizes") if node.opset >= 11 else None
    if given is not None and given.numel():
        for axis, scale in zip(axes, given.tolist(), strict=True):
            scales[axis] = scale
    elif wanted is not None:
        for axis, size in zip(axes, wanted.tolist(), strict=True):
            scales[axis], sizes[axis] = size / shape[axis], size
    else:
        raise Unsupported("both scales and sizes are missing")
    return resize(builder, x, scales, sizes, mode, options)


@aten_op("upsample_nearest1d.vec", "upsample_nearest2d.vec", "upsample_nearest3d.vec")
def _aten_nearest(
    builder: Builder, x: Value, output_size: Sequence[int] | None, scale_factors: Sequence[float] | None
) -> Value:
    def select(t: Tensor) -> Tensor:
        # Positions stay exact in float64.
        interpolate = torch.nn.functional.interpolate
        scale = None if output_size is not None or scale_factors is None else tuple(scale_factors)
        size = None if output_size is None else tuple(output_size)
        return interpolate(t.double(), size=size, scale_factor=scale, mode="nearest").long()

    return take(builder, x, select)
