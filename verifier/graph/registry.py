"""Which ONNX and ATen names are understood, and by what.

An operator file registers its converters with the decorators below; the front ends look them up. A converter
appends nodes to a Builder and returns the resulting values. It raises `Unsupported` for a form it cannot treat.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

from torch import Tensor

from verifier.graph.builder import Builder, Value
from verifier.graph.graph import Graph
from verifier.graph.op import Op, Shape


class Unsupported(Exception):
    """A form of an operator that is not treated; the text gives the reason. Front ends collect these."""


@dataclass(frozen=True)
class Body:
    """A subgraph as a graph of its own: its inputs are the formal ones that vary, in order, then one for each of
    `captured`, values around it that it reads. Outputs may be constant."""

    graph: Graph
    captured: tuple[Value, ...]


class Subgraph(Protocol):
    """A graph that an ONNX node holds (the body of a loop, a branch), before it is converted."""

    read: tuple[bool, ...]
    """For each formal input whether anything reads it."""

    def convert(self, arguments: Sequence[Shape | Tensor]) -> Body:
        """Convert it for formal inputs of these shapes, or of these constant values. Raises Unsupported where
        nodes inside are refused."""
        ...


@dataclass(frozen=True)
class OnnxNode:
    """One ONNX node as a converter sees it; omitted optional inputs are None.

    `outputs` counts the outputs that the node declares, `used` holds the positions of those that something reads.
    `subgraphs` holds the graphs among the attributes.
    """

    op_type: str
    name: str
    inputs: tuple[Value | None, ...]
    attributes: Mapping[str, Any]
    opset: int
    outputs: int
    used: frozenset[int] = frozenset({0})
    subgraphs: Mapping[str, Subgraph] = field(default_factory=dict)

    def input(self, i: int) -> Value | None:
        return self.inputs[i] if i < len(self.inputs) else None

    def required(self, i: int) -> Value:
        value = self.input(i)
        if value is None:
            raise Unsupported(f"input {i} is missing")
        return value

    def constant(self, builder: Builder, i: int, what: str = "") -> Tensor | None:
        """The tensor of input i, None when omitted; refuses a variable."""
        value = self.input(i)
        if value is None:
            return None
        tensor = builder.tensor(value)
        if tensor is None:
            which = f"input {i}{f' ({what})' if what else ''}"
            raise Unsupported(f"{which} must be a constant, but depends on the network's input")
        return tensor

    def ints(self, builder: Builder, i: int, attribute: str) -> list[int] | None:
        """A list of integers given as attribute in older opsets and as constant input i in newer ones."""
        if attribute in self.attributes:
            value = self.attributes[attribute]
            return [int(v) for v in value] if isinstance(value, Sequence) else [int(value)]
        tensor = self.constant(builder, i, attribute) if i >= 0 else None
        return None if tensor is None else [int(v) for v in tensor.flatten().tolist()]


OnnxConverter = Callable[[Builder, OnnxNode], "Value | Sequence[Value]"]
AtenConverter = Callable[..., Any]
Unary = TypeVar("Unary", bound="type[Op] | Callable[[Builder, Value], Value]")


@dataclass
class _Registry:
    onnx: dict[str, OnnxConverter] = field(default_factory=dict)
    notes: dict[str, str] = field(default_factory=dict)
    aten: dict[str, AtenConverter] = field(default_factory=dict)


_registry = _Registry()


def onnx_op(*names: str, note: str = "") -> Callable[[OnnxConverter], OnnxConverter]:
    """Register a converter for ONNX operators; `note` says in the documentation what is not covered."""

    def register(converter: OnnxConverter) -> OnnxConverter:
        for name in names:
            _registry.onnx[name] = converter
            _registry.notes[name] = note
        return converter

    return register


def aten_op(*names: str) -> Callable[[AtenConverter], AtenConverter]:
    """Register a converter for ATen overloads such as "relu.default": called as f(builder, *args, **kwargs) with
    Values in place of tensors."""

    def register(converter: AtenConverter) -> AtenConverter:
        for name in names:
            _registry.aten[name] = converter
        return converter

    return register


def unary_op(*names: str, note: str = "") -> Callable[[Unary], Unary]:
    """Register what makes one value of one, an operator's class or f(builder, x): for ONNX operators such as "Sin" and
    ATen overloads such as "sin.default"."""

    def register(kind: Unary) -> Unary:
        def make(builder: Builder, x: Value) -> Value:
            return builder.add(kind(), x) if isinstance(kind, type) else kind(builder, x)

        aten_op(*[n for n in names if "." in n])(make)
        onnx_op(*[n for n in names if "." not in n], note=note)(
            lambda builder, node: make(builder, node.required(0))
        )
        return kind

    return register


def onnx_converter(name: str) -> OnnxConverter | None:
    return _registry.onnx.get(name)


def aten_converter(name: str) -> AtenConverter | None:
    return _registry.aten.get(name)


def onnx_operators() -> dict[str, str]:
    """Supported ONNX operators with their notes, sorted."""
    return {name: _registry.notes[name] for name in sorted(_registry.onnx)}


def aten_operators() -> list[str]:
    return sorted(_registry.aten)
