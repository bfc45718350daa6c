"""Bounds of named nodes by a method of choice: the one entry point over all bound engines."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from verifier.bounds.alpha import AlphaOptions, optimise
from verifier.bounds.cases import decision_cases
from verifier.bounds.crown import gather, inner_bounds, refine, scatter
from verifier.bounds.forward import forward_bounds
from verifier.bounds.interval import Bounds, interval_bounds
from verifier.bounds.relaxations import Relaxations
from verifier.bounds.rows import Selection
from verifier.graph import Graph, Interval
from verifier.graph.op import Input
from verifier.options import BoundMethod
from verifier.sets import InputSet


@dataclass(frozen=True, eq=False)
class NodeBounds:
    """Sound enclosures, [B, *shape] each, of a graph's outputs and of the nodes that were asked for."""

    outputs: tuple[Interval, ...]
    named: Mapping[str, Interval]

    @property
    def lower(self) -> Tensor | tuple[Tensor, ...]:
        """The lower bounds of the output, or of all outputs where there are several."""
        ends = tuple(o.lower for o in self.outputs)
        return ends[0] if len(ends) == 1 else ends

    @property
    def upper(self) -> Tensor | tuple[Tensor, ...]:
        """The upper bounds, likewise."""
        ends = tuple(o.upper for o in self.outputs)
        return ends[0] if len(ends) == 1 else ends

    def __getitem__(self, name: str) -> Interval:
        """The interval of a node that was asked for. Raises KeyError, which lists those."""
        if name not in self.named:
            raise KeyError(
                f"No bounds were computed for {name!r}; asked for: {', '.join(self.named) or 'none'}."
            )
        return self.named[name]


def compute_bounds(
    graph: Graph,
    sets: Sequence[InputSet],
    method: BoundMethod = "alpha-crown",
    nodes: Sequence[str] = (),
    options: AlphaOptions = AlphaOptions(),
    known: Mapping[int, Interval] | None = None,
) -> NodeBounds:
    """Enclose the outputs of `graph`, and the named `nodes`, for all inputs in `sets` (one per graph input).

    "interval" propagates intervals; "forward" linear functions of the inputs; "crown-ibp" bounds the wanted
    nodes backwards through relaxations that rest on intervals; "crown" bounds all unstable neurons backwards
    first; "alpha-crown" optimises the relaxations too, as `options` say (their `memory` counts for every
    method). These two bound each case of comparisons that the sets leave open (`bounds/cases.py`). `known`
    holds enclosures that are true already. Raises KeyError for an unknown node, ValueError for an unknown
    method.
    """
    unknown = [name for name in nodes if name not in graph.by_name]
    if unknown:
        raise KeyError(f"The graph has no node named {', '.join(map(repr, unknown))}.")
    wanted = list(dict.fromkeys([*graph.outputs, *[graph.by_name[name] for name in nodes]]))
    batch = max(s.batch for s in sets)
    cases = None
    if method in ("crown", "alpha-crown"):
        cases = decision_cases(graph, sets, wanted, known, options.effort)
    if cases is not None:
        sets, known = cases.sets(sets), cases.index(known or {})
    found = _enclosed(graph, sets, method, wanted, options, known)
    if cases is not None:
        found = {i: cases.hull(b, batch) for i, b in found.items()}
    return NodeBounds(
        tuple(found[i] for i in graph.outputs), {name: found[graph.by_name[name]] for name in nodes}
    )


def _enclosed(
    graph: Graph,
    sets: Sequence[InputSet],
    method: BoundMethod,
    wanted: Sequence[int],
    options: AlphaOptions,
    known: Mapping[int, Interval] | None,
) -> dict[int, Interval]:
    """Enclosures [B, *shape] of the `wanted` nodes."""
    batch = max(s.batch for s in sets)
    boxes = [s.box() for s in sets]
    effort = options.effort
    if method == "forward":
        bounds, _ = forward_bounds(graph, sets, known, wanted)
    elif method in ("interval", "crown-ibp"):
        bounds = interval_bounds(graph, boxes, known)
    elif method in ("crown", "alpha-crown"):
        bounds = inner_bounds(graph, sets, wanted, known, effort=effort)
    else:
        raise ValueError(
            f"Unknown method {method!r}; choose interval, forward, crown-ibp, crown or alpha-crown."
        )
    found = {i: bounds[i].expand(batch) for i in wanted}
    relaxations = Relaxations(graph, bounds, None)
    for i in wanted if method not in ("interval", "forward") else ():
        if not graph.variable[i] or isinstance(graph.nodes[i].op, Input):
            continue
        index = torch.arange(graph.nodes[i].numel, device=boxes[0].lower.device)
        everything = Selection(index.unsqueeze(0), graph.nodes[i].shape)
        if method == "alpha-crown":
            found[i] = _optimised(graph, sets, i, everything, bounds, options)
        else:
            found[i] = refine(graph, sets, i, everything, bounds, relaxations, effort)
    return found


def _optimised(
    graph: Graph,
    sets: Sequence[InputSet],
    position: int,
    everything: Selection,
    bounds: Bounds,
    options: AlphaOptions,
) -> Interval:
    """alpha-CROWN for all elements of one node, as many at once as a quarter of the memory takes."""
    batch = max(s.batch for s in sets)
    current = bounds[position].expand(batch)
    widest = max(graph.nodes[j].numel for j in graph.ancestors(position))
    step = max(1, options.memory // (4 * 24 * widest * current.lower.element_size()))
    for start in range(0, everything.index.shape[1], step):
        part = Selection(everything.index[:, start : start + step], everything.shape)
        rows = part.rows(current.lower, 0, part.index.shape[1])
        low = optimise(graph, sets, position, rows, bounds, None, options).lower
        count = part.index.shape[1]
        met = gather(current, part).intersect(Interval(low[:, :count], -low[:, count:]))
        current = scatter(current, part, met)
    return current
