"""Certified upper bounds of Lipschitz constants of a graph, from cheap to tight, beside a witnessed lower bound."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import NamedTuple

import torch
from torch import Tensor

from verifier.bounds.alpha import AlphaOptions
from verifier.bounds.backward import OutOfTime
from verifier.bounds.compute import compute_bounds
from verifier.bounds.interval import interval_bounds
from verifier.branching.plan import Limits
from verifier.errors import OptionsError
from verifier.graph import Elementwise, Graph, Interval, Op
from verifier.graph.precision import full_precision
from verifier.jacobian.chain import ChainError
from verifier.jacobian.everywhere import everywhere
from verifier.jacobian.maximise import maximise
from verifier.jacobian.objective import Norm, Objective, gradients, objective
from verifier.jacobian.reading import chain
from verifier.jacobian.semidefinite import bound as semidefinite
from verifier.jacobian.semidefinite import layerwise, product_of_norms
from verifier.jacobian.witness import Climber
from verifier.ops.choice import Choice
from verifier.options import BoundMethod
from verifier.sets import Box, InputSet
from verifier.transforms.composites import write_out

SAMPLES, ROUNDS = 2048, 200
CLIMB_SHARE = 0.15
"""Of the time, for the lower bound."""
ELLIPSOIDS = 512
"""Layers of no more values than this are also taken as ellipsoids, which takes seconds for more."""
SEMIDEFINITE_SHARE = 0.3
"""Of the time that is left."""
ORDERS: dict[Norm, float] = {"inf": math.inf, "2": 2, "1": 1}
ROWS = 256
"""Seeds bounded at a time."""


class Method(Enum):
    """How an upper bound was found, from cheap to tight."""

    PRODUCT = "product-of-norms"
    INTERVAL = "interval"
    CROWN = "crown"
    OPTIMISED = "alpha-crown"
    SEMIDEFINITE = "semidefinite"
    SEARCH = "branch-and-bound"

    @property
    def text(self) -> str:
        """What it is, in words."""
        return _TEXT[self]


_TEXT = {
    Method.PRODUCT: "the layers' norms and slopes multiplied, or layer-wise ellipsoids (chains only)",
    Method.INTERVAL: "intervals of the Jacobian's entries",
    Method.CROWN: "linear bounds of the norm through the backward pass",
    Method.OPTIMISED: "the same with optimised slopes",
    Method.SEMIDEFINITE: "a semidefinite programme over the layers (chains only; extra sdp)",
    Method.SEARCH: "linear bounds on parts of the set",
}


@dataclass(frozen=True)
class Upper:
    """One proved upper bound, and the seconds that it took."""

    method: Method
    value: float
    seconds: float


@dataclass(frozen=True, eq=False)
class Lipschitz:
    """What is known of a Lipschitz constant.

    `upper` holds for all inputs of the set (infinite where nothing was proved, and `reason` says why), `lower` is the
    norm of the gradient at `point` [n_in], 0 and None without one. `bounds` are the methods' results in their order,
    `exact_norm` is False where the norm bounded is only an upper bound of the one asked for (several outputs, norm 2).
    """

    upper: float
    lower: float
    norm: Norm
    point: Tensor | None
    bounds: tuple[Upper, ...]
    seconds: float
    domains: int = 0
    exact_norm: bool = True
    reason: str = ""
    scope: str = "local"

    @property
    def gap(self) -> float:
        """Upper over lower bound; infinite where there is no positive lower bound."""
        return self.upper / self.lower if self.lower > 0 else math.inf

    def to_json(self, indent: int | None = None) -> str:
        """Numbers that are infinite are null."""

        def number(x: float) -> float | None:
            return x if math.isfinite(x) else None

        rows = [
            {"method": b.method.value, "upper": number(b.value), "seconds": b.seconds} for b in self.bounds
        ]
        content = {
            "upper": number(self.upper),
            "lower": self.lower,
            "gap": number(self.gap),
            "norm": self.norm,
            "scope": self.scope,
            "point": None if self.point is None else self.point.tolist(),
            "bounds": rows,
            "domains": self.domains,
            "seconds": self.seconds,
            "exact_norm": self.exact_norm,
            "reason": self.reason,
        }
        return json.dumps(content, indent=indent)


@dataclass(frozen=True)
class Effort:
    """`methods` in their order; `deadline` of `time.monotonic`; `gap` the ratio at which the search ends."""

    methods: Sequence[Method] = tuple(Method)
    deadline: float = math.inf
    gap: float = 1e-6
    memory: int = 1 << 30
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    dtype: torch.dtype = torch.float32
    seed: int = 0


def lipschitz(
    graph: Graph,
    sets: Sequence[InputSet] | None,
    norm: Norm,
    rows: Tensor,
    effort: Effort = Effort(),
    report: Callable[[Upper], None] | None = None,
) -> Lipschitz:
    """Bounds of the Lipschitz constant of rows @ f, `rows` [R, n_out], in one norm on both sides.

    `sets` are one instance per input of the graph, [1, *shape], for the local constant: |f(x) - f(y)| <= L |x - y| for
    all x, y of a convex set. None asks for the global one. Raises UnsupportedError for operators without a derivative.
    The search is over boxes: a ball's is that around it.
    """
    began = time.monotonic()
    with full_precision():
        if sets is not None:
            jumps = jumping(graph, sets)
            if bool(jumps.open.any()):
                seconds = time.monotonic() - began
                return Lipschitz(math.inf, 0.0, norm, None, (), seconds, reason=jumps.reason)
        question = objective(graph, norm, rows)
        if sets is None:
            return _global(graph, question, norm, rows, effort, began, report)
        return _Local(graph, question, sets, norm, rows, effort, began, report).result()


class _Local:
    """One set: the methods in turn, the best of their bounds, and a climber's witness."""

    def __init__(
        self,
        graph: Graph,
        question: Objective,
        sets: Sequence[InputSet],
        norm: Norm,
        rows: Tensor,
        effort: Effort,
        began: float,
        report: Callable[[Upper], None] | None,
    ) -> None:
        self._graph, self._question, self._rows = graph, question, rows
        self._norm: Norm = norm
        self._sets, self._effort, self._began, self._report = sets, effort, began, report
        self._upper, self._bounds, self._domains = math.inf, list[Upper](), 0
        ends = [s.box() for s in sets]
        self._box = Interval(
            *[torch.cat([t.flatten(1).double() for t in side], 1) for side in zip(*ends, strict=True)]
        )
        self._climber = Climber(question, effort.device, _inside(sets, effort.device))

    def result(self) -> Lipschitz:
        effort = self._effort
        now = time.monotonic()
        until = min(effort.deadline, now + max(CLIMB_SHARE * (effort.deadline - now), 0.2))
        box = self._box.map(lambda t: t.to(effort.device))
        self._climber.climb(box, SAMPLES, ROUNDS, until, effort.seed)
        for method in effort.methods:
            if self._closed() or (time.monotonic() > effort.deadline and self._bounds):
                break
            start = time.monotonic()
            try:
                value = self._value(method, box)
            except OutOfTime:
                value = None
            if value is not None:
                self._keep(Upper(method, value, time.monotonic() - start))
        reason = ""
        if not math.isfinite(self._upper):
            reason = "A derivative may be infinite in this set; a smaller one that leaves out such points may help."
        return Lipschitz(
            self._upper,
            self._reached(),
            self._norm,
            None if self._climber.best is None else self._climber.best.point.cpu(),
            tuple(self._bounds),
            time.monotonic() - self._began,
            self._domains,
            self._question.exact,
            reason,
        )

    def _value(self, method: Method, box: Interval) -> float | None:
        if method is Method.SEARCH:
            return self._search(box)
        if method in (Method.PRODUCT, Method.SEMIDEFINITE):
            return by_layers(self._graph, self._sets, method, self._norm, self._rows, self._effort)
        return self._root(method)

    def _closed(self) -> bool:
        return self._upper <= self._reached() * (1 + self._effort.gap)

    def _reached(self) -> float:
        """The norm at the climber's best point."""
        best = self._climber.best
        if best is None:
            return 0.0
        if self._question.exact:
            return math.sqrt(max(best.value, 0.0)) if self._question.power == 2 else best.value
        asked = gradients(self._graph, self._rows)
        seeds = asked.seeds.to(torch.float64).flatten(1)
        x = best.point.cpu().double().expand(len(seeds), -1)
        with torch.no_grad():
            (jacobian,) = asked.flat.to(torch.float64).evaluate([torch.cat([x, seeds], 1)])
        return float(torch.linalg.matrix_norm(jacobian, 2))

    def _keep(self, found: Upper) -> None:
        self._bounds.append(found)
        self._upper = min(self._upper, found.value)
        if self._report is not None:
            self._report(found)

    def _root(self, method: Method) -> float:
        values = root_values(self._question, self._sets, method, self._effort)
        value = raised(float(values.max()), self._question.power)
        if self._norm == "2" and len(self._rows) > 1:
            value = min(
                value, _by_entries(gradients(self._graph, self._rows), self._sets, method, self._effort)
            )
        return value

    def _search(self, box: Interval) -> float:
        limits = Limits(
            self._effort.deadline,
            self._effort.gap,
            self._effort.memory,
            self._effort.device,
            self._effort.dtype,
        )
        found = maximise(self._question, box, self._climber, limits)
        self._domains = found.domains
        return raised(found.upper, self._question.power)


def _inside(sets: Sequence[InputSet], device: torch.device) -> Callable[[Tensor], Tensor] | None:
    """Moves points [M, n_in] into the sets of one instance; None where these are boxes, which searches keep to."""
    if all(isinstance(s, Box) for s in sets):
        return None
    wide = [s.to(torch.float64, device) for s in sets]
    sizes = [math.prod(s.shape) for s in wide]

    def move(points: Tensor) -> Tensor:
        parts = points.split(sizes, dim=1)
        moved = [
            s.project(p.view(1, len(points), *s.shape)).reshape(len(points), -1)
            for s, p in zip(wide, parts, strict=True)
        ]
        return torch.cat(moved, 1)

    return move


@torch.no_grad()
def root_intervals(question: Objective, sets: Sequence[InputSet], method: Method, effort: Effort) -> Interval:
    """Enclosures of an objective's values for every seed on one instance, [S, K], float64."""
    boxes = [s.to(effort.dtype, effort.device) for s in sets]
    seeds = question.seeds.to(effort.dtype).to(effort.device)
    graph = question.graph.to(effort.dtype, effort.device)
    parts = []
    for rows in torch.arange(len(seeds), device=effort.device).split(ROWS):
        seed = seeds[rows]
        many = [s.index(torch.zeros(len(seed), dtype=torch.int64, device=effort.device)) for s in boxes]
        parts.append(
            compute_bounds(
                graph, [*many, Box(seed, seed)], BOUNDS[method], (), alpha_options(effort)
            ).outputs[0]
        )
    found = Interval.cat([p.map(lambda t: t.flatten(1).double()) for p in parts])
    return found.map(Tensor.detach).sanitise()


def root_values(question: Objective, sets: Sequence[InputSet], method: Method, effort: Effort) -> Tensor:
    """Upper bounds of an objective's values for every seed on one instance, [S, K], float64."""
    return root_intervals(question, sets, method, effort).upper


BOUNDS: dict[Method, BoundMethod] = {
    Method.INTERVAL: "interval",
    Method.CROWN: "crown",
    Method.OPTIMISED: "alpha-crown",
}


def alpha_options(effort: Effort) -> AlphaOptions:
    return AlphaOptions(memory=effort.memory // 4, deadline=effort.deadline)


def _global(
    graph: Graph,
    question: Objective,
    norm: Norm,
    rows: Tensor,
    effort: Effort,
    began: float,
    report: Callable[[Upper], None] | None,
) -> Lipschitz:
    """Over all inputs: no search, and no point that is the worst."""
    free, ranges = everywhere(question.raw)
    bounds: list[Upper] = []
    finite = all(bool(t.isfinite().all()) for r in ranges for t in r)
    for method in effort.methods if finite else ():
        if method is Method.SEARCH or time.monotonic() > effort.deadline:
            continue
        start = time.monotonic()
        try:
            if method in (Method.PRODUCT, Method.SEMIDEFINITE):
                value = by_layers(graph, None, method, norm, rows, effort)
            else:
                sets = [Box(r.lower, r.upper) for r in ranges]
                asked = Objective(free, question.seeds, question.power, question.exact)
                value = raised(float(root_values(asked, sets, method, effort).max()), question.power)
                if not question.exact:
                    value = min(value, _entries_everywhere(graph, rows, method, effort))
        except OutOfTime:
            break
        if value is None:
            continue
        bounds.append(Upper(method, value, time.monotonic() - start))
        if report is not None:
            report(bounds[-1])
    upper = min([b.value for b in bounds], default=math.inf)
    reason = ""
    if not math.isfinite(upper):
        reason = "The derivative of an operator has no bound over all inputs; give a set."
    seconds = time.monotonic() - began
    return Lipschitz(
        upper, 0.0, norm, None, tuple(bounds), seconds, 0, question.exact, reason, scope="global"
    )


def _entries_everywhere(graph: Graph, rows: Tensor, method: Method, effort: Effort) -> float:
    entries = gradients(graph, rows)
    part, ranges = everywhere(entries.raw)
    sets = [Box(r.lower, r.upper) for r in ranges]
    return _by_entries(Objective(part, entries.seeds), sets, method, effort)


def _by_entries(entries: Objective, sets: Sequence[InputSet], method: Method, effort: Effort) -> float:
    """Of several outputs: a bound of the 2-norm from intervals of all entries."""
    return spectral(root_intervals(entries, sets, method, effort))


def by_layers(
    graph: Graph,
    sets: Sequence[InputSet] | None,
    method: Method,
    norm: Norm,
    rows: Tensor,
    effort: Effort,
) -> float | None:
    """What is proved of the network as a chain of layers; None where it is no chain, or no solver is installed and
    others are tried as well."""
    region = None if sets is None else sets[0].to(torch.float64)
    if len(graph.inputs) != 1:
        return None
    try:
        layers = chain(graph, region).followed(rows)
        if method is Method.PRODUCT:
            simple = product_of_norms(layers, ORDERS[norm])
            small = norm == "2" and max([layers.inputs, *[k.outputs for k in layers.layers]]) <= ELLIPSOIDS
            return min(simple, layerwise(layers)) if small else simple
        left = max(effort.deadline - time.monotonic(), 0.0)
        return semidefinite(layers, ORDERS[norm], seconds=SEMIDEFINITE_SHARE * left)
    except ChainError:
        return None
    except OptionsError:
        if tuple(effort.methods) == (method,):
            raise
        return None


class Jumps(NamedTuple):
    """For which instances a function may jump in its set, bool [B], and why."""

    open: Tensor
    reason: str


def jumping(graph: Graph, sets: Sequence[InputSet]) -> Jumps:
    """Where what decides between pieces that need not meet is open."""
    graph = write_out(graph)
    boxes = [s.box().to(torch.float64) for s in sets]
    batch = max(len(b.lower) for b in boxes)
    open_ = torch.zeros(batch, dtype=torch.bool, device=boxes[0].lower.device)
    reason = ""
    if not any(may_jump(graph.nodes[i].op) for i in graph.ancestors(graph.outputs[0])):
        return Jumps(open_, reason)
    bounds = interval_bounds(graph.to(torch.float64, boxes[0].lower.device), boxes)
    for i in sorted(graph.ancestors(graph.outputs[0])):
        if not may_jump(graph.nodes[i].op):
            continue
        node = graph.nodes[i]
        arguments = [bounds[j].expand(batch) for j in node.inputs]
        op = node.op
        here = op.refinable(0, *arguments).flatten(1).any(1) if isinstance(op, Elementwise) else open_
        if bool(here.any()) and not reason:
            reason = (
                f"{node.source or node.name} ({type(op).__name__}) may jump in this set, and a function that jumps "
                "has no Lipschitz constant; take a set on which it is decided."
            )
        open_ = open_ | here
    return Jumps(open_, reason)


def may_jump(op: Op) -> bool:
    """Whether an operator has pieces that need not meet."""
    return isinstance(op, Elementwise) and (op.jumps or isinstance(op, Choice))


def spectral(entries: Interval) -> float:
    """An upper bound of the spectral norm of all matrices [R, n] in an interval, float64: |C + D| <= |C| + |D|."""
    center, radius = entries.center, entries.radius
    if not bool(center.isfinite().all() and radius.isfinite().all()):
        return math.inf
    rounding = 1 + 64 * max(center.shape) * torch.finfo(torch.float64).eps
    wide = radius + 4 * torch.finfo(torch.float64).eps * center.abs()
    norms = [float(torch.linalg.matrix_norm(m, 2)) for m in (center, wide)]
    frobenius = float(torch.linalg.matrix_norm(entries.magnitude))
    return min(sum(norms), frobenius) * rounding


def raised(value: float, power: int) -> float:
    """The root of a bound, rounded up."""
    return value if power == 1 else math.sqrt(max(value, 0.0)) * (1 + 1e-15)
