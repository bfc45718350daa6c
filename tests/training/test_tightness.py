"""Propagation tightness against its definition."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from verifier.training import IBP, Linf, initialise, propagation_tightness, trace


def linear(*matrices: list[list[float]]) -> nn.Module:
    layers = []
    for matrix in matrices:
        weight = torch.tensor(matrix, dtype=torch.float64)
        layers.append(nn.Linear(weight.shape[1], weight.shape[0]).double())
        with torch.no_grad():
            layers[-1].weight.copy_(weight)
    return nn.Sequential(*layers)


def test_two_matrices_that_cancel() -> None:
    """W1 = [[1, 1], [1, -1]], W2 = [1, 1] (against a constant score): [2, 0] has radius 2, intervals have 4."""
    module = linear([[1, 1], [1, -1]], [[1, 1], [0, 0]])
    x, y = torch.rand(5, 2).double(), torch.zeros(5).long()
    net = trace(module, x)
    found = propagation_tightness(net, x, y, 0.1)
    # The margin is one linear form of the last layer's input: [1, 1] on a box of radii [2, 2].
    assert found.margins == pytest.approx(0.5)
    assert found.layers == {}


def test_three_matrices_against_the_formula() -> None:
    torch.manual_seed(0)
    weights = [torch.randn(7, 5), torch.randn(6, 7), torch.randn(3, 6)]
    module = linear(*[w.tolist() for w in weights])
    x, y = torch.rand(4, 5).double(), torch.tensor([0, 1, 2, 0])
    found = propagation_tightness(trace(module, x), x, y, 0.1).margins
    ratios = []
    for label in y.tolist():
        for other in {0, 1, 2} - {label}:
            last = weights[2].double()[label] - weights[2].double()[other]
            product = last @ weights[1].double() @ weights[0].double()
            sizes = last.abs() @ weights[1].double().abs() @ weights[0].double().abs()
            ratios.append(float(product.abs().sum() / sizes.sum()))
    assert found == pytest.approx(sum(ratios) / len(ratios))


def test_without_cancellation_intervals_are_exact(batches) -> None:
    module = nn.Sequential(nn.Linear(6, 9), nn.ReLU(), nn.Linear(9, 9), nn.ReLU(), nn.Linear(9, 4)).double()
    with torch.no_grad():
        for p in module.parameters():
            p.abs_()
        module[-1].weight[1:] = 0
    x, _ = batches()
    found = propagation_tightness(trace(module, x), x, torch.zeros(7).long(), 0.1)
    assert found.margins == pytest.approx(1)
    assert all(t == pytest.approx(1) for t in found.layers.values())


def test_layers_against_jacobians(images, batches) -> None:
    """Of a network with activations, folded normalisation and all: slopes at x."""
    module, (x, y) = images().eval(), batches(3, image=True)
    with torch.no_grad():
        module(x), module.train()(x), module.eval()
    net = trace(module, x)
    found = propagation_tightness(net, x, y, 0.1, Linf(), neurons=1000)
    graph = net.graph(x)
    assert list(found.layers) == ["1.batch_norm", "5.batch_norm_1"]
    assert found.layers["1.batch_norm"] == pytest.approx(1)
    second = nn.Sequential(*list(module)[:6])
    conv, matrix = graph.nodes[1].op, next(n.op for n in graph.nodes if type(n.op).__name__ == "Linear")
    ratios = []
    for image in x:
        (jacobian,) = [torch.autograd.functional.jacobian(lambda t: second(t[None])[0], image)]
        active = (conv.forward(image[None, None]) > 0).double()
        radius = conv.absolute(torch.full_like(image, 0.1)[None, None]) * active
        scale = (module[5].weight / (module[5].running_var + module[5].eps).sqrt()).abs()
        size = scale * matrix.absolute(radius.flatten(1))[0]
        ratios.append(0.1 * jacobian.flatten(1).abs().sum(1) / size)
    assert found.layers["5.batch_norm_1"] == pytest.approx(torch.stack(ratios).mean().item())


def test_training_with_intervals_raises_it(batches) -> None:
    torch.manual_seed(0)
    module = nn.Sequential(
        nn.Linear(6, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 4)
    ).double()
    initialise(module)
    x, y = batches(16)
    net = trace(module, x)
    before = propagation_tightness(net, x, y, 0.1).margins
    optimiser = torch.optim.Adam(module.parameters(), lr=5e-3)
    for _ in range(60):
        optimiser.zero_grad()
        IBP()(net, x, y, 0.1).backward()
        optimiser.step()
    assert propagation_tightness(net, x, y, 0.1).margins > before + 0.1
