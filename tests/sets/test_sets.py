"""Input sets: minima against sampled points, minimisers, projections, casts, selection."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from verifier.graph.coefficients import contract
from verifier.sets import Ball, Box, InputSet, Polytope

BATCH, SHAPE = 4, (2, 3)


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def center() -> Tensor:
    return 0.5 * randn(BATCH, *SHAPE)


def polytope() -> Polytope:
    matrix = randn(BATCH, 2, *SHAPE, seed=1)
    bound = torch.stack([contract(matrix[:, [k]], center()).squeeze(1) + 0.1 for k in range(2)], 1)
    return Polytope(Box.around(center(), 0.5), matrix, bound)


KINDS = {
    "box": lambda: Box.around(center(), 0.3),
    "point": lambda: Box.around(center(), 0.0),
    "l2": lambda: Ball.around(center(), 0.7, 2),
    "l1": lambda: Ball.around(center(), 0.7, 1),
    "l2 cut": lambda: Ball.around(center(), 0.7, 2, clip=(-0.6, 0.6)),
    "polytope": polytope,
}


def contains(inputs: InputSet, at: Tensor, slack: float) -> Tensor:
    """Which points [B, P, *shape] are in the sets: [B, P]."""
    flat = at.flatten(2)
    box = inputs.box().map(lambda t: t.flatten(1).unsqueeze(1))
    inside = ((flat >= box.lower - slack) & (flat <= box.upper + slack)).all(2)
    if isinstance(inputs, Ball):
        distance = torch.linalg.vector_norm(flat - inputs.center.flatten(1).unsqueeze(1), ord=inputs.p, dim=2)
        inside &= distance <= inputs.radius.unsqueeze(1) + slack
    if isinstance(inputs, Polytope):
        excess = torch.einsum("bpn,bmn->bpm", flat, inputs.matrix.flatten(2)) - inputs.bound.unsqueeze(1)
        inside &= (excess <= slack).all(2)
    return inside


@pytest.mark.parametrize("kind", KINDS)
def test_minima_are_below_all_points_and_nearly_reached(kind: str) -> None:
    inputs = KINDS[kind]()
    forms = randn(BATCH, 5, *SHAPE, seed=2)
    least = inputs.minimum(forms)
    box = inputs.box()
    random = torch.rand(BATCH, 3000, *SHAPE, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    at = inputs.project(box.lower.unsqueeze(1) + random * (box.upper - box.lower).unsqueeze(1))
    inside = contains(inputs, at, 1e-9)
    assert inside.double().mean() > 0.3
    values = (
        contract(forms, at.flatten(0, 1))
        if forms.shape[0] == 1
        else torch.einsum("brn,bpn->bpr", forms.flatten(2), at.flatten(2))
    )
    values = torch.where(inside.unsqueeze(2), values, torch.inf)
    assert (values >= least.unsqueeze(1) - 1e-9).all()
    best = inputs.minimiser(forms)
    assert best.shape == forms.shape
    reached = (best * forms).flatten(2).sum(2)
    if kind in ("box", "point", "l2", "l1"):
        assert contains(inputs, best, 1e-9).all()
        assert torch.allclose(reached, least, atol=1e-9)
    else:
        middle = (center().unsqueeze(1) * forms).flatten(2).sum(2)
        assert (reached - least < 0.5 * (middle - least)).double().mean() > 0.8  # near the minimum


@pytest.mark.parametrize("kind", KINDS)
def test_shared_forms_and_selection(kind: str) -> None:
    inputs = KINDS[kind]()
    forms = randn(1, 5, *SHAPE, seed=2)
    assert torch.allclose(inputs.minimum(forms), inputs.minimum(forms.expand(BATCH, -1, -1, -1)))
    chosen = torch.tensor([2, 0])
    assert torch.allclose(inputs.index(chosen).minimum(forms), inputs.minimum(forms)[chosen])
    assert inputs.batch == BATCH and inputs.shape == SHAPE and inputs.index(chosen).batch == 2


@pytest.mark.parametrize("kind", KINDS)
def test_casts_only_grow(kind: str) -> None:
    inputs = KINDS[kind]()
    narrow = inputs.to(torch.float32)
    wide = narrow.box().to(torch.float64)
    assert (wide.lower <= inputs.box().lower).all() and (wide.upper >= inputs.box().upper).all()
    forms = randn(1, 50, *SHAPE, seed=4)
    grown = narrow.to(torch.float64).minimum(forms)
    slack = 1e-4 if kind == "polytope" else 1e-14  # multipliers differ: any are sound, none are exact
    assert (grown <= inputs.minimum(forms) + slack).all()
    assert torch.allclose(grown, inputs.minimum(forms), atol=1e-3)


def test_polytope_gains_over_its_box() -> None:
    inputs, forms = polytope(), randn(BATCH, 40, *SHAPE, seed=5)
    gain = inputs.minimum(forms) - inputs.base.minimum(forms)
    assert (gain >= -1e-12).all() and (gain > 1e-3).double().mean() > 0.5


def test_gradients_of_the_box_minimum() -> None:
    lower = randn(BATCH, *SHAPE).requires_grad_()
    upper = (lower + randn(BATCH, *SHAPE, seed=1).abs()).detach().requires_grad_()
    for batch in (1, BATCH):
        forms = randn(batch, 5, *SHAPE, seed=2).requires_grad_()
        assert torch.autograd.gradcheck(lambda a, low, up: Box(low, up).minimum(a), (forms, lower, upper))


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda x: Box.checked(x, x - 1), "lower <= upper"),
        (lambda x: Box.checked(x, x + torch.inf), "finite"),
        (lambda x: Box.checked(x * torch.nan, x), "finite"),
        (lambda x: Box(x, x[:, :1]), "shapes"),
        (lambda x: Ball.around(x, -1.0, 2), "not negative"),
        (lambda x: Ball.around(x, 1.0, 3), "p = 1 or 2"),
    ],
)
def test_bad_sets_are_refused(make, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        make(center())
