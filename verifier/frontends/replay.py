"""Running a model in onnxruntime, and comparing its conversion with onnxruntime."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import torch

from verifier.errors import ModelError
from verifier.frontends.agreement import SLACK, disagreements, last_terms
from verifier.frontends.onnx import OnnxModel, intermediate, made_by
from verifier.graph import Graph

if TYPE_CHECKING:
    import onnx
    import onnxruntime

SCALES = (1.0, 0.1, 0.01)
"""Sizes of the random points that are compared, one after the other while values overflow."""


@functools.lru_cache(maxsize=8)
def session(model: OnnxModel) -> onnxruntime.InferenceSession:
    """onnxruntime on the model as it was read, on the CPU with one thread. Raises ModelError where it refuses."""
    return _session(model.data, model.source)


def _session(data: bytes, source: str) -> onnxruntime.InferenceSession:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    try:
        return onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's exceptions share no base class
        raise ModelError(
            f"onnxruntime cannot load the model {source}: {error}. Counterexamples could not be replayed; export the "
            "model again, perhaps with another opset."
        ) from error


@functools.lru_cache(maxsize=8)
def _exposed(model: OnnxModel, names: tuple[str, ...]) -> tuple[onnxruntime.InferenceSession, dict[str, str]]:
    """onnxruntime on the model with inner values (or first results of nodes) as further outputs, and what these
    values are called."""
    import onnx

    proto = onnx.ModelProto()
    proto.ParseFromString(model.data)
    nodes = made_by(proto)
    values = {name: nodes.get(name, name) for name in names}
    known = {o.name for o in proto.graph.output} | {i.name for i in proto.graph.input}
    new = dict.fromkeys(v for v in values.values() if v not in known)
    proto.graph.output.extend(onnx.helper.make_empty_tensor_value_info(v) for v in new)
    return _session(proto.SerializeToString(), model.source), values


def run_inner(model: OnnxModel, inputs: Sequence[np.ndarray], names: Sequence[str]) -> list[np.ndarray]:
    """The inner values `names` (named after nodes or values of the file) in onnxruntime, as `run` gives the outputs.

    Raises ModelError where onnxruntime fails, as it does for a name that the model does not know.
    """
    runtime, values = _exposed(model, tuple(names))
    given = dict(zip(model.inputs, inputs, strict=True))
    asked = list(dict.fromkeys(v for v in values.values() if v not in given))
    found = dict(zip(asked, _run(runtime, model, inputs, asked) if asked else [], strict=True))
    return [given[v] if v in given else found[v] for v in (values[name] for name in names)]


def run(model: OnnxModel, inputs: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Outputs in onnxruntime, [N, *shape] each, for inputs [N, *shape] (cast to the model's dtypes).

    Points are run one by one, as a judge of a counterexample would: a batched product may round differently, and
    some models fix their batch to 1. Raises ModelError where onnxruntime fails.
    """
    return _run(session(model), model, inputs, list(model.outputs))


def _run(
    runtime: onnxruntime.InferenceSession, model: OnnxModel, inputs: Sequence[np.ndarray], names: list[str]
) -> list[np.ndarray]:
    arrays = [np.ascontiguousarray(x, dtype=d) for x, d in zip(inputs, model.input_dtypes, strict=True)]
    points = []
    for i in range(len(arrays[0])):
        values = zip(model.inputs, arrays, model.input_shapes, strict=True)
        feed = {n: np.asarray(x[i]).reshape(s) for n, x, s in values}
        try:
            points.append(runtime.run(names, feed))
        except Exception as error:  # as above
            raise ModelError(f"onnxruntime fails to run the model {model.source}: {error}") from error
    return [np.stack(values) for values in zip(*points, strict=True)]


def check(model: OnnxModel, samples: int = 4, seed: int = 0) -> None:
    """Compare the graph, kept inner values included, with onnxruntime on random points.

    The tolerance is that of `disagreements`; where onnxruntime overflows inside, points nearer to 0 are taken. Raises
    ModelError that names the first differing node.
    """
    for scale in SCALES:
        points = [(scale * p).astype(p.dtype) for p in random_points(model, samples, seed)]
        name = _differing(model, points)
        if name is None:
            return
        if scale == SCALES[-1] or not _overflows(model, points):
            raise ModelError(_explain(model, points, name))


def _differing(model: OnnxModel, points: list[np.ndarray]) -> str | None:
    """An output or a kept value that differs."""
    names, theirs = [*model.outputs, *model.kept], run(model, points)
    if model.kept:
        theirs += run_inner(model, points, list(model.kept))
    graph = replace(model.graph, outputs=(*model.graph.outputs, *model.kept.values()))
    for name, worst in _differences(model, graph, points, names, theirs):
        if worst > 1 and not _cancels(model, points, name, theirs[names.index(name)]):
            return name
    return None


def _overflows(model: OnnxModel, points: list[np.ndarray]) -> bool:
    """Whether values inside of onnxruntime are not finite: a logarithm of what was too small for a float, say."""
    try:
        return not all(np.isfinite(t).all() for t in _all_values(model, points)[2])
    except (ModelError, ValueError, RuntimeError):
        return False


def _cancels(model: OnnxModel, points: list[np.ndarray], output: str, theirs: np.ndarray) -> bool:
    """Whether all that differs is the rounding of an output's last sum, whose terms cancel: without fusions, whose
    weights no longer show these terms, and between the graph with and that without them."""
    names, graph = intermediate(model)
    if output not in names or output not in model.outputs:
        return False
    if theirs.shape[1:] != model.output_shapes[list(model.outputs).index(output)]:
        return False
    plain = replace(graph, outputs=(graph.outputs[names.index(output)],))
    fused = replace(model.graph, outputs=(model.graph.outputs[list(model.outputs).index(output)],))
    exact = [torch.from_numpy(p).double() for p in points]
    eps = float(max(np.finfo(d).eps for d in model.input_dtypes))
    allowed = SLACK * eps * last_terms(plain, exact)
    value, ours = (g.to(torch.float64).evaluate(exact)[0].flatten(1) for g in (plain, fused))
    other = torch.from_numpy(theirs.astype(np.float64)).flatten(1)
    apart = torch.stack([(other - value).abs().amax(1), (ours - value).abs().amax(1)])
    return bool((apart <= allowed).all())


def random_points(model: OnnxModel, samples: int, seed: int) -> list[np.ndarray]:
    """Half of the points normally distributed, half uniform in [0, 1], in the model's own dtype."""
    random = np.random.default_rng(seed)
    points = []
    for shape, dtype in zip(model.input_shapes, model.input_dtypes, strict=True):
        normal = random.standard_normal((samples - samples // 2, *shape))
        uniform = random.random((samples // 2, *shape))
        points.append(np.concatenate([normal, uniform]).astype(dtype))
    return points


def _differences(
    model: OnnxModel, graph: Graph, points: list[np.ndarray], names: Sequence[str], theirs: list[np.ndarray]
) -> list[tuple[str, float]]:
    """For each output of `graph` its largest distance to `theirs` in units of the tolerance, over all points."""
    eps = float(max(np.finfo(d).eps for d in model.input_dtypes))
    exact = [torch.from_numpy(p).double() for p in points]
    values = [torch.from_numpy(t.astype(np.float64)) for t in theirs]
    return list(zip(names, disagreements(graph, exact, values, eps), strict=True))


def _all_values(
    model: OnnxModel, points: list[np.ndarray]
) -> tuple[tuple[tuple[str, ...], Graph], dict[str, onnx.NodeProto], list[np.ndarray]]:
    """Names and graph of the values that depend on the input, the nodes that make them, and those in onnxruntime."""
    import onnx

    names, graph = intermediate(model)
    proto = onnx.ModelProto()
    proto.ParseFromString(model.data)
    makers = {o: n for n in proto.graph.node for o in n.output}
    makers = {n: makers[n] for n in names if n in makers}
    del proto.graph.output[:]
    proto.graph.output.extend(onnx.helper.make_empty_tensor_value_info(n) for n in makers)
    theirs = _run(_session(proto.SerializeToString(), model.source), model, points, list(makers))
    return (names, graph), makers, theirs


def _explain(model: OnnxModel, points: list[np.ndarray], output: str) -> str:
    """Which node differs first: found by exposing every value of the model."""
    advice = "The import is wrong, which is a bug of verifier: please report it with the model."
    head = f"The imported network {model.source} disagrees with onnxruntime on random inputs"
    try:
        (names, graph), makers, theirs = _all_values(model, points)
        ours = dict(_differences(model, graph, points, names, _aligned(names, list(makers), theirs)))
    except (ModelError, ValueError, RuntimeError):
        return f"{head}, at the output {output!r}. {advice}"
    for name, node in makers.items():
        if ours.get(name, 0.0) > 1:
            return f"{head}, first at node {node.name or '(no name)'!r} ({node.op_type}), value {name!r}. {advice}"
    return f"{head}, at the output {output!r}, although each node agrees: a fusion after the import is wrong. {advice}"


def _aligned(names: Sequence[str], kept: list[str], theirs: list[np.ndarray]) -> list[np.ndarray]:
    known = dict(zip(kept, theirs, strict=True))
    if len(known) != len(names):
        raise ValueError("Inlined functions hide some values.")
    return [known[n] for n in names]
