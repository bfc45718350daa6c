"""Jacobians of recurrent and gated networks: equal to autograd, and bounds hold sampled gradients."""

from __future__ import annotations

import time

import pytest
import torch
from torch import Tensor, nn

from verifier.frontends.torch import trace
from verifier.jacobian.lipschitz import Effort, Method, lipschitz
from verifier.jacobian.objective import gradients
from verifier.models.delta_net import DeltaNet
from verifier.models.gla import GLA
from verifier.sets import Box


class Recurrent(nn.Module):
    """The last output of torch's own layer."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)[0][:, -1]


class Last(nn.Module):
    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)[:, -1]


def networks() -> dict[str, nn.Module]:
    torch.manual_seed(0)
    return {
        "LSTM": Recurrent(nn.LSTM(3, 4, batch_first=True)),
        "GRU": Recurrent(nn.GRU(3, 4, batch_first=True)),
        "GLA": Last(GLA(4, 1)),
        "DeltaNet": Last(DeltaNet(4, 1)),
    }


@pytest.mark.parametrize("name", list(networks()))
def test_bounds_hold_sampled_gradients(name: str) -> None:
    net = networks()[name].eval()
    width = 3 if name in ("LSTM", "GRU") else 4
    center = 0.5 * torch.randn(1, 4, width, generator=torch.Generator().manual_seed(1))
    graph = trace(net, center).graph(torch.float64)
    count = graph.nodes[graph.outputs[0]].numel
    row = torch.zeros(1, count, dtype=torch.float64)
    row[0, 0], row[0, 1] = 1.0, -1.0
    radius = 0.002 if name == "DeltaNet" else 0.02  # its keys are divided by lengths that are small here
    x = center + radius * (2 * torch.rand(300, 4, width) - 1)
    x = x.requires_grad_(True)
    y = net(x).flatten(1)
    (truth,) = torch.autograd.grad((y[:, 0] - y[:, 1]).sum(), x)
    asked = gradients(graph, row)
    seed = asked.seeds.expand(300, *asked.seeds.shape[1:])
    found = asked.graph.evaluate([x.detach().double().view(300, *graph.nodes[graph.inputs[0]].shape), seed])[
        0
    ]
    assert torch.allclose(found.view_as(truth).float(), truth, atol=1e-4, rtol=1e-3)
    box = Box.around(center.view(1, *graph.nodes[graph.inputs[0]].shape), radius)
    effort = Effort((Method.INTERVAL, Method.CROWN), time.monotonic() + 20)
    bounds = lipschitz(graph, [box], "inf", row, effort)
    size = float(truth.abs().flatten(1).sum(1).amax())
    assert all(bound.value >= size * (1 - 1e-5) for bound in bounds.bounds) and len(bounds.bounds) == 2
    assert bounds.upper < 3 * size and bounds.lower <= bounds.upper * (1 + 1e-6)
