"""ONNX to Graph.

`load` reads a model (gzipped or not), converts every node through the registered converters, folds what is
constant, and checks nothing numerically; `verifier.frontends.replay.check` compares the result with onnxruntime.
"""

from __future__ import annotations

import difflib
import gzip
import math
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from verifier.environment import find_file
from verifier.errors import ModelError, UnsupportedError
from verifier.frontends.derivative_nodes import inlined
from verifier.frontends.onnx_nodes import Scope
from verifier.graph import Graph, Node, Value
from verifier.graph.op import Shape
from verifier.graph.registry import Unsupported
from verifier.ops.repeat import Repeat
from verifier.transforms.fold import fold
from verifier.transforms.opposite import share_opposite_neurons
from verifier.transforms.signs import join_signs

if TYPE_CHECKING:
    import onnx

_MOST_ELEMENTS = 1 << 28
"""A larger input is taken for a damaged file."""
_NUMBERS = ("weight", "bias", "matrix", "scale", "shift", "slope")


@dataclass(frozen=True, eq=False)
class OnnxModel:
    """A converted model.

    `graph` computes in exact real arithmetic with the stored weights (float64 constants). Names, shapes and dtypes
    of inputs and outputs are the file's, dynamic dimensions fixed. `data` is the model as it was read
    (decompressed), for onnxruntime; `opset` that of the standard domain. `kept` says where in `graph` the values are
    that `load` was asked to keep.
    """

    graph: Graph
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    input_shapes: tuple[Shape, ...]
    output_shapes: tuple[Shape, ...]
    input_dtypes: tuple[np.dtype, ...]
    output_dtypes: tuple[np.dtype, ...]
    data: bytes = field(repr=False)
    opset: int
    source: str
    kept: Mapping[str, int] = field(default_factory=dict)

    def unfused(self) -> OnnxModel:
        """The model converted without the changes that depend on its weights, for comparing it with one of the same
        structure; checked like any other."""
        from verifier.frontends.replay import check

        model = load(self.data, tuple(self.kept), fused=False)
        check(model)
        return model


def load(model: str | Path | bytes, keep: Sequence[str] = (), fused: bool = True) -> OnnxModel:
    """Read and convert a model, given as a path (gzipped or not; ``.gz`` is added or removed when only that file
    exists) or as the file's bytes.

    Fusions make most inner values disappear; those named in `keep` (a node's name, or a value's) stay. They depend on
    the weights, and are left out where the network is to be compared with one of the same structure (not `fused`).
    Raises UnsupportedError with all nodes that are not supported, and ModelError for everything else that is wrong
    with the file or the network.
    """
    source = "given as bytes" if isinstance(model, bytes) else str(model)
    data = _read(model, source)
    importer = _Importer(_parse(data, source), source)
    importer.convert()
    graph = importer.graph(keep)
    folded = fold(share_opposite_neurons(join_signs(fold(graph)))) if fused else graph
    count = len(importer.proto.graph.output)
    inputs, outputs = importer.inputs, importer.proto.graph.output
    return OnnxModel(
        graph=replace(folded, outputs=folded.outputs[:count]),
        inputs=tuple(i.name for i in inputs),
        outputs=tuple(o.name for o in outputs),
        input_shapes=tuple(graph.nodes[i].shape for i in graph.inputs),
        output_shapes=tuple(graph.nodes[i].shape for i in graph.outputs[:count]),
        input_dtypes=tuple(_dtype(i, source) for i in inputs),
        output_dtypes=tuple(_dtype(o, source) for o in outputs),
        data=data,
        opset=importer.opset,
        source=source,
        kept=dict(zip(keep, folded.outputs[count:], strict=True)),
    )


def intermediate(model: OnnxModel) -> tuple[tuple[str, ...], Graph]:
    """The model's values that depend on the input, by their names in the file, and a graph (without fusions) that
    has all of them as outputs in the same order."""
    importer = _Importer(_parse(model.data, model.source), model.source)
    importer.convert()
    names = [o for node in importer.proto.graph.node for o in node.output if o in importer.values]
    names = [name for name in names if importer.builder.is_variable(importer.values[name])]
    return tuple(names), importer.builder.graph(*[importer.values[name] for name in names])


def _read(model: str | Path | bytes, source: str) -> bytes:
    if isinstance(model, bytes):
        data = model
    else:
        try:
            data = find_file(model).read_bytes()
        except FileNotFoundError:
            raise ModelError(f"There is no model file at {source}; check the path.") from None
        except OSError as error:
            raise ModelError(f"The model {source} cannot be read: {error.strerror or error}.") from None
    if data[:2] == b"\x1f\x8b":
        try:
            data = gzip.decompress(data)
        except (OSError, EOFError, zlib.error) as error:
            raise ModelError(
                f"The gzip file {source} is damaged ({error}); fetch or compress it again."
            ) from None
    if not data:
        raise ModelError(f"The model {source} is empty (0 bytes); fetch or export it again.")
    return data


def _parse(data: bytes, source: str) -> onnx.ModelProto:
    import onnx
    from google.protobuf.message import DecodeError

    proto = onnx.ModelProto()
    try:
        proto.ParseFromString(data)
    except DecodeError:
        raise ModelError(
            f"{source} is not an ONNX model, or it is damaged; fetch or export it again."
        ) from None
    if not proto.HasField("graph") or not proto.graph.node or not proto.opset_import:
        raise ModelError(f"{source} is not an ONNX model: it holds no graph; fetch or export it again.")
    return inlined(proto) if proto.functions else proto


def _dtype(info: onnx.ValueInfoProto, source: str) -> np.dtype:
    from onnx import helper

    code = info.type.tensor_type.elem_type
    try:
        return np.dtype(helper.tensor_dtype_to_np_dtype(code))
    except KeyError:
        raise ModelError(f"{info.name!r} of the model {source} has no known type (code {code}).") from None


class _Importer:
    """The conversion of a model."""

    def __init__(self, proto: onnx.ModelProto, source: str) -> None:
        self.proto = proto
        self.source = source
        self.scope = Scope(proto.graph, {o.domain: o.version for o in proto.opset_import}, source)
        self.builder, self.values, self.opset = self.scope.builder, self.scope.values, self.scope.opset
        stored = {i.name for i in proto.graph.initializer}
        self.inputs = [i for i in proto.graph.input if i.name not in stored]

    def convert(self) -> None:
        """Convert all nodes into `values`; raises UnsupportedError with all that are refused."""
        if not self.inputs:
            raise ModelError(f"The model {self.source} has no inputs, so there is nothing to verify.")
        if not self.proto.graph.output:
            raise ModelError(f"The model {self.source} has no outputs, so there is nothing to verify.")
        for info in self.inputs:
            self.values[info.name] = self.builder.at(info.name).input(info.name, self._input_shape(info))
        self.scope.convert()
        if self.scope.refused:
            raise UnsupportedError(self.scope.refused)
        self._require_finite()

    def _require_finite(self) -> None:
        """Infinite constants are fine in shape computations and as the ends of a Clip, but not as weights."""
        for node in _nodes(self.graph()):
            numbers = [t for n in _NUMBERS if isinstance(t := getattr(node.op, n, None), torch.Tensor)]
            if not all(t.is_floating_point() for t in numbers):
                raise ModelError(
                    f"Node {node.source!r} of the model {self.source} computes with integers; only float networks "
                    "can be verified."
                )
            if not all(_is_finite(t) for t in node.op.tensors() if t.is_floating_point()):
                raise ModelError(
                    f"Node {node.source!r} of the model {self.source} has infinite weights; nothing can be proved "
                    "about such a network."
                )

    def graph(self, keep: Sequence[str] = ()) -> Graph:
        """The graph of what was converted; the values named in `keep` are outputs after the model's own."""
        try:
            outputs = self.scope.outputs()
        except Unsupported as reason:
            raise UnsupportedError([("", "an output of the model", self.opset, str(reason))]) from reason
        return self.builder.graph(*outputs, *[self._named(name) for name in keep])

    def _named(self, name: str) -> Value:
        nodes = made_by(self.proto)
        value = self.values.get(nodes.get(name, name))
        if value is not None and self.builder.is_variable(value):
            return value
        near = difflib.get_close_matches(name, [*nodes, *self.values], n=3)
        hint = f" Names like it: {', '.join(near)}." if near else ""
        what = "is constant" if value is not None else "does not exist"
        raise ModelError(f"The node {name!r} of the model {self.source} {what}.{hint}")

    def _input_shape(self, info: onnx.ValueInfoProto) -> Shape:
        """The declared shape with an unknown first dimension (the batch) taken as 1."""
        kind = info.type.tensor_type
        where = f"input {info.name!r} of the model {self.source}"
        if not info.type.HasField("tensor_type") or not kind.HasField("shape"):
            raise ModelError(f"The {where} has no declared shape; export the model with static shapes.")
        if kind.elem_type not in (1, 11):
            from onnx import TensorProto

            known = kind.elem_type in TensorProto.DataType.values()
            name = TensorProto.DataType.Name(kind.elem_type) if known else f"number {kind.elem_type}"
            raise ModelError(f"The {where} has type {name}; only FLOAT and DOUBLE inputs can be verified.")
        sizes = [d.dim_value if d.HasField("dim_value") and d.dim_value > 0 else None for d in kind.shape.dim]
        unknown = [i for i, n in enumerate(sizes) if n is None and i > 0]
        if unknown:
            names = ", ".join(f"{i} ({kind.shape.dim[i].dim_param or 'no name'})" for i in unknown)
            raise ModelError(
                f"The {where} has unknown dimensions besides the batch: {names}. Export the model with fixed sizes."
            )
        shape = tuple(1 if n is None else n for n in sizes)
        if math.prod(shape) > _MOST_ELEMENTS:
            raise ModelError(f"The {where} has shape {shape}: more elements than can be verified.")
        return shape


def _nodes(graph: Graph) -> Iterator[Node]:
    """All nodes, those in the bodies of loops as well."""
    for node in graph.nodes:
        yield node
        if isinstance(node.op, Repeat):
            yield from _nodes(node.op.body)


def made_by(proto: onnx.ModelProto) -> dict[str, str]:
    """The name of each named node's first result: what the node's name stands for where a value is asked for."""
    return {n.name: n.output[0] for n in proto.graph.node if n.name and n.output}


def _is_finite(tensor: torch.Tensor) -> bool:
    return bool(tensor.sum().isfinite()) or bool(
        tensor.isfinite().all()
    )  # the sum alone is several times faster
