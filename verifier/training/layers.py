"""Layers that do something else in training, as nodes that are filled in from a clean pass."""

from __future__ import annotations

import contextlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd

from verifier.errors import ModelError
from verifier.graph import Affine, Builder, Graph, Node, Op, Value
from verifier.graph.op import Shape
from verifier.ops.arithmetic import ScaleShift
from verifier.ops.convolution import Conv
from verifier.training.gradients import Folded

_DROPS = ("dropout.default", "feature_dropout.default")
_NORMALISES = ("batch_norm.default", "_native_batch_norm_legit_no_training.default")

Calls = Mapping[str, list[Any]]
"""What the layers did in a pass, call by call, by their names in the module: (mean, variance) [C] each, or a mask."""


@dataclass(frozen=True, eq=False)
class Dropped(Affine):
    """y = mask * x with a mask [B, 1, *shape] of every example's own; where x holds several rows for each example, one
    after another, they share it. `name` is the node's in the program."""

    name: str
    mask: Tensor | None = None
    elementwise = True

    def output_shape(self, *shapes: Shape) -> Shape:
        return shapes[0]

    def forward(self, *xs: Tensor) -> Tensor:
        if self.mask is None:
            return xs[0]
        return xs[0] * self.mask.repeat_interleave(len(xs[0]) // len(self.mask), 0)

    def transpose(self, coefficients: Tensor, index: int, *shapes: Shape) -> Tensor:
        return coefficients if self.mask is None else coefficients * self.mask.unsqueeze(1)

    def filled(self, mask: Tensor | None) -> Dropped:
        return self if mask is None else replace(self, mask=mask.unsqueeze(1))


@dataclass(frozen=True, eq=False)
class Normalised(Affine):
    """Batch normalisation by the module's own tensors [C], or None; only `filled` it computes anything."""

    name: str
    weight: Tensor | None
    bias: Tensor | None
    mean: Tensor
    variance: Tensor
    eps: float
    elementwise = True

    def output_shape(self, *shapes: Shape) -> Shape:
        return shapes[0]

    def forward(self, *xs: Tensor) -> Tensor:
        raise ValueError(
            "The statistics of a batch normalisation are filled in before the graph computes anything."
        )

    def filled(self, rank: int, statistics: tuple[Tensor, Tensor] | None) -> ScaleShift:
        """With the statistics of a pass, or the running ones, for values of that rank."""
        mean, variance = statistics or (self.mean, self.variance)
        scale = (variance + self.eps).rsqrt()
        scale = scale if self.weight is None else scale * self.weight
        shift = -mean * scale if self.bias is None else self.bias - mean * scale
        return ScaleShift(*_seen(rank, scale, shift))

    def behind(self, conv: Conv, statistics: tuple[Tensor, Tensor] | None) -> Conv:
        """The convolution and this as one convolution."""
        mean, variance = statistics or (self.mean, self.variance)
        folded: Any = Folded.apply(conv.weight, conv.bias, self.weight, self.bias, mean, variance, self.eps)
        return replace(conv, weight=folded[0], bias=folded[1], doubt=None)

    def apart(self, rank: int, statistics: tuple[Tensor, Tensor] | None) -> tuple[ScaleShift, ...]:
        """The same in two steps: what the statistics do, and what the parameters do."""
        mean, variance = statistics or (self.mean, self.variance)
        scale = (variance + self.eps).rsqrt()
        first = Standardised(*_seen(rank, scale, -mean * scale))
        if self.weight is None and self.bias is None:
            return (first,)
        return first, ScaleShift(*_seen(rank, self.weight, self.bias))


def _seen(rank: int, *tensors: Tensor | None) -> list[Tensor | None]:
    """Numbers per channel [C] for values of that rank."""
    view = (-1, *[1] * (rank - 2)) if rank > 1 else (-1,)
    return [t if t is None else t.view(view) for t in tensors]


class Standardised(ScaleShift):
    """(x - mean) / deviation, of a batch normalisation whose own scale and bias follow as a node of their own."""


def find(module: nn.Module, nodes: Iterable[fx.Node]) -> dict[str, tuple[fx.Node, ...]]:
    """The program's nodes, by layer and in their order, that do something else in training. Raises ModelError where
    that is not the work of a layer which shows it."""
    layers: dict[str, list[fx.Node]] = defaultdict(list)
    for node in nodes:
        if getattr(node.target, "__name__", "") not in (*_DROPS, *_NORMALISES, "alpha_dropout.default"):
            continue
        path = next(reversed((node.meta.get("nn_module_stack") or {"": ("", None)}).values()))[0]
        layer = module.get_submodule(path)
        plain = isinstance(layer, _BatchNorm | _DropoutNd)
        if not plain or isinstance(layer, nn.AlphaDropout | nn.FeatureAlphaDropout):
            raise ModelError(
                f"Node {node.name!r} ({node.target}) of {path or 'the module'!r} does something else in training that "
                "only a layer of its own can tell: use nn.Dropout and nn.BatchNorm layers."
            )
        layers[path].append(node)
    return {path: tuple(nodes) for path, nodes in layers.items()}


def conversions(
    module: nn.Module, layers: Mapping[str, tuple[fx.Node, ...]]
) -> dict[str, Callable[..., Value]]:
    """How these nodes become nodes to be filled in, by their names."""
    return {
        n.name: _conversion(module.get_submodule(path), n.name) for path, ns in layers.items() for n in ns
    }


def _conversion(layer: nn.Module, name: str) -> Callable[..., Value]:
    def normalised(
        builder: Builder,
        x: Value,
        weight: Value | None,
        bias: Value | None,
        mean: Value,
        var: Value,
        *others: Any,
    ) -> Value:
        w, b, m, v = (None if t is None else builder.tensor(t) for t in (weight, bias, mean, var))
        return builder.add(Normalised(name, w, b, m, v, layer.eps), x)  # pyright: ignore[reportArgumentType]

    def dropped(builder: Builder, x: Value, *others: Any) -> Value:
        return builder.add(Dropped(name), x)

    return normalised if isinstance(layer, _BatchNorm) else dropped


@contextlib.contextmanager
def recording(module: nn.Module) -> Iterator[Calls]:
    """What every batch normalisation and dropout in training mode does inside."""
    calls: dict[str, list[Any]] = defaultdict(list)
    handles = []
    for path, layer in module.named_modules():
        if isinstance(layer, _BatchNorm) and layer.training:
            handles.append(layer.register_forward_pre_hook(_statistics(calls[path])))
        elif isinstance(layer, _DropoutNd) and layer.training and layer.p > 0:
            handles.append(layer.register_forward_hook(_mask(calls[path])))
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()


def _statistics(calls: list[Any]) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
    def note(layer: nn.Module, args: tuple[Tensor, ...]) -> None:
        x = args[0]
        variance, mean = torch.var_mean(x, [d for d in range(x.dim()) if d != 1], correction=0)
        calls.append((mean, variance))

    return note


def _mask(calls: list[Any]) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], Tensor]:
    def note(layer: nn.Module, args: tuple[Tensor, ...], result: Tensor) -> Tensor:
        calls.append(type(layer).forward(layer, torch.ones_like(args[0])))
        return args[0] * calls[-1]

    return note


def by_node(layers: Mapping[str, tuple[fx.Node, ...]], calls: Calls) -> dict[str, Any]:
    """The calls by the nodes that they belong to. Raises ModelError where there were more or fewer."""
    found: dict[str, Any] = {}
    for path, seen in calls.items():
        nodes = layers.get(path, ())
        if len(nodes) != len(seen):
            raise ModelError(
                f"The layer {path!r} was called {len(seen)} times, and {len(nodes)} times when the module was traced; "
                "the forward pass must do the same in training and evaluation but for dropout and batch normalisation."
            )
        found.update({node.name: what for node, what in zip(nodes, seen, strict=True)})
    return found


def filled(graph: Graph, known: Mapping[str, Any], apart: bool = False) -> Graph:
    """The graph with what is known of its layers. Scalings of channels are merged into the convolutions before them:
    bounds pass both in one step, and kernels are smaller than maps. With `apart` every parameter stays itself."""
    nodes: list[Node] = []
    position: list[int] = []
    for node in graph.nodes:
        inputs = tuple(position[j] for j in node.inputs)
        op: Op = node.op
        alone = (
            len(inputs) == 1 and len(graph.users[node.inputs[0]]) == 1 and node.inputs[0] not in graph.outputs
        )
        merged = _merged(nodes[inputs[0]], op, known) if alone and not apart else None
        if merged is not None:
            nodes[inputs[0]] = replace(nodes[inputs[0]], op=merged, name=node.name, source=node.source)
            position.append(inputs[0])
            continue
        if isinstance(op, Normalised) and apart:
            *first, op = op.apart(len(node.shape), known.get(op.name))
            for step in first:
                nodes.append(replace(node, op=step, inputs=inputs, name=f"{node.name}_standardised"))
                inputs = (len(nodes) - 1,)
        elif isinstance(op, Normalised):
            op = op.filled(len(node.shape), known.get(op.name))
        elif isinstance(op, Dropped):
            op = op.filled(known.get(op.name))
        nodes.append(replace(node, op=op, inputs=inputs))
        position.append(len(nodes) - 1)
    return Graph(
        tuple(nodes), tuple(position[i] for i in graph.inputs), tuple(position[i] for i in graph.outputs)
    )


def _merged(before: Node, op: Op, known: Mapping[str, Any]) -> Conv | None:
    """A convolution followed by a scaling and shift of its channels as one; None where it is something else."""
    if not isinstance(before.op, Conv):
        return None
    if isinstance(op, Normalised):
        return op.behind(before.op, known.get(op.name))
    if not isinstance(op, ScaleShift) or op.scale is None or op.shift is None:
        return None
    scale, shift = (_per_channel(t, before.shape) for t in (op.scale, op.shift))
    if scale is None or shift is None:
        return None
    weight = before.op.weight * scale.view(-1, *[1] * (before.op.weight.dim() - 1))
    bias = shift if before.op.bias is None else before.op.bias * scale + shift
    return replace(before.op, weight=weight, bias=bias, doubt=None)


def _per_channel(tensor: Tensor, shape: Shape) -> Tensor | None:
    """A constant for a map [N, C, ...] that varies with the channel alone as [C]; None where it varies more."""
    full = tensor.reshape((1,) * (len(shape) - tensor.dim()) + tuple(tensor.shape))
    if any(n != 1 for d, n in enumerate(full.shape) if d != 1):
        return None
    return full.flatten().expand(shape[1])
