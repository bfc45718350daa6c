"""The entry: decides the cases of a small compiled query with linear programs, in turns."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from verifier.bounds.crown import Effort, OutOfTime, inner_bounds
from verifier.bounds.interval import Bounds
from verifier.graph import Affine, Elementwise, Graph
from verifier.graph.op import Constant, Input
from verifier.ops.piecewise_linear import PiecewiseLinear, PRelu, Relu
from verifier.ops.product import Square
from verifier.ops.sign import Sign
from verifier.ops.step import Step
from verifier.ops.switched import Switched
from verifier.options import LinearSolver
from verifier.results import Counterexample
from verifier.sets import Box
from verifier.solvers.encoding import Encoding, NotFinite, encode
from verifier.solvers.programs import Programs
from verifier.solvers.tree import Tree
from verifier.specs.compile import Compiled
from verifier.transforms.pairwise import pairwise

Attempt = Callable[[Tensor, Tensor], Counterexample | None]
"""Points [M, n_in] that may be counterexamples, with their cases [M]."""

MAX_GOALS = 64
"""Cases times disjuncts, at most."""
MAX_VALUES = 20_000
"""Elements of all elementwise nodes, at most: above, even the first bounds are dear."""
MAX_ENTRIES = 300_000
"""Rows of unstable neurons times columns, at most."""
PER_INPUT = (20, 30)
"""A network has too many unstable neurons for its few inputs above this many per varying input, and some: then
splitting the inputs is the better proof."""


class LinearSearch:
    """One tree of linear programs for every case and disjunct, root programs first. Resumable: see `run`."""

    def __init__(
        self,
        compiled: Compiled,
        known: Sequence[Bounds],
        attempt: Attempt,
        deadline: float = math.inf,
        lp: LinearSolver = "highs",
    ) -> None:
        """`known` encloses the nodes of each case's network (of `compiled.graph_on(float64)`), [1, *shape]."""
        self._compiled, self._known = compiled, known
        self._attempt, self._deadline = attempt, deadline
        self._lp: LinearSolver = lp
        present = (compiled.clauses >= 0).any(2)
        self._waiting = [(int(n), int(d)) for n, d in present.nonzero()]
        self._encodings: dict[int, Encoding] = {}
        self._trees: list[Tree] = []
        self._stuck = math.inf
        self._closed = 0

    @property
    def leaves(self) -> int:
        """Parts of boxes that were bounded so far."""
        return self._closed + sum(tree.leaves for tree in self._trees)

    @property
    def proved(self) -> bool:
        """Whether no case has a solution."""
        return not self._waiting and not self._trees and self._stuck == math.inf

    @property
    def finished(self) -> bool:
        """Whether more time would change nothing."""
        return not self._waiting and not self._trees

    @property
    def bound(self) -> float:
        """A proved lower bound of the score over all cases; infinite once it is known to be positive."""
        parts = [tree.bound for tree in self._trees]
        return min([-math.inf] if self._waiting else [*parts, self._stuck])

    @property
    def flat(self) -> bool:
        """Whether the bounds of all open parts are zero but for rounding, so that other searches are quicker."""
        return all(tree.flat for tree in self._trees)

    def run(self, until: float) -> Counterexample | None:
        """Goes on until all is settled, a counterexample is confirmed, or the time `until` (of `time.monotonic`)."""
        found = self.start(until)
        while found is None and self._trees and time.monotonic() < min(until, self._deadline):
            tree = max(self._trees, key=lambda t: t.bound)
            found = tree.run(min(until, self._deadline))
            if tree.finished and found is None:
                self._trees.remove(tree)
                self._keep(tree)
        return found

    def start(self, until: float) -> Counterexample | None:
        """Only the first program of every case and disjunct."""
        until = min(until, self._deadline)
        while self._waiting and time.monotonic() < until:
            case, disjunct = self._waiting[0]
            try:
                tree = self._tree(case, disjunct)
            except NotFinite:
                self._waiting.pop(0)
                self._stuck = -math.inf
                continue
            found = tree.run(-math.inf)
            if found is not None:
                return found
            self._waiting.pop(0)
            self._keep(tree)
        return None

    def _keep(self, tree: Tree) -> None:
        if not tree.finished:
            self._trees.append(tree)
            return
        self._closed += tree.leaves
        if tree.open:
            self._stuck = min(self._stuck, tree.bound)

    def _tree(self, case: int, disjunct: int) -> Tree:
        compiled = self._compiled
        if case not in self._encodings:
            graph = compiled.graph_on(torch.float64, torch.device("cpu"))
            with torch.no_grad():
                self._encodings[case] = encode(
                    graph, compiled.lower[case], compiled.upper[case], self._known[case]
                )
        atoms = compiled.clauses[case, disjunct]
        atoms = atoms[atoms >= 0]
        strict = bool(compiled.strict[atoms].all())

        def attempt(points: Tensor) -> Counterexample | None:
            return self._attempt(points, torch.full((len(points),), case))

        return Tree(Programs(self._encodings[case], atoms), strict, attempt, self._deadline, self._lp)


def linear_search(
    compiled: Compiled,
    attempt: Attempt,
    deadline: float = math.inf,
    memory: int = 1 << 30,
    lp: LinearSolver = "highs",
) -> LinearSearch | None:
    """A search by linear programs where the query is small enough for them, else None."""
    written = pairwise(compiled.graph)
    if not _supported(written) or int((compiled.clauses >= 0).any(2).sum()) > MAX_GOALS:
        return None
    if written is not compiled.graph:
        compiled = replace(compiled, graph=written, _cast={})
    graph = compiled.graph_on(torch.float64, torch.device("cpu"))
    effort = Effort(memory=memory, deadline=deadline)
    try:
        with torch.no_grad():
            box = Box(compiled.lower.cpu(), compiled.upper.cpu())
            bounds = inner_bounds(graph, [box], graph.outputs, effort=effort)
    except OutOfTime:
        return None
    if not worthwhile(graph, compiled, bounds):
        return None
    rows = [torch.tensor([n]) for n in range(len(compiled.lower))]
    known = [{i: b.index(row) for i, b in bounds.items() if graph.variable[i]} for row in rows]
    return LinearSearch(compiled, known, attempt, deadline, lp)


def worthwhile(graph: Graph, compiled: Compiled, bounds: Bounds) -> bool:
    """Whether linear programs are small enough to be solved many times a second, from the counts of unstable neurons
    and of the rows' entries. `bounds` encloses all nodes, [N, *shape]."""
    order = graph.ancestors(graph.outputs[0])
    ends = [t for i in order if i in bounds for t in bounds[i]]
    if not all(bool(t.isfinite().all()) for t in ends):
        return False
    neurons = 0
    for i in order:
        op = graph.nodes[i].op
        if isinstance(op, Elementwise):
            boxes = [bounds[j] for j in graph.nodes[i].inputs]
            masks = [op.refinable(k, *boxes).flatten(1) for k in range(len(boxes))]
            neurons += int(torch.stack(masks).any(0).sum(1).amax())
    per, some = PER_INPUT
    most = per * compiled.varying + some
    return neurons <= most and neurons * (compiled.varying + 2 * neurons) <= MAX_ENTRIES


def _supported(graph: Graph) -> bool:
    """Only piecewise-linear operators: of others no part ever becomes exact, and splitting inputs is as good. Where
    they switch what is squared, that becomes constant."""
    ops = [graph.nodes[i].op for i in graph.ancestors(graph.outputs[0])]
    kinked = Relu | PRelu | PiecewiseLinear | Sign | Step | Switched
    if any(isinstance(op, Switched) for op in ops):
        kinked = kinked | Square
    known = all(isinstance(op, Affine | Constant | Input | kinked) for op in ops)
    values = sum(graph.nodes[i].numel for i in graph.ancestors(graph.outputs[0]) if _is_elementwise(graph, i))
    return known and len(graph.inputs) == 1 and values <= MAX_VALUES


def _is_elementwise(graph: Graph, position: int) -> bool:
    return isinstance(graph.nodes[position].op, Elementwise)
