"""The linear programs of one encoding and one conjunction of atoms, for boxes of columns."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from verifier.graph import Elementwise, Interval
from verifier.solvers.encoding import Block, Encoding
from verifier.solvers.lines import line_end, line_slopes, settings
from verifier.solvers.program import Pattern, Program, Vector


class Programs:
    """Minimise t, the last column, which lies above the margins numbered `margins` int64 [K] and within plus and minus
    `most`.

    Rows come in this order: arguments, lines of every block (lower, then upper ones), margins.
    """

    def __init__(self, encoding: Encoding, margins: Tensor) -> None:
        self.encoding = encoding
        form = encoding.margins
        self._terms = form.terms[:, margins].T
        rounding = 4 * torch.finfo(torch.float64).eps
        slack = form.error[0, margins] + rounding * (form.constant[0, margins].abs() + form.error[0, margins])
        self._least = (form.constant[0, margins] - slack).numpy()
        reach = torch.maximum(encoding.lower.abs(), encoding.upper.abs())
        size = self._terms.abs() @ reach + form.constant[0, margins].abs() + form.error[0, margins]
        self.most = 2.0 * float(size.max()) + 1.0
        self.columns = encoding.columns + 1
        self._layout()

    def _layout(self) -> None:
        """The pattern (of a line: its result, then its arguments), and which neuron each line belongs to, counted
        through all blocks."""
        equal = self.encoding.equal
        row, column, first = [equal.row], [equal.column], equal.count
        owners, neurons = [torch.zeros(0, dtype=torch.int64)], 0
        for block in self.encoding.blocks:
            for kept in (block.lower, block.upper):
                neuron = kept.nonzero()[:, 1]
                entries = torch.cat([block.result[neuron].unsqueeze(0), block.arguments[:, neuron]])
                row.append((first + torch.arange(len(neuron))).repeat_interleave(len(entries)).numpy())
                column.append(entries.T.reshape(-1).numpy())
                owners.append(neurons + neuron)
                first += len(neuron)
            neurons += len(block.places)
        matrix = torch.cat([-self._terms, torch.ones(len(self._terms), 1, dtype=torch.float64)], 1)
        last = matrix.nonzero()
        row.append((first + last[:, 0]).numpy())
        column.append(last[:, 1].numpy())
        self._static = matrix[last[:, 0], last[:, 1]].numpy()
        self.owner = torch.cat(owners).numpy()
        self.neurons = neurons
        self.lines = slice(equal.count, first)
        rows = first + len(matrix)
        self.pattern = Pattern((rows, self.columns), np.concatenate(row), np.concatenate(column))
        self._cost = np.zeros(self.columns)
        self._cost[-1] = 1.0

    def build(self, lower: Tensor, upper: Tensor) -> tuple[list[Program], Vector]:
        """One program per box of columns [B, C], and [B, lines] how far each line may be from its function where the
        neuron would be split."""
        batch, equal = len(lower), self.encoding.equal

        def same(values: Vector) -> Vector:
            return np.broadcast_to(values, (batch, len(values)))

        values, low, high, gaps = [same(equal.value)], [same(equal.lower)], [same(equal.upper)], []
        for block in self.encoding.blocks:
            for entries, below, above, gap in self._lines(block, lower, upper):
                values.append(entries)
                low.append(below)
                high.append(above)
                gaps.append(gap)
        values.append(same(self._static))
        low.append(same(self._least))
        high.append(np.full((batch, len(self._least)), np.inf))
        last = np.full((batch, 1), self.most)
        whole, below, above = (np.concatenate(parts, 1) for parts in (values, low, high))
        first = np.concatenate([lower.numpy(), -last], 1)
        final = np.concatenate([upper.numpy(), last], 1)
        programs = [
            Program(self.pattern, whole[b], self._cost, first[b], final[b], below[b], above[b])
            for b in range(batch)
        ]
        return programs, np.concatenate([np.zeros((batch, 0)), *gaps], 1)

    def costs(self, gaps: Vector, multipliers: Vector) -> Vector:
        """What each neuron's relaxation costs the bound: multipliers [rows] of its lines times their gaps [lines]."""
        weights = np.abs(multipliers[self.lines]) * gaps
        return np.asarray(np.bincount(self.owner, weights, minlength=self.neurons), dtype=np.float64)

    def _lines(
        self, block: Block, lower: Tensor, upper: Tensor
    ) -> list[tuple[Vector, Vector, Vector, Vector]]:
        """Entries [B, E], ends [B, rows] and gaps [B, rows], of the lower and of the upper lines of one block."""
        node = self.encoding.graph.nodes[block.node]
        op = node.op
        if not isinstance(op, Elementwise):
            raise TypeError(f"{node.name} is not elementwise.")
        boxes = []
        for j, columns in zip(node.inputs, block.arguments, strict=True):
            full = self.encoding.bounds[j].expand(len(lower)).map(lambda t: t.flatten(1).clone())
            full.lower[:, block.places], full.upper[:, block.places] = lower[:, columns], upper[:, columns]
            boxes.append(full.map(lambda t, j=j: t.view(-1, *self.encoding.graph.nodes[j].shape)))
        found = settings(op, boxes)
        open_, points = split_points(op, boxes)
        value = op.forward(*points)
        leaps = op.jumps or op.decided_by is not None
        jump = (upper - lower)[:, block.result] if leaps else None
        sides = []
        for above, kept in ((False, block.lower), (True, block.upper)):
            setting, neuron = kept.nonzero(as_tuple=True)
            place = block.places[neuron]

            def gather(tensors: Sequence[Tensor], setting: Tensor = setting, place: Tensor = place) -> Tensor:
                """[B, rows] from one tensor [B, *shape] per setting."""
                return torch.stack(list(tensors)).flatten(2)[setting, :, place].T

            slopes = [gather([line_slopes(r, above)[k] for r in found]) for k in range(len(node.inputs))]
            ends = gather([line_end(r, above) for r in found])
            at = ends + sum(s * p.flatten(1)[:, place] for s, p in zip(slopes, points, strict=True))
            gap = (at - value.flatten(1)[:, place]).abs() if jump is None else jump[:, neuron]
            gap = torch.where(open_.flatten(1)[:, place], gap, 0.0).nan_to_num(0.0, 0.0, 0.0)
            entries = torch.stack([torch.ones_like(ends), *[-s for s in slopes]], 2).flatten(1).numpy()
            free = np.full(tuple(ends.shape), np.inf)
            both = (-free, ends.numpy()) if above else (ends.numpy(), free)
            sides.append((entries, *both, gap.numpy()))
        return sides


def split_points(op: Elementwise, boxes: Sequence[Interval]) -> tuple[Tensor, list[Tensor]]:
    """Where splitting a neuron can help (bool [B, *shape]), and the branching point of each argument."""
    points = [op.branching_point(k, *boxes).clamp(b.lower, b.upper) for k, b in enumerate(boxes)]
    open_ = torch.zeros_like(points[0], dtype=torch.bool)
    for k, (point, box) in enumerate(zip(points, boxes, strict=True)):
        # A jump at an end is split too: the end itself is a part of its own.
        inside = box.lower < box.upper if op.jumps else (point > box.lower) & (point < box.upper)
        open_ |= op.refinable(k, *boxes) & inside
    return open_, points
