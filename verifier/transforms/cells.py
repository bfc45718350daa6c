"""Input elements that a network reads as integers only: boxes of them are finitely many points.

What is left of such an element when its fraction is cut off is all that matters, so a box is covered by one point for
each integer, or for each different entry of the tables that the integers are looked up in. That is exact, the jumps
included: every point of the box gives the same results as one of these.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from verifier.graph import Graph
from verifier.graph.op import Input
from verifier.ops.integers import Truncate
from verifier.ops.lookup import CELLS, Lookup
from verifier.transforms.copies import input_places

MOST = 1 << 27
"""Numbers that the boxes after splitting may have."""


@dataclass(frozen=True, eq=False)
class Cells:
    """Boxes [M, n] that cover N boxes as far as the network's results go; each comes from box `owner` [M]."""

    lower: Tensor
    upper: Tensor
    owner: Tensor


def split_integers(graph: Graph, lower: Tensor, upper: Tensor) -> Cells | None:
    """The boxes `lower`, `upper` [N, n] of the graph's one input [n] split in all elements that are read as integers
    only. None where there is nothing to split, or too much."""
    found = _Reads(graph)
    elements = found.discrete[((upper > lower).any(0))[found.discrete]]
    if not len(elements):
        return None
    first, last = lower[:, elements].trunc(), upper[:, elements].trunc()
    counts = (last - first + 1).prod(1)
    if not bool(counts.sum() <= CELLS):
        return None
    parts = [
        found.different(elements, _grid(a, b), lower[n])
        for n, (a, b) in enumerate(zip(first, last, strict=True))
    ]
    total = sum(map(len, parts))
    if total * lower.shape[1] > MOST:
        return None
    owner = torch.repeat_interleave(torch.arange(len(lower)), torch.tensor([len(p) for p in parts]))
    low, high = lower[owner], upper[owner]
    # A point of the box with that integer part: the integer itself or, where that lies outside, the box's end.
    points = torch.cat(parts).clamp(low[:, elements], high[:, elements])
    low[:, elements], high[:, elements] = points, points
    return Cells(low, high, owner)


def _grid(first: Tensor, last: Tensor) -> Tensor:
    """All combinations of integers between `first` and `last` [E]: [C, E]."""
    axes = [torch.arange(int(a), int(b) + 1, dtype=first.dtype) for a, b in zip(first, last, strict=True)]
    return torch.cartesian_prod(*axes).view(-1, len(axes))


class _Reads:
    """Which elements of the input are read as integers only, and by which tables alone."""

    def __init__(self, graph: Graph) -> None:
        (source,) = graph.inputs
        size = math.prod(graph.nodes[source].shape)
        self._places = input_places(graph)
        whole, other = torch.zeros(size, dtype=torch.bool), torch.zeros(size, dtype=torch.bool)
        plain = torch.zeros(size, dtype=torch.bool)
        for i, node in enumerate(graph.nodes):
            if isinstance(node.op, Input):
                continue
            copied = [j for j in node.inputs if j in self._places]
            if i in self._places:
                continue
            mask = whole if isinstance(node.op, Truncate | Lookup) else other
            for j in copied:
                read = self._places[j][self._places[j] >= 0]
                mask[read] = True
                plain[read] |= isinstance(node.op, Truncate) or not _keyed(node.inputs, self._places)
        for i in graph.outputs:
            if i in self._places:
                other[self._places[i][self._places[i] >= 0]] = True
        self.discrete = (whole & ~other).nonzero()[:, 0]
        self._plain = plain
        self._tables = list(_tables(graph, self._places))

    def different(self, elements: Tensor, grid: Tensor, at: Tensor) -> Tensor:
        """Those of the combinations `grid` [C, E] that some result tells apart, one of each kind; other elements are as
        in `at` [n], which tables read only where they are fixed."""
        keys = [grid[:, self._plain[elements]]]
        where = {int(e): k for k, e in enumerate(elements)}
        for lookup, read in self._tables:
            columns = [grid[:, where[e]] if e in where else at[e].trunc().expand(len(grid)) for e in read]
            cells, which = torch.stack(columns, 1).unique(dim=0, return_inverse=True)
            keys.append(lookup.table.places(cells.long())[which].unsqueeze(1).to(grid))
        _, which = torch.cat(keys, 1).unique(dim=0, return_inverse=True)
        count = int(which.max()) + 1
        order = torch.arange(len(grid))
        return grid[torch.full((count,), len(grid)).scatter_reduce(0, which, order, "amin")]


def _keyed(inputs: tuple[int, ...], places: Mapping[int, Tensor]) -> bool:
    """Whether all arguments are copies of input elements."""
    return all(j in places and bool((places[j] >= 0).all()) for j in inputs)


def _tables(graph: Graph, places: Mapping[int, Tensor]) -> Iterator[tuple[Lookup, list[int]]]:
    """The lookups whose keys are all input elements, with those."""
    for node in graph.nodes:
        if isinstance(node.op, Lookup) and _keyed(node.inputs, places):
            yield node.op, [int(places[j][0]) for j in node.inputs]
