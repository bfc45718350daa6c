"""How a certified training begins: initialisation, and regularisers while the radius grows."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from verifier.ops.piecewise_linear import Relu
from verifier.training.losses import Loss
from verifier.training.neighbourhood import Radius
from verifier.training.network import Network
from verifier.training.task import Task

_PRODUCTS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


def initialise(module: nn.Module) -> None:
    """Draws the weights of linear layers and convolutions so that intervals keep their width from layer to layer:
    normal with the deviation sqrt(2 pi) / fan-in, biases zero (Shi et al. 2021, arXiv 2103.17268)."""
    with torch.no_grad():
        for layer in module.modules():
            if isinstance(layer, _PRODUCTS):
                layer.weight.normal_(0.0, math.sqrt(2 * math.pi) / layer.weight[0].numel())
                if layer.bias is not None:
                    layer.bias.zero_()


def l1(module: nn.Module) -> Tensor:
    """The sum of the sizes of all weights of matrices and kernels; usual factors are 1e-6 to 1e-5."""
    sizes = [p.abs().sum() for p in module.parameters() if p.dim() >= 2]
    return torch.stack(sizes).sum() if sizes else torch.zeros(())


@dataclass(frozen=True, kw_only=True)
class WarmUp:
    """A loss with the regularisers of Shi et al. 2021 (arXiv 2103.17268) while the radius grows to
    `target`: weight (1 - eps / target) (L_tightness + L_relu).

    `weight` is 0.5, 0.2 for TinyImageNet; `tolerance` is their tau. Of a tensor of radii the largest counts.
    """

    loss: Loss
    target: float
    weight: float = 0.5
    tolerance: float = 0.5

    def __call__(self, net: Network, x: Tensor, y: Tensor, eps: Radius) -> Tensor:
        task = Task(net, x, y, eps, self.loss.near)
        value = self.loss.value(task)
        largest = eps if isinstance(eps, int | float) else float(eps.max())
        share = max(0.0, 1 - largest / self.target)
        return value + self.weight * share * regulariser(task, self.tolerance) if share else value


def regulariser(task: Task, tolerance: float = 0.5) -> Tensor:
    """L_tightness + L_relu, means over the activations: how much wider their arguments' intervals are than the input's,
    and how unequal the active and the inactive neurons of a layer are, in mean and variance of the centers."""
    graph, enclosures = task.graph, task.enclosures
    width = enclosures.found[graph.inputs[0]].radius.mean()
    terms = []
    for node in graph.nodes:
        if len(node.inputs) != 1 or not graph.relaxed[node.inputs[0]] or not graph.variable[node.inputs[0]]:
            continue
        below = enclosures.found[node.inputs[0]]
        small = torch.finfo(width.dtype).tiny
        terms.append((tolerance - width / below.radius.mean().clamp(min=small)).clamp(min=0))
        if isinstance(node.op, Relu):
            terms += [(tolerance - r).clamp(min=0) for r in _balance(*below.ends, below.center)]
    return torch.stack(terms).sum() / (tolerance * max(1, sum(graph.relaxed))) if terms else width * 0


def _balance(lower: Tensor, upper: Tensor, center: Tensor) -> tuple[Tensor, Tensor]:
    """The smaller of two ratios, between active and inactive neurons, of the sums of centers and of their squared
    deviations; 1 where there is no neuron of one kind."""
    active, inactive = lower > 0, upper < 0
    deviation = (center - center.mean()).square()
    sums = (center * active).sum(), -(center * inactive).sum()
    squares = (deviation * active).sum(), (deviation * inactive).sum()
    return _ratio(*sums), _ratio(*squares)


def _ratio(a: Tensor, b: Tensor) -> Tensor:
    there = (a > 0) & (b > 0)
    a, b = (torch.where(there, t, torch.ones_like(t)) for t in (a, b))
    return torch.minimum(a / b, b / a)
