"""Scaled dot product attention: torch's function and ONNX's operator."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from verifier.graph import Builder, Value
from verifier.graph.registry import OnnxNode, Unsupported, aten_op, onnx_op
from verifier.ops.arithmetic import add, scale_shift
from verifier.ops.matmul import matmul
from verifier.ops.movement import permute, reshape, take
from verifier.ops.softmax import softmax


def attention(
    builder: Builder, query: Value, key: Value, value: Value, scale: float, mask: Value | None = None
) -> Value:
    """softmax(scale query key^T + mask) value, over the last two dimensions."""
    rank = len(builder.shape(key))
    turned = permute(builder, key, [*range(rank - 2), rank - 1, rank - 2])
    scores = scale_shift(builder, matmul(builder, query, turned), scale=scale)
    scores = scores if mask is None else add(builder, scores, mask)
    return matmul(builder, softmax(builder, scores, -1), value)


def _causal(queries: int, keys: int, earlier: int = 0) -> Tensor:
    """What is added so that each query only sees keys up to its own place, after `earlier` keys of the past."""
    allowed = torch.ones(queries, keys, dtype=torch.bool).tril(earlier)
    return torch.zeros(queries, keys, dtype=torch.float64).masked_fill(~allowed, -torch.inf)


def _additive(builder: Builder, mask: Value | None) -> Value | None:
    """A mask of what may be seen as one that is added."""
    tensor = None if mask is None else builder.tensor(mask)
    if tensor is None or tensor.dtype != torch.bool:
        return mask
    return builder.constant(torch.zeros(tensor.shape, dtype=torch.float64).masked_fill(~tensor, -torch.inf))


def _shared(builder: Builder, x: Value, heads: int) -> Value:
    """Keys or values [batch, fewer heads, n, d], each for several queries' heads."""
    own = builder.shape(x)[1]
    if own == heads:
        return x
    if heads % own:
        raise ValueError(f"{heads} heads of queries cannot share {own} heads of keys.")
    return take(builder, x, lambda t: t.repeat_interleave(heads // own, 1))


def _both(builder: Builder, mask: Value | None, causal: Tensor | None) -> Value | None:
    if causal is None:
        return mask
    constant = builder.constant(causal)
    return constant if mask is None else add(builder, mask, constant)


@aten_op("scaled_dot_product_attention.default")
def _aten_attention(
    builder: Builder,
    query: Value,
    key: Value,
    value: Value,
    attn_mask: Value | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Value:
    if dropout_p:
        raise Unsupported("dropout in attention")
    shape = builder.shape(query)
    if enable_gqa:
        key, value = (_shared(builder, x, shape[1]) for x in (key, value))
    causal = _causal(shape[-2], builder.shape(key)[-2]) if is_causal else None
    mask = _both(builder, _additive(builder, attn_mask), causal)
    return attention(builder, query, key, value, scale or 1 / math.sqrt(shape[-1]), mask)


@onnx_op("Attention", note="one output; constant masks that forbid; no softcap, window or past")
def _attention(builder: Builder, node: OnnxNode) -> Value:
    """Queries, keys and values [batch, heads, n, d], or [batch, n, heads * d]."""
    attributes = node.attributes
    refused = [name for name in ("softcap", "qk_matmul_output_mode") if attributes.get(name, 0)]
    refused += [
        n for n in ("left_window_size", "right_window_size") if attributes.get(n, -1) not in (-1, None)
    ]
    if refused or any(node.input(i) is not None for i in (4, 5, 6)) or node.used - {0}:
        raise Unsupported(f"{', '.join(refused) or 'past keys, lengths, or more than one output'}")
    parts = [node.required(i) for i in range(3)]
    flat = len(builder.shape(parts[0])) == 3
    if flat:
        counts = (attributes.get("q_num_heads"), *[attributes.get("kv_num_heads")] * 2)
        parts = [_split_heads(builder, x, n) for x, n in zip(parts, counts, strict=True)]
    query, key, value = parts
    heads = builder.shape(query)[1]
    key, value = (_shared(builder, x, heads) for x in (key, value))
    queries, keys = builder.shape(query)[-2], builder.shape(key)[-2]
    causal = _causal(queries, keys) if attributes.get("is_causal", 0) else None
    mask = _both(builder, _additive(builder, node.input(3)), causal)
    scale = attributes.get("scale") or 1 / math.sqrt(builder.shape(query)[-1])
    y = attention(builder, query, key, value, float(scale), mask)
    if not flat:
        return y
    batch, _, n, d = builder.shape(y)
    return reshape(builder, permute(builder, y, (0, 2, 1, 3)), (batch, n, heads * d))


def _split_heads(builder: Builder, x: Value, heads: int | None) -> Value:
    shape: Sequence[int] = builder.shape(x)
    if not heads or len(shape) != 3 or shape[2] % heads:
        raise Unsupported("heads that are not told, or do not divide the last dimension")
    split = reshape(builder, x, (shape[0], shape[1], heads, shape[2] // heads))
    return permute(builder, split, (0, 2, 1, 3))
