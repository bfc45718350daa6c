"""Radii by margin constants: nothing within them changes the class, and bad input is told."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from verifier import VerifierError, certified_radius, trace


@pytest.mark.parametrize("norm", [math.inf, 2, 1])
@pytest.mark.parametrize("activation", [nn.ReLU(), nn.Tanh()])
def test_no_point_within_changes_the_class(activation: nn.Module, norm: float) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 12), activation, nn.Linear(12, 3))
    model, x = trace(net, torch.zeros(1, 4)), torch.randn(4)
    label = int(net(x).argmax())
    radius = certified_radius(model, x, label, norm)
    assert radius > 0
    offset = torch.randn(20_000, 4)
    corners = torch.sign(torch.randn(500, 4)) if norm == math.inf else torch.eye(4).repeat(2, 1)
    offset = torch.cat([offset, corners])
    offset = radius * offset / torch.linalg.vector_norm(offset, ord=norm, dim=1, keepdim=True)
    with torch.no_grad():
        assert (net(x + offset).argmax(1) == label).all()
    assert certified_radius(model, x, (label + 1) % 3, norm) == 0.0


def test_a_linear_map_has_its_exact_radius() -> None:
    layer = nn.Linear(3, 2)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]))
        layer.bias.zero_()
    model, x = trace(layer, torch.zeros(1, 3)), torch.tensor([1.0, 0.0, 0.0])
    for norm, truth in ((math.inf, 0.5), (2, math.sqrt(0.5)), (1, 1.0)):
        assert truth * 0.99 < certified_radius(model, x, 0, norm, most=5.0) <= truth


def test_bad_input_is_told() -> None:
    model = trace(nn.Linear(3, 2), torch.zeros(1, 3))
    for mistake in ({"norm": 3}, {"most": 0.0}, {"label": 2}, {"x": torch.zeros(4)}):
        with pytest.raises(VerifierError):
            certified_radius(model, **{"x": torch.zeros(3), "label": 0, **mistake})
