"""Constants made in the shape of another value (torch's zeros_like and its kin; in ONNX they are folded away)."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from verifier.graph import Builder, Value
from verifier.graph.registry import aten_op


def _filled(builder: Builder, shape: Sequence[int], value: float, dtype: torch.dtype | None) -> Value:
    return builder.constant(torch.full(tuple(shape), value, dtype=dtype or torch.float64))


@aten_op("full_like.default")
def _full_like(
    builder: Builder, x: Value, fill_value: float, dtype: torch.dtype | None = None, **options: object
) -> Value:
    return _filled(builder, builder.shape(x), fill_value, dtype)


@aten_op("zeros_like.default")
def _zeros_like(builder: Builder, x: Value, dtype: torch.dtype | None = None, **options: object) -> Value:
    return _filled(builder, builder.shape(x), 0, dtype)


@aten_op("ones_like.default")
def _ones_like(builder: Builder, x: Value, dtype: torch.dtype | None = None, **options: object) -> Value:
    return _filled(builder, builder.shape(x), 1, dtype)


@aten_op("new_full.default")
def _new_full(
    builder: Builder,
    x: Value,
    size: Sequence[int],
    fill_value: float,
    dtype: torch.dtype | None = None,
    **options: object,
) -> Value:
    return _filled(builder, size, fill_value, dtype)


@aten_op("new_zeros.default")
def _new_zeros(
    builder: Builder, x: Value, size: Sequence[int], dtype: torch.dtype | None = None, **options: object
) -> Value:
    return _filled(builder, size, 0, dtype)


@aten_op("new_ones.default")
def _new_ones(
    builder: Builder, x: Value, size: Sequence[int], dtype: torch.dtype | None = None, **options: object
) -> Value:
    return _filled(builder, size, 1, dtype)
