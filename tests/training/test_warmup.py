"""Schedules, initialisation and regularisers."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch import nn

from tests.training.test_losses import check_gradient
from verifier.training import IBP, SABR, Linf, Ramp, SmoothRamp, WarmUp, initialise, l1, trace
from verifier.training.task import Task
from verifier.training.warmup import regulariser


def test_ramps_meet_their_ends_and_do_not_fall() -> None:
    for ramp in (Ramp(10, 30, 0.0, 0.3), SmoothRamp(10, 30, 0.0, 0.3)):
        values = [ramp(step / 4) for step in range(200)]
        assert values[40] == 0 and values[0] == 0
        assert values[120] == pytest.approx(0.3) and values[-1] == pytest.approx(0.3)
        assert all(a <= b for a, b in pairwise(values))
    assert Ramp(0, 10, 1.0, 0.0)(2.5) == pytest.approx(0.75)
    assert Ramp(5, 5, 0.0, 1.0)(4) == 0 and Ramp(5, 5, 0.0, 1.0)(5) == 1


def test_smooth_ramps_have_no_kink() -> None:
    ramp = SmoothRamp(0, 1)
    step = 1e-6
    slopes = [(ramp(t + step) - ramp(t - step)) / (2 * step) for t in (0.25 - 1e-4, 0.25 + 1e-4)]
    assert slopes[0] == pytest.approx(slopes[1], rel=1e-2)
    assert ramp(0.05) < 0.01 * 0.05


def test_initialisation_keeps_the_width_of_intervals() -> None:
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for _ in range(6):
        layers += [nn.Linear(200, 200), nn.ReLU()]
    module = nn.Sequential(*layers, nn.Linear(200, 3))
    x, y = torch.rand(4, 200), torch.tensor([0, 1, 2, 0])

    def growth() -> float:
        task = Task(trace(module, x), x, y, 0.01, Linf())
        last = task.graph.nodes[-1].inputs[0]
        return float(task.enclosures.found[last].radius.mean() / 0.01)

    wide = growth()
    initialise(module)
    assert 0.5 < growth() < 2 < wide
    assert not any(bool(p.any()) for n, p in module.named_parameters() if n.endswith("bias"))


def test_regularisers_by_hand() -> None:
    """One layer: what is four times wider than the input costs 1/2 - 1/4; two active neurons with the sum 6, one
    inactive with -2, against the ratio 1/3."""
    module = nn.Sequential(nn.Linear(1, 3), nn.ReLU(), nn.Linear(3, 2)).double()
    with torch.no_grad():
        module[0].weight.copy_(torch.tensor([[4.0], [4.0], [-4.0]]))
        module[0].bias.copy_(torch.tensor([1.0, 5.0, -2.0]))
    x, y = torch.zeros(1, 1).double(), torch.tensor([0])
    found = regulariser(Task(trace(module, x), x, y, 0.1, Linf()))
    center = torch.tensor([1.0, 5.0, -2.0]) - 4 / 3
    squares = (center**2)[:2].sum() / (center**2)[2]
    ratio = min(float(squares), 1 / float(squares))
    assert float(found) == pytest.approx((0.25 + (0.5 - 1 / 3) + max(0.0, 0.5 - ratio)) / 0.5)


def test_warming_up_ends_with_the_loss_itself(modules, batches) -> None:
    module, (x, y) = modules(), batches()
    with torch.no_grad():
        module[0].weight.mul_(8)
    net, loss = trace(module, x), IBP()
    warm = WarmUp(loss=loss, target=0.2)
    assert torch.equal(warm(net, x, y, 0.2), loss(net, x, y, 0.2))
    assert warm(net, x, y, 0.1) > loss(net, x, y, 0.1)
    assert bool(warm(net, x, y, 0.0).isfinite())


def test_gradients_of_regularised_losses(modules, images, batches) -> None:
    for loss in (IBP(), SABR()):
        check_gradient(WarmUp(loss=loss, target=0.5), modules(), *batches(), 0.1)
        check_gradient(WarmUp(loss=loss, target=0.5), images(), *batches(image=True), 0.05)


def test_l1_counts_matrices_and_kernels(images) -> None:
    module = images()
    kernels = [module[0].weight, module[4].weight, module[8].weight]
    assert float(l1(module)) == pytest.approx(sum(float(k.abs().sum()) for k in kernels))
