"""Propagation tightness: how near intervals are to the best box, by the network's local linear map."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from verifier.bounds.backward import PassOptions, backward
from verifier.graph import Affine, Elementwise, Graph, Interval, Relaxation
from verifier.graph.coefficients import Coefficients, Dense, Rows
from verifier.graph.op import Input
from verifier.training.enclosures import Enclosure, Enclosures
from verifier.training.neighbourhood import Linf, Neighbourhood, Radius
from verifier.training.network import Network
from verifier.training.task import Task, spread

_LEAST = 1e-8
"""What radii are divided by at least."""


@dataclass(frozen=True)
class Tightness:
    """Means over the batch: of the margins, and of the arguments of every activation, by the names of their nodes in
    the module."""

    margins: float
    layers: Mapping[str, float]


def propagation_tightness(
    net: Network,
    x: Tensor,
    y: Tensor,
    eps: Radius,
    near: Neighbourhood = Linf(),
    neurons: int = 32,
) -> Tightness:
    """The radius of the best box of the outputs divided by that of intervals, for the affine map that the network is
    around x: |J| r / (|W_L| ... |W_1| r) (Mao et al. 2024, arXiv 2306.10426), 1 where intervals are exact. Intervals go
    layer by layer, the last one and the margins as one map.

    Of every layer `neurons` are looked at, evenly chosen, and all margins; for a network without activations the
    figure is exact. `x` is [B, *shape], `y` int64 [B], `eps` as a loss takes it. Nothing is differentiated.
    """
    with torch.no_grad():
        task = Task(net, x, y, eps, near)
        graph = task.graph
        local = _Local(graph, x.unsqueeze(1), Enclosure(task.inputs.box()).radius)
        target = graph.outputs[0]
        rows = Dense(task.rows.unflatten(2, graph.nodes[target].shape))
        margins = local.ratio(target, rows, spread(graph, task.rows, local.radii, products=1).radius)
        layers = {}
        for i, node in enumerate(graph.nodes):
            if not graph.relaxed[i] or not graph.variable[i] or isinstance(node.op, Input):
                continue
            index = torch.linspace(0, node.numel - 1, min(neurons, node.numel), device=x.device).long()[None]
            radius = local.radii.found[i].radius.flatten(1)[:, index[0]]
            layers[node.source or node.name] = local.ratio(
                i, Rows(index, torch.ones_like(radius[:1]), node.shape), radius
            )
    return Tightness(margins, layers)


class _Local:
    """The affine map around a point: slopes of the elementwise nodes, and the radii that intervals have in it."""

    def __init__(self, graph: Graph, x: Tensor, radius: Tensor) -> None:
        self.graph, self.radius = graph, radius
        values = dict(enumerate(graph.evaluate([x], range(len(graph.nodes)))))
        self.points = {i: Interval(v, v) for i, v in values.items()}
        self.slopes: dict[int, tuple[Tensor, ...]] = {}
        found = {graph.inputs[0]: Enclosure(middle=(x, radius))}
        for i, node in enumerate(graph.nodes):
            if i in found:
                continue
            radii = [found[j].radius for j in node.inputs]
            if isinstance(node.op, Affine):
                size = node.op.absolute(*radii)
            elif isinstance(node.op, Elementwise):
                self.slopes[i] = _slopes(node.op, [values[j] for j in node.inputs])
                size = sum(
                    (s.abs() * r for s, r in zip(self.slopes[i], radii, strict=True)),
                    torch.zeros_like(values[i]),
                )
            else:
                size = torch.zeros_like(values[i])
            found[i] = Enclosure(middle=(values[i], size))
        self.radii = Enclosures(found)

    def ratio(self, target: int, rows: Coefficients, radius: Tensor) -> float:
        """The mean of best radius / `radius` [B, R] over linear forms of a node."""
        lines = {i: Relaxation(s, None, s, None, True) for i, s in self.slopes.items()}
        form = backward(self.graph, {target: rows}, lines, self.points, PassOptions(rounding=False))
        jacobian = form.coefficients[self.graph.inputs[0]].flatten(2).expand(len(self.radius), -1, -1)
        best = (jacobian.abs() @ self.radius.flatten(1).unsqueeze(2)).squeeze(2)
        return float((best / radius.clamp(min=_LEAST)).mean())


def _slopes(op: Elementwise, values: list[Tensor]) -> tuple[Tensor, ...]:
    with torch.enable_grad():
        arguments = [v.detach().requires_grad_() for v in values]
        return torch.autograd.grad(op.forward(*arguments).sum(), arguments)
