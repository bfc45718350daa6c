"""Bounds of all inner nodes by backward passes, and the final pass for a specification."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from verifier.bounds.backward import LinearBound, OutOfTime, PassOptions, backward
from verifier.bounds.interval import Bounds, interval_bounds, interval_of
from verifier.bounds.relaxations import Relaxations, Slopes
from verifier.bounds.rows import Selection, interval_is_exact, pass_on, select, wanted
from verifier.graph import Elementwise, Graph, Interval
from verifier.graph.coefficients import Coefficients, Rows
from verifier.graph.graph import MANY, Window
from verifier.graph.op import Input
from verifier.sets import Box, InputSet

_CPU_MEMORY = 1 << 27


FEW = 0.1
"""Where the nearer end settles all but this part of a node's neurons, only the rest get a bound of the other end. It
saves rows where little is left; elsewhere the other ends of settled neurons make the intervals behind them tighter."""

DEEP, DEPTH = 64, 16
"""In networks with more than DEEP nodes above one another that elementwise nodes read, passes for nodes of which there
are many alike end after DEPTH of them."""

SMALL = 1 << 20
"""Coefficients, about, up to which a second pass costs more than the rows that it saves."""


@dataclass(frozen=True)
class Effort:
    """How much work a pass may do. `inherit` takes what is known of a node for its enclosure, without propagating
    intervals to it; `memory` is the size in bytes that the coefficients of one pass may take. After `deadline` (of
    `time.monotonic`) a pass raises OutOfTime; after `patience`, of which every node gets its share, the neurons that
    are left keep what intervals say of them. Passes for states of a recurrence end at enclosures after `depth`
    elementwise nodes, and with `apart` at parts of the inputs, which loses nothing where these are boxes."""

    refine: bool = True
    inherit: bool = False
    rounding: bool = True
    memory: int = 1 << 30
    deadline: float = math.inf
    patience: float = math.inf
    depth: int | None = None
    apart: bool = False

    def window(self, graph: Graph, target: int) -> Window:
        """What a pass for inner bounds visits: everything, but for the states of a recurrence of many steps, for which
        the work would grow with the square of their number, or where the last state's enclosure loses nothing."""
        depth = self.depth or (DEPTH if graph.height > DEEP else None)
        near = graph.state_window(target) if self.apart and self.depth is None else None
        return near or graph.window(target, depth if graph.repeats[target] > MANY else None, self.apart)

    def walk(self, graph: Graph, target: int) -> PassOptions:
        """For a backward pass of which only the minimum counts."""
        ends = self.window(graph, target).ends
        return PassOptions(self.rounding, windows=True, deadline=self.deadline, ends=ends)


def inner_bounds(
    graph: Graph,
    sets: Sequence[InputSet],
    targets: Iterable[int],
    known: Mapping[int, Interval] | None = None,
    slopes: Slopes | None = None,
    effort: Effort = Effort(),
) -> Bounds:
    """Enclosures of every node that `targets` depend on, themselves included.

    Interval arithmetic first; a neuron whose relaxation a tighter interval could change gets a backward pass.
    `known` holds enclosures that are true already (a parent's, say) and are intersected.
    """
    boxes = [s.box() for s in sets]
    targets = list(targets)
    order = sorted(set().union(*[graph.ancestors(t) for t in targets], graph.inputs))
    relevant = graph.relevant(targets) if effort.refine else {}
    several = any(
        isinstance(graph.nodes[i].op, Elementwise) and len(graph.nodes[i].inputs) > 1 for i in order
    )
    bounds: Bounds = interval_bounds(graph, boxes, known) if several and not effort.inherit else {}
    bounds.update(zip(graph.inputs, boxes, strict=True))
    relaxations = Relaxations(graph, bounds, slopes)
    all_boxes = all(isinstance(s, Box) for s in sets)
    effort = replace(effort, apart=all_boxes)
    asked = [i for i in order if any(isinstance(graph.nodes[k].op, Elementwise) for k in graph.users[i])]
    shares = _Shares(graph, asked, relevant, effort)
    middle: dict[int, Tensor] = {}
    done: dict[int, Tensor] = {}  # neurons both of whose ends have been bounded
    for i in order:
        if effort.inherit and known is not None and i in known:
            bounds[i] = known[i]
            continue
        if not isinstance(graph.nodes[i].op, Input):
            fresh = interval_of(graph, i, bounds)
            bounds[i] = fresh.intersect(bounds[i]) if i in bounds else fresh
        if known is not None and i in known:
            bounds[i] = bounds[i].intersect(known[i])
        if not effort.refine or not graph.variable[i] or i in graph.aside:
            continue
        ask = wanted(graph, i, bounds, relevant)
        if ask is None or interval_is_exact(graph, ask[0], all_boxes):
            continue
        target, mask = ask
        own = shares.of(i)
        if target in done:
            mask = mask & ~done[target]
        selection = select(mask, graph.nodes[target].shape)
        if selection is None:
            continue
        rows = 2 * boxes[0].lower.shape[0] * selection.index.shape[1]
        small = rows * max(graph.nodes[j].numel for j in effort.window(graph, target).nodes) < SMALL
        if small or slopes:  # which belong to both ends
            bounds[target] = refine(graph, sets, target, selection, bounds, relaxations, own)
        else:
            if not middle:
                middle = dict(zip(asked, graph.evaluate([box.center for box in boxes], asked), strict=True))
            side = _likely_end(graph, i, middle[i])
            bounds[target] = _nearer_end(graph, sets, target, selection, side, bounds, relaxations, own)
            pass_on(graph, target, bounds)
            left = wanted(graph, i, bounds, relevant)
            if left is not None and int((left[1] & mask).sum()) <= FEW * int(mask.sum()):
                mask = left[1] & mask
                selection = select(mask, graph.nodes[target].shape)
            if selection is not None:
                bounds[target] = _nearer_end(graph, sets, target, selection, -side, bounds, relaxations, own)
        pass_on(graph, target, bounds)
        done[target] = mask | done[target] if target in done else mask
    return bounds


class _Shares:
    """What part of the patience every node gets whose neurons are bounded: by the numbers that their passes meet,
    about. What a node leaves goes to those after it."""

    def __init__(
        self, graph: Graph, asked: Sequence[int], relevant: Mapping[int, Tensor], effort: Effort
    ) -> None:
        self._effort = effort
        self._left = {}
        for i in asked if math.isfinite(effort.patience) else ():
            rows = int(relevant[i].sum()) if i in relevant else graph.nodes[i].numel
            below = [graph.nodes[j] for j in effort.window(graph, i).nodes]
            self._left[i] = rows * sum(n.numel for n in below)

    def of(self, node: int) -> Effort:
        """The effort for one node; nodes come in order."""
        if not self._left:
            return self._effort
        left = max(1, sum(n for i, n in self._left.items() if i >= node))
        now = time.monotonic()
        share = (self._effort.patience - now) * self._left[node] / left
        return replace(self._effort, patience=now + share)


def _likely_end(graph: Graph, position: int, middle: Tensor) -> Tensor:
    """Which end of each neuron is likely to settle it: 1 for the lower one, -1 for the upper one. [1 or B, *shape] of
    the node that `wanted` names for `position`, whose value at the middle of the box is given."""
    side = 1 - 2 * (middle < 0).to(middle.dtype)
    origin = graph.origin(position)
    if origin is None:
        return side
    node = graph.nodes[origin.node]
    own = side.reshape(len(side), -1) * origin.sign
    ends = own.new_ones(own.shape[0], node.numel).scatter_(1, origin.index.expand_as(own), own)
    return torch.where(ends == 0, 1, ends).view(-1, *node.shape)


def _nearer_end(
    graph: Graph,
    sets: Sequence[InputSet],
    position: int,
    selection: Selection,
    side: Tensor,
    bounds: Bounds,
    relaxations: Relaxations,
    effort: Effort,
) -> Interval:
    """`refine` for one end of each neuron: the lower one where `side` [B, *shape] is 1, the upper one where it is -1.

    With the value at the middle of the box a guess says which end may settle a neuron; most that can be settled need
    no bound of the other end.
    """
    current = bounds[position].expand(sets[0].batch)
    index = selection.index.expand(current.lower.shape[0], -1)
    signs = side.expand_as(current.lower).reshape(len(index), -1).gather(1, index)
    low = signed_bounds(
        graph, sets, position, Rows(index, signs, selection.shape), bounds, relaxations, effort
    )
    none = torch.full_like(low, torch.inf)
    fresh = Interval(torch.where(signs > 0, low, -none), torch.where(signs > 0, none, -low))
    return scatter(current, selection, gather(current, selection).intersect(fresh))


def refine(
    graph: Graph,
    sets: Sequence[InputSet],
    position: int,
    selection: Selection,
    bounds: Bounds,
    relaxations: Relaxations,
    effort: Effort,
) -> Interval:
    """The interval of one node, intersected with backward bounds of the selected neurons."""
    fresh = neuron_bounds(graph, sets, position, selection, bounds, relaxations, effort)
    current = bounds[position].expand(sets[0].batch)
    return scatter(current, selection, gather(current, selection).intersect(fresh))


def neuron_bounds(
    graph: Graph,
    sets: Sequence[InputSet],
    position: int,
    selection: Selection,
    bounds: Bounds,
    relaxations: Relaxations,
    effort: Effort,
) -> Interval:
    """Backward bounds of the selected neurons of one node: [B, K]; infinite where the patience ends before."""
    like = bounds[position].lower
    chunks = _Chunks(graph, position, sets[0].batch, like, effort, ends=2)
    lowers, uppers = [], []
    for part in chunks.of(selection.index.shape[1]):
        rows = selection.rows(like, part.start, part.stop)
        lines = relaxations.of(position, part, effort.window(graph, position))
        bound = backward(graph, {position: rows}, lines, bounds, effort.walk(graph, position))
        chunks.widest = bound.widest
        low = bound.minimum(graph, sets)
        count = low.shape[1] // 2
        lowers.append(low[:, :count])
        uppers.append(-low[:, count:])
    shape = (sets[0].batch, selection.index.shape[1])
    return Interval(_filled(lowers, shape, like, -torch.inf), _filled(uppers, shape, like, torch.inf))


def _filled(parts: Sequence[Tensor], shape: tuple[int, int], like: Tensor, rest: float) -> Tensor:
    """The parts [B, k] side by side, and `rest` where they end before `shape` does."""
    missing = shape[1] - sum(p.shape[1] for p in parts)
    return (
        torch.cat([*parts, like.new_full((shape[0], missing), rest)], 1)
        if missing
        else torch.cat([*parts], 1)
    )


def signed_bounds(
    graph: Graph,
    sets: Sequence[InputSet],
    position: int,
    rows: Rows,
    bounds: Bounds,
    relaxations: Relaxations,
    effort: Effort,
) -> Tensor:
    """Lower bounds [B, R] of single elements of one node, times their signs, by the starting relaxations; infinite
    where the patience ends before."""
    like = bounds[position].lower
    chunks = _Chunks(graph, position, sets[0].batch, like, effort, ends=1)
    lines = relaxations.of(position, slice(None), effort.window(graph, position))
    lows = []
    for part in chunks.of(rows.index.shape[1]):
        few = Rows(rows.index[:, part], rows.scale[:, part], rows.shape)
        bound = backward(graph, {position: few}, lines, bounds, effort.walk(graph, position))
        chunks.widest = bound.widest
        lows.append(bound.minimum(graph, sets))
    return _filled(lows, (sets[0].batch, rows.index.shape[1]), like, -torch.inf)


def gather(full: Interval, selection: Selection) -> Interval:
    """The selected neurons' part [B, K] of a node's interval [B, *shape]."""
    index = selection.index.expand(full.lower.shape[0], -1)
    return full.map(lambda t: t.reshape(len(t), -1).gather(1, index))


def scatter(full: Interval, selection: Selection, part: Interval) -> Interval:
    """A node's interval [B, *shape] with the selected neurons' replaced by `part` [B, K]."""
    index = selection.index.expand(part.lower.shape[0], -1)
    shape = full.lower.shape
    return Interval(
        full.lower.reshape(len(index), -1).scatter(1, index, part.lower).view(shape),
        full.upper.reshape(len(index), -1).scatter(1, index, part.upper).view(shape),
    )


def specification_bound(
    graph: Graph,
    sets: Sequence[InputSet],
    target: int,
    rows: Coefficients,
    bounds: Bounds,
    relaxations: Relaxations | None = None,
    how: PassOptions = PassOptions(),
) -> LinearBound:
    """The final pass: R linear forms of node `target`, bounded below by linear forms of the inputs."""
    lines = (relaxations or Relaxations(graph, bounds)).of(target, slice(None), graph.window(target, None))
    return backward(graph, {target: rows}, lines, bounds, how)


class _Chunks:
    """Cuts the rows of one node into chunks whose coefficients fit into memory, about eight copies of them alive. The
    first one allows for dense rows of the widest layer; the others for the `widest` row that was met, twice, as windows
    come with the lines under them. On a CPU large tensors only cost page faults."""

    def __init__(
        self, graph: Graph, position: int, batch: int, like: Tensor, effort: Effort, ends: int
    ) -> None:
        """`ends` rows are bounded per neuron."""
        self.widest = 0
        self._deadline, self._patience = effort.deadline, effort.patience
        memory = min(effort.memory, _CPU_MEMORY) if like.device.type == "cpu" else effort.memory
        self._room = memory // (8 * ends * batch * like.element_size())
        self._layer = max(graph.nodes[j].numel for j in effort.window(graph, position).nodes)

    def of(self, count: int) -> Iterator[slice]:
        """Slices of the `count` neurons, as far as the patience goes. Raises OutOfTime where the deadline has come."""
        start = 0
        while start < count:
            now = time.monotonic()
            if now > self._deadline:
                raise OutOfTime
            if now > self._patience:
                return
            row = min(2 * self.widest, self._layer) or self._layer
            step = max(1, self._room // row)
            yield slice(start, min(start + step, count))
            start += step
