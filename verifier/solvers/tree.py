"""Branch and bound over neurons with linear programs: every leaf is closed by multipliers evaluated here."""

from __future__ import annotations

import heapq
import itertools
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from verifier.graph import Elementwise, Interval
from verifier.options import LinearSolver
from verifier.results import Counterexample
from verifier.solvers.encoding import Block
from verifier.solvers.program import Index, Program, Vector, lagrangian, refutes
from verifier.solvers.programs import Programs, split_points
from verifier.solvers.solver import Method, Proposal, solver

Attempt = Callable[[Tensor], Counterexample | None]
"""Inputs [M, n_in] that may be counterexamples."""

WIDTH = 8
"""Leaves split at once: the operators' lines are computed for all of them together."""
SQUEEZED = 40
"""At most so many neurons get the ends of their arguments from linear programs, in each of at most"""
ROUNDS = 3
"""rounds, which go on while one closes this part of the distance to zero:"""
WORTH = 0.25
INSIDE = (0.1, 1e-4)
"""How far from its ends points of a part are sought, relative to its width."""
FLAT = 1e-9
"""A bound within this of zero, relative to the margins' range, is zero but for the tolerance: then the objective
tells nothing, and branch and bound elsewhere is quicker."""
NEGLIGIBLE = 0.05
"""Ends that would move by less than this part of the range are left alone."""


@dataclass(frozen=True, eq=False)
class Leaf:
    """A box of columns [C] and the proved bound of its program; `neuron` (counted through all blocks) is to be split;
    `basis` is the solver's."""

    lower: Tensor
    upper: Tensor
    bound: float
    neuron: int
    basis: Any


@dataclass(frozen=True, eq=False)
class _Solved:
    """A leaf's program with what the solver proposed for it, and the bound that this proves."""

    lower: Tensor
    upper: Tensor
    program: Program
    proposal: Proposal
    costs: Vector
    bound: float


class Tree:
    """Proves that the largest of some margins is above zero (or, where `strict`, at least zero) on a box.

    `open` is False once that is proved. `bound` is a proved lower bound of the margins' largest; `stuck` the least
    bound of a part that nothing can split any more.
    """

    def __init__(
        self,
        programs: Programs,
        strict: bool,
        attempt: Attempt,
        deadline: float,
        lp: LinearSolver = "highs",
    ) -> None:
        self.programs, self.strict = programs, strict
        self._attempt, self._deadline = attempt, deadline
        self._encoding = programs.encoding
        self._sizes = [len(block.places) for block in self._encoding.blocks]
        curved = [getattr(self._op(block), "smooth", False) for block in self._encoding.blocks]
        self._kinked = ~np.repeat(np.array(curved, dtype=bool), self._sizes)
        jumps = [block.arguments.flatten() for block in self._encoding.blocks if self._op(block).jumps]
        self._jumps = torch.cat([torch.zeros(0, dtype=torch.int64), *jumps]).unique().numpy()
        self._dual = solver(lp, Method.DUAL)
        self._primal = solver(lp, Method.PRIMAL)
        self._near = 0.4
        self._heap: list[tuple[float, int, Leaf]] = []
        self._pending: list[_Solved] = []
        self._counter = itertools.count()
        self._fresh = True
        self._until = -math.inf
        self.stuck = math.inf
        self.leaves = 0

    @property
    def open(self) -> bool:
        return not self.finished or self.stuck < math.inf

    @property
    def finished(self) -> bool:
        """Whether nothing is left to split."""
        return not (self._fresh or self._heap or self._pending)

    @property
    def bound(self) -> float:
        """Infinite where the property is proved."""
        waiting = [s.bound for s in self._pending] + [leaf[0] for leaf in self._heap[:1]]
        return -math.inf if self._fresh else min([*waiting, self.stuck])

    @property
    def flat(self) -> bool:
        """Whether the objective tells nothing."""
        return self._flat(self.bound)

    def _flat(self, bound: float) -> bool:
        return bound > -FLAT * self.programs.most

    def run(self, until: float) -> Counterexample | None:
        """Splits the worst leaves until none is open, a point is a counterexample, or `until` (of `time.monotonic`)."""
        self._until = until
        with torch.no_grad():
            if self._fresh:
                e = self._encoding
                root = Leaf(e.lower, e.upper, -math.inf, -1, None)
                found = self._bound(e.lower.unsqueeze(0), e.upper.unsqueeze(0), [root])
                self._fresh = False
                if found is not None:
                    return found
            found = self._settle()
            if found is not None:
                return found
            while self._heap and time.monotonic() < until:
                taken = [heapq.heappop(self._heap)[2] for _ in range(min(WIDTH, len(self._heap)))]
                parts = [self._split(leaf) for leaf in taken]
                owners = [leaf for leaf, part in zip(taken, parts, strict=True) for _ in part[0]]
                lower, upper = (torch.cat([part[k] for part in parts]) for k in (0, 1))
                found = self._bound(*self._encoding.tightened(lower, upper), owners)
                if found is not None:
                    return found
        return None

    # --- splitting

    def _place(self, neuron: int) -> tuple[Block, int]:
        """The block that a neuron belongs to, and its place there."""
        for block, size in zip(self._encoding.blocks, self._sizes, strict=True):
            if neuron < size:
                return block, neuron
            neuron -= size
        raise IndexError("There is no such neuron.")

    def _split(self, leaf: Leaf) -> tuple[Tensor, Tensor]:
        """Boxes of columns [P, C] that cover the leaf."""
        block, k = self._place(leaf.neuron)
        column, point = self._cut(leaf, block, k)
        if self._op(block).jumps:
            return self._sides_of_jump(leaf, block, k, point)
        lower, upper = leaf.lower.repeat(2, 1), leaf.upper.repeat(2, 1)
        upper[0, column] = point
        lower[1, column] = point
        return lower, upper

    def _op(self, block: Block) -> Elementwise:
        node = self._encoding.graph.nodes[block.node]
        if not isinstance(node.op, Elementwise):
            raise TypeError(f"{node.name} is not elementwise.")
        return node.op

    def _sides_of_jump(self, leaf: Leaf, block: Block, k: int, point: Tensor) -> tuple[Tensor, Tensor]:
        """The argument below a jump, at it, and above. Its parts are closed, but the results are those of the open
        half-spaces: together they cover every point of the network."""
        column, result, place = int(block.arguments[0, k]), int(block.result[k]), int(block.places[k])
        lower, upper = leaf.lower.repeat(3, 1), leaf.upper.repeat(3, 1)
        upper[:2, column], lower[1:, column] = point, point
        infinity = torch.full_like(point, torch.inf)
        first = torch.stack([leaf.lower[column], point, point.nextafter(infinity)])
        last = torch.stack([point.nextafter(-infinity), point, leaf.upper[column]])
        alive = first <= last
        shape = self._encoding.graph.nodes[block.node].shape
        box = Interval(torch.minimum(first, last), torch.maximum(first, last))
        values = self._op(block).interval(box.map(lambda t: t.view(3, *[1] * len(shape)).expand(3, *shape)))
        low, high = values.map(lambda t: t.flatten(1)[:, place])
        lower[:, result] = torch.maximum(lower[:, result], low)
        upper[:, result] = torch.minimum(upper[:, result], high)
        alive &= lower[:, result] <= upper[:, result]
        return lower[alive], upper[alive]

    def _cut(self, leaf: Leaf, block: Block, k: int) -> tuple[int, Tensor]:
        """The argument's column to split, and where: of several arguments the one that decides, or the widest."""
        node = self._encoding.graph.nodes[block.node]
        boxes = []
        for j, columns in zip(node.inputs, block.arguments, strict=True):
            full = self._encoding.bounds[j].map(lambda t: t.flatten(1).clone())
            full.lower[0, block.places], full.upper[0, block.places] = (
                leaf.lower[columns],
                leaf.upper[columns],
            )
            boxes.append(full.map(lambda t, j=j: t.view(1, *self._encoding.graph.nodes[j].shape)))
        _, points = split_points(self._op(block), boxes)
        place = int(block.places[k])
        widths = [float((b.upper - b.lower).flatten()[place]) for b in boxes]
        decides = self._op(block).decided_by
        widest = widths.index(max(widths)) if decides is None else decides
        return int(block.arguments[widest, k]), points[widest].flatten()[place]

    # --- bounding

    def _bound(self, lower: Tensor, upper: Tensor, owners: list[Leaf]) -> Counterexample | None:
        """Bounds boxes of columns [B, C] that come from the leaves `owners`; keeps those that stay open."""
        programs, gaps = self.programs.build(lower, upper)
        left: list[_Solved] = []
        for k, (program, owner) in enumerate(zip(programs, owners, strict=True)):
            self.leaves += 1
            found = self._solve(lower[k], upper[k], program, gaps[k], owner)
            if found is not None:
                left.append(found)
        self._pending.extend(left)
        return self._tried([s.proposal.point for s in left]) or self._settle()

    def _tried(self, columns: Sequence[Vector | None]) -> Counterexample | None:
        points = [p for p in columns if p is not None]
        return self._attempt(self._encoding.points(torch.from_numpy(np.stack(points)))) if points else None

    def _settle(self) -> Counterexample | None:
        """Squeezes what is pending where that is promising; what is left at the turn's end waits for the next."""
        found = None
        while self._pending and self._left() > 0 and found is None:
            solved = self._pending.pop()
            squeezed = self._squeeze(solved) if self._promising(solved) else solved
            if squeezed is not None:
                found = self._push(squeezed)
        return found

    def _solve(
        self, lower: Tensor, upper: Tensor, program: Program, gaps: Vector, owner: Leaf
    ) -> _Solved | None:
        """None where the multipliers prove the margins' largest to be above zero, or the box empty."""
        proposal = self._dual.solve(program, owner.basis, self._deadline - time.monotonic())
        if proposal.ray is not None and refutes(program, proposal.ray):
            return None
        bound, costs = owner.bound, np.zeros(self.programs.neurons)
        if proposal.multipliers is not None:
            bound = max(bound, lagrangian(program, proposal.multipliers))
            costs = self.programs.costs(gaps, proposal.multipliers)
        if self._closed(bound):
            return None
        if not costs[self._kinked].any():  # then any neuron that is still open is as good as another
            every = self.programs.costs(gaps, np.ones(program.pattern.shape[0]))
            kinked = np.where(self._kinked, every, 0.0)  # what is curved gets no exact lines by being split
            costs = kinked if kinked.any() else every if not costs.any() else costs
        return _Solved(lower, upper, program, proposal, costs, bound)

    def _inside(self, solved: _Solved) -> list[Vector]:
        """Points of a part that nothing can split any more, away from the jumps at its ends: there the network's values
        are not those of the part."""
        found = []
        for share in INSIDE if len(self._jumps) else ():
            lower, upper = solved.program.lower.copy(), solved.program.upper.copy()
            width = (upper - lower)[self._jumps]
            lower[self._jumps] += share * width
            upper[self._jumps] -= share * width
            moved = replace(solved.program, lower=lower, upper=upper)
            point = self._dual.solve(moved, solved.proposal.basis, self._left()).point
            found += [] if point is None else [point]
        return found

    def _closed(self, bound: float) -> bool:
        return bound > 0 or (self.strict and bound >= 0)

    def _push(self, solved: _Solved) -> Counterexample | None:
        neuron = int(solved.costs.argmax()) if len(solved.costs) else -1
        if neuron < 0 or solved.costs[neuron] <= 0:
            self.stuck = min(self.stuck, solved.bound)
            return self._tried([solved.proposal.point, *self._inside(solved)])
        leaf = Leaf(solved.lower, solved.upper, solved.bound, neuron, solved.proposal.basis)
        heapq.heappush(self._heap, (solved.bound, next(self._counter), leaf))
        return None

    def _left(self) -> float:
        """Seconds of this turn; the root's squeezing waits for the next one."""
        return min(self._until, self._deadline) - time.monotonic()

    # --- the arguments' ends, from what a counterexample must satisfy

    def _promising(self, solved: _Solved) -> bool:
        """Whether the bound is so near zero, compared with what the relaxation costs, that squeezing may close it."""
        total = float(solved.costs.sum())
        near = math.isfinite(solved.bound) and -solved.bound < self._near * total
        return near and not self._flat(solved.bound) and self._left() > 0

    def _squeeze(self, solved: _Solved) -> _Solved | None:
        """Shrinks the ranges of the neurons that cost most to what is possible where no margin is above zero. None
        where nothing is."""
        start = solved.bound
        for _ in range(ROUNDS):
            before = solved.bound
            shrunk = self._shrunk(solved)
            if shrunk is None:
                self._near = min(1.0, 1.1 * self._near)
                return None
            lower, upper = self._encoding.tightened(shrunk[0].unsqueeze(0), shrunk[1].unsqueeze(0))
            programs, gaps = self.programs.build(lower, upper)
            again = self._solve(
                lower[0], upper[0], programs[0], gaps[0], Leaf(*shrunk, before, -1, solved.proposal.basis)
            )
            if again is None:
                self._near = min(1.0, 1.1 * self._near)
                return None
            solved = again
            if solved.bound < (1 - WORTH) * before or not self._promising(solved):
                break
        if solved.bound < 0.5 * start:
            self._near *= 0.95
        return solved

    def _shrunk(self, solved: _Solved) -> tuple[Tensor, Tensor] | None:
        """The box of columns with new ends; None where it is empty."""
        order = np.argsort(-solved.costs)[:SQUEEZED]
        chosen = [self._place(int(k)) for k in order if solved.costs[k] > 0]
        columns = sorted({int(c) for block, k in chosen for c in block.arguments[:, k]})
        lower, upper = solved.lower.numpy().copy(), solved.upper.numpy().copy()
        ends = solved.program.upper.copy()
        ends[-1] = 0.0
        program = replace(solved.program, upper=ends)
        self._primal.prepare(program, solved.proposal.basis)
        seen = solved.proposal.point
        todo = _Ends(
            np.asarray(columns, dtype=np.int64), lower, upper, None if seen is None or seen[-1] > 0 else seen
        )
        while (goal := todo.next()) is not None and self._left() > 0:
            column, sign = goal
            proposal = self._primal.least(column, sign, self._left())
            if proposal.multipliers is None or proposal.point is None:
                break
            cost = np.zeros_like(program.cost)
            cost[column] = sign
            end = sign * lagrangian(replace(program, cost=cost), proposal.multipliers)
            if sign > 0:
                lower[column] = max(lower[column], end)
            else:
                upper[column] = min(upper[column], end)
            if lower[column] > upper[column]:
                return None
            todo.saw(proposal.point)
        return torch.from_numpy(lower), torch.from_numpy(upper)


class _Ends:
    """Which ends of which columns still have to be looked for: none that a point seen comes near to already. The one
    that is nearest to the last point comes next."""

    def __init__(self, columns: Index, lower: Vector, upper: Vector, point: Vector | None) -> None:
        self.columns = np.concatenate([columns, columns])
        self.sign = np.repeat([1.0, -1.0], len(columns))
        self.end = np.concatenate([lower[columns], upper[columns]])
        self.width = np.concatenate([upper[columns] - lower[columns]] * 2) + np.finfo(np.float64).tiny
        self.open = np.ones(len(self.end), dtype=bool)
        self.last = np.ones(len(self.end))
        if point is not None:
            self.saw(point)

    def saw(self, point: Vector) -> None:
        self.last = self.sign * (point[self.columns] - self.end) / self.width
        self.open &= self.last > NEGLIGIBLE

    def next(self) -> tuple[int, float] | None:
        """(column, sign), with the sign 1 for the lower end."""
        if not self.open.any():
            return None
        k = int(np.where(self.open, self.last, np.inf).argmin())
        self.open[k] = False
        return int(self.columns[k]), float(self.sign[k])
