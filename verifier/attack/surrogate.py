"""Straight-through gradients: operators such as Sign get a useful derivative in place of zero."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from verifier.graph import Elementwise, Graph, Interval
from verifier.graph.op import Op, Shape

_LEAST = 1e-3
"""Widths are at least this part of the mean |x| of the value,"""
_ALONE = 0.3
"""and this part where there are no other points to tell them from."""


class _Smoothed(torch.autograd.Function):
    """Forward gives `value`; backward treats it as a jump at zero smoothed by a Gaussian, for each element as wide as
    its arguments spread over the batch: what no point of a small box can flip gets no gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, value: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return value

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (x,) = ctx.saved_tensors
        size = x.abs()
        mean = size.flatten(1).mean(1).clamp(min=torch.finfo(x.dtype).tiny).view(-1, *[1] * (x.dim() - 1))
        width = torch.maximum(x.std(0, keepdim=True), _LEAST * mean) if len(x) > 1 else _ALONE * mean
        slope = torch.exp(-0.5 * (size / width).square()) / width
        return grads[0] * slope, None


@dataclass(frozen=True, eq=False)
class StraightThrough(Op):
    """The operator `of` of one argument, with the derivative of a smoothed jump."""

    of: Op

    def tensors(self) -> Iterator[Tensor]:
        return self.of.tensors()

    def to(
        self, dtype: torch.dtype | None = None, device: torch.device | str | None = None
    ) -> StraightThrough:
        return replace(self, of=self.of.to(dtype, device))

    def output_shape(self, *shapes: Shape) -> Shape:
        return self.of.output_shape(*shapes)

    def interval(self, *xs: Interval) -> Interval:
        return self.of.interval(*xs)

    def forward(self, *xs: Tensor) -> Tensor:
        with torch.no_grad():
            value = self.of.forward(*xs)
        return _Smoothed.apply(xs[0], value)  # pyright: ignore[reportReturnType]


def with_gradients(graph: Graph) -> Graph:
    """The same graph, with elementwise operators whose derivative is zero almost everywhere made straight-through.

    Values do not change. Which operators these are is found by differentiating each at random points.
    """
    generator = torch.Generator().manual_seed(0)
    known: dict[type[Op], bool] = {}
    nodes = []
    for node in graph.nodes:
        op = node.op
        if isinstance(op, Elementwise) and len(node.inputs) == 1 and not any(True for _ in op.tensors()):
            if type(op) not in known:
                known[type(op)] = _is_flat(op, node.shape, generator, graph.dtype)
            flat = known[type(op)]
        else:
            flat = isinstance(op, Elementwise) and len(node.inputs) == 1
            flat = flat and _is_flat(op, node.shape, generator, graph.dtype)
        nodes.append(replace(node, op=StraightThrough(op)) if flat else node)
    return replace(graph, nodes=tuple(nodes))


def _is_flat(op: Op, shape: Shape, generator: torch.Generator, dtype: torch.dtype) -> bool:
    """Whether the derivative is zero at random points of several sizes although the value changes."""
    device = next((t.device for t in op.tensors()), torch.device("cpu"))
    sizes = torch.logspace(-2, 2, 9, dtype=dtype).view(-1, *[1] * len(shape))
    x = (torch.randn((9, *shape), generator=generator, dtype=dtype) * sizes).to(device)
    x.requires_grad_(True)
    with torch.enable_grad():
        y = op.forward(x)
        if not y.requires_grad:
            return bool((y != y.flatten()[0]).any())
        (slope,) = torch.autograd.grad(y.sum(), x, allow_unused=True)
    return (slope is None or not bool(slope.any())) and bool((y != y.flatten()[0]).any())


def gradient_at(value: Tensor, x: Tensor) -> Tensor:
    """The derivative of a number in x; zero where it does not depend on x, or only through comparisons."""
    found = torch.autograd.grad(value, x, allow_unused=True)[0] if value.requires_grad else None
    return torch.zeros_like(x) if found is None else found
