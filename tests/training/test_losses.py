"""Losses: gradients, what equals what, and what they bound."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from verifier.attack.descent import DescentOptions
from verifier.bounds.compute import compute_bounds
from verifier.ops.piecewise_linear import Relu
from verifier.sets import Box
from verifier.training import CCIBP, CROWNIBP, IBP, MTLIBP, SABR, Adversarial, ExpIBP, Linf, Loss, trace
from verifier.training.losses import fused_entropy, small_boxes, worst_entropy
from verifier.training.task import Task

UNIT = Linf(clip=(0, 1))
LOSSES = [
    IBP(near=UNIT),
    IBP(near=UNIT, clean=0.5),
    CROWNIBP(near=UNIT),
    CROWNIBP(near=UNIT, beta=0.3),
    CROWNIBP(near=UNIT, fusion=True),
    CROWNIBP(near=UNIT, beta=0.6, fusion=True, clean=0.2),
    SABR(near=UNIT),
    SABR(near=UNIT, share=0.1, shrink=0.8),
    MTLIBP(near=UNIT, alpha=0.3),
    CCIBP(near=UNIT, alpha=0.3, reach=1.5),
    ExpIBP(near=UNIT, alpha=0.3),
    Adversarial(near=UNIT),
]


def described(loss: Loss) -> str:
    return repr(loss).replace("near=Linf(clip=(0, 1)), ", "")[:40]


def check_gradient(
    loss: Loss, module: nn.Module, x: Tensor, y: Tensor, eps: float, rel: float = 1e-5
) -> None:
    """Along random directions in all parameters, against central differences."""
    net = trace(module, x)
    module.train()

    def value() -> Tensor:
        torch.manual_seed(5)  # dropout
        return loss(net, x, y, eps)

    module.zero_grad()
    value().backward()
    generator = torch.Generator().manual_seed(2)
    parameters = list(module.parameters())
    for _ in range(3):
        ways = [torch.randn(p.shape, generator=generator, dtype=p.dtype) for p in parameters]
        slope = sum(float((p.grad * w).sum()) for p, w in zip(parameters, ways, strict=True))
        ends = []
        step = 1e-6
        for sign in (1, -2, 1):
            with torch.no_grad():
                for p, w in zip(parameters, ways, strict=True):
                    p.add_(sign * step * w)
                ends.append(float(value()))
        assert slope == pytest.approx((ends[0] - ends[1]) / (2 * step), rel=rel, abs=1e-7)


@pytest.mark.parametrize("loss", LOSSES, ids=described)
def test_gradients_against_finite_differences(loss: Loss, modules, batches) -> None:
    check_gradient(loss, modules(), *batches(), 0.1)


@pytest.mark.parametrize("loss", LOSSES, ids=described)
def test_gradients_through_smooth_activations(loss: Loss, modules, batches) -> None:
    """Their lines touch at points that are searched for, which the gradient takes as given."""
    module = modules()
    module[1], module[3] = nn.Tanh(), nn.Sigmoid()
    check_gradient(loss, module, *batches(), 0.1, rel=1e-2)


@pytest.mark.parametrize("loss", LOSSES, ids=described)
def test_gradients_through_batch_statistics_and_dropout(loss: Loss, images, batches) -> None:
    check_gradient(loss, images(), *batches(image=True), 0.05)


@pytest.mark.parametrize("loss", LOSSES, ids=described)
def test_without_a_radius_every_loss_is_the_clean_one(loss: Loss, modules, batches) -> None:
    module, (x, y) = modules(), batches()
    clean = functional.cross_entropy(module(x), y)
    assert torch.allclose(loss(trace(module, x), x, y, 0.0), clean, atol=1e-12)


@pytest.mark.parametrize("loss", LOSSES, ids=described)
def test_losses_fall_under_training(loss: Loss, images, batches) -> None:
    module, (x, y) = images(torch.float32), batches(24, image=True, dtype=torch.float32)
    net = trace(module, x)
    optimiser = torch.optim.Adam(module.parameters(), lr=5e-3)
    module.train()
    values = []
    for _ in range(30):
        value = loss(net, x, y, 0.02)
        optimiser.zero_grad()
        value.backward()
        optimiser.step()
        values.append(value.item())
    assert sum(values[-3:]) < 0.8 * sum(values[:3])


@pytest.mark.parametrize("image", [False, True])
@pytest.mark.parametrize("method", ["interval", "crown-ibp"])
def test_bounds_are_those_of_compute_bounds_up_to_rounding(
    method: str, image: bool, modules, images, batches
) -> None:
    """Of all scores, one row each; and inside, as rounding is not counted."""
    module, (x, y) = (images if image else modules)().eval(), batches(image=image)
    net = trace(module, x)
    task = Task(net, x, y, 0.1, UNIT)
    box = Box.around(x.unsqueeze(1), 0.1, (0, 1))
    counted = compute_bounds(net.graph(x), [box], method).outputs[0]
    if method == "interval":
        lower, upper = task.enclosures[net.graph(x).outputs[0]]
    else:
        rows = torch.eye(4, dtype=x.dtype).expand(len(x), 4, 4)
        lower, upper = task.backward(rows).unsqueeze(1), -task.backward(-rows).unsqueeze(1)
        intervals = task.enclosures[net.graph(x).outputs[0]]
        lower, upper = torch.maximum(lower, intervals.lower), torch.minimum(upper, intervals.upper)
    assert torch.allclose(lower, counted.lower, atol=1e-12)
    assert torch.allclose(upper, counted.upper, atol=1e-12)
    assert bool((counted.lower <= lower).all()) and bool((counted.upper >= upper).all())


@pytest.mark.parametrize("image", [False, True])
def test_losses_bound_the_cross_entropy_of_all_inputs_in_the_set(
    image: bool, modules, images, batches
) -> None:
    module, (x, y) = (images if image else modules)().eval(), batches(image=image)
    net = trace(module, x)
    noise = 2 * torch.rand(200, *x.shape, dtype=x.dtype, generator=torch.Generator().manual_seed(0)) - 1
    points = (x + 0.1 * noise.sign()).clamp(0, 1)
    scores = module(points.flatten(0, 1)).unflatten(0, points.shape[:2])
    worst = torch.stack([functional.cross_entropy(s, y, reduction="none") for s in scores]).amax(0)
    for loss in (IBP(near=UNIT), CROWNIBP(near=UNIT), CROWNIBP(near=UNIT, fusion=True)):
        assert bool((loss.robust(Task(net, x, y, 0.1, UNIT)) >= worst - 1e-12).all())


def test_fusion_equals_the_unfused_loss_of_two_classes_where_the_margin_has_one_bound() -> None:
    """A single affine layer: intervals and CROWN agree there."""
    torch.manual_seed(0)
    module = nn.Linear(6, 2).double()
    x, y = torch.rand(9, 6).double(), torch.randint(2, (9,))
    net = trace(module, x)
    plain, fused = (CROWNIBP(fusion=f).robust(Task(net, x, y, 0.2, Linf())) for f in (False, True))
    assert torch.allclose(plain, fused, atol=1e-12)


def test_fusion_of_two_classes_bounds_the_unfused_loss_from_above(batches) -> None:
    """With one margin the chord over the intervals' range is what is lost."""
    torch.manual_seed(0)
    module = nn.Sequential(
        nn.Linear(6, 20), nn.ReLU(), nn.Linear(20, 20), nn.ReLU(), nn.Linear(20, 2)
    ).double()
    x, y = batches()[0], torch.arange(7) % 2
    task = Task(trace(module, x), x, y, 0.1, Linf())
    plain = worst_entropy(torch.maximum(task.backward(task.rows), task.margins(task.enclosures).lower))
    fused = fused_entropy(task)
    assert bool((fused >= plain - 1e-12).all())
    assert bool((fused > plain + 1e-3).any())


def test_fusion_stays_finite_for_large_margins(modules, batches) -> None:
    module, (x, y) = modules(torch.float32), batches(dtype=torch.float32)
    with torch.no_grad():
        module[-1].weight.mul_(1e4)
    loss = CROWNIBP(fusion=True)(trace(module, x), x, y, 0.3)
    loss.backward()
    assert bool(loss.isfinite())
    assert all(bool(p.grad.isfinite().all()) for p in module.parameters())


def test_small_boxes_lie_in_the_set(modules, batches) -> None:
    module, (x, y) = modules(), batches()
    x[0] = 0.97  # the set is cut there
    task = Task(trace(module, x), x, y, 0.1, UNIT)
    small, whole = small_boxes(task, 0.4, DescentOptions(steps=8, starts=1)), task.inputs.box()
    assert bool((small.lower >= whole.lower - 1e-12).all()) and bool(
        (small.upper <= whole.upper + 1e-12).all()
    )
    assert torch.allclose(small.upper - small.lower, 0.4 * (whole.upper - whole.lower))


def test_limits_of_the_losses(modules, batches) -> None:
    """SABR with the whole box is IBP; the expressive ones run from the attack's loss to IBP."""
    module, (x, y) = modules(), batches()
    net = trace(module, x)
    ibp = IBP()(net, x, y, 0.1)
    assert torch.allclose(SABR(share=1.0)(net, x, y, 0.1), ibp)
    found = []
    for kind in (MTLIBP, CCIBP, ExpIBP):
        assert torch.allclose(kind(alpha=1.0)(net, x, y, 0.1), ibp)
        found.append(kind(alpha=0.0)(net, x, y, 0.1))
        between = replace(kind(), alpha=0.4)(net, x, y, 0.1)
        assert found[-1] < between < ibp
    assert torch.allclose(torch.stack(found), found[0])
    assert torch.equal(found[0], Adversarial()(net, x, y, 0.1))
    assert functional.cross_entropy(module(x), y) < found[0]


def test_a_radius_per_example_or_element(modules, batches) -> None:
    module, (x, y) = modules(), batches()
    net = trace(module, x)
    radii = torch.linspace(0, 0.2, len(x)).double()
    each = [IBP()(net, x[i : i + 1], y[i : i + 1], float(r)) for i, r in enumerate(radii)]
    assert torch.allclose(IBP()(net, x, y, radii.unsqueeze(1)), torch.stack(each).mean())


def test_only_neurons_that_may_change_their_sign_are_shrunk() -> None:
    """To [0, share of the upper end], as the authors of SABR do; active and inactive ones stay."""
    module = nn.Sequential(nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 3)).double()
    with torch.no_grad():
        for layer in (module[0], module[2]):
            layer.weight.copy_(torch.eye(3))
            layer.bias.zero_()
    x = torch.tensor([[0.5, 0.1, -0.5]]).double()
    task = Task(trace(module, x), x, torch.tensor([0]), 0.2, Linf())
    found = task.enclosed(task.inputs, shrink=0.8)
    (position,) = [i for i, n in enumerate(task.graph.nodes) if isinstance(n.op, Relu)]
    lower, upper = (t.flatten() for t in found[position])
    assert torch.allclose(lower, torch.tensor([0.3, 0.0, 0.0]).double())
    assert torch.allclose(upper, torch.tensor([0.7, 0.8 * 0.3, 0.0]).double())
