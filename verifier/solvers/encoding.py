"""A network over a box as the rows of a linear program.

Columns are the inputs that vary and, for every neuron whose operator is not one line on its interval, the operator's
arguments and its result. Everything else is substituted: an argument's row says that it equals an affine function of
earlier columns, up to a bound on the rounding of that function. A part of the box is a smaller box of columns.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from verifier.bounds.interval import Bounds, interval_bounds
from verifier.graph import Affine, Elementwise, Graph, Interval, Relaxation
from verifier.graph.op import Constant, Input
from verifier.solvers.forms import Form, affine_form, constant_form, settled_form
from verifier.solvers.lines import line_end, line_slopes, settings, settled
from verifier.solvers.program import Index, Vector


@dataclass(frozen=True, eq=False)
class Block:
    """The neurons [U] of one elementwise node that have columns: flat places, the columns of the arguments [A, U] and
    of the result [U]; which lower and upper lines (bool [S, U] over the operator's settings) are rows."""

    node: int
    places: Tensor
    arguments: Tensor
    result: Tensor
    lower: Tensor
    upper: Tensor

    @property
    def rows(self) -> int:
        return int(self.lower.sum() + self.upper.sum())


@dataclass(frozen=True, eq=False)
class Encoding:
    """`inputs` int64 [n] are the places, in `box` [1, n_in], of the inputs that have columns (the first n columns).
    `lower`, `upper` [C] are the columns' box, `held` maps nodes to (flat places, columns) where columns are their
    values, `equal` are the argument rows, `margins` is the form of the output, `bounds` encloses all nodes."""

    graph: Graph
    inputs: Tensor
    box: Interval
    lower: Tensor
    upper: Tensor
    held: dict[int, tuple[Tensor, Tensor]]
    blocks: tuple[Block, ...]
    equal: Rows
    margins: Form
    bounds: Bounds

    @property
    def columns(self) -> int:
        return len(self.lower)

    def points(self, columns: Tensor) -> Tensor:
        """The inputs [B, n_in] of columns [B, C], inside the box."""
        points = self.box.lower.expand(len(columns), -1).clone()
        points[:, self.inputs] = columns[:, : len(self.inputs)]
        return points.clamp(self.box.lower, self.box.upper)

    def enclosures(self, lower: Tensor, upper: Tensor) -> Bounds:
        """Intervals of all nodes over boxes of columns [B, C], propagated; what is known of a column counts."""
        batch = len(lower)
        known = {}
        for i, (places, columns) in self.held.items():
            root = self.bounds[i].expand(batch).map(lambda t: t.flatten(1).clone())
            root.lower[:, places], root.upper[:, places] = lower[:, columns], upper[:, columns]
            known[i] = root.map(lambda t, i=i: t.view(batch, *self.graph.nodes[i].shape))
        own = self.box.expand(batch).map(torch.Tensor.clone)
        own.lower[:, self.inputs], own.upper[:, self.inputs] = (
            lower[:, : len(self.inputs)],
            upper[:, : len(self.inputs)],
        )
        return interval_bounds(self.graph, [own], known)

    def tightened(self, lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor]:
        """The boxes of columns [B, C] after propagation; a box that was split into nothing may come out as anything."""
        bounds = self.enclosures(lower, upper)
        lower, upper = lower.clone(), upper.clone()
        for i, (places, columns) in self.held.items():
            lower[:, columns] = bounds[i].lower.flatten(1)[:, places]
            upper[:, columns] = bounds[i].upper.flatten(1)[:, places]
        return lower, upper


@dataclass(frozen=True, eq=False)
class Rows:
    """`count` rows with entries `value` [E] at `row` (ascending from 0) and `column`, and their ends [count]."""

    row: Index
    column: Index
    value: Vector
    lower: Vector
    upper: Vector

    @property
    def count(self) -> int:
        return len(self.lower)


class NotFinite(Exception):
    """The network's intervals are unbounded, or not known: it cannot be encoded."""


def encode(graph: Graph, lower: Tensor, upper: Tensor, known: Bounds) -> Encoding:
    """The encoding of a float64 graph with one input [n] and one output over a box (float64 [n]); `known` encloses
    inner nodes, [1, *shape]. Raises NotFinite."""
    return _Encoder(graph, Interval(lower.unsqueeze(0), upper.unsqueeze(0)), known).build()


@dataclass
class _Encoder:
    graph: Graph
    box: Interval
    known: Bounds
    held: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)
    masks: dict[int, Tensor] = field(default_factory=dict)
    errors: dict[int, Tensor] = field(default_factory=dict)

    def build(self) -> Encoding:
        graph = self.graph
        bounds = interval_bounds(graph, [self.box], self.known)
        order = sorted(graph.ancestors(graph.outputs[0]) | set(graph.inputs))
        varying = (self.box.upper > self.box.lower)[0].nonzero()[:, 0]
        lines = self._classify(order, bounds)
        count = self._lay_out(order, len(varying))
        lower, upper = torch.zeros(count, dtype=torch.float64), torch.zeros(count, dtype=torch.float64)
        lower[: len(varying)], upper[: len(varying)] = self.box.lower[0, varying], self.box.upper[0, varying]
        for i, (places, columns) in self.held.items():
            lower[columns] = bounds[i].lower.flatten()[places]
            upper[columns] = bounds[i].upper.flatten()[places]
        if not bool(lower.isfinite().all() and upper.isfinite().all()):
            raise NotFinite
        margins, rows = self._propagate(order, varying, lines, torch.maximum(lower.abs(), upper.abs()))
        blocks = tuple(self._block(i, lines[i]) for i in self.masks)
        return Encoding(graph, varying, self.box, lower, upper, self.held, blocks, rows, margins, bounds)

    def _classify(self, order: Sequence[int], bounds: Bounds) -> dict[int, list[Relaxation]]:
        """The lines of every elementwise node; `masks` gets the neurons that need columns."""
        found: dict[int, list[Relaxation]] = {}
        for i in order:
            op = self.graph.nodes[i].op
            if isinstance(op, Elementwise):
                boxes = [bounds[j] for j in self.graph.nodes[i].inputs]
                found[i] = settings(op, boxes)
                one, self.errors[i] = settled(found[i][-1], boxes)
                if not bool(one.all()):
                    self.masks[i] = ~one.flatten()
        return found

    def _lay_out(self, order: Sequence[int], first: int) -> int:
        """Numbers the columns in the order of the nodes they are values of; returns how many there are."""
        asked = dict(self.masks)
        for i, mask in self.masks.items():
            for j in self.graph.nodes[i].inputs:
                asked[j] = asked[j] | mask if j in asked else mask
        for i in order:
            if i in asked:
                places = asked[i].nonzero()[:, 0]
                self.held[i] = (places, torch.arange(first, first + len(places)))
                first += len(places)
        return first

    def _propagate(
        self, order: Sequence[int], varying: Tensor, lines: dict[int, list[Relaxation]], reach: Tensor
    ) -> tuple[Form, Rows]:
        forms: dict[int, Form] = {}
        last_use = {j: i for i in order for j in self.graph.nodes[i].inputs}
        parts: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []
        for i in order:
            node = self.graph.nodes[i]
            xs = [forms[j] for j in node.inputs]
            if isinstance(node.op, Input):
                form = constant_form(self.box.lower, len(reach))
                form.constant[0, varying] = 0.0
                form.terms[torch.arange(len(varying)), varying] = 1.0
            elif isinstance(node.op, Constant):
                form = constant_form(node.op.forward(), len(reach))
            elif isinstance(node.op, Affine):
                form = affine_form(node.op, xs, reach)
            elif isinstance(node.op, Elementwise):
                form = settled_form(node.op, lines[i][-1], self.errors[i], xs, reach)
            else:
                raise TypeError(
                    f"{type(node.op).__name__} is neither affine nor elementwise; rewrite it first."
                )
            if i in self.held:
                places, columns = self.held[i]
                free = torch.zeros(len(places), dtype=torch.bool)
                if i in self.masks:
                    free = self.masks[i][places]
                parts.append(_cut(form, places[~free], columns[~free]))
                form = _replaced(form, places, columns)
            forms[i] = form
            for j in set(node.inputs):
                if last_use[j] == i:
                    del forms[j]
        return forms[self.graph.outputs[0]], _rows(parts, reach)

    def _block(self, i: int, lines: list[Relaxation]) -> Block:
        """Lines that an earlier setting has already are left out."""
        places = self.masks[i].nonzero()[:, 0]
        node = self.graph.nodes[i]
        arguments = torch.stack([self._columns(j, places) for j in node.inputs])
        kept: dict[bool, Tensor] = {}
        for above in (False, True):
            picked = torch.stack([_line(r, above)[:, places] for r in lines])
            fresh = torch.stack([(picked[s] != picked[:s]).any(1).all(0) for s in range(len(lines))])
            steep = fresh & (picked[:, :-1] != 0).any(1)
            # A level line says what the result's own ends say; one is kept, for it may have a slope on a part.
            kept[above] = torch.where(steep.any(0), steep, fresh)
        return Block(i, places, arguments, self._columns(i, places), kept[False], kept[True])

    def _columns(self, node: int, places: Tensor) -> Tensor:
        """The columns of a node's neurons, all of which have one."""
        held, columns = self.held[node]
        return columns[torch.searchsorted(held, places)]


def _line(lines: Relaxation, above: bool) -> Tensor:
    """Slopes and intercept of every neuron, [A + 1, N]."""
    return torch.stack([*line_slopes(lines, above), line_end(lines, above)]).flatten(1)


def _cut(form: Form, places: Tensor, columns: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """column = form, as (column [Z], terms [Z, C], constant [Z], error [Z])."""
    return (
        columns,
        form.terms.flatten(1)[:, places].T,
        form.constant.flatten()[places],
        form.error.flatten()[places],
    )


def _replaced(form: Form, places: Tensor, columns: Tensor) -> Form:
    """The form with some neurons' values taken from their columns."""
    terms, constant, error = form.terms.flatten(1).clone(), form.constant.clone(), form.error.clone()
    terms[:, places] = 0.0
    terms[columns, places] = 1.0
    constant.view(-1)[places] = 0.0
    error.view(-1)[places] = 0.0
    return Form(terms.view(form.terms.shape), constant, error)


def _rows(parts: list[tuple[Tensor, Tensor, Tensor, Tensor]], reach: Tensor) -> Rows:
    """column - terms . v within constant plus and minus error."""
    if not parts:
        empty = np.zeros(0)
        return Rows(empty.astype(np.int64), empty.astype(np.int64), empty, empty, empty)
    columns, terms, constant, error = (torch.cat([p[k] for p in parts]) for k in range(4))
    matrix = -terms
    matrix[torch.arange(len(columns)), columns] = 1.0
    row, column = matrix.nonzero(as_tuple=True)
    eps = 4 * torch.finfo(reach.dtype).eps
    slack = error + eps * (constant.abs() + error)
    return Rows(
        row.numpy(),
        column.numpy(),
        matrix[row, column].numpy(),
        (constant - slack).numpy(),
        (constant + slack).numpy(),
    )
