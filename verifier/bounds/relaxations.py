"""The relaxations of a backward pass."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from verifier.bounds.interval import Bounds
from verifier.bounds.lines import sane
from verifier.graph import Elementwise, Graph, Interval, Relaxation
from verifier.graph.graph import Window

Slopes = Mapping[tuple[int, int], Mapping[str, Tensor]]
"""(bounded node, elementwise node) to values of the free relaxation parameters used when bounding the first:
[B or 1, G, K, *shape], G = 2 for the lower and the upper bounds of K neurons (or K = 1: shared by all), G = 1
for the K rows of a specification."""


class Clamp(torch.autograd.Function):
    """clamp(x, low, high) whose gradient in x is always that of the identity; masks would cost more than the
    passes themselves, and the optimiser projects its parameters anyway."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, low: Tensor, high: Tensor) -> Tensor:
        return x.clamp(low, high)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        return grad, None, None


def relax_at(
    op: Elementwise, own: Mapping[str, Tensor], *boxes: Interval, sketch: bool = False
) -> Relaxation:
    """The relaxation at the parameters `own`, brought into their ranges; where it has none, at the usual start. A
    sketch is about that, where it is cheaper."""
    if sketch and own and (found := op.sketch(own, *boxes)) is not None:
        return found
    ranges = op.ranges(*boxes) if own else {}
    starts = {} if own and own.keys() >= ranges.keys() else op.parameters(*boxes)
    values = {name: p.value for name, p in starts.items()}
    for name, limit in ranges.items():
        if name in own:
            values[name] = Clamp.apply(own[name], limit.lower.detach(), limit.upper.detach())
    return op.relax(values, *boxes)


def relax(
    graph: Graph,
    position: int,
    bounds: Mapping[int, Interval],
    slopes: Mapping[str, Tensor],
    sketch: bool = False,
) -> Relaxation:
    """The relaxation of an elementwise node at its starting parameters, or at `slopes` [B, G, *shape]."""
    node = graph.nodes[position]
    if not isinstance(node.op, Elementwise):
        raise TypeError(f"{node.name} is not elementwise and has no relaxation.")
    boxes = [bounds[j] for j in node.inputs]
    if slopes:
        boxes = [box.map(lambda t: t.unsqueeze(1)) for box in boxes]
    return relax_at(node.op, slopes, *boxes, sketch=sketch)


class Relaxations:
    """Relaxations of one pass: the default of each node once, and those with their own slopes per bounded node for all
    of these together, since each takes hundreds of small operations. A node's arguments must have their enclosures
    for good when the first node above it is bounded. `sketch` for passes of which nothing is claimed."""

    def __init__(
        self, graph: Graph, bounds: Bounds, slopes: Slopes | None = None, sketch: bool = False
    ) -> None:
        self._graph, self._bounds, self._slopes, self._sketch = graph, bounds, slopes or {}, sketch
        self._default: dict[int, Relaxation] = {}
        self._own: dict[tuple[int, int], Relaxation] = {}
        self._targets: dict[int, list[int]] = {}
        for (target, j), own in self._slopes.items():
            if own:
                self._targets.setdefault(j, []).append(target)

    def of(self, target: int, rows: slice, window: Window) -> Mapping[int, Relaxation]:
        """For bounding rows `rows` (within each group) of `target` by a pass through a window."""
        chosen: dict[int, Relaxation] = {}
        for j in window.nodes - window.ends:
            if not isinstance(self._graph.nodes[j].op, Elementwise):
                continue
            if self._slopes.get((target, j)):
                if (target, j) not in self._own:
                    self._relax_together(j)
                chosen[j] = self._cut(target, j, rows)
                continue
            if j not in self._default:
                self._default[j] = sane(relax(self._graph, j, self._bounds, {}))
            chosen[j] = self._default[j]
        return chosen

    def _relax_together(self, j: int) -> None:
        """The relaxations of one node for all bounded nodes with the same parameters and batch."""
        alike: dict[tuple[object, ...], list[int]] = {}
        for target in self._targets[j]:
            own = self._slopes[target, j]
            alike.setdefault((*own, *[len(t) for t in own.values()]), []).append(target)
        for targets in alike.values():
            parts = [{n: t.flatten(1, 2) for n, t in self._slopes[i, j].items()} for i in targets]
            sizes = [next(iter(part.values())).shape[1] for part in parts]
            slopes = (
                {n: torch.cat([part[n] for part in parts], 1) for n in parts[0]} if parts[1:] else parts[0]
            )
            whole = sane(relax(self._graph, j, self._bounds, slopes, self._sketch))
            for k, target in enumerate(targets):
                self._own[target, j] = _mapped(whole, lambda t, k=k, n=sizes: t.split(n, 1)[k])

    def _cut(self, target: int, j: int, rows: slice) -> Relaxation:
        """The rows of a relaxation; a slice of everything would only cost time in the gradient."""
        whole = self._own[target, j]
        groups, count = next(iter(self._slopes[target, j].values())).shape[1:3]
        first, last, _ = rows.indices(count)
        if count == 1 or (first == 0 and last == count):
            return whole
        return _mapped(whole, lambda t: t.unflatten(1, (groups, count))[:, :, rows].flatten(1, 2))


def _mapped(whole: Relaxation, change: Callable[[Tensor], Tensor]) -> Relaxation:
    """A relaxation with its tensors [B, R, *shape] changed where rows have their own."""

    def part(t: Tensor | None) -> Tensor | None:
        return t if t is None or t.shape[1] == 1 else change(t)

    lower, upper = (tuple(part(t) for t in s) for s in (whole.lower_slopes, whole.upper_slopes))
    return Relaxation(lower, part(whole.lower_intercept), upper, part(whole.upper_intercept), whole.finite)  # pyright: ignore[reportArgumentType]
