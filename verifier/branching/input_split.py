"""Splitting input boxes: which coordinate, and the two halves."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from verifier.bounds.interval import Bounds
from verifier.branching.bounded import Bounded
from verifier.branching.bounding import Bounder, few_inputs
from verifier.branching.domains import Domains
from verifier.graph import Affine, Elementwise, Graph, Interval
from verifier.graph.op import Constant, Input
from verifier.ops.difference import Difference

SENSITIVITY_WORK = 100_000_000
"""Above this many numbers per layer the sensitivities cost more than they tell."""


def sensitivities(graph: Graph, bounds: Bounds, batch: int, inputs: Tensor | None = None) -> Tensor:
    """How strongly each margin may depend on each input inside each box: [B, n_in, K], not negative; 0 for others than
    `inputs` [B, V], where they are given.

    The largest absolute entry of an interval Jacobian, propagated forwards: derivatives of elementwise operators
    lie between the slopes that their relaxations may have. It guides branching only, so rounding is left aside.
    """
    source = graph.inputs[0]
    size = graph.nodes[source].numel
    like = bounds[source].lower
    eye = torch.eye(size, dtype=like.dtype, device=like.device)
    eye = eye.unsqueeze(0) if inputs is None else eye[inputs]
    eye = eye.unflatten(2, graph.nodes[source].shape)
    jacobian: dict[int, Interval] = {source: Interval(eye, eye)}
    for i in sorted(graph.ancestors(graph.outputs[0])):
        node = graph.nodes[i]
        if isinstance(node.op, Input):
            continue
        if isinstance(node.op, Constant):
            zero = like.new_zeros(1, 1, *node.shape)
            jacobian[i] = Interval(zero, zero)
        elif isinstance(node.op, Affine):
            jacobian[i] = _affine(graph, i, [jacobian[j] for j in node.inputs])
        elif isinstance(node.op, Elementwise):
            boxes = [bounds[j].expand(batch) for j in node.inputs]
            jacobian[i] = _elementwise(node.op, boxes, [jacobian[j] for j in node.inputs])
        else:
            raise TypeError(f"{type(node.op).__name__} is neither affine nor elementwise.")
    last = jacobian[graph.outputs[0]].magnitude.flatten(2)
    last = last.expand(batch, -1, -1)
    if inputs is None:
        return last
    return last.new_zeros(batch, size, last.shape[2]).scatter_(1, inputs.unsqueeze(2).expand_as(last), last)


def _affine(graph: Graph, position: int, parts: list[Interval]) -> Interval:
    """The linear part applied to each input's derivative: center by L, radius by |L|."""
    node = graph.nodes[position]
    shapes = [graph.nodes[j].shape for j in node.inputs]
    lead = np.broadcast_shapes(*[p.lower.shape[:2] for p in parts])
    flat = [p.map(lambda t: t.expand(*lead, *t.shape[2:]).flatten(0, 1)) for p in parts]
    center = node.op.forward(*[p.center for p in flat])
    assert isinstance(node.op, Affine)
    offset = node.op.offset(*shapes)
    if offset is not None:
        center = center - offset.to(center)
    radius = node.op.absolute(*[p.radius for p in flat])
    return Interval((center - radius).unflatten(0, lead), (center + radius).unflatten(0, lead))


def _elementwise(op: Elementwise, boxes: list[Interval], parts: list[Interval]) -> Interval:
    total: Interval | None = None
    known = op.derivatives(*boxes)
    for slope, part in zip(_slopes(op, boxes) if known is None else known, parts, strict=True):
        products = [a.unsqueeze(1) * b for a in slope for b in part]
        term = Interval(_extreme(products, torch.minimum), _extreme(products, torch.maximum))
        total = term if total is None else Interval(total.lower + term.lower, total.upper + term.upper)
    if total is None:
        raise TypeError(f"{type(op).__name__} has no arguments.")
    return total


def _slopes(op: Elementwise, boxes: list[Interval]) -> list[Interval]:
    """Between what numbers the slopes of an operator's lines lie, per argument."""
    parameters = op.parameters(*boxes)
    lines = op.relax({n: p.value for n, p in parameters.items()}, *boxes)
    found = []
    for k in range(len(boxes)):
        low = torch.minimum(lines.lower_slopes[k], lines.upper_slopes[k])
        high = torch.maximum(lines.lower_slopes[k], lines.upper_slopes[k])
        if len(boxes) == 1:
            for p in parameters.values():
                low, high = torch.minimum(low, p.lower), torch.maximum(high, p.upper)
        found.append(Interval(low, high))
    return found


def _extreme(tensors: list[Tensor], pick) -> Tensor:
    best = tensors[0]
    for t in tensors[1:]:
        best = pick(best, t)
    return best


def scores(
    domains: Domains, bounded: Bounded, clauses: Tensor, jacobian: Tensor | None, paired: bool = False
) -> Tensor:
    """The estimated gain of halving each input coordinate: [M, n_in].

    Per open atom the geometric mean of what the coordinate contributes to the bound's plane, |a_i| w_i, and the
    most that it may contribute to the margin itself, max |dm / dx_i| w_i; summed over atoms. The first alone is
    blind where the relaxation is loose, the second where it is tight. Where differences of two networks are bounded
    (`paired`) the second counts alone: planes hardly vary with what both networks read.
    """
    width = (domains.upper - domains.lower).unsqueeze(1)
    live = ~bounded.refuted.unsqueeze(2) & bounded.constants.isfinite()
    slope = bounded.planes.abs() * live.unsqueeze(3)
    if jacobian is not None:
        table = clauses[domains.case].clamp(min=0).flatten(1)
        picked = jacobian.gather(2, table.unsqueeze(1).expand(-1, jacobian.shape[1], -1))
        reach = picked.transpose(1, 2).view(slope.shape).double() * live.unsqueeze(3)
        slope = reach if paired else (slope * reach).sqrt() + 1e-6 * reach
    return (torch.nan_to_num(slope, nan=0.0, posinf=1e30).flatten(1, 2) * width).sum(1)


def shares(domains: Domains, bounded: Bounded, clauses: Tensor, jacobian: Tensor, whole: Tensor) -> Tensor:
    """What `scores` estimates, where bounds are off by second-order terms: [M, n_in].

    Planes through such terms are flat along the coordinates that matter most, at the lowest point. A coordinate counts
    by its part of what an atom may vary by, whatever the size of that, and once more by its width, in units of that in
    the `whole` box [M, n_in], as what a quadratic term is off by does.
    """
    width = domains.upper - domains.lower
    live = ~bounded.refuted.unsqueeze(2) & bounded.constants.isfinite()
    table = clauses[domains.case].clamp(min=0).flatten(1)
    picked = jacobian.gather(2, table.unsqueeze(1).expand(-1, jacobian.shape[1], -1))
    reach = picked.transpose(1, 2).view(bounded.planes.shape).double() * live.unsqueeze(3)
    reach = torch.nan_to_num(reach, nan=0.0, posinf=1e30) * width[:, None, None]
    part = reach / reach.sum(3, keepdim=True).clamp(min=1e-300)
    return part.sum((1, 2)) * width / torch.where(whole > 0, whole, 1.0)


def halves(domains: Domains, coordinate: Tensor) -> tuple[Domains, Domains]:
    """Both halves of every box along its `coordinate` [M]."""
    best = coordinate.unsqueeze(1)
    middle = middles(domains).gather(1, best)
    return (
        replace(domains, upper=domains.upper.scatter(1, best, middle)),
        replace(domains, lower=domains.lower.scatter(1, best, middle)),
    )


def middles(domains: Domains) -> Tensor:
    """The middles of the boxes, [M, n_in]."""
    return domains.lower + (domains.upper - domains.lower) / 2


def _where_halved(domains: Domains, score: Tensor) -> Tensor:
    """`score` [M, n_in] where halving a coordinate gives two parts, -1 where no number lies between its ends."""
    middle = middles(domains)
    return torch.where((middle > domains.lower) & (middle < domains.upper), score, -1.0)


@dataclass(frozen=True, eq=False)
class InputBrancher:
    """Halves every box along the coordinate with the best score; along the next ones too where fewer than `free` boxes
    come out."""

    bounder: Bounder
    free: int = 0

    def branch(self, domains: Domains, bounded: Bounded) -> tuple[Domains, Tensor]:
        """All parts of every subdomain, and a mask [M] of subdomains that have nothing to halve."""
        score = self.scores(domains, bounded)
        stuck = score.amax(1) < 0
        kept, score = domains.index(~stuck), score[~stuck]
        while len(kept):
            value, best = score.max(1)
            kept = Domains.cat(halves(kept, best))
            if 2 * len(kept) > self.free:
                break
            score = score.scatter(1, best.unsqueeze(1), value.unsqueeze(1) / 2).repeat(2, 1)
            score = _where_halved(kept, score)
            if bool((score.amax(1) < 0).any()):
                break
        return kept, stuck

    def scores(self, domains: Domains, bounded: Bounded) -> Tensor:
        """What halving each coordinate may gain [M, n_in], -1 where there is nothing to halve."""
        graph = self.bounder.graph
        widest = max(graph.nodes[i].numel for i in graph.ancestors(self.bounder.target))
        jacobian, inputs, count = None, None, domains.lower.shape[1]
        few = few_inputs(domains)
        if few is not None and few < count:
            inputs, count = (domains.upper - domains.lower).topk(few, dim=1).indices, few
        if len(domains) * count * widest <= SENSITIVITY_WORK:
            jacobian = sensitivities(graph, bounded.bounds, len(domains), inputs)
        if jacobian is not None and self.bounder.curved:
            compiled = self.bounder.compiled
            whole = (compiled.upper - compiled.lower).to(domains.lower)[domains.case]
            score = shares(domains, bounded, self.bounder.clauses, jacobian, whole)
        else:
            paired = any(isinstance(graph.nodes[i].op, Difference) for i in self.bounder.elementwise)
            score = scores(domains, bounded, self.bounder.clauses, jacobian, paired)
        return _where_halved(domains, score + 1e-30)
