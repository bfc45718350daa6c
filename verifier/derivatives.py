"""What a network's derivatives say: the engines of `verifier lipschitz`, `verifier monotone`, `verifier jacobian`."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from verifier import api
from verifier.api import Model
from verifier.branching.sizes import free_memory
from verifier.errors import OptionsError, VerifierError
from verifier.frontends.onnx import OnnxModel
from verifier.graph import Graph
from verifier.jacobian.decide import NEITHER
from verifier.jacobian.enclosures import Effort, Method
from verifier.jacobian.lipschitz import Lipschitz, Upper
from verifier.jacobian.lipschitz import lipschitz as graph_constant
from verifier.jacobian.monotone import Signs, signs
from verifier.jacobian.network import Exported, export
from verifier.jacobian.objective import Norm
from verifier.jacobian.radius import certified_radius as graph_radius
from verifier.options import LipschitzMethod, Options
from verifier.sets import InputSet
from verifier.strategy import device_of

_NORMS: dict[object, Norm] = {math.inf: "inf", 2: "2", 1: "1", "inf": "inf", "2": "2", "1": "1"}


def lipschitz(
    model: Model,
    inputs: InputSet | Sequence[InputSet] | str | Path | None = None,
    norm: float | str = math.inf,
    output: int | None = None,
    margin: tuple[int, int] | None = None,
    method: LipschitzMethod = "auto",
    timeout: float = 60.0,
    gap: float = 1.001,
    options: Options = Options(),
    report: Callable[[Upper], None] | None = None,
) -> Lipschitz:
    """A certified upper bound L of |f(x) - f(y)| <= L |x - y|, and the norm of a gradient, which L cannot be below.

    `inputs` is a convex set of one instance, [1, *shape] per network input, or a VNN-LIB file with one box, for x and y
    in it; None asks for all x and y. `norm` is inf, 2 or 1, on both sides. f is the network, its output number `output`
    (of the flattened first output), or for `margin` = (i, j) output i less output j. `method` "auto" goes from cheap to
    tight until the upper bound is at most `gap` times the lower one, or `timeout` seconds have passed; another one is
    the tightest to use, "semidefinite" (extra `sdp`, for chains of layers) the only one. Several inputs of a network
    count as one vector. `report` is called with every bound found.

    Of several outputs the 2-norm is bounded from enclosures of their entries, also after a turn that makes their middle
    diagonal, and up to four by gradients in so many directions that hardly any is missed; of more, branch and bound
    searches the Frobenius norm, where that may help. Raises
    VerifierError for bad input and for operators without a derivative; where none is finite the result says why.
    """
    if norm not in _NORMS:
        raise OptionsError(f"norm must be inf, 2 or 1, not {norm!r}.")
    if not gap >= 1 or not timeout > 0:
        raise OptionsError(f"gap is at least 1 and timeout positive, not {gap!r} and {timeout!r}.")
    deadline = time.monotonic() + timeout
    api.check_device(options)
    graph = api.load_network(model).graph
    sets = None if inputs is None else api.sets_of(inputs, graph)
    if sets is not None and any(s.batch != 1 for s in sets):
        raise VerifierError(
            "a Lipschitz constant is asked for on one set at a time; give each instance by itself."
        )
    effort = replace(_effort(options), methods=_methods(method), deadline=deadline, gap=gap - 1)
    return graph_constant(graph, sets, _NORMS[norm], _rows(graph, output, margin), effort, report)


def certified_radius(
    model: Model,
    x: Tensor,
    label: int,
    norm: float | str = math.inf,
    most: float = 1.0,
    method: Literal["interval", "crown", "alpha-crown"] = "crown",
    timeout: float = 60.0,
    options: Options = Options(),
) -> float:
    """A radius around x [*shape] within which `label` stays the class, by Lipschitz constants of all its margins.

    The largest that is found, up to `most`, in `norm` (inf, 2 or 1); 0 where none is. One call bounds the margins'
    gradients on a ball, a dozen find the radius. Raises VerifierError for bad input.
    """
    if norm not in _NORMS:
        raise OptionsError(f"norm must be inf, 2 or 1, not {norm!r}.")
    if not most > 0:
        raise OptionsError(f"most must be positive, not {most!r}.")
    api.check_device(options)
    graph = api.load_network(model).graph
    if len(graph.inputs) != 1:
        raise VerifierError("a radius is asked of a network with one input.")
    shape = graph.nodes[graph.inputs[0]].shape
    if x.numel() != math.prod(shape):
        raise VerifierError(f"x has {x.numel()} elements, the network's input {shape}.")
    if not 0 <= label < graph.nodes[graph.outputs[0]].numel:
        raise OptionsError(f"the network has no output {label}.")
    effort = replace(_effort(options), deadline=time.monotonic() + timeout)
    point = x.detach().reshape(1, *shape).to(effort.dtype).to(effort.device)
    return graph_radius(graph, point, label, _NORMS[norm], most, Method(method), effort)


def export_jacobian(
    model: Model,
    outputs: Sequence[int] | None = None,
    margin: tuple[int, int] | None = None,
    inputs: Sequence[int] | None = None,
) -> Exported:
    """Derivatives of a network as an ONNX file of its own, for properties in VNN-LIB form.

    Rows are `outputs` (positions in the flattened first output), by default all, or the one `margin` (i, j), output i
    less output j; columns are the input elements `inputs`, by default all. `verify(exported.data, spec)` then decides a
    file that speaks of the derivatives as Y. Raises VerifierError for bad input, UnsupportedError for operators without
    a derivative, which may jump, or which have no form in ONNX here.
    """
    network = api.load_network(model)
    network = network.unfused() if isinstance(network, OnnxModel) else network
    graph = network.graph
    size = sum(graph.nodes[i].numel for i in graph.inputs)
    columns = list(range(size)) if inputs is None else list(inputs)
    if not columns or any(not 0 <= k < size for k in columns):
        raise OptionsError(f"inputs are numbers from 0 to {size - 1}.")
    if outputs is not None and margin is not None:
        raise OptionsError("`outputs` and `margin` exclude each other.")
    if outputs is not None and not outputs:
        raise OptionsError("give at least one output.")
    if outputs is None:
        rows = _rows(graph, None, margin)
        labels = (
            [f"Y_{k}" for k in range(len(rows))] if margin is None else [f"(Y_{margin[0]} - Y_{margin[1]})"]
        )
    else:
        rows = torch.cat([_rows(graph, k, None) for k in outputs])
        labels = [f"Y_{k}" for k in outputs]
    return export(graph, network.inputs, rows, labels, columns)


@dataclass(frozen=True)
class Feature:
    """How an output depends on one input element: in how many samples it is proved to increase, to decrease, or both
    (where it is constant), in how many derivatives of both signs were found, and in how many nothing is known."""

    index: int
    increasing: int
    decreasing: int
    constant: int
    neither: int
    open: int

    @property
    def samples(self) -> int:
        return self.increasing + self.decreasing + self.constant + self.neither + self.open

    @property
    def share(self) -> float:
        """Of the samples, those in which it is proved to increase, to decrease, or both."""
        proved = self.increasing + self.decreasing + self.constant
        return proved / self.samples if self.samples else math.nan


@dataclass(frozen=True, eq=False)
class Monotonicity:
    """A row per feature; `signs` int8 [N, F] has each sample's: 1 for increasing, -1 for decreasing, 2 for constant, 3
    for neither, 0 for open."""

    features: tuple[Feature, ...]
    signs: Tensor
    seconds: float

    def rows(self) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
        """(head, lines) of a table."""
        head = ("feature", "increasing", "decreasing", "constant", "neither", "open", "certified share")
        return head, [(*map(str, asdict(f).values()), f"{f.share:.3f}") for f in self.features]

    def to_json(self, indent: int | None = None) -> str:
        """Every feature's counts and share."""
        rows = [asdict(f) | {"share": f.share} for f in self.features]
        return json.dumps({"features": rows, "seconds": self.seconds}, indent=indent)


def monotonicity(
    model: Model,
    data: Tensor,
    low: Tensor | float,
    high: Tensor | float,
    output: int | None = None,
    margin: tuple[int, int] | None = None,
    features: Sequence[int] | None = None,
    radius: float = 0.0,
    method: Literal["interval", "crown", "alpha-crown"] = "alpha-crown",
    options: Options = Options(),
    timeout: float | None = None,
) -> Monotonicity:
    """In how many samples an output is proved to grow, or to fall, all along a feature's range.

    For each of the samples `data` [N, *shape] and each of `features` (positions in the flattened input, by default all)
    the feature runs from `low` to `high` (numbers, or tensors of an input's shape), the others stay within `radius` of
    the sample. The sign of the derivative of `output`, or of the `margin` (i, j) = output i less output j, is bounded
    over that box, and with a `timeout` (seconds for everything) what `method` leaves open is decided by branch and
    bound as far as that goes, or refuted by derivatives of both signs. One output of a network needs neither `output`
    nor `margin`. Raises VerifierError for bad input.
    """
    began = time.monotonic()
    if timeout is not None and not timeout > 0:
        raise OptionsError(f"timeout must be positive, not {timeout!r}.")
    api.check_device(options)
    graph = api.load_network(model).graph
    if len(graph.inputs) != 1:
        raise VerifierError("monotonicity is asked of a network with one input.")
    shape = graph.nodes[graph.inputs[0]].shape
    size = math.prod(shape)
    if data.dim() == 0 or data[0].numel() != size:
        raise VerifierError(f"each sample must have {size} elements, the network's input {shape}.")
    rows = _rows(graph, output, margin)
    if len(rows) != 1:
        raise OptionsError(f"the network has {len(rows)} outputs; name one with `output`, or a `margin`.")
    flat = data.reshape(len(data), size)
    ends = [torch.as_tensor(t, dtype=flat.dtype).expand(shape).reshape(size) for t in (low, high)]
    if bool((ends[0] > ends[1]).any()):
        raise OptionsError("`low` must be at most `high`.")
    chosen = list(range(size)) if features is None else list(features)
    if any(not 0 <= k < size for k in chosen):
        raise OptionsError(f"features are numbers from 0 to {size - 1}.")
    effort = _effort(options)
    if timeout is not None:
        effort = replace(effort, deadline=began + timeout)
    how = Signs(Method(method), effort, search=timeout is not None)
    found = signs(graph, flat, (ends[0], ends[1]), chosen, radius, rows, how)
    counts = [[int((found[:, k] == s).sum()) for s in (1, -1, 2, NEITHER, 0)] for k in range(len(chosen))]
    features_ = tuple(Feature(index, *count) for index, count in zip(chosen, counts, strict=True))
    return Monotonicity(features_, found, time.monotonic() - began)


def _effort(options: Options) -> Effort:
    device = device_of(options)
    memory = int(options.max_memory_gb * 2**30) if options.max_memory_gb else free_memory(device)
    dtype = torch.float64 if options.dtype == "float64" else torch.float32
    return Effort(memory=memory, device=device, dtype=dtype, seed=options.seed)


def _methods(method: LipschitzMethod) -> tuple[Method, ...]:
    every = tuple(Method)
    if method == "auto":
        return every
    if method == "semidefinite":
        return (Method.SEMIDEFINITE,)
    try:
        return every[: every.index(Method(method)) + 1]
    except ValueError:
        names = ", ".join(["auto", *[m.value for m in every]])
        raise OptionsError(f"method must be one of {names}, not {method!r}.") from None


def _rows(graph: Graph, output: int | None, margin: tuple[int, int] | None) -> Tensor:
    count = graph.nodes[graph.outputs[0]].numel
    eye = torch.eye(count, dtype=torch.float64)
    if output is not None and margin is not None:
        raise OptionsError("`output` and `margin` exclude each other.")
    asked = [i for i in (output, *(margin or ())) if i is not None]
    if any(not 0 <= i < count for i in asked):
        raise OptionsError(f"the network has outputs 0 to {count - 1}.")
    if margin is not None:
        return (eye[margin[0]] - eye[margin[1]]).unsqueeze(0)
    return eye if output is None else eye[output : output + 1]
