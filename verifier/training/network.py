"""A module as the losses see it: traced once, its parameters live, its random and batch-dependent layers as they were
in the clean pass."""

from __future__ import annotations

import contextlib
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd

from verifier.errors import ModelError
from verifier.frontends import torch as frontend
from verifier.frontends.torch import TorchModel
from verifier.graph import Affine, Builder, Graph, Node, Value
from verifier.graph.op import Shape
from verifier.ops.arithmetic import ScaleShift
from verifier.ops.convolution import Conv
from verifier.ops.normalization import batch_norm
from verifier.transforms.composites import write_out
from verifier.transforms.fuse import fuse
from verifier.transforms.gates import join_gates

_DROPS = ("dropout.default", "feature_dropout.default")
_NORMALISES = ("batch_norm.default", "_native_batch_norm_legit_no_training.default")


@dataclass(frozen=True, eq=False)
class Dropped(Affine):
    """y = mask * x with a mask [B, *shape] of every example's own; where x holds several rows for each example, one
    after another, they share it."""

    mask: Tensor
    elementwise = True

    def output_shape(self, *shapes: Shape) -> Shape:
        return shapes[0]

    def forward(self, *xs: Tensor) -> Tensor:
        return xs[0] * self.mask.repeat_interleave(len(xs[0]) // len(self.mask), 0)

    def transpose(self, coefficients: Tensor, index: int, *shapes: Shape) -> Tensor:
        return coefficients * self.mask.unsqueeze(1)


@dataclass(frozen=True, eq=False)
class Clean:
    """What the clean pass was: the scores [B, K], and the graph of the parameters and statistics that it used."""

    scores: Tensor
    graph: Graph


@dataclass(frozen=True, eq=False)
class Network:
    """A traced module, called like the module itself. `layers` are the program's nodes, by module and in their order,
    that do something else in training: batch normalisation and dropout."""

    model: TorchModel
    layers: Mapping[str, tuple[fx.Node, ...]] = field(repr=False)

    @property
    def module(self) -> nn.Module:
        """The user's own module; its parameters are the optimiser's."""
        return self.model.module

    @cached_property
    def classes(self) -> int:
        """The number of scores."""
        return self.model.output_shapes[0][-1]

    def __call__(self, x: Tensor) -> Tensor:
        return self.module(x)

    def graph(self, x: Tensor) -> Graph:
        """The graph of the current parameters, as of `clean` where the module has layers that training changes; no pass
        is made where it has none."""
        return self.clean(x).graph if self.changes else self._graph({})

    def clean(self, x: Tensor) -> Clean:
        """Runs the module on x [B, *shape] in its own mode, running statistics and random numbers included.

        Batch normalisation in training mode keeps the statistics of this pass in the graph, through which gradients
        go, and dropout its masks. So what is bounded is the network that gave the scores. Raises ModelError where a
        layer was called in another way than when the module was traced.
        """
        calls: dict[str, list[Any]] = defaultdict(list)
        with self._recording(calls):
            scores = self.module(x)
        instead = {}
        for path, seen in calls.items():
            nodes = self.layers.get(path, ())
            if len(nodes) != len(seen):
                raise ModelError(
                    f"The layer {path!r} was called {len(seen)} times, and {len(nodes)} times when the module was "
                    "traced; the forward pass must do the same in training and evaluation but for dropout and batch "
                    "normalisation."
                )
            instead.update({node.name: convert for node, convert in zip(nodes, seen, strict=True)})
        return Clean(scores, self._graph(instead))

    @property
    def changes(self) -> bool:
        """Whether some layer does something else now than in evaluation."""
        return any(self.module.get_submodule(path).training for path in self.layers)

    def _graph(self, instead: Mapping[str, Callable[..., Any]]) -> Graph:
        graph = write_out(self.model.written(instead))
        return merged(join_gates(fuse(graph)) if self._curved else graph)

    @cached_property
    def _curved(self) -> bool:
        """Whether there are products of values, which are bounded better when fused with their factors."""
        graph = write_out(self.model.written())
        return any(len(n.inputs) > 1 and not isinstance(n.op, Affine) for n in graph.nodes)

    @contextlib.contextmanager
    def _recording(self, calls: dict[str, list[Any]]) -> Iterator[None]:
        """Notes what every batch normalisation and dropout in training mode does, as a conversion of its node."""
        handles = []
        for path, layer in self.module.named_modules():
            if isinstance(layer, _BatchNorm) and layer.training:
                handles.append(layer.register_forward_pre_hook(_statistics(calls[path])))
            elif isinstance(layer, _DropoutNd) and layer.training and layer.p > 0:
                handles.append(layer.register_forward_hook(_mask(calls[path])))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()


def trace(module: nn.Module, example: Tensor) -> Network:
    """Traces a classifier once for training: `example` is [N, *shape], the scores are [N, K].

    Raises ModelError and UnsupportedError as `verifier.trace` does, and where the module has several inputs or outputs,
    or calls dropout or batch normalisation in training without a layer for it.
    """
    model = frontend.trace(module, example)
    if len(model.inputs) != 1 or len(model.outputs) != 1 or len(model.output_shapes[0]) != 2:
        raise ModelError(
            f"The losses are for classifiers of one input with scores [N, K]; the module takes {len(model.inputs)} "
            f"inputs and gives values of the shapes {', '.join(map(str, model.output_shapes))}."
        )
    layers: dict[str, list[fx.Node]] = defaultdict(list)
    for node in model.program.graph.nodes:
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
    return Network(model, {path: tuple(nodes) for path, nodes in layers.items()})


def _statistics(calls: list[Any]) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
    def note(layer: nn.Module, args: tuple[Tensor, ...]) -> None:
        x = args[0]
        variance, mean = torch.var_mean(x, [d for d in range(x.dim()) if d != 1], correction=0)
        eps = layer.eps

        def convert(
            builder: Builder, x: Value, weight: Value | None, bias: Value | None, *others: Any, **named: Any
        ) -> Value:
            gamma, beta = (None if t is None else builder.tensor(t) for t in (weight, bias))
            return batch_norm(builder, x, gamma, beta, mean, variance, eps)  # pyright: ignore[reportArgumentType]

        calls.append(convert)

    return note


def _mask(calls: list[Any]) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], Tensor]:
    def note(layer: nn.Module, args: tuple[Tensor, ...], result: Tensor) -> Tensor:
        mask = type(layer).forward(layer, torch.ones_like(args[0]))

        def convert(builder: Builder, x: Value, *others: Any, **named: Any) -> Value:
            return builder.add(Dropped(mask.unsqueeze(1)), x)

        calls.append(convert)
        return args[0] * mask

    return note


def merged(graph: Graph) -> Graph:
    """Scalings and shifts of channels merged into the convolutions before them: bounds pass both in one step, and
    kernels are smaller than maps."""
    nodes: list[Node] = []
    position: list[int] = []
    for node in graph.nodes:
        inputs = tuple(position[j] for j in node.inputs)
        found = None
        alone = (
            len(inputs) == 1 and len(graph.users[node.inputs[0]]) == 1 and node.inputs[0] not in graph.outputs
        )
        if alone and isinstance(node.op, ScaleShift):
            found = _merged(nodes[inputs[0]], node.op)
        if found is not None:
            nodes[inputs[0]] = replace(nodes[inputs[0]], op=found, name=node.name, source=node.source)
            position.append(inputs[0])
        else:
            nodes.append(replace(node, inputs=inputs))
            position.append(len(nodes) - 1)
    return Graph(
        tuple(nodes), tuple(position[i] for i in graph.inputs), tuple(position[i] for i in graph.outputs)
    )


def _merged(before: Node, op: ScaleShift) -> Conv | None:
    """A convolution followed by a scaling and shift of its channels as one; None where it is something else."""
    if not isinstance(before.op, Conv) or op.scale is None or op.shift is None:
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
