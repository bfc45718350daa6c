"""A module as the losses see it: traced once, its parameters live, its random and batch-dependent layers as they were
in the clean pass."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm

from verifier.errors import ModelError
from verifier.frontends import torch as frontend
from verifier.frontends.torch import TorchModel
from verifier.graph import Affine, Graph, Value
from verifier.ops.convolution import Conv
from verifier.ops.linear import Linear
from verifier.training.layers import Normalised, by_node, conversions, filled, find, recording
from verifier.transforms.composites import write_out
from verifier.transforms.fuse import fuse
from verifier.transforms.gates import join_gates


@dataclass(frozen=True, eq=False)
class Clean:
    """What the clean pass was: the scores [B, K], and the graph of the parameters and statistics that it used."""

    scores: Tensor
    graph: Graph


class _Kept(NamedTuple):
    """A graph that stays as it is while the module's tensors are these, of these types and places."""

    graph: Graph
    tensors: tuple[Tensor, ...]
    kinds: tuple[tuple[torch.dtype, torch.device], ...]

    def holds(self, tensors: tuple[Tensor, ...]) -> bool:
        same = len(tensors) == len(self.tensors) and all(
            a is b for a, b in zip(tensors, self.tensors, strict=True)
        )
        return same and self.kinds == tuple((t.dtype, t.device) for t in tensors)


@dataclass(frozen=True, eq=False)
class Network:
    """A traced module, called like the module itself. `layers` are the program's nodes, by module and in their order,
    that do something else in training: batch normalisation and dropout."""

    model: TorchModel
    layers: Mapping[str, tuple[fx.Node, ...]] = field(repr=False)
    _kept: list[_Kept] = field(default_factory=list, repr=False)

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

    @property
    def changes(self) -> bool:
        """Whether some layer does something else now than in evaluation."""
        return any(self.module.get_submodule(path).training for path in self.layers)

    def graph(self, x: Tensor, apart: bool = False) -> Graph:
        """The graph of the current parameters, as of `clean` where the module has layers that training changes; no pass
        is made where it has none."""
        return self.clean(x, apart).graph if self.changes else self._filled({}, apart)

    def clean(self, x: Tensor, apart: bool = False) -> Clean:
        """Runs the module on x [B, *shape] in its own mode, running statistics and random numbers included.

        Batch normalisation in training mode keeps the statistics of this pass in the graph, through which gradients
        go, and dropout its masks. So what is bounded is the network that gave the scores. Raises ModelError where a
        layer was called in another way than when the module was traced.
        """
        with recording(self.module) as calls:
            scores = self.module(x)
        return Clean(scores, self._filled(by_node(self.layers, calls), apart))

    def _filled(self, known: Mapping[str, Any], apart: bool) -> Graph:
        if not apart:
            return filled(self._unfilled(), known)
        with torch.enable_grad():
            graph = write_out(self.model.written(self._conversions))
            return filled(join_gates(graph) if self._curved else graph, known, apart)

    def _unfilled(self) -> Graph:
        """The graph without what passes tell. It is kept where it holds the parameters themselves, which optimisers
        change in place, and nothing that was computed from them."""
        tensors = tuple(_tensors(self.module))
        if self._kept and self._kept[0].holds(tensors):
            return self._kept[0].graph
        self._kept.clear()
        graph = write_out(self.model.written(self._conversions))
        if self._curved:
            return join_gates(fuse(graph))
        if self._plain and _alive(graph):
            self._kept.append(_Kept(graph, tensors, tuple((t.dtype, t.device) for t in tensors)))
        return graph

    @cached_property
    def _conversions(self) -> Mapping[str, Callable[..., Value]]:
        return conversions(self.module, self.layers)

    @cached_property
    def _curved(self) -> bool:
        """Whether there are products of values, which are bounded better when fused with their factors."""
        graph = write_out(self.model.written(self._conversions))
        return any(len(n.inputs) > 1 and not isinstance(n.op, Affine) for n in graph.nodes)

    @property
    def _plain(self) -> bool:
        """Whether no tensor of the module can have been used up without a trace of it: a gradient is one."""
        layers = [m for m in self.module.modules() if isinstance(m, _BatchNorm)]
        known = {id(b) for m in layers for b in m.buffers()}
        trained = all(p.requires_grad for p in self.module.parameters()) and torch.is_grad_enabled()
        return trained and all(id(b) in known for b in self.module.buffers())


def _tensors(module: nn.Module) -> Iterator[Tensor]:
    """Parameters and buffers; twice as quick as by their names, which counts once per step."""
    for part in module.modules():
        for held in (part._parameters, part._buffers):
            yield from (t for t in held.values() if t is not None)


def _alive(graph: Graph) -> bool:
    """Whether the operators that hold parameters hold nothing but these, and their structure depends on no value."""
    for node in graph.nodes:
        held = [t for t in node.op.tensors() if t.requires_grad]
        if any(not t.is_leaf for t in held) or (held and not isinstance(node.op, Linear | Conv | Normalised)):
            return False
    return True


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
    return Network(model, find(module, iter(model.program.graph.nodes)))
