"""TAPS and STAPS: where the network is cut, and what the connector hands on."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from tests.training.test_losses import check_gradient
from verifier.attack.descent import DescentOptions
from verifier.ops.piecewise_linear import Relu
from verifier.training import IBP, STAPS, TAPS, Linf, trace
from verifier.training.losses import worst_entropy
from verifier.training.taps import _Connector, after, cut_before
from verifier.training.task import Task


def test_the_cut_leaves_as_many_activations_behind(images, batches) -> None:
    x, _ = batches(image=True)
    graph = trace(images().eval(), x).graph(x)
    for behind in (0, 1, 2):
        cut = cut_before(graph, behind)
        second = after(graph, cut)
        assert sum(isinstance(n.op, Relu) for n in second.nodes) == behind
        latent, scores = graph.evaluate([x.unsqueeze(1)], [cut, graph.outputs[0]])
        assert torch.equal(second.evaluate([latent])[0], scores)
    assert cut_before(graph, 2) == graph.inputs[0]


def test_a_cut_is_what_everything_goes_through() -> None:
    class Residual(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.a(x).relu()
            return self.c((y + self.b(y).relu()).relu())

    x = torch.rand(3, 6)
    graph = trace(Residual(), x).graph(x)
    assert cut_before(graph, 1) == cut_before(graph, 2)  # not inside of the block


def test_gradients_of_the_linear_connector_against_finite_differences(modules, images, batches) -> None:
    """All points that the attack visits divide the box's sides in fixed ratios, as signs of gradients do not change;
    with softness 1 and equal weights the loss is differentiated as it is."""
    attack = DescentOptions(steps=4, starts=1)
    for kind in (TAPS, STAPS):
        loss = kind(weight=1.0, softness=1.0, latent=attack)
        check_gradient(loss, modules(), *batches(), 0.1)
        check_gradient(loss, images(), *batches(image=True), 0.05)


def test_weights_move_the_gradient_between_the_losses(modules, batches) -> None:
    module, (x, y) = modules(), batches()
    net = trace(module, x)
    values, slopes = [], []
    for weight in (0.0, 1.0, 1e12):
        module.zero_grad()
        value = TAPS(weight=weight)(net, x, y, 0.1)
        value.backward()
        values.append(value.item())
        slopes.append(module[0].weight.grad.clone())
    assert values[0] == pytest.approx(values[1]) == pytest.approx(values[2])
    assert torch.allclose(slopes[0] + slopes[2], 2 * slopes[1])  # 2 a b' , 2 b a', and their mean
    assert not torch.allclose(slopes[0], slopes[2], rtol=0.1)


def test_connector_reaches_from_an_end() -> None:
    point = torch.tensor([0.0, 0.25, 0.5, 0.9, 1.0])
    lower, upper = torch.zeros(5, requires_grad=True), torch.ones(5, requires_grad=True)
    _Connector.apply(point, lower, upper, 0.5).sum().backward()
    assert torch.allclose(lower.grad, torch.tensor([1.0, 0.5, 0.0, 0.0, 0.0]))
    assert torch.allclose(upper.grad, torch.tensor([0.0, 0.0, 0.0, 0.8, 1.0]))


def test_ends_that_are_one_share_the_gradient(modules, batches) -> None:
    """Without a radius the loss is the clean one squared, and so are its gradients."""
    point = torch.ones(3)
    lower, upper = torch.ones(3, requires_grad=True), torch.ones(3, requires_grad=True)
    _Connector.apply(point, lower, upper, 0.5).sum().backward()
    assert torch.equal(lower.grad, torch.full((3,), 0.5)) and torch.equal(upper.grad, lower.grad)
    module, (x, y) = modules(), batches()
    parameters = tuple(module.parameters())
    found = torch.autograd.grad(TAPS(weight=1.0)(trace(module, x), x, y, 0.0), parameters)
    clean = nn.functional.cross_entropy(module(x), y, reduction="none").square().mean()
    for a, b in zip(found, torch.autograd.grad(clean, parameters), strict=True):
        assert torch.allclose(a, b, atol=1e-9)


def test_latent_attacks_estimate_from_below_what_intervals_bound(modules, batches) -> None:
    module, (x, y) = modules(), batches()
    task = Task(trace(module, x), x, y, 0.1, Linf())
    enclosures = task.enclosures
    estimates = TAPS().latent_margins(task, enclosures)
    assert bool((estimates >= task.margins(enclosures).lower - 1e-12).all())
    assert bool((worst_entropy(estimates) <= IBP().robust(task) + 1e-12).all())


@pytest.mark.parametrize("kind", [TAPS, STAPS])
def test_losses_fall_under_training(kind: type[TAPS], images, batches) -> None:
    module, (x, y) = images(torch.float32), batches(24, image=True, dtype=torch.float32)
    net, loss = trace(module, x), kind(latent=DescentOptions(steps=4, starts=1))
    optimiser = torch.optim.Adam(module.parameters(), lr=5e-3)
    module.train()
    values = []
    for _ in range(25):
        value = loss(net, x, y, 0.02)
        optimiser.zero_grad()
        value.backward()
        optimiser.step()
        values.append(value.item())
    assert sum(values[-3:]) < 0.7 * sum(values[:3])
