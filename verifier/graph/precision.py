"""Arithmetic that the error bounds are true of."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def full_precision() -> Iterator[None]:
    """On CUDA no TF32, and no cuDNN, whose convolutions may use transforms (Winograd, FFT) with larger errors than
    sums of products have; the caller's settings come back afterwards. On CPUs torch computes convolutions directly."""
    if not torch.cuda.is_available():
        yield
        return
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = False
    try:
        with torch.backends.cudnn.flags(enabled=False, allow_tf32=False):
            yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before
