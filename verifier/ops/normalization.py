"""BatchNormalization in inference mode."""

from __future__ import annotations

import torch
from torch import Tensor

from verifier.graph import Builder, Value
from verifier.graph.registry import OnnxNode, Unsupported, aten_op, onnx_op
from verifier.ops.arithmetic import scale_shift


def batch_norm(
    builder: Builder,
    x: Value,
    gamma: Tensor | None,
    beta: Tensor | None,
    mean: Tensor,
    variance: Tensor,
    epsilon: float,
) -> Value:
    """gamma (x - mean) / sqrt(variance + epsilon) + beta per channel (dimension 1), as one scale and one shift.

    The scale is rounded relative to itself, as any weight may be; what that and the sum do to the shift is its doubt.
    """
    rank = len(builder.shape(x))
    scale = (variance + epsilon).rsqrt() if gamma is None else gamma / (variance + epsilon).sqrt()
    shift = -mean * scale if beta is None else beta - mean * scale
    view = (-1, *[1] * (rank - 2)) if rank > 1 else (-1,)
    doubt = 4 * torch.finfo(shift.dtype).eps * ((mean * scale).abs() + shift.abs()).detach()
    return scale_shift(builder, x, scale.view(view), shift.view(view), doubt.view(view))


@onnx_op("BatchNormalization", note="inference only")
def _batch_normalization(builder: Builder, node: OnnxNode) -> Value:
    if node.attributes.get("training_mode", 0) or node.used - {0}:
        raise Unsupported("batch statistics (training mode)")
    names = ("scale", "B", "mean", "var")
    tensors = [node.constant(builder, i, name) for i, name in enumerate(names, 1)]
    gamma, beta, mean, variance = tensors
    if gamma is None or beta is None or mean is None or variance is None:
        raise Unsupported("a parameter is missing")
    return batch_norm(
        builder, node.required(0), gamma, beta, mean, variance, node.attributes.get("epsilon", 1e-5)
    )


@aten_op("batch_norm.default")
def _aten_batch_norm(
    builder: Builder,
    x: Value,
    weight: Value | None,
    bias: Value | None,
    running_mean: Value | None,
    running_var: Value | None,
    training: bool,
    momentum: float,
    eps: float,
    cudnn_enabled: bool = False,
) -> Value:
    if training or running_mean is None or running_var is None:
        raise Unsupported("batch statistics (training mode)")
    return _aten_normalise(builder, x, weight, bias, running_mean, running_var, eps)


@aten_op("_native_batch_norm_legit_no_training.default")
def _aten_native_batch_norm(
    builder: Builder,
    x: Value,
    weight: Value | None,
    bias: Value | None,
    running_mean: Value,
    running_var: Value,
    momentum: float,
    eps: float,
) -> tuple[Value]:
    return (_aten_normalise(builder, x, weight, bias, running_mean, running_var, eps),)


def _aten_normalise(
    builder: Builder,
    x: Value,
    weight: Value | None,
    bias: Value | None,
    mean: Value,
    variance: Value,
    eps: float,
) -> Value:
    gamma, beta, m, v = (None if t is None else builder.tensor(t) for t in (weight, bias, mean, variance))
    if (
        m is None
        or v is None
        or (weight is not None and gamma is None)
        or (bias is not None and beta is None)
    ):
        raise Unsupported("statistics that depend on the network's input")
    return batch_norm(builder, x, gamma, beta, m, v, eps)
