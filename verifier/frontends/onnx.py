"""ONNX to Graph.

`load` reads a model (gzipped or not), converts every node through the registered converters, folds what is
constant, and checks nothing numerically; `verifier.frontends.replay.check` compares the result with onnxruntime.
"""

from __future__ import annotations

import difflib
import gzip
import math
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

import verifier.ops  # noqa: F401  (registers the operators)
from verifier.environment import find_file
from verifier.errors import ModelError, UnsupportedError, UnsupportedNode
from verifier.frontends.onnx_discrete import Discrete
from verifier.graph import Builder, Graph, Value
from verifier.graph.op import Shape
from verifier.graph.registry import OnnxNode, Unsupported, onnx_converter
from verifier.transforms.fold import fold
from verifier.transforms.opposite import share_opposite_neurons
from verifier.transforms.signs import join_signs

if TYPE_CHECKING:
    import onnx

_STANDARD = ("", "ai.onnx")
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


def load(model: str | Path | bytes, keep: Sequence[str] = ()) -> OnnxModel:
    """Read and convert a model, given as a path (gzipped or not; ``.gz`` is added or removed when only that file
    exists) or as the file's bytes.

    Fusions make most inner values disappear; those named in `keep` (a node's name, or a value's) stay.
    Raises UnsupportedError with all nodes that are not supported, and ModelError for everything else that is wrong
    with the file or the network.
    """
    source = "given as bytes" if isinstance(model, bytes) else str(model)
    data = _read(model, source)
    importer = _Importer(_parse(data, source), source)
    importer.convert()
    graph = importer.graph(keep)
    folded = fold(share_opposite_neurons(join_signs(fold(graph))))
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
    if proto.functions:
        from onnx import inliner

        proto = inliner.inline_local_functions(proto)
    return proto


def _dtype(info: onnx.ValueInfoProto, source: str) -> np.dtype:
    from onnx import helper

    code = info.type.tensor_type.elem_type
    try:
        return np.dtype(helper.tensor_dtype_to_np_dtype(code))
    except KeyError:
        raise ModelError(f"{info.name!r} of the model {source} has no known type (code {code}).") from None


class _Importer:
    """One conversion. `values` maps the model's value names to nodes; those in `unknown` descend from a refused one."""

    def __init__(self, proto: onnx.ModelProto, source: str) -> None:
        self.proto = proto
        self.source = source
        self.builder = Builder()
        self.values: dict[str, Value] = {}
        self.unknown: set[str] = set()
        self.refused: list[UnsupportedNode] = []
        self.opsets = {o.domain: o.version for o in proto.opset_import}
        self.opset = max((self.opsets[d] for d in _STANDARD if d in self.opsets), default=1)
        stored = {i.name for i in proto.graph.initializer}
        self.inputs = [i for i in proto.graph.input if i.name not in stored]
        self.used = {name for node in proto.graph.node for name in node.input} | {
            o.name for o in proto.graph.output
        }
        self.discrete = Discrete(proto.graph, self.builder, self.values, self._evaluator)

    def convert(self) -> None:
        """Convert all nodes into `values`; raises UnsupportedError with all that are refused."""
        graph = self.proto.graph
        if not self.inputs:
            raise ModelError(f"The model {self.source} has no inputs, so there is nothing to verify.")
        if not graph.output:
            raise ModelError(f"The model {self.source} has no outputs, so there is nothing to verify.")
        for info in self.inputs:
            self.values[info.name] = self.builder.at(info.name).input(info.name, self._input_shape(info))
        for tensor in graph.initializer:
            if tensor.name in self.used:
                self.values[tensor.name] = self._constant(
                    _array(tensor, tensor.name, self.source), tensor.name
                )
        if graph.sparse_initializer:
            raise ModelError(
                f"The model {self.source} stores sparse weights, which are not read; store them densely."
            )
        for position, node in enumerate(graph.node):
            self._node(node, node.name or f"{node.op_type}_{position}")
        if self.refused:
            raise UnsupportedError(self.refused)
        self._require_finite()

    def _require_finite(self) -> None:
        """Infinite constants are fine in shape computations and as the ends of a Clip, but not as weights."""
        for node in self.graph().nodes:
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
        outputs = []
        for info in self.proto.graph.output:
            if info.name in self.discrete.pending:
                self.values[info.name] = self.discrete.materialise(info.name)
            if info.name not in self.values:
                raise ModelError(f"No node of the model {self.source} computes its output {info.name!r}.")
            outputs.append(self.values[info.name])
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

    def _constant(self, array: np.ndarray, name: str) -> Value:
        return self.builder.at(name).constant(torch.from_numpy(array), name)

    def _node(self, node: onnx.NodeProto, name: str) -> None:
        """Convert one node, or record why it cannot be."""
        if any(i in self.unknown for i in node.input):
            self.unknown.update(node.output)
            return
        for i in node.input:
            if i and i not in self.values and i not in self.discrete.pending:
                raise ModelError(
                    f"Node {name!r} ({node.op_type}) of the model {self.source} reads {i!r}, which nothing before it "
                    "computes. The model is damaged; export it again."
                )
        opset = self.opset if node.domain in _STANDARD else self.opsets.get(node.domain, 0)
        operator = node.op_type if node.domain in _STANDARD else f"{node.domain}.{node.op_type}"
        try:
            results = self._placed(node, name)
        except Unsupported as reason:
            if self.discrete.covers(node):
                self.discrete.pending.update(o for o in node.output if o)
                return
            self.refused.append(UnsupportedNode(name, operator, opset, str(reason)))
            self._placeholders(node)
            return
        except KeyError as error:
            raise ModelError(
                f"Node {name!r} ({node.op_type}) of the model {self.source} lacks the attribute {error}; export it "
                "again."
            ) from error
        except (ValueError, IndexError) as error:
            raise ModelError(
                f"Node {name!r} ({node.op_type}) of the model {self.source} does not fit its inputs: {error} "
                "The model is inconsistent; export it again."
            ) from error
        for output, value in zip(node.output, results, strict=False):
            if output:
                self.values[output] = value

    def _placed(self, node: onnx.NodeProto, name: str) -> Sequence[Value]:
        """The node's results; functions of integers that it reads become nodes where it reads other things, too."""
        waiting = [i for i in node.input if i in self.discrete.pending and i not in self.values]
        if waiting and self.discrete.covers(node):
            raise Unsupported("it depends on integers")
        for i in waiting:
            self.values[i] = self.discrete.materialise(i)
        return self._convert(node, name)

    def _convert(self, node: onnx.NodeProto, name: str) -> Sequence[Value]:
        if node.domain not in _STANDARD:
            raise Unsupported(f"operators of the domain {node.domain} are not known")
        inputs = tuple(self.values[i] if i else None for i in node.input)
        if node.op_type in ("Shape", "Size") or not any(
            v is not None and self.builder.is_variable(v) for v in inputs
        ):
            return self._fold(node, name, inputs)
        converter = onnx_converter(node.op_type)
        if converter is None:
            raise Unsupported("the operator is not known")
        used = frozenset(k for k, o in enumerate(node.output) if o in self.used)
        form = OnnxNode(node.op_type, name, inputs, _attributes(node), self.opset, len(node.output), used)
        result = converter(self.builder.at(name), form)
        return [result] if isinstance(result, Value) else result

    def _fold(self, node: onnx.NodeProto, name: str, inputs: Sequence[Value | None]) -> list[Value]:
        """Compute a node whose result does not depend on the network's input."""
        arrays: list[np.ndarray | None] = []
        for value in inputs:
            if value is None:
                arrays.append(None)
            elif node.op_type in ("Shape", "Size"):
                arrays.append(np.broadcast_to(np.zeros(()), self.builder.shape(value)))
            else:
                tensor = self.builder.tensor(value)
                arrays.append(None if tensor is None else tensor.numpy())
        results = self._evaluator(node)(arrays)
        return [self._constant(canonical(r, name, self.source), name) for r in results]

    def _evaluator(self, node: onnx.NodeProto) -> Callable[[list[np.ndarray | None]], list[np.ndarray]]:
        from verifier.frontends.onnx_constants import evaluate

        attributes = _attributes(node)
        return lambda arrays: evaluate(node, arrays, attributes, self.opset)

    def _placeholders(self, node: onnx.NodeProto) -> None:
        """Let the nodes after a refused one be examined where the shape of its result is known."""
        shapes = self._inferred(node)
        for output in node.output:
            if output in shapes:
                self.values[output] = self.builder.input(output, shapes[output])
            else:
                self.unknown.add(output)

    def _inferred(self, node: onnx.NodeProto) -> dict[str, Shape]:
        """Shapes of the node's floating results, by the onnx package's shape inference on this node alone."""
        import onnx
        from onnx import helper, numpy_helper

        if any(n and n not in self.values for n in node.input):
            return {}
        variables, constants = [], []
        for name in dict.fromkeys(n for n in node.input if n):
            tensor = self.builder.tensor(self.values[name])
            if tensor is None:
                shape = self.builder.shape(self.values[name])
                variables.append(helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape))
            else:
                array = tensor.float() if tensor.is_floating_point() else tensor
                constants.append(numpy_helper.from_array(array.numpy(), name))
        results = [helper.make_empty_tensor_value_info(n) for n in node.output if n]
        graph = helper.make_graph([node], "node", variables, results, initializer=constants)
        try:
            model = helper.make_model(graph, opset_imports=self.proto.opset_import)
            model = onnx.shape_inference.infer_shapes(model, data_prop=True)
        except Exception:  # anything at all; then the node's descendants are just not examined
            return {}
        shapes = {}
        for info in model.graph.output:
            kind = info.type.tensor_type
            sizes = [d.dim_value for d in kind.shape.dim]
            if kind.HasField("shape") and kind.elem_type in (1, 11) and all(n > 0 for n in sizes):
                shapes[info.name] = tuple(sizes)
        return shapes


def made_by(proto: onnx.ModelProto) -> dict[str, str]:
    """The name of each named node's first result: what the node's name stands for where a value is asked for."""
    return {n.name: n.output[0] for n in proto.graph.node if n.name and n.output}


def _is_finite(tensor: torch.Tensor) -> bool:
    return bool(tensor.sum().isfinite()) or bool(
        tensor.isfinite().all()
    )  # the sum alone is several times faster


def _attributes(node: onnx.NodeProto) -> dict[str, Any]:
    """Attributes as plain Python values: strings decoded, tensors as protos."""
    from onnx import helper

    attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    return {k: v.decode() if isinstance(v, bytes) else v for k, v in attributes.items() if v is not None}


def _array(tensor: onnx.TensorProto, name: str, source: str) -> np.ndarray:
    from onnx import numpy_helper

    if tensor.data_location == 1:
        raise ModelError(
            f"The weight {name!r} of the model {source} lies in another file; save the model with all its weights "
            "inside."
        )
    try:
        return canonical(numpy_helper.to_array(tensor), name, source)
    except (ValueError, TypeError, KeyError) as error:
        raise ModelError(f"The weight {name!r} of the model {source} is damaged: {error}.") from error


def canonical(array: np.ndarray, name: str, source: str) -> np.ndarray:
    """A constant as the graph stores it: float64, int64 or bool. Raises ModelError on NaN, infinity and other types."""
    array = np.asarray(array)
    if array.dtype == bool:
        return np.array(array)
    if np.issubdtype(array.dtype, np.integer):
        return np.array(array, dtype=np.int64)
    try:
        if np.iscomplexobj(array):
            raise TypeError
        array = np.array(array, dtype=np.float64)
    except (TypeError, ValueError):
        raise ModelError(
            f"The constant {name!r} of the model {source} has the unreadable type {array.dtype}."
        ) from None
    with np.errstate(all="ignore"):
        suspect = np.isnan(array.sum())  # several times faster than looking at each number
    if suspect and np.isnan(array).any():
        raise ModelError(
            f"The constant {name!r} of the model {source} holds NaN; nothing can be proved about it."
        )
    return array
