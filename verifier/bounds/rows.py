"""Which neurons of a layer are worth a backward pass, packed per instance."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from verifier.bounds.interval import Bounds, interval_of
from verifier.graph import Graph, Interval
from verifier.graph.coefficients import Rows
from verifier.graph.op import Affine, Elementwise, Input, Shape


class Selection(NamedTuple):
    """Flat positions [B or 1, K] of the chosen neurons of one node; short rows are filled with other
    neurons."""

    index: Tensor
    shape: Shape

    def rows(self, like: Tensor, start: int, stop: int) -> Rows:
        """Rows for +x and then -x of neurons start:stop of the selection."""
        index = self.index[:, start:stop]
        ones = torch.ones(index.shape, dtype=like.dtype, device=like.device)
        return Rows(torch.cat([index, index], 1), torch.cat([ones, -ones], 1), self.shape)


def select(mask: Tensor, shape: Shape) -> Selection | None:
    """The neurons marked in `mask` [B, *shape] (those of any instance count for the width K), or None."""
    flat = mask.reshape(len(mask), -1)
    if flat.shape[0] == 1:
        index = flat.nonzero()[:, 1].unsqueeze(0)
        return Selection(index, shape) if index.shape[1] else None
    most = int(flat.sum(1).amax())
    if most == 0:
        return None
    return Selection(flat.to(torch.uint8).topk(most, dim=1, sorted=False).indices, shape)


def refinable(graph: Graph, position: int, bounds: dict[int, Interval]) -> Tensor | None:
    """Marks the neurons of a node whose tighter interval could tighten some relaxation; None if nothing
    asks."""
    mask: Tensor | None = None
    for user in graph.users[position]:
        op = graph.nodes[user].op
        if not isinstance(op, Elementwise) or user in graph.aside:
            continue
        arguments = graph.nodes[user].inputs
        boxes = [bounds.get(j) for j in arguments]
        if any(box is None for box in boxes):
            continue
        for k, j in enumerate(arguments):
            if j == position:
                wanted = op.refinable(k, *[box for box in boxes if box is not None])
                mask = wanted if mask is None else mask | wanted
    return mask


def wanted(
    graph: Graph, position: int, bounds: dict[int, Interval], relevant: Mapping[int, Tensor]
) -> tuple[int, Tensor] | None:
    """The node to bound for the sake of `position`, and marks [B, *shape] of the neurons whose tighter interval could
    tighten some relaxation that counts, as `Graph.relevant` says; None if nothing asks.

    That is the node itself or its origin: copies are bounded once, and interval arithmetic loses nothing on the way
    back, for each is a function of one element. No line through an operator says more of its range.
    """
    mask = refinable(graph, position, bounds)
    if mask is not None and position in relevant:
        mask = mask & relevant[position]
    origin = graph.origin(position)
    if mask is None or origin is None:
        return None if mask is None else (position, mask)
    node = graph.nodes[origin.node]
    marked = (mask.reshape(len(mask), -1) & (origin.sign != 0)).float()
    marks = marked.new_zeros(marked.shape[0], node.numel).index_add_(1, origin.index, marked) > 0
    return origin.node, marks.view(-1, *node.shape)


def copies(graph: Graph, position: int, bounds: Bounds) -> Iterator[int]:
    """The nodes known to `bounds` whose origin is a node, in order."""
    return (i for i in graph.copies(position) if i in bounds)


def pass_on(graph: Graph, position: int, bounds: Bounds) -> None:
    """Intersects the enclosures of a node's copies with what its own says now."""
    for i in copies(graph, position, bounds):
        bounds[i] = interval_of(graph, i, bounds).intersect(bounds[i])


def interval_is_exact(graph: Graph, position: int, box_inputs: bool) -> bool:
    """Whether interval arithmetic already gives the exact range of a node: one affine map of a box input,
    reached through maps that keep elements apart."""
    if not box_inputs:
        return False
    node = graph.nodes[position]
    if isinstance(node.op, Input):
        return True
    if not isinstance(node.op, Affine) or len(node.inputs) != 1:
        return False
    below = node.inputs[0]
    while _keeps_apart(graph, below):
        below = graph.nodes[below].inputs[0]
    return isinstance(graph.nodes[below].op, Input) or below in graph.pieces


def _keeps_apart(graph: Graph, position: int) -> bool:
    """Whether a node takes elements of one other, none of them twice, and joins none."""
    node = graph.nodes[position]
    if not isinstance(node.op, Affine) or len(node.inputs) != 1:
        return False
    shape = graph.nodes[node.inputs[0]].shape
    return node.op.elementwise or (node.op.exact and node.op.fan_out(shape) <= 1)


def margin_rows(labels: Tensor, classes: int) -> Tensor:
    """The score of each label [N] less those of the other classes, as linear forms [N, classes - 1, classes]."""
    others = torch.arange(classes - 1, device=labels.device)
    others = others + (others >= labels.unsqueeze(1))
    unit = torch.eye(classes, device=labels.device)
    return unit[labels].unsqueeze(1) - unit[others]
