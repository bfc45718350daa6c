"""Certified upper bounds of Lipschitz constants of a graph, from cheap to tight, beside a witnessed lower bound."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from verifier.bounds.backward import OutOfTime
from verifier.branching.plan import Limits
from verifier.errors import OptionsError
from verifier.graph import Graph, Interval
from verifier.graph.precision import full_precision
from verifier.jacobian.chain import ChainError
from verifier.jacobian.enclosures import Effort, Method, raised, root_intervals, root_values
from verifier.jacobian.everywhere import everywhere
from verifier.jacobian.jumps import Jumping
from verifier.jacobian.maximise import maximise
from verifier.jacobian.objective import Norm, Objective, gradients, objective
from verifier.jacobian.reading import chain
from verifier.jacobian.semidefinite import bound as semidefinite
from verifier.jacobian.semidefinite import layerwise, product_of_norms
from verifier.jacobian.spectral import spectral_bound
from verifier.jacobian.witness import Climber
from verifier.sets import Box, InputSet

SAMPLES, ROUNDS = 2048, 200
CLIMB_SHARE = 0.15
"""Of the time, for the lower bound."""
ELLIPSOIDS = 512
"""Layers of no more values than this are also taken as ellipsoids, which takes seconds for more."""
SEMIDEFINITE_SHARE = 0.3
"""Of the time that is left."""
ORDERS: dict[Norm, float] = {"inf": math.inf, "2": 2, "1": 1}


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
            jumps = Jumping(graph)(sets)
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
                value,
                spectral_bound(
                    self._graph,
                    self._rows,
                    lambda asked: root_intervals(asked, self._sets, method, self._effort),
                ),
            )
        return value

    def _search(self, box: Interval) -> float | None:
        best = self._climber.best
        if best is not None and self._upper <= raised(best.value, self._question.power):
            return (
                None  # what is searched is only a bound of the norm, and reaches more than is proved already
            )
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
    def enclose(entries: Objective) -> Interval:
        part, ranges = everywhere(entries.raw)
        sets = [Box(r.lower, r.upper) for r in ranges]
        return root_intervals(Objective(part, entries.seeds), sets, method, effort)

    return spectral_bound(graph, rows, enclose)


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
