"""How much of a data set a classifier is certified on: `certify`, the engine of `verifier certify`."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from enum import Enum
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from verifier import api
from verifier.attack.descent import DescentOptions, descend
from verifier.attack.replay import run_network
from verifier.bounds.alpha import AlphaOptions, optimise
from verifier.bounds.cases import decision_cases
from verifier.bounds.crown import inner_bounds, specification_bound
from verifier.bounds.defined import has_values
from verifier.bounds.hope import Hope
from verifier.bounds.interval import interval_bounds
from verifier.bounds.rows import margin_rows
from verifier.errors import OptionsError, VerifierError, is_out_of_memory
from verifier.graph import Graph, Interval
from verifier.graph.coefficients import Dense
from verifier.graph.precision import full_precision
from verifier.options import Options
from verifier.results import Status
from verifier.sets import Ball, Box, InputSet
from verifier.specs.property import robust
from verifier.strategy import device_of
from verifier.transforms.part import after, last_curved
from verifier.transforms.prepare import prepare

CertifyMethod = Literal["interval", "crown", "alpha-crown", "full"]
METHODS: tuple[CertifyMethod, ...] = get_args(CertifyMethod)
"""From cheap to tight; what one certifies the next are not asked. `full` is `verify`, sample by sample."""
BatchMethod = Literal["interval", "crown", "alpha-crown"]
Norm = Literal["inf", "2", "1"]
BATCH = 64
ALPHA = AlphaOptions(threshold=0.0)
"""Margins above zero need no more work."""
SHRINK = 2.0**-20
"""How much nearer to its sample an attack's point is moved, so that rounding does not put it outside."""


class Verdict(Enum):
    """What is known of one sample; `advice` says what follows from it."""

    MISCLASSIFIED = "misclassified"
    FALSIFIED = "falsified"
    CERTIFIED = "certified"
    OPEN = "open"

    @property
    def advice(self) -> str:
        """In a full sentence."""
        return _ADVICE[self]


_ADVICE = {
    Verdict.MISCLASSIFIED: "The sample itself gets another class; nothing around it was looked at.",
    Verdict.FALSIFIED: "The network was run on an input within the radius and gave it another class.",
    Verdict.CERTIFIED: "Every input within the radius gets the sample's class.",
    Verdict.OPEN: "Neither is known: raise the time limit per sample, or take a smaller radius.",
}


@dataclass(frozen=True)
class Sample:
    """One sample's row. `method` is what settled it (`attack` for an input that gradients found), `margin` the best
    proved lower bound of the score of its class less any other's over the set, where one was computed."""

    index: int
    label: int
    predicted: int
    verdict: Verdict
    method: str = ""
    margin: float | None = None
    seconds: float = 0.0


@dataclass(frozen=True)
class Certification:
    """The samples in their order, the radius and norm, and wall-clock seconds per method (the attack included)."""

    samples: tuple[Sample, ...]
    eps: float
    norm: Norm
    methods: tuple[str, ...]
    seconds: dict[str, float]

    @property
    def clean(self) -> float:
        """The share that gets its label."""
        return self._share(s.verdict is not Verdict.MISCLASSIFIED for s in self.samples)

    @property
    def attacked(self) -> float:
        """The share that gets its label and on which no attack succeeded: no more than this can be certified."""
        held = (Verdict.CERTIFIED, Verdict.OPEN)
        return self._share(s.verdict in held for s in self.samples)

    def certified(self, method: str = METHODS[-1]) -> float:
        """The share that gets its label and is certified by `method` or by a cheaper one."""
        within = METHODS[: METHODS.index(method) + 1]  # pyright: ignore[reportArgumentType]
        return self._share(s.verdict is Verdict.CERTIFIED and s.method in within for s in self.samples)

    def _share(self, hits: Iterable[bool]) -> float:
        return sum(hits) / len(self.samples) if self.samples else math.nan

    def rows(self) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
        """(head, lines) of a table of accuracies."""
        lines = [("clean", self.clean, None), ("attacked", self.attacked, self.seconds.get("attack"))]
        lines += [(name, self.certified(name), self.seconds.get(name)) for name in self.methods]
        head = ("accuracy", "share", "samples", "seconds")
        count = len(self.samples)
        return head, [
            (name, f"{share:.4f}", f"{round(share * count)}/{count}", "" if s is None else f"{s:.2f}")
            for name, share, s in lines
        ]

    def to_json(self, indent: int | None = None) -> str:
        """Accuracies and every sample's row."""
        accuracies = {"clean": self.clean, "attacked": self.attacked}
        accuracies |= {name: self.certified(name) for name in self.methods}
        samples = [asdict(s) | {"verdict": s.verdict.value} for s in self.samples]
        content = {"eps": self.eps, "norm": self.norm, "accuracy": accuracies, "seconds": self.seconds}
        return json.dumps(content | {"samples": samples}, indent=indent)


def certify(
    model: Any,
    data: Iterable[tuple[Tensor, Tensor]],
    eps: float,
    norm: Norm = "inf",
    clip: tuple[float, float] | None = None,
    methods: Sequence[CertifyMethod] = METHODS,
    count: int | None = None,
    options: Options = Options(timeout=30.0),
    progress: Callable[[Sample], None] | None = None,
    budget: float = math.inf,
) -> Certification:
    """Clean, attacked and certified accuracy of a classifier on `data`.

    `model` is what `verify` takes, with one input and one output of scores. `data` yields batches (x [N, *shape],
    labels [N]), as a DataLoader does; `count` is how many samples are taken. Around every sample that is classified as
    labelled, all points within `eps`, in the units of x and the given norm, cut to `clip`, are to keep the class. Whole
    batches are bounded in one call, by the cheapest of `methods` first; what a single pass leaves open is attacked
    before slopes are optimised. What is left of all batches is verified (only for the maximum norm), the largest
    margins first, within `options.timeout` seconds per sample and `budget` seconds in all. An input that an attack
    finds counts once the model itself, run on it, gives another class. `progress` gets every sample as it is settled.

    Raises VerifierError for networks, data or options that do not fit.
    """
    ladder = _checked(eps, norm, methods)
    api.check_device(options)
    judge = _Judge(api.load_network(model), _Question(eps, norm, clip), ladder, options)
    tell = progress or (lambda _: None)
    samples: list[Sample] = []
    left: list[tuple[Sample, Tensor]] = []
    for x, labels in _limited(data, count):
        for sample, one in zip(judge.batch(x, labels), x, strict=True):
            samples.append(replace(sample, index=len(samples)))
            if sample.verdict is Verdict.OPEN and "full" in ladder:
                left.append((samples[-1], one))
            else:
                tell(samples[-1])
    for sample in judge.search(left, budget):
        samples[sample.index] = sample
        tell(sample)
    if not samples:
        raise VerifierError("the data has no samples.")
    return Certification(tuple(samples), eps, norm, tuple(ladder), dict(judge.seconds))


def lower_bounds(
    graph: Graph, sets: InputSet, rows: Tensor, method: BatchMethod, options: AlphaOptions = AlphaOptions()
) -> Tensor:
    """Sound lower bounds [B, R] of linear forms `rows` [B, R, K] of the graph's flattened output."""
    target = graph.outputs[0]
    if method == "interval":
        bounds = interval_bounds(graph, [sets.box()])
        return torch.fmax(_behind(graph, rows, bounds), _least(rows, bounds[target]))  # a NaN is no bound
    batch, known = sets.batch, {}
    cases = decision_cases(graph, [sets], graph.outputs)
    if cases is not None:
        sets, rows, known = sets.index(cases.owner), rows[cases.owner], cases.known
    forms = Dense(rows.unflatten(2, graph.nodes[target].shape))
    with torch.no_grad():
        bounds = inner_bounds(graph, [sets], graph.outputs, known)
        if method == "alpha-crown":
            lower = optimise(graph, [sets], target, forms, bounds, options=options).lower
        else:
            lower = specification_bound(graph, [sets], target, forms, bounds).minimum(graph, [sets])
    lower = torch.maximum(lower, _least(rows, bounds[target]))
    return lower if cases is None else cases.least(lower, batch)


def _behind(graph: Graph, rows: Tensor, bounds: Mapping[int, Interval]) -> Tensor:
    """The forms and the affine nodes at the end of the network as one affine map of intervals before these, which loses
    less (Gowal et al. 2018, arXiv 1810.12715)."""
    cut = last_curved(graph)
    last, box = after(graph, cut), Box(*bounds[cut].expand(len(rows)))
    target = last.outputs[0]
    forms = Dense(rows.unflatten(2, last.nodes[target].shape))
    with torch.no_grad():
        known = interval_bounds(last, [box.box()])
        return specification_bound(last, [box], target, forms, known).minimum(last, [box])


def _least(rows: Tensor, scores: Interval) -> Tensor:
    """The forms' minima [B, R] over intervals of the output, less their rounding."""
    lower, upper = (t.flatten(1)[:, :, None] for t in scores)
    value = (rows.clamp(min=0) @ lower + rows.clamp(max=0) @ upper)[..., 0]
    size = rows.abs() @ torch.maximum(lower.abs(), upper.abs())
    return value - 2 * (rows.shape[2] + 1) * torch.finfo(value.dtype).eps * size[..., 0]


def _checked(eps: float, norm: str, methods: Sequence[str]) -> list[CertifyMethod]:
    """The methods in order. Raises OptionsError."""
    if not (math.isfinite(eps) and eps >= 0):
        raise OptionsError(f"eps must be finite and not negative, not {eps!r}.")
    if norm not in get_args(Norm):
        raise OptionsError(f"norm must be one of {', '.join(get_args(Norm))}, not {norm!r}.")
    unknown = [m for m in methods if m not in METHODS]
    if unknown or not methods:
        raise OptionsError(f"methods are some of {', '.join(METHODS)}, not {', '.join(unknown) or 'none'}.")
    return [m for m in METHODS if m in methods and (norm == "inf" or m != "full")]


def _limited(data: Iterable[tuple[Tensor, Tensor]], count: int | None) -> Iterator[tuple[Tensor, Tensor]]:
    """At most BATCH samples at a time, `count` in all."""
    pairs = ((x[i : i + BATCH], y[i : i + BATCH]) for x, y in _tensors(data) for i in range(0, len(x), BATCH))
    left = math.inf if count is None else count
    for x, y in pairs:
        if left <= 0:
            return
        part = int(min(left, len(x)))
        yield x[:part], y[:part]
        left -= part


def _tensors(data: Iterable[tuple[Tensor, Tensor]]) -> Iterator[tuple[Tensor, Tensor]]:
    for x, y in data:
        x, y = torch.as_tensor(x), torch.as_tensor(y)
        if y.dim() != 1 or len(x) != len(y) or y.dtype.is_floating_point:
            raise VerifierError(
                f"a batch is (x [N, ...], labels [N] of an integer type); got shapes {tuple(x.shape)} and "
                f"{tuple(y.shape)}, labels of {y.dtype}."
            )
        if not x.dtype.is_floating_point:
            raise VerifierError(
                f"the samples are {x.dtype}, and a network's inputs are real numbers: convert and scale them as for "
                "training."
            )
        yield x, y


@dataclass(frozen=True)
class _Question:
    """What is asked around every sample."""

    eps: float
    norm: Norm
    clip: tuple[float, float] | None

    def around(self, x: Tensor) -> InputSet:
        """In float64, which the sum of a float32 and a radius rarely leaves."""
        if self.norm == "inf":
            return Box.around(x.double(), self.eps, self.clip)
        return Ball.around(x.double(), self.eps, 2 if self.norm == "2" else 1, self.clip)

    def inside(self, x: Tensor, points: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Points [B, *shape] of a type with fewer numbers, a hair nearer to their samples, and whether they are within
        the radius and the clip then."""
        moved = (x.double() + (points.double() - x.double()) * (1 - SHRINK)).to(dtype)
        offset = (moved.double() - x.double()).flatten(1)
        held = torch.linalg.vector_norm(offset, ord=float(self.norm), dim=1) <= self.eps
        if self.clip is not None:
            flat = moved.double().flatten(1)
            held &= ((flat >= self.clip[0]) & (flat <= self.clip[1])).all(1)
        return moved, held


class _Judge:
    """Judges batches of samples, and counts wall-clock `seconds` per method."""

    def __init__(
        self, network: api.Network, question: _Question, methods: Sequence[CertifyMethod], options: Options
    ) -> None:
        if len(network.inputs) != 1 or len(network.outputs) != 1:
            raise VerifierError(
                f"the network has {len(network.inputs)} inputs and {len(network.outputs)} outputs; a classifier has "
                "one of each. Write properties of others in VNN-LIB and use `verifier verify`."
            )
        self.network, self.question, self.methods, self.options = network, question, methods, options
        self.device = device_of(options)
        self.shape = network.graph.nodes[network.graph.inputs[0]].shape
        self.classes = network.graph.nodes[network.graph.outputs[0]].numel
        if self.classes < 2:
            raise VerifierError("the network has one output, and a classifier has a score per class.")
        self.seconds: dict[str, float] = dict.fromkeys((*methods, "attack"), 0.0)

    def batch(self, x: Tensor, labels: Tensor) -> list[Sample]:
        """Their rows; where memory runs out, one half after the other."""
        x, labels = self._fitted(x), labels.cpu().long()
        if bool(((labels < 0) | (labels >= self.classes)).any()):
            raise VerifierError(
                f"labels must be from 0 to {self.classes - 1}: the network has that many scores."
            )
        try:
            return self._judge(x, labels)
        except Exception as error:
            if not is_out_of_memory(error) or len(x) == 1:
                raise
        half = len(x) // 2
        return self.batch(x[:half], labels[:half]) + self.batch(x[half:], labels[half:])

    def _fitted(self, x: Tensor) -> Tensor:
        """The samples in the network's shape: dimensions of 1 may be missing or be there."""
        given, wanted = ([d for d in shape if d != 1] for shape in (x.shape[1:], self.shape))
        if (given != wanted and not (len(given) <= 1 or len(wanted) <= 1)) or math.prod(given) != math.prod(
            wanted
        ):
            raise VerifierError(
                f"samples have shape {tuple(x.shape[1:])}, and the network takes {tuple(self.shape)}. Most networks "
                "have channels before height and width; transpose the data."
            )
        return x.cpu().reshape(-1, *self.shape)

    def _judge(self, x: Tensor, labels: Tensor) -> list[Sample]:
        predicted = self.network.graph.evaluate([x.double()])[0].flatten(1).argmax(1)
        samples = [
            Sample(0, label, scored, Verdict.OPEN if label == scored else Verdict.MISCLASSIFIED)
            for label, scored in zip(labels.tolist(), predicted.tolist(), strict=True)
        ]
        rows = margin_rows(labels, self.classes)
        with full_precision():
            graph = prepare(self.network.graph, [x.double()]).to(torch.float32, self.device)
            for method in self.methods:
                if method == "interval" or method == "crown":
                    self._bound(graph, x, rows, samples, method)
            self._attack(graph, x, rows, samples)
            if "alpha-crown" in self.methods:
                self._bound(graph, x, rows, samples, "alpha-crown")
        return samples

    def search(self, left: Sequence[tuple[Sample, Tensor]], budget: float) -> Iterator[Sample]:
        """Branch and bound of what bounds left open, the likeliest first, each with the sample as it is known then."""
        until = time.monotonic() + budget
        for sample, x in sorted(left, key=lambda pair: -_known(pair[0])):
            seconds = min(self.options.seconds, until - time.monotonic())
            yield self._verify(self._fitted(x[None])[0], sample, seconds) if seconds > 0 else sample

    def _bound(
        self, graph: Graph, x: Tensor, rows: Tensor, samples: list[Sample], method: BatchMethod
    ) -> None:
        with self._open(samples, method) as chosen:
            if chosen:
                near = self.question.around(x[chosen]).to(torch.float32, self.device)
                options = replace(ALPHA, stop=Hope(ALPHA.iterations))
                lower = lower_bounds(graph, near, rows[chosen].to(self.device), method, options).amin(1)
                # Of what has no value (NaN) somewhere nothing is known; `verify` asks more closely.
                lower = lower.cpu().masked_fill(~has_values(self.network.graph, near.box()), math.nan)
                for i, bound in zip(chosen, lower.tolist(), strict=True):
                    samples[i] = _bounded(samples[i], bound, method)

    def _attack(self, graph: Graph, x: Tensor, rows: Tensor, samples: list[Sample]) -> None:
        """Looks for inputs that get another class, and runs the model on those that are found."""
        with self._open(samples, "attack") as chosen:
            if not chosen:
                return
            near = self.question.around(x[chosen]).to(torch.float32, self.device)
            points, least = descend(
                graph, near, rows[chosen].to(self.device), DescentOptions(seed=self.options.seed)
            )
            kind = torch.from_numpy(np.empty(0, self.network.input_dtypes[0])).dtype
            points, held = self.question.inside(x[chosen], points.cpu(), kind)
            for k in (held & (least.cpu() <= 0)).nonzero()[:, 0].tolist():
                scores = run_network(self.network, [points[k : k + 1].numpy()])[0]
                margins = rows[chosen[k]].double() @ torch.from_numpy(scores).double().flatten()
                if bool((margins <= 0).any()):
                    samples[chosen[k]] = replace(
                        samples[chosen[k]], verdict=Verdict.FALSIFIED, method="attack"
                    )

    def _verify(self, x: Tensor, sample: Sample, limit: float) -> Sample:
        began = time.perf_counter()
        claim = robust(x.double(), sample.label, self.question.eps, self.question.clip)
        result = api.verify(self.network, claim, options=replace(self.options, timeout=limit, progress=False))
        seconds = time.perf_counter() - began
        self.seconds["full"] += seconds
        verdict = {Status.UNSAT: Verdict.CERTIFIED, Status.SAT: Verdict.FALSIFIED}.get(
            result.status, Verdict.OPEN
        )
        method = "" if verdict is Verdict.OPEN else "full"
        best = max((b for b in (sample.margin, result.bound) if b is not None), default=None)
        margin = None if verdict is Verdict.FALSIFIED else best
        return replace(
            sample, verdict=verdict, method=method, margin=margin, seconds=sample.seconds + seconds
        )

    @contextmanager
    def _open(self, samples: list[Sample], method: str) -> Iterator[list[int]]:
        """Which samples are open; the seconds spent on them count for the method, and are divided among them."""
        chosen = [i for i, s in enumerate(samples) if s.verdict is Verdict.OPEN]
        began = time.perf_counter()
        yield chosen
        seconds = time.perf_counter() - began
        self.seconds[method] += seconds
        for i in chosen:
            samples[i] = replace(samples[i], seconds=samples[i].seconds + seconds / len(chosen))


def _known(sample: Sample) -> float:
    return -math.inf if sample.margin is None else sample.margin


def _bounded(sample: Sample, bound: float, method: str) -> Sample:
    """A NaN is no bound."""
    if math.isnan(bound) or (sample.margin is not None and bound <= sample.margin):
        return sample
    if bound > 0:
        return replace(sample, margin=bound, verdict=Verdict.CERTIFIED, method=method)
    return replace(sample, margin=bound)
