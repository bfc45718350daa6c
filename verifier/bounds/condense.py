"""A network reduced to its undecided neurons.

Where enclosures make an operator affine (a Relu that is active or inactive on the whole set), everything between two
undecided elements is one affine map. Written out, a convolutional network of tens of thousands of neurons becomes a
few matrices between some hundreds, on which backward passes for many subdomains are plain matrix products. The maps
come from backward passes in float64, and what those round is carried along as the `doubt` of each element.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from verifier.bounds.backward import PassOptions, backward
from verifier.bounds.interval import Bounds
from verifier.bounds.lines import sane
from verifier.bounds.relaxations import relax
from verifier.graph import Affine, Builder, Elementwise, Graph, Relaxation, Value
from verifier.graph.coefficients import Rows, contract
from verifier.ops.combination import Combination

_CHUNK = 1 << 24
"""Numbers that the coefficients of one pass may have; about eight copies are alive."""


@dataclass(frozen=True, eq=False)
class Condensed:
    """`graph` has the inputs and the target of the network it was made from, and agrees with it on the set it was made
    for. `arguments` maps each of its nodes that an operator reads to the node and the elements [n] of the network that
    it holds, `operators` each of its operators' results."""

    graph: Graph
    arguments: Mapping[int, tuple[int, Tensor]]
    operators: Mapping[int, tuple[int, Tensor]]


def multiplications(graph: Graph, target: int) -> int:
    """How many products one row of a backward pass from `target` takes, about."""
    total = 0
    for i in graph.ancestors(target):
        node = graph.nodes[i]
        if isinstance(node.op, Affine) and not node.op.exact:
            total += node.numel * node.op.fan_in(*[graph.nodes[j].shape for j in node.inputs])
    return total


def condense(
    graph: Graph, target: int, bounds: Bounds, limit: int, deadline: float = math.inf, decided: float = 0.0
) -> Condensed | None:
    """The network in float64 between its undecided elements, for one set enclosed by `bounds` (leading dimension 1,
    float64, every ancestor of `target`). None where inputs or target are no vectors, less than the part `decided` of
    all operators' elements is decided, the matrices would have more than `limit` entries, or an operator cannot be
    restricted to some of its elements. Raises OutOfTime after `deadline` (of `time.monotonic`)."""
    if any(len(graph.nodes[i].shape) != 1 for i in (*graph.inputs, target)):
        return None
    lines, loose = _decided(graph, target, bounds)
    numbers = sum(graph.nodes[e].numel for e in loose)
    if sum(map(len, loose.values())) > (1 - decided) * numbers:
        return None
    inputs = sum(graph.nodes[i].numel for i in graph.inputs)
    sizes = [len(loose[e]) * len(graph.nodes[e].inputs) for e in sorted(loose)]
    before = [sum(len(loose[e]) for e in sorted(loose)[:k]) for k in range(len(sizes))]
    total = sum(n * (inputs + b) for n, b in zip(sizes, before, strict=True))
    if total > limit:
        return None
    return _Condenser(graph, bounds, lines, loose, deadline).run(target)


def _decided(graph: Graph, target: int, bounds: Bounds) -> tuple[dict[int, Relaxation], dict[int, Tensor]]:
    """Per operator the lines of those elements whose two lines are one, up to the rounding that intercepts allow for
    (zero elsewhere), and the positions of the others. What the target does not depend on counts as decided: by its
    range, so that it is in the doubt where it matters after all."""
    lines: dict[int, Relaxation] = {}
    loose: dict[int, Tensor] = {}
    relevant = graph.relevant([target])
    for e in sorted(graph.ancestors(target)):
        node = graph.nodes[e]
        if not isinstance(node.op, Elementwise):
            continue
        found = sane(relax(graph, e, bounds, {}))
        zero = torch.zeros_like(found.lower_slopes[0])
        low, high = [zero if t is None else t for t in (found.lower_intercept, found.upper_intercept)]
        boxes = [bounds[j] for j in node.inputs]
        open_ = torch.stack([node.op.refinable(k, *boxes) for k in range(len(boxes))]).any(0)
        exact = ((low == high) | ~open_) & low.isfinite() & high.isfinite()
        for a, b in zip(found.lower_slopes, found.upper_slopes, strict=True):
            exact = exact & (a == b)
        slopes = tuple(torch.where(exact, s, zero) for s in found.lower_slopes)
        low, high = torch.where(exact, low, zero), torch.where(exact, high, zero)
        if e in relevant:
            ends = bounds[e]
            idle = ~relevant[e] & ~exact & ends.lower.isfinite() & ends.upper.isfinite()
            low, high = torch.where(idle, ends.lower, low), torch.where(idle, ends.upper, high)
            exact = exact | idle
        lines[e] = Relaxation(slopes, low, slopes, high)
        loose[e] = (~exact).flatten().nonzero()[:, 0]
    return lines, loose


class _Condenser:
    """Builds the condensed graph operator by operator."""

    def __init__(
        self,
        graph: Graph,
        bounds: Bounds,
        lines: Mapping[int, Relaxation],
        loose: Mapping[int, Tensor],
        deadline: float,
    ) -> None:
        self._graph, self._bounds, self._lines, self._loose = graph, bounds, lines, loose
        self._deadline = deadline
        self._builder = Builder()
        self._inputs = {
            i: self._builder.input(graph.nodes[i].name, graph.nodes[i].shape) for i in graph.inputs
        }
        self._results: dict[int, Value] = {}

    def run(self, target: int) -> Condensed | None:
        arguments: dict[int, tuple[int, Tensor]] = {}
        for e in sorted(self._loose):
            node, index = self._graph.nodes[e], self._loose[e]
            if not len(index):
                continue
            assert isinstance(node.op, Elementwise)
            try:
                op = node.op.restrict(index, node.shape)
            except NotImplementedError:
                return None
            read = {n: self._affine(n, index) for n in dict.fromkeys(node.inputs)}
            arguments |= {value.position: (n, index) for n, value in read.items()}
            self._builder.at(node.source)
            self._results[e] = self._builder.add(op, *[read[n] for n in node.inputs], name=node.name)
        every = torch.arange(self._graph.nodes[target].numel, device=self._like.device)
        outcome = self._affine(target, every)
        graph = self._builder.graph(outcome)
        # Nothing was dropped in between: every value that was added is needed, or has no place in the result.
        if len(graph.nodes) != outcome.position + 1:
            return None
        operators = {value.position: (e, self._loose[e]) for e, value in self._results.items()}
        return Condensed(graph, arguments, operators)

    @property
    def _like(self) -> Tensor:
        return self._bounds[self._graph.inputs[0]].lower

    def _affine(self, node: int, index: Tensor) -> Value:
        """Elements of a node as a combination of the inputs and of the undecided elements below."""
        below = [e for e in self._results if e in self._graph.ancestors(node)]
        width = max(self._graph.nodes[j].numel for j in self._graph.ancestors(node))
        parts = [self._pass(node, rows, below) for rows in index.split(max(1, _CHUNK // width))]
        weights, bias, doubt = [torch.cat([p[k] for p in parts]) for k in range(3)]
        info = torch.finfo(doubt.dtype)
        sizes = [self._graph.nodes[i].numel for i in self._inputs] + [len(self._loose[e]) for e in below]
        magnitudes = [self._bounds[i].magnitude.flatten() for i in self._inputs]
        magnitudes += [self._bounds[e].magnitude.flatten()[self._loose[e]] for e in below]
        values = [*self._inputs.values(), *[self._results[e] for e in below]]
        own = list(weights.split(sizes, dim=1))
        used = [k for k, w in enumerate(own) if k == 0 or bool(w.any())]
        op = Combination(
            tuple(own[k].contiguous() for k in used),
            bias,
            doubt * (1 + 8 * info.eps) + info.tiny,
            tuple(magnitudes[k] for k in used),
        )
        self._builder.at(self._graph.nodes[node].source)
        return self._builder.add(op, *[values[k] for k in used], name=self._graph.nodes[node].name)

    def _pass(self, node: int, rows: Tensor, below: list[int]) -> tuple[Tensor, Tensor, Tensor]:
        """Matrix [r, inputs and undecided elements], constant [r] and doubt [r] of some elements."""
        ones = torch.ones(1, len(rows), dtype=self._like.dtype, device=self._like.device)
        start = {node: Rows(rows.unsqueeze(0), ones, self._graph.nodes[node].shape)}
        seen: dict[int, Tensor] = dict.fromkeys(self._lines, torch.empty(0))
        found = backward(
            self._graph, start, self._lines, self._bounds, PassOptions(deadline=self._deadline), seen
        )
        columns = []
        for i in self._inputs:
            nothing = ones.new_zeros(1, len(rows), self._graph.nodes[i].numel)
            columns.append(found.coefficients.get(i, nothing)[0].flatten(1))
        for e in below:
            index, part = self._loose[e], seen[e]
            missing = not part.numel()
            columns.append(ones.new_zeros(len(rows), len(index)) if missing else part[0].flatten(1)[:, index])
        doubt = torch.zeros_like(found.constant) if found.error is None else found.error
        for e, line in self._lines.items():
            if seen[e].numel() and line.lower_intercept is not None and line.upper_intercept is not None:
                # `found` lies below; the same map lies above when every intercept moves from one end to the other.
                doubt = doubt + contract(seen[e].abs(), line.upper_intercept - line.lower_intercept)
        return torch.cat(columns, 1), found.constant[0].expand(len(rows)), doubt[0].expand(len(rows))
