"""Intervals for losses: center and radius through products, ends through activations, and no rounding.

A loss is an estimate of a bound that is true but for rounding; certification counts that (`verifier.certify`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from verifier.graph import Affine, Graph, Interval
from verifier.graph.op import Constant, Input
from verifier.ops.linear import Linear
from verifier.ops.piecewise_linear import Relu
from verifier.training.changes import Changes
from verifier.training.gradients import Product, Rectified


class Enclosure:
    """An interval as ends or as center and radius, [B or 1, *shape] each: the one it was made from, the other once it
    is asked for."""

    __slots__ = ("_ends", "_middle")

    def __init__(self, ends: Interval | None = None, middle: tuple[Tensor, Tensor] | None = None) -> None:
        self._ends, self._middle = ends, middle

    @property
    def ends(self) -> Interval:
        if self._ends is None:
            center, radius = self.middle
            self._ends = Interval(center - radius, center + radius)
        return self._ends

    @property
    def middle(self) -> tuple[Tensor, Tensor]:
        """Center and radius."""
        if self._middle is None:
            assert self._ends is not None
            center = (self._ends.lower + self._ends.upper) * 0.5
            self._middle = (center, self._ends.upper - center)
        return self._middle

    @property
    def center(self) -> Tensor:
        return self.middle[0]

    @property
    def radius(self) -> Tensor:
        return self.middle[1]


class Enclosures(Mapping[int, Interval]):
    """The enclosures of all nodes; as a mapping, their ends."""

    def __init__(self, found: Mapping[int, Enclosure]) -> None:
        self.found = found

    def __getitem__(self, position: int) -> Interval:
        return self.found[position].ends

    def __iter__(self) -> Iterator[int]:
        return iter(self.found)

    def __len__(self) -> int:
        return len(self.found)


def enclose(
    graph: Graph, start: Mapping[int, Enclosure], shrink: float = 1.0, changes: Changes | None = None
) -> Enclosures:
    """Enclosures of all nodes that follow from those in `start`, the inputs' among them (IBP, Gowal et al. 2018, arXiv
    1810.12715): one product with the weights and one with their sizes per affine node.

    With `shrink` below 1 the upper end of every neuron that may change its sign is multiplied by it: no bounds, but
    what SABR trains with for small radii (Mueller et al. 2023, arXiv 2210.04871). With `changes` parameters vary, too,
    in the values that this computes (not in those of `start`).
    """
    found = dict(start)
    for i, node in enumerate(graph.nodes):
        if isinstance(node.op, Input) or not all(j in found for j in node.inputs):
            continue
        own = _step(graph, i, found, shrink, changes)
        found[i] = own if i not in found else Enclosure(own.ends.intersect(found[i].ends))
    return Enclosures(found)


def _step(
    graph: Graph, position: int, found: Mapping[int, Enclosure], shrink: float, changes: Changes | None
) -> Enclosure:
    op = graph.nodes[position].op
    arguments = [found[j] for j in graph.nodes[position].inputs]
    if changes is not None and position in changes.nodes:
        middles = [a.middle for a in arguments]
        radius = changes.radius(graph.nodes[position], position, *middles)
        if isinstance(op, Affine):
            radius = radius + op.absolute(*[r for _, r in middles])
        return Enclosure(middle=(op.forward(*[c for c, _ in middles]), torch.as_tensor(radius)))
    if isinstance(op, Constant):
        value = op.forward()
        return Enclosure(Interval(value, value), (value, torch.zeros_like(value)))
    if isinstance(op, Affine):
        if op.exact and all(a._middle is None for a in arguments):
            lower, upper = (op.forward(*[end(a.ends) for a in arguments]) for end in (_lower, _upper))
            return Enclosure(Interval(lower, upper))
        if isinstance(op, Linear):
            center, radius = Product.apply(*arguments[0].middle, op.weight)  # pyright: ignore[reportGeneralTypeIssues]
            return Enclosure(middle=(center if op.bias is None else center + op.bias, radius))
        middles = [a.middle for a in arguments]
        return Enclosure(middle=(op.forward(*[m[0] for m in middles]), op.absolute(*[m[1] for m in middles])))
    if isinstance(op, Relu):
        middle = arguments[0].middle
        center, radius = Rectified.apply(*middle)  # pyright: ignore[reportGeneralTypeIssues]
        if shrink != 1:
            active = middle[0] >= middle[1]
            center, radius = (torch.where(active, t, shrink * t) for t in (center, radius))
        return Enclosure(middle=(center, radius))
    return Enclosure(op.interval(*[a.ends for a in arguments]))


def _lower(interval: Interval) -> Tensor:
    return interval.lower


def _upper(interval: Interval) -> Tensor:
    return interval.upper
