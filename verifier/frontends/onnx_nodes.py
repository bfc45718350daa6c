"""The nodes of one ONNX graph, converted through the registered converters: a model's own graph, or one that a node
holds (the body of a loop, a branch)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

import verifier.ops  # noqa: F401  (registers the operators)
from verifier.errors import ModelError, UnsupportedNode
from verifier.frontends.derivative_nodes import DOMAIN as DERIVATIVES
from verifier.frontends.derivative_nodes import convert as derivative
from verifier.frontends.onnx_constants import LAYERS, evaluate
from verifier.frontends.onnx_discrete import Discrete, free_names, graphs, reads
from verifier.frontends.onnx_types import Types, as_typed
from verifier.graph import Builder, Value
from verifier.graph.op import Shape
from verifier.graph.registry import Body, OnnxNode, Unsupported, onnx_converter
from verifier.ops.integers import integral

if TYPE_CHECKING:
    import onnx

STANDARD = ("", "ai.onnx")


class Scope:
    """One conversion. `values` maps the graph's value names to nodes; those in `unknown` descend from a refused one.

    `where` goes before the names of nodes: empty, or the names of the nodes that hold the graph; `types` are those of
    the graph around it.
    """

    def __init__(
        self,
        graph: onnx.GraphProto,
        opsets: Mapping[str, int],
        source: str,
        where: str = "",
        types: Types | None = None,
    ) -> None:
        self.proto, self.opsets, self.source, self.where = graph, opsets, source, where
        self.builder = Builder()
        self.values: dict[str, Value] = {}
        self.unknown: set[str] = set()
        self.refused: list[UnsupportedNode] = []
        self.opset = max((opsets[d] for d in STANDARD if d in opsets), default=1)
        self.types = Types(graph, self.opset, types)
        read = {i for node in graph.node for i in reads(node)} | {o.name for o in graph.output}
        self.used = read - {""}
        self.discrete = Discrete(graph, self.builder, self.values, self._evaluator)

    def convert(self) -> None:
        """Convert all nodes into `values`, which holds the inputs; those that are not treated are in `refused`."""
        if self.proto.sparse_initializer:
            raise ModelError(
                f"The model {self.source} stores sparse weights, which are not read; store them densely."
            )
        for tensor in self.proto.initializer:
            if tensor.name in self.used:
                self.values[tensor.name] = self._constant(
                    _array(tensor, tensor.name, self.source), tensor.name
                )
        for position, node in enumerate(self.proto.node):
            name = node.name or f"{node.op_type}_{position}"
            self._node(node, f"{self.where}{name}" if self.where else name)

    def outputs(self) -> list[Value]:
        """The values of the graph's outputs."""
        found = []
        for info in self.proto.output:
            if info.name in self.discrete.pending:
                self.values[info.name] = self.discrete.materialise(info.name)
            if info.name not in self.values:
                raise ModelError(f"No node of the model {self.source} computes its output {info.name!r}.")
            found.append(self.values[info.name])
        return found

    def _constant(self, array: np.ndarray, name: str) -> Value:
        return self.builder.at(name).constant(torch.from_numpy(array), name)

    def _node(self, node: onnx.NodeProto, name: str) -> None:
        """Convert one node, or record why it cannot be."""
        if any(i in self.unknown for i in reads(node)):
            self.unknown.update(node.output)
            return
        for i in reads(node):
            if i and i not in self.values and i not in self.discrete.pending:
                raise ModelError(
                    f"Node {name!r} ({node.op_type}) of the model {self.source} reads {i!r}, which nothing before it "
                    "computes. The model is damaged; export it again."
                )
        if node.domain in STANDARD:
            self.types.note(node)
        opset = self.opset if node.domain in STANDARD else self.opsets.get(node.domain, 0)
        operator = node.op_type if node.domain in STANDARD else f"{node.domain}.{node.op_type}"
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
        waiting = [i for i in reads(node) if i in self.discrete.pending and i not in self.values]
        if waiting and self.discrete.covers(node):
            raise Unsupported("it depends on integers")
        for i in waiting:
            self.values[i] = self.discrete.materialise(i)
        return self._convert(node, name)

    def _convert(self, node: onnx.NodeProto, name: str) -> Sequence[Value]:
        inputs = tuple(self.values[i] if i else None for i in node.input)
        if node.domain == DERIVATIVES:
            return [derivative(self.builder.at(name), node.op_type, [x for x in inputs if x is not None])]
        if node.domain not in STANDARD:
            raise Unsupported(f"operators of the domain {node.domain} are not known")
        inner = {a: _Inner(self, graph, f"{name}/") for a, graph in graphs(node).items()}
        variable = any(v is not None and self.builder.is_variable(v) for v in inputs)
        varies = variable or node.op_type in LAYERS
        if not inner and (node.op_type in ("Shape", "Size") or not varies):
            return self._fold(node, name, inputs)
        converter = onnx_converter(node.op_type)
        if converter is None:
            raise Unsupported("the operator is not known")
        used = frozenset(k for k, o in enumerate(node.output) if o in self.used)
        attributes = _attributes(node)
        if node.op_type == "CastLike":
            attributes["to"] = self.types.of(node.output[0])
        form = OnnxNode(node.op_type, name, inputs, attributes, self.opset, len(node.output), used, inner)
        result = converter(self.builder.at(name), form)
        results = [result] if isinstance(result, Value) else result
        codes = [self.types.of(o) for o in node.output]
        return [
            as_typed(self.builder.at(name), node.op_type, x, c) for x, c in zip(results, codes, strict=False)
        ]

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
        if not all(isinstance(n, str) for n in (*node.input, *node.output)):
            return {}  # damaged
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
        imports = [helper.make_opsetid(domain, version) for domain, version in self.opsets.items()]
        try:
            model = helper.make_model(graph, opset_imports=imports)
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


class _Inner:
    """A graph that a node of `outer` holds."""

    def __init__(self, outer: Scope, graph: onnx.GraphProto, where: str) -> None:
        self._outer, self._graph, self._where = outer, graph, where
        inside = {i for node in graph.node for i in reads(node)} | {o.name for o in graph.output}
        self.read = tuple(i.name in inside for i in graph.input)

    def convert(self, arguments: Sequence[Shape | Tensor]) -> Body:
        outer = self._outer
        scope = Scope(self._graph, outer.opsets, outer.source, self._where, outer.types)
        names = [i.name for i in self._graph.input]
        if len(names) != len(arguments):
            raise ValueError(f"Its subgraph takes {len(names)} values, it is given {len(arguments)}.")
        for name, argument in zip(names, arguments, strict=True):
            constant = isinstance(argument, Tensor)
            scope.values[name] = (
                scope.builder.constant(argument, name) if constant else scope.builder.input(name, argument)
            )
        captured: list[Value] = []
        for name in sorted(free_names(self._graph), key=str):
            value = outer.values[name]
            tensor = outer.builder.tensor(value)
            if tensor is None:
                if integral(outer.builder, value):
                    raise Unsupported(
                        f"its subgraph reads integers that depend on the network's input ({name})"
                    )
                captured.append(value)
                scope.values[name] = scope.builder.input(name, outer.builder.shape(value))
            else:
                scope.values[name] = scope.builder.constant(tensor, name)
        scope.convert()
        if scope.refused:
            outer.refused.extend(scope.refused)
            raise Unsupported("nodes of its subgraph are not treated")
        return Body(scope.builder.graph(*scope.outputs()), tuple(captured))


def _attributes(node: onnx.NodeProto) -> dict[str, Any]:
    """Attributes as plain Python values: strings decoded, tensors as protos."""
    from onnx import helper

    attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    return {k: _text(v) for k, v in attributes.items() if v is not None}


def _text(value: Any) -> Any:
    """Bytes, also in lists, as strings."""
    if isinstance(value, list):
        return [_text(v) for v in value]
    return value.decode() if isinstance(value, bytes) else value


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
