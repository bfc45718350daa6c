"""The Python interface: verify, compute_bounds, inspect."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from verifier.bounds.compute import NodeBounds
from verifier.bounds.compute import compute_bounds as graph_bounds
from verifier.environment import peak_memory_mb, versions
from verifier.errors import ModelError, OptionsError, UnsupportedError, VerifierError
from verifier.frontends import onnx as onnx_frontend
from verifier.frontends.onnx import OnnxModel
from verifier.graph import Elementwise, Graph, Interval
from verifier.graph.precision import full_precision
from verifier.options import BoundMethod, Options
from verifier.progress import ProgressCallback, display
from verifier.results import Inspection, NodeRow, Result
from verifier.sets import Box, InputSet
from verifier.solvers.solver import solver
from verifier.specs.compile import compile_query
from verifier.specs.load import load_query
from verifier.specs.normalise import normalise
from verifier.specs.property import Property
from verifier.specs.query import Query, hidden_names
from verifier.strategy import solve
from verifier.transforms.composites import write_out
from verifier.transforms.prepare import prepare

if TYPE_CHECKING:
    from verifier.frontends.torch import TorchModel

Model = Any
"""A path to an ONNX file or its bytes, an OnnxModel, or a module traced by `trace`."""


@dataclass(frozen=True, eq=False)
class _ModuleNetwork:
    """A traced module as queries see it: the graph of its stored weights in float64, and the module itself."""

    graph: Graph
    traced: TorchModel

    @property
    def inputs(self) -> tuple[str, ...]:
        return self.traced.inputs

    @property
    def outputs(self) -> tuple[str, ...]:
        return self.traced.outputs

    @property
    def input_shapes(self) -> tuple[tuple[int, ...], ...]:
        return self.traced.input_shapes

    @property
    def output_shapes(self) -> tuple[tuple[int, ...], ...]:
        return self.traced.output_shapes

    @property
    def kept(self) -> Mapping[str, int]:
        return {}

    @property
    def input_dtypes(self) -> tuple[np.dtype, ...]:
        kind = np.dtype(str(self.traced.dtype).removeprefix("torch."))
        return (kind,) * len(self.traced.inputs)

    def run(self, inputs: Sequence[np.ndarray]) -> list[np.ndarray]:
        found = self.traced.run([torch.from_numpy(np.ascontiguousarray(x)) for x in inputs])
        return [y.cpu().numpy() for y in found]


Network = OnnxModel | _ModuleNetwork


def verify(
    model: Model | Mapping[str, Model],
    spec: str | Path | Query | Property,
    timeout: float | None = None,
    options: Options = Options(),
    progress: ProgressCallback | None = None,
) -> Result:
    """Prove or refute a property.

    `model` is an ONNX file (path or bytes, gzipped or not) or a module traced by `trace`; for a query over several
    networks a mapping from their declared names. `spec` is a VNN-LIB file, a Query or a Property. Of a path, ``.gz``
    is added or removed when only that file exists. `timeout`, in
    seconds, overrides `options.timeout`. `progress` is called with a Progress now and then.

    Raises VerifierError (ModelError, UnsupportedError, SpecError, OptionsError) for bad input. A limit that is
    reached is a Result with status TIMEOUT or UNKNOWN, never an exception.
    """
    began = time.monotonic()
    limit = options.seconds if timeout is None else timeout
    deadline = began + limit
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    if options.progress and progress is None:
        with display() as shown:
            return verify(model, spec, timeout, replace(options, progress=False), shown)
    check_device(options)
    if options.lp != "highs":
        solver(options.lp)  # so that it is missed now, not in a while
    query, networks = prepare_query(model, spec)
    compiled = compile_query(query, networks)
    loaded = time.monotonic() - began
    with full_precision():
        result = solve(query, networks, compiled, options, deadline, progress)
    seconds = {"load": loaded, **result.stats.seconds}
    stats = replace(result.stats, seconds=seconds, peak_memory_mb=peak_memory_mb())
    return replace(result, stats=stats, versions=versions())


def compute_bounds(
    model: Model,
    inputs: InputSet | Sequence[InputSet] | str | Path,
    method: BoundMethod = "alpha-crown",
    nodes: Sequence[str] = (),
) -> NodeBounds:
    """Sound bounds of the outputs, and of named nodes, for all inputs of a set.

    `inputs` is one input set of [B, *shape] per network input (a single set for a single input; `shape` may leave
    out the model's batch of 1), or a VNN-LIB file whose boxes are taken. All B instances are bounded in one call.
    The result has `.lower`, `.upper` and `["node name"]`, each [B, *shape]. Raises VerifierError for bad input.
    """
    network = load_network(model)
    sets = sets_of(inputs, network.graph)
    centers = [s.box().center.to(network.graph.dtype) for s in sets]
    graph = prepare(network.graph, centers, nodes)
    dtype = sets[0].box().lower.dtype
    graph = graph.to(dtype, sets[0].box().lower.device)
    try:
        with full_precision():
            return graph_bounds(graph, sets, method, nodes)
    except KeyError as error:
        names = ", ".join(n.name for n in graph.nodes[:20])
        raise VerifierError(f"{error.args[0]} `verifier inspect` lists them: {names} ...") from error


def inspect(model: Model, spec: str | Path | None = None) -> Inspection:
    """What a network consists of; with `spec`, how many neurons are unstable on its (first) input box.

    Unsupported nodes are listed in the result instead of raised. Raises ModelError where the file cannot be read.
    """
    try:
        network = load_network(model)
    except UnsupportedError as error:
        return Inspection(nodes=(), unsupported=error.nodes)
    graph = write_out(network.graph)
    unstable: dict[int, int] = {}
    if spec is not None:
        unstable = _unstable(graph, sets_of(spec, graph)[:1])
    rows = [
        NodeRow(node.name, type(node.op).__name__, node.shape, unstable.get(i), node.source)
        for i, node in enumerate(graph.nodes)
    ]
    return Inspection(
        nodes=tuple(rows),
        inputs=dict(zip(network.inputs, network.input_shapes, strict=True)),
        outputs=dict(zip(network.outputs, network.output_shapes, strict=True)),
        opset=network.opset if isinstance(network, OnnxModel) else None,
        parameters=sum(t.numel() for n in graph.nodes for t in n.op.tensors() if t.is_floating_point()),
    )


def check_device(options: Options) -> None:
    """Raises OptionsError where the options ask for a device that is not there."""
    if options.device == "cuda" and not torch.cuda.is_available():
        raise OptionsError(
            "device='cuda' asks for a GPU, and torch finds none that it can use; `verifier doctor` shows what it "
            "was built for. Use device='auto' or 'cpu'."
        )


def prepare_query(
    model: Model | Mapping[str, Model], spec: str | Path | Query | Property
) -> tuple[Query, dict[str, Network]]:
    """The query, parsed, and its networks by their declared names, loaded and checked. Raises VerifierError."""
    query = load_query(spec) if isinstance(spec, str | Path) else spec
    if isinstance(model, Mapping):
        if isinstance(query, Property):
            raise VerifierError("a Property speaks of one network; pass that network itself, not a mapping.")
        declared = [network.name for network in query.networks]
        unknown = [name for name in model if name not in declared]
        if unknown:
            raise ModelError(f"the query declares no network {unknown[0]!r}, only {', '.join(declared)}.")
        keep = {name: hidden_names(query, name) for name in model}
        networks = {name: load_network(m, keep[name]) for name, m in model.items()}
    else:
        keep = hidden_names(query, query.networks[0].name) if isinstance(query, Query) else ()
        network = load_network(model, keep)
        if isinstance(query, Property):
            query = query.to_query(network.output_shapes[0])
        networks = {query.networks[0].name: network}
    return query, networks


def load_network(model: Model, keep: Sequence[str] = ()) -> Network:
    """The converted network with the inner values `keep`, checked against what it was made from."""
    if isinstance(model, _ModuleNetwork):
        return model
    if isinstance(model, str | Path | bytes):
        model = onnx_frontend.load(model, keep)
        from verifier.frontends.replay import check

        check(model)
    if isinstance(model, OnnxModel):
        return model if set(keep) <= set(model.kept) else onnx_frontend.load(model.data, keep)
    if isinstance(model, torch.nn.Module):
        raise ModelError(
            "a torch.nn.Module has no input shape; trace it first: verifier.trace(module, example) with an example "
            "input, and pass the result."
        )
    if hasattr(model, "program"):
        with torch.no_grad():  # bounds here are of the weights as they are, and have no gradients in them
            return _ModuleNetwork(model.graph(torch.float64), model)
    raise ModelError(f"a model is an ONNX file, its bytes, or a traced module, not {type(model).__name__}.")


def trace(module: torch.nn.Module, example: Any) -> TorchModel:
    """A module made ready for `verify` and `compute_bounds`; `example` is an input [1, *shape] (or a tuple)."""
    from verifier.frontends.torch import trace as trace_module

    return trace_module(module, example)


def sets_of(inputs: InputSet | Sequence[InputSet] | str | Path, graph: Graph) -> list[InputSet]:
    """One input set per graph input, of its shape, from what a caller may give."""
    shapes = [graph.nodes[i].shape for i in graph.inputs]
    if isinstance(inputs, str | Path):
        problem = normalise(load_query(inputs))
        sizes = [math.prod(s) for s in shapes]
        if sum(sizes) != problem.inputs:
            raise VerifierError(
                f"the query has {problem.inputs} input elements and the network {sum(sizes)}."
            )
        ends = [torch.from_numpy(t).split(sizes, dim=1) for t in (problem.lower, problem.upper)]
        return [Box(a.view(-1, *s), b.view(-1, *s)) for a, b, s in zip(*ends, shapes, strict=True)]
    sets = [inputs] if isinstance(inputs, InputSet) else list(inputs)
    if len(sets) != len(shapes):
        raise VerifierError(f"the network has {len(shapes)} inputs, but {len(sets)} input sets were given.")
    for s in sets:
        _check_ends(s.box())
    return [_fitted(s, shape) for s, shape in zip(sets, shapes, strict=True)]


def _check_ends(box: Interval) -> None:
    lower, upper = box
    if not (lower.is_floating_point() and upper.is_floating_point()):
        raise VerifierError(f"the ends of an input set are {lower.dtype} numbers: convert them to floats.")
    if not bool((lower.isfinite() & upper.isfinite() & (lower <= upper)).all()):
        raise VerifierError("an input set needs finite ends, the lower ones not above the upper ones.")


def _fitted(inputs: InputSet, shape: tuple[int, ...]) -> InputSet:
    """A set whose shape leaves out the model's batch of 1 gets it."""
    if inputs.shape == shape:
        return inputs
    if isinstance(inputs, Box) and math.prod(inputs.shape) == math.prod(shape):
        return Box(inputs.lower.reshape(-1, *shape), inputs.upper.reshape(-1, *shape))
    raise VerifierError(f"the input set has shape {inputs.shape} per instance, the network's input {shape}.")


def _unstable(graph: Graph, sets: Sequence[InputSet]) -> dict[int, int]:
    """Per elementwise node the neurons whose relaxation is not exact on the set, by CROWN bounds."""
    from verifier.bounds.crown import inner_bounds

    graph = graph.to(sets[0].box().lower.dtype)
    bounds = inner_bounds(graph, sets, graph.outputs)
    found = {}
    for i, node in enumerate(graph.nodes):
        if isinstance(node.op, Elementwise) and i in bounds:
            masks = [node.op.refinable(k, *[bounds[j] for j in node.inputs]) for k in range(len(node.inputs))]
            found[i] = int(torch.stack([m.any(0) for m in masks]).any(0).sum())
    return found
