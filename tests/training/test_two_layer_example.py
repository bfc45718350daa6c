"""The convex program's network is what the program says."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("cvxpy", reason="the example needs cvxpy, an extra")
pytest.importorskip("sklearn", reason="the example needs scikit-learn, an extra")


@pytest.fixture
def two_layer(example: Callable[[str], Any]) -> Any:
    return example("robust_two_layer")


def test_the_network_has_the_programs_worst_margins(two_layer) -> None:
    """Bounds by CROWN and by the program agree, as no neuron changes its sign in a box; corners attain them."""
    eps, beta = 0.05, 1e-3
    x, y = two_layer.moons(16, seed=0)
    solution = two_layer.solve(x, y, eps, beta, count=30)
    module = two_layer.module_of(solution)
    points, labels = torch.from_numpy(x), torch.from_numpy(y > 0).long()
    worst = two_layer.worst_hinge(module, points, labels, eps)
    assert worst == pytest.approx(np.maximum(0, 1 - solution.margins).mean(), abs=1e-5)
    size = (np.linalg.norm(solution.hidden, axis=1) * np.abs(solution.outgoing)).sum()
    assert solution.value == pytest.approx(worst + beta * size, abs=1e-4)
    corners = (
        points.unsqueeze(0) + eps * torch.tensor([[a, b] for a in (-1, 1) for b in (-1, 1)]).double()[:, None]
    )
    scores = module(corners)
    margins = ((scores[..., 1] - scores[..., 0]) * torch.from_numpy(y)).amin(0)
    assert np.allclose(margins.detach().numpy(), solution.margins, atol=1e-5)


def test_patterns_hold_on_every_box(two_layer) -> None:
    x, _ = two_layer.moons(16, seed=0)
    points = np.concatenate([x, np.ones((16, 1))], 1)
    found = two_layer.patterns(points, 30, 0.05, seed=0)
    assert 1 < len(found) <= 30 and len(np.unique(found, axis=0)) == len(found)
    assert len(two_layer.patterns(points, 1000, 0.3, seed=0)) < len(
        two_layer.patterns(points, 1000, 0.01, seed=0)
    )
