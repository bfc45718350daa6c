"""Joint relaxations of groups of neurons that see the same inputs: a family of cutting planes.

A line under every neuron's function forgets that neurons which read the same few inputs cannot all be at their worst
at once. For a group G of neurons y = f(z), z affine in the inputs, and any slopes s, the inequality

    sum over G of a y - s z  >=  least,    least = min over the box of the left side

holds, and with the coefficients a that arrive in the final pass the sum of all groups' inequalities bounds it. The
minimum over 2^|G| combinations of halves is bounded in each by multipliers of its split constraints, all at once,
which is a branch and bound of the group alone: the sum over groups of what would multiply in one tree. Slopes and
multipliers are optimised by supergradients; a supergradient in s is how far the inputs that minimise the plane and
those that minimise the groups disagree (dual decomposition, Komodakis et al. 2011). Groups grow by joining pairs.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from verifier.bounds.ascent import Adam
from verifier.bounds.backward import backward
from verifier.bounds.cuts import Cuts, Entries
from verifier.bounds.interval import Bounds
from verifier.bounds.pairing import nearest_pairs, normalised, profiles
from verifier.bounds.relaxations import relax_at
from verifier.graph import Elementwise, Graph, Interval
from verifier.graph.coefficients import Rows
from verifier.graph.op import negligible

CLOSED = 0.01
"""A bound is positive enough above so much of what was missing at first."""
LEAST_GAIN = 0.04
"""Joining goes on while it gains so much of what is missing."""


@dataclass(frozen=True)
class JointOptions:
    """Groups of up to `size` neurons, the `neurons` with the widest gaps; `steps` of ascent after each joining, while
    one step meets at most `numbers` coefficients and the time is before `deadline` (of `time.monotonic`)."""

    size: int = 8
    neurons: int = 6000
    steps: int = 40
    rate: float = 0.03
    decay: float = 0.99
    numbers: int = 1 << 25
    deadline: float = math.inf


@dataclass(frozen=True, eq=False)
class Final:
    """A final pass over one box: its plane [B, R, inputs] and constant [B, R] (up to rounding), and of one operator the
    coefficients that arrived [B, R, *shape] and the parameters of its lines."""

    plane: Tensor
    constant: Tensor
    arrived: Tensor
    own: Mapping[str, Tensor]


@dataclass(frozen=True, eq=False)
class _Neurons:
    """n neurons of one operator, z = weight x[place] + offset up to `doubt`, flat elements `column`; `weight` [n, m]
    (zero where there are fewer inputs; place is then 0). Halves of their ranges meet at `point`; `slopes` and
    `intercepts` [2, 2, n] are the lines in them: lower and higher half, line below and above. `center` and `radius`
    describe the box."""

    column: Tensor
    weight: Tensor
    place: Tensor
    offset: Tensor
    doubt: Tensor
    point: Tensor
    slopes: Tensor
    intercepts: Tensor
    units: int
    center: Tensor
    radius: Tensor

    def to(self, dtype: torch.dtype) -> _Neurons:
        names = ("weight", "offset", "doubt", "point", "slopes", "intercepts", "center", "radius")
        return replace(self, **{n: getattr(self, n).to(dtype) for n in names})

    @property
    def middle(self) -> Tensor:
        """z at the center of the box."""
        return (self.weight * self.center[self.place]).sum(1) + self.offset

    def lines(self, a: Tensor) -> tuple[Tensor, Tensor]:
        """Slope and intercept [2, T, n] per half of the lines below a y."""
        rising, falling = a.clamp(min=0), a.clamp(max=0)
        slope, intercept = [
            rising * t[:, 0, None] + falling * t[:, 1, None] for t in (self.slopes, self.intercepts)
        ]
        return slope, intercept

    def combined(self, s: Tensor) -> Tensor:
        """The plane sum of s z [T, inputs], without constants."""
        flat = (s.unsqueeze(2) * self.weight).flatten(1)
        return s.new_zeros(len(s), len(self.center)).index_add_(1, self.place.flatten(), flat)


@dataclass(frozen=True, eq=False)
class _Groups:
    """P groups of k neurons: `members` [P, k] (the position after the last neuron where there are fewer), and the
    inputs [P, m] that they read with their weights [P, k, m]. `beta` [T, P, 2^k, k] multiplies, for every combination
    of halves (bit i: the half of member i), the constraint that each member is in its half."""

    members: Tensor
    place: Tensor
    weight: Tensor
    beta: Tensor

    @property
    def size(self) -> int:
        return self.members.shape[1]

    def halves(self) -> Tensor:
        """bool [2^k, k]: whether a member is in its higher half."""
        bits = torch.arange(self.size, device=self.members.device)
        return (torch.arange(1 << self.size, device=bits.device).unsqueeze(1) >> bits) & 1 == 1


def joint_cuts(
    graph: Graph, operator: int, bounds: Bounds, final: Final, options: JointOptions = JointOptions()
) -> tuple[Cuts, Tensor] | None:
    """Cuts with which the final pass gets the bounds [B, R] that are returned beside them, up to rounding.

    `graph` and `bounds` (leading dimension 1, all nodes that the operator depends on) in float64; the argument of
    `operator` is affine in the only input. None where there are no two neurons to join.
    """
    neurons = _neurons(graph, operator, bounds, final, options)
    if neurons is None:
        return None
    a, s, gained = _lines(graph, operator, bounds, final, neurons.column)
    rest = final.plane.flatten(2).flatten(0, 1).double() - neurons.combined(s)
    constant = final.constant.flatten(0, 1).double() - gained - (s * neurons.offset).sum(1)
    constant = constant + rest @ neurons.center
    found = _Ascent(neurons.to(torch.float32), a.float(), (rest * neurons.radius).float(), constant.float())
    value, s, groups = found.run(s.float(), options)
    least = _least(neurons, a, s.double(), groups)
    lead = final.arrived.shape[:2]
    members = groups.members.flatten()
    real = (members < len(neurons.column)).nonzero()[:, 0]
    owner, who = real // groups.size, members[real]
    column = neurons.column[who]
    terms = {
        operator: Entries(owner, column, a[:, who].unflatten(0, lead)),
        graph.nodes[operator].inputs[0]: Entries(owner, column, -s.double()[:, who].unflatten(0, lead)),
    }
    return Cuts(terms, least.unflatten(0, lead)), value.double().unflatten(0, lead)


def _lines(
    graph: Graph, operator: int, bounds: Bounds, final: Final, column: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """The coefficients of some elements [T, n], their product with the slopes of the lines that they take, and the sum
    [T] of those with the intercepts."""
    node = graph.nodes[operator]
    assert isinstance(node.op, Elementwise)
    a = final.arrived.flatten(2).flatten(0, 1).double()[:, column]
    own = {n: t.flatten(2).flatten(0, 1).double()[:, column] for n, t in final.own.items()}
    z = bounds[node.inputs[0]].map(lambda t: t.flatten()[column].unsqueeze(0))
    lines = relax_at(node.op.restrict(column, node.shape), own, z)
    zero = torch.zeros_like(a)
    below = zero if lines.lower_intercept is None else lines.lower_intercept
    above = zero if lines.upper_intercept is None else lines.upper_intercept
    slope = torch.where(a > 0, lines.lower_slopes[0], lines.upper_slopes[0])
    return a, a * slope, (a * torch.where(a > 0, below, above)).sum(1)


def _neurons(
    graph: Graph, operator: int, bounds: Bounds, final: Final, options: JointOptions
) -> _Neurons | None:
    """The undecided neurons whose split seems to matter most."""
    node = graph.nodes[operator]
    argument, op = node.inputs[0], node.op
    assert isinstance(op, Elementwise)
    z, point = bounds[argument], op.branching_point(0, bounds[argument])
    inside = op.refinable(0, z) & (point > z.lower) & (point < z.upper)
    weight = (
        final.arrived.flatten(2).abs().amax((0, 1)).double()
        * (z.upper - z.lower).flatten()
        * inside.flatten()
    )
    best = weight.topk(min(options.neurons, len(weight))).indices
    column = best[weight[best] > 0].sort().values
    if len(column) < 2:
        return None
    rows = []
    for part in column.split(512):
        start = {
            argument: Rows(part.unsqueeze(0), z.lower.new_ones(1, len(part)), graph.nodes[argument].shape)
        }
        found = backward(graph, start, {}, bounds)
        plane = found.coefficients[graph.inputs[0]][0].flatten(1)
        places = plane.abs().topk(max(1, int((plane != 0).sum(1).amax())), dim=1).indices
        error = found.constant.new_zeros(1, len(part)) if found.error is None else found.error
        rows.append((plane.gather(1, places), places, found.constant[0], error[0]))
    most = max(r[0].shape[1] for r in rows)
    weight, place = [
        torch.cat([torch.nn.functional.pad(r[k], (0, most - r[k].shape[1])) for r in rows]) for k in range(2)
    ]
    offset, doubt = [torch.cat([r[k].expand(len(r[0])) for r in rows]) for k in (2, 3)]
    try:
        small = op.restrict(column, node.shape)
    except NotImplementedError:
        return None
    ends = [t.flatten()[column].unsqueeze(0) for t in (z.lower, point, z.upper)]
    halves = [relax_at(small, {}, Interval(*pair)) for pair in (ends[:2], ends[1:])]
    zero = torch.zeros_like(ends[0])
    slopes = torch.stack([torch.cat([h.lower_slopes[0], h.upper_slopes[0]]) for h in halves])
    pairs = [(h.lower_intercept, h.upper_intercept) for h in halves]
    intercepts = torch.stack([torch.cat([zero if t is None else t for t in pair]) for pair in pairs])
    if not bool(slopes.isfinite().all() & intercepts.isfinite().all() & offset.isfinite().all()):
        return None
    box = bounds[graph.inputs[0]].map(lambda t: t.flatten())
    center = (box.lower + box.upper) / 2
    radius = torch.maximum(box.upper - center, center - box.lower)
    units = small.relaxation_error + 4
    point = ends[1][0]
    return _Neurons(column, weight, place, offset, doubt, point, slopes, intercepts, units, center, radius)


class _Ascent:
    """Maximises the bounds of T final passes whose plane without the neurons is `rest` [T, inputs], in units of the
    box's radius, and `constant` [T]."""

    def __init__(self, neurons: _Neurons, a: Tensor, rest: Tensor, constant: Tensor) -> None:
        self._neurons, self._a, self._rest, self._constant = neurons, a, rest, constant
        self._slope, self._intercept = neurons.lines(a)
        self._middle = neurons.middle
        size = neurons.weight.abs() * neurons.radius[neurons.place]
        self._profiles = profiles(size, neurons.place, len(neurons.center))
        self._enough = torch.zeros_like(constant)

    def run(self, s: Tensor, options: JointOptions) -> tuple[Tensor, Tensor, _Groups]:
        """The best values [T], slopes and groups."""
        groups = self._singles(s)
        value = self._value(s, groups)[0]
        self._enough = CLOSED * value.abs()
        while groups.size < options.size and len(groups.members) > 1:
            joined, reads = _joined(self._neurons, groups, self._profiles)
            if joined.beta.numel() // joined.size * (joined.size + joined.weight.shape[2]) > options.numbers:
                break
            groups, self._profiles = joined, reads
            before = value
            value, s, groups = self._climb(s, groups, options)
            done = (value > self._enough) | (value - before < LEAST_GAIN * before.abs())
            if bool(done.all()) or time.monotonic() > options.deadline:
                break
        return value, s, groups

    def _singles(self, s: Tensor) -> _Groups:
        """Every neuron alone; a half is bounded best by its end, which the multiplier of its constraint reaches."""
        n = len(s[0])
        members = torch.arange(n, device=s.device).unsqueeze(1)
        rise = self._slope - s
        beta = torch.stack([(-rise[0]).clamp(min=0), rise[1].clamp(min=0)], 2).unsqueeze(3)
        return _Groups(members, self._neurons.place, self._neurons.weight.unsqueeze(1), beta)

    def _climb(self, s: Tensor, groups: _Groups, options: JointOptions) -> tuple[Tensor, Tensor, _Groups]:
        # Neurons whose own coefficient vanishes must not stand still.
        scale = self._a.abs() + 1e-3 * self._a.abs().amax(1, keepdim=True)
        wide = _padded(scale)[:, groups.members].unsqueeze(2)
        s, beta = s.clone(), groups.beta.clone()
        adam = Adam([s, beta], [scale, wide], options.rate, options.decay)
        value, down, beta_down = self._value(s, groups)
        best = [value, s.clone(), beta.clone()]
        for _ in range(options.steps):
            if bool((best[0] > self._enough).all()) or time.monotonic() > options.deadline:
                break
            adam.step([down, beta_down])
            beta.clamp_(min=0)
            value, down, beta_down = self._value(s, replace(groups, beta=beta))
            wins = value > best[0]
            for old, new in zip(best, (value, s, beta), strict=True):
                old[wins] = new[wins]
        return best[0], best[1], replace(groups, beta=best[2])

    def _value(self, s: Tensor, groups: _Groups) -> tuple[Tensor, Tensor, Tensor]:
        """The bounds [T], and supergradients in s and beta."""
        neurons, members = self._neurons, groups.members
        plane = self._rest + neurons.combined(s) * neurons.radius
        corner = -plane.sign() * neurons.radius
        here = self._middle + (neurons.weight * corner[:, neurons.place]).sum(2)
        slope, constant = _combinations(neurons, self._slope, self._intercept, s, groups)
        middle = _padded(self._middle)[members]
        spread = groups.weight * neurons.radius[groups.place].unsqueeze(1)
        away = torch.matmul(slope, spread)
        there = middle.unsqueeze(1) - torch.matmul(away.sign(), spread.mT)
        values = (slope * middle.unsqueeze(1)).sum(3) - away.abs().sum(3) + constant
        least, which = values.min(2)
        chosen = there.gather(2, which.view(*which.shape, 1, 1).expand(-1, -1, 1, groups.size)).squeeze(2)
        apart = torch.zeros_like(_padded(s)).index_add_(1, members.flatten(), chosen.flatten(1))[:, :-1]
        total = self._constant + (s * self._middle).sum(1) + least.sum(1) - plane.abs().sum(1)
        sign = groups.halves().to(s.dtype) * 2 - 1
        return total, here - apart, sign * (_padded(neurons.point)[members].unsqueeze(1) - there)


def _combinations(
    neurons: _Neurons, slope: Tensor, intercept: Tensor, s: Tensor, groups: _Groups
) -> tuple[Tensor, Tensor]:
    """Per combination of halves the coefficient of every z [T, P, Q, k] in a y - s z with its multipliers, and the
    constant [T, P, Q]; `slope` and `intercept` are the lines below a y in both halves."""
    members, halves = groups.members, groups.halves()
    sign = halves.to(s.dtype) * 2 - 1
    low, high = [_padded(t)[:, members].unsqueeze(2) for t in slope - s]
    coefficient = torch.where(halves, high, low) - sign * groups.beta
    low, high = [_padded(t)[:, members].unsqueeze(2) for t in intercept]
    point = _padded(neurons.point)[members].unsqueeze(1)
    constant = (torch.where(halves, high, low) + sign * groups.beta * point).sum(3)
    return coefficient, constant


def _padded(t: Tensor) -> Tensor:
    """With a zero behind the last neuron, for members that are none."""
    return torch.nn.functional.pad(t, (0, 1))


def _joined(neurons: _Neurons, groups: _Groups, reads: Tensor) -> tuple[_Groups, Tensor]:
    """Pairs of groups that read about the same as one group each, and what these read."""
    first, second = nearest_pairs(reads)
    n = len(neurons.column)
    members = torch.nn.functional.pad(groups.members, (0, 0, 0, 1), value=n)
    members = torch.cat([members[first], members[second]], 1)
    beta = torch.nn.functional.pad(groups.beta, (0, 0, 0, 0, 0, 1))
    count = beta.shape[2]
    shape = (beta.shape[0], len(first), count, count, groups.size)
    one = beta[:, first].unsqueeze(2).expand(shape)  # the second group's halves are the higher bits
    two = beta[:, second].unsqueeze(3).expand(shape)
    beta = torch.cat([one, two], 4).flatten(2, 3)
    place, weight = _union(neurons, members)
    padded = torch.nn.functional.pad(reads, (0, 0, 0, 1))
    return _Groups(members, place, weight, beta), normalised(padded[first] + padded[second])


def _union(neurons: _Neurons, members: Tensor) -> tuple[Tensor, Tensor]:
    """The inputs [P, m] that the members of each group read, every one once, and the weights [P, k, m]."""
    inputs = len(neurons.center)
    place = torch.where(neurons.weight != 0, neurons.place, inputs)
    place = torch.cat([place, torch.full_like(place[:1], inputs)])[members]
    weight = torch.nn.functional.pad(neurons.weight, (0, 0, 0, 1))[members]
    order = place.flatten(1).sort(dim=1)
    fresh = torch.nn.functional.pad(order.values[:, 1:] != order.values[:, :-1], (1, 0), value=True)
    rank = fresh.cumsum(1) - 1
    width = int(rank.max()) + 1
    spot = torch.empty_like(rank).scatter_(1, order.indices, rank)
    where = torch.full((len(members), width), inputs, device=place.device).scatter_(1, spot, place.flatten(1))
    whole = weight.new_zeros(*members.shape, width)
    whole.scatter_add_(2, spot.view(place.shape), weight)
    return torch.where(where < inputs, where, 0), whole


def _least(neurons: _Neurons, a: Tensor, s: Tensor, groups: _Groups) -> Tensor:
    """The right sides [T, P], below the minimum of every group's left side whatever rounds; all in float64."""
    members = groups.members
    place, weight = _union(neurons, members)
    groups = replace(groups, place=place, weight=weight, beta=groups.beta.double())
    slope, intercept = neurons.lines(a)
    coefficient, constant = _combinations(neurons, slope, intercept, s, groups)
    size = neurons.center.abs() + neurons.radius
    reach = (neurons.weight.abs() * size[neurons.place]).sum(1) + neurons.offset.abs() + neurons.doubt
    center, radius = neurons.center[place].unsqueeze(1), neurons.radius[place].unsqueeze(1)
    offset = _padded(neurons.offset)[members].unsqueeze(1)
    plane = torch.matmul(coefficient, weight)
    value = (plane * center).sum(3) - (plane.abs() * radius).sum(3)
    value = value + (coefficient * offset).sum(3) + constant
    units = 2 * (weight.shape[2] + neurons.weight.shape[1]) + 4 * groups.size + neurons.units + 32
    steep = torch.maximum(slope[0].abs(), slope[1].abs()) + s.abs()
    high = torch.maximum(intercept[0].abs(), intercept[1].abs())
    fixed = _padded(steep * reach + high)[:, members].sum(2).unsqueeze(2)
    point = _padded(reach + neurons.point.abs())[members].unsqueeze(1)
    total = fixed + (groups.beta * point).sum(3) + negligible(value.dtype)
    doubt = (coefficient.abs() * _padded(neurons.doubt)[members].unsqueeze(1)).sum(3)
    value = value - (units * torch.finfo(value.dtype).eps * total + 2 * doubt)
    return value.amin(2)
