"""Norms that are written out are known not to exceed what they cannot."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from verifier.bounds.compute import compute_bounds
from verifier.frontends.torch import trace
from verifier.ops.within import Within
from verifier.sets import Box
from verifier.transforms.prepare import prepare
from verifier.transforms.quotients import bound_quotients


class Function(nn.Module):
    def __init__(self, f: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.f, self.one = f, nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        return self.f(x * self.one)


def squares(x: Tensor, axes: int | tuple[int, ...] = -1) -> Tensor:
    return x.square().sum(axes, keepdim=True)


NORMS = {
    "rms": (lambda x: x / (x.square().mean(-1, keepdim=True) + 1e-5).sqrt(), 2.0),
    "rms, rsqrt": (lambda x: torch.rsqrt((x * x).mean(-1, keepdim=True) + 1e-5) * x, 2.0),
    "rms of three": (lambda x: x / (x.square().mean(1, keepdim=True) + 1e-5).sqrt(), 3**0.5),
    "rms of all": (lambda x: x / (x.square().mean((1, 2), keepdim=True) + 1e-5).sqrt(), 12**0.5),
    "l2": (lambda x: x / (squares(x) + 1e-6).sqrt(), 1.0),
    "l2, weighted": (lambda x: x * torch.rsqrt(0.25 * squares(x) + 0.1), 2.0),
    "l2, cut": (lambda x: x / squares(x).sqrt().clamp(min=1e-3), 1.0),
    "l2, torch": (lambda x: nn.functional.normalize(x, dim=1), 1.0),
    "heads": (lambda x: (y := x.unflatten(-1, (2, 2))) / (squares(y) + 1e-6).sqrt(), 1.0),
}
OTHERS = {
    "may be divided by 0": lambda x: x / squares(x).sqrt(),
    "may be divided by 0, cut at 0": lambda x: x * torch.rsqrt(squares(x) - 1),
    "other numbers": lambda x: x / ((x + 1).square().sum(-1, keepdim=True) + 1e-5).sqrt(),
    "other rows": lambda x: x / (squares(x).roll(1, 1) + 1e-5).sqrt(),
    "other columns": lambda x: x[..., :3] / (squares(x, 1)[..., 1:] + 1e-5).sqrt(),
    "negative": lambda x: x * torch.rsqrt(100 - squares(x)),
    "square": lambda x: x / (squares(x) + 1e-5),
}


@pytest.mark.parametrize("name", NORMS)
def test_quotients_are_bounded_by_what_they_reach(name: str) -> None:
    f, most = NORMS[name]
    x = torch.zeros(1, 3, 4)
    graph = trace(Function(f), torch.rand_like(x)).graph(torch.float64)
    changed = bound_quotients(graph)
    marks = [n.op for n in changed.nodes if isinstance(n.op, Within) and n.op.low < 0]
    assert [m.high for m in marks] == [pytest.approx(most)]
    points = 2 * torch.randn(500, 1, 3, 4, dtype=torch.float64)
    points[:, :, 0, 0] *= 100
    points[:, :, 1:] *= torch.rand(500, 1, 2, 1, dtype=torch.float64)
    points = points.clamp(-300, 300)
    values = graph.evaluate([points])[0]
    torch.testing.assert_close(changed.evaluate([points])[0], values, atol=0, rtol=0)
    assert values.abs().max() <= most and values.abs().max() > 0.97 * most
    for method in ("interval", "crown"):
        bounds = compute_bounds(prepare(graph), [Box.around(x[None].double(), 300)], method=method)
        assert isinstance(bounds.upper, Tensor) and isinstance(bounds.lower, Tensor)
        assert bounds.upper.max() <= 1.001 * most and (bounds.lower.flatten(1) <= values.flatten(1)).all()
        assert (values.flatten(1) <= bounds.upper.flatten(1)).all()


@pytest.mark.parametrize("name", OTHERS)
def test_other_quotients_stay(name: str) -> None:
    x = torch.rand(1, 3, 4) + 2
    graph = trace(Function(OTHERS[name]), x / 10 if name == "negative" else x).graph(torch.float64)
    assert bound_quotients(graph) is graph
