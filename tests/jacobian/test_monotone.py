"""Signs of derivatives that are proved are those that are sampled."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from verifier import Options, VerifierError, lipschitz, monotonicity, trace
from verifier.jacobian import decide


class Known(nn.Module):
    """Grows in the first input, falls in the second, neither in the third, and ignores the fourth."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        a, b, c, _ = x.unbind(-1)
        return (torch.relu(a) + 0.1 * a - torch.sigmoid(b) + (c - 0.5) ** 2).unsqueeze(-1)


def test_known_signs() -> None:
    model = trace(Known(), torch.zeros(1, 4))
    found = monotonicity(model, torch.rand(5, 4), 0.0, 1.0, method="crown")
    assert found.signs.tolist() == [[1, -1, 0, 2]] * 5
    assert [f.share for f in found.features] == [1, 1, 0, 1]
    assert found.features[0].increasing == found.features[1].decreasing == found.features[3].constant == 5
    assert found.rows()[1][2][-1] == "0.000"


@pytest.mark.parametrize("activation", [nn.ReLU(), nn.Tanh()])
@pytest.mark.parametrize("radius", [0.0, 0.05])
def test_sampled_derivatives_have_the_proved_sign(activation: nn.Module, radius: float) -> None:
    torch.manual_seed(2)
    net = nn.Sequential(nn.Linear(4, 12), activation, nn.Linear(12, 2))
    data = torch.rand(6, 4)
    found = monotonicity(trace(net, data[:1]), data, 0.0, 1.0, margin=(0, 1), radius=radius)
    assert (found.signs != 0).any()
    for k in range(4):
        at = data.unsqueeze(1) + radius * (2 * torch.rand(6, 500, 4) - 1)
        at[..., k] = torch.rand(6, 500)
        at.requires_grad_(True)
        y = net(at)
        (gradient,) = torch.autograd.grad((y[..., 0] - y[..., 1]).sum(), at)
        sign = found.signs[:, k]
        assert (gradient[sign == 1][..., k] >= 0).all() and (gradient[sign == -1][..., k] <= 0).all()


def test_bad_input_is_told() -> None:
    model = trace(nn.Linear(3, 2), torch.zeros(1, 3))
    data = torch.zeros(2, 3)
    with pytest.raises(VerifierError, match="name one"):
        monotonicity(model, data, 0, 1)
    with pytest.raises(VerifierError, match="features"):
        monotonicity(model, data, 0, 1, output=0, features=[3])
    with pytest.raises(VerifierError, match="3 elements"):
        monotonicity(model, torch.zeros(2, 4), 0, 1, output=0)
    with pytest.raises(VerifierError, match="norm"):
        lipschitz(model, norm=3)
    with pytest.raises(VerifierError, match="outputs 0 to 1"):
        lipschitz(model, margin=(0, 2))
    with pytest.raises(VerifierError, match="exclude"):
        lipschitz(model, output=0, margin=(0, 1))


def test_the_constant_of_a_linear_map() -> None:
    layer = nn.Linear(3, 2)
    model = trace(layer, torch.zeros(1, 3))
    for norm, order in ((float("inf"), float("inf")), (2, 2), (1, 1)):
        truth = float(torch.linalg.matrix_norm(layer.weight.detach().double(), order))
        found = lipschitz(model, norm=norm, options=Options(dtype="float64"))
        assert found.upper == pytest.approx(truth, rel=1e-6) and found.upper >= truth * (1 - 1e-12)
        assert found.scope == "global" and '"upper"' in found.to_json()


def test_branch_and_bound_decides_known_signs() -> None:
    model = trace(Known(), torch.zeros(1, 4))
    found = monotonicity(model, torch.rand(5, 4), 0.0, 1.0, method="interval", timeout=20)
    assert found.signs.tolist() == [[1, -1, 3, 2]] * 5
    assert found.features[2].neither == 5 and found.features[2].share == 0
    assert found.rows()[1][2][-3:] == ("5", "0", "0.000")


def slopes(net: nn.Module, data: torch.Tensor, k: int, radius: float, count: int) -> torch.Tensor:
    """Derivatives along feature k at points of every sample's box, [N, count]."""
    at = data.unsqueeze(1) + radius * (2 * torch.rand(len(data), count, data.shape[1]).double() - 1)
    at[..., k] = torch.linspace(0, 1, count).double()
    at.requires_grad_(True)
    (gradient,) = torch.autograd.grad(net(at).sum(), at)
    return gradient[..., k]


@pytest.mark.parametrize("radius", [0.0, 0.02])
@pytest.mark.parametrize("few", [0, 48])
@pytest.mark.parametrize("activation", [nn.ReLU(), nn.Tanh()])
def test_every_pair_is_decided_as_sampled(
    activation: nn.Module, few: int, radius: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By halves of boxes, and of neurons where few inputs are said to be none: of these some keep states that no input
    has, which their bounds do not tell."""
    monkeypatch.setattr(decide, "FEW", few)
    monkeypatch.setattr(decide, "INPUT_WORK", 0)
    torch.manual_seed(4)
    net = nn.Sequential(nn.Linear(3, 8), activation, nn.Linear(8, 6), activation, nn.Linear(6, 1))
    data = torch.rand(8, 3)
    options = Options(dtype="float64")
    found = monotonicity(
        trace(net, data[:1]),
        data,
        0.0,
        1.0,
        radius=radius,
        method="interval",
        timeout=2 if few == 0 else 20,
        options=options,
    )
    wide = net.double()
    for k in range(3):
        seen = slopes(wide, data.double(), k, radius, 4000)
        sign = found.signs[:, k]
        assert few == 0 or (sign != 0).all()
        assert (seen[sign == 1] >= 0).all() and (seen[sign == -1] <= 0).all()
        mixed = (seen.amax(1) > 1e-6) & (seen.amin(1) < -1e-6)
        assert (sign[mixed] == 3).all() or few == 0
        assert not ((sign == 1) | (sign == -1))[mixed].any()
    assert (found.signs == 3).any() and (found.signs.abs() == 1).any()


class Stairs(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (torch.where(x[..., :1] > 0.5, x[..., :1] + 1, x[..., :1]) + x[..., 1:]).relu()


def test_time_runs_out_and_functions_may_jump() -> None:
    torch.manual_seed(5)
    net = nn.Sequential(nn.Linear(6, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 1))
    data = torch.rand(20, 6)
    found = monotonicity(trace(net, data[:1]), data, 0.0, 1.0, radius=0.5, method="crown", timeout=0.3)
    assert found.seconds < 3 and (found.signs == 0).any()
    jumps = trace(Stairs(), torch.zeros(1, 2))
    found = monotonicity(jumps, torch.rand(3, 2), 0.0, 1.0, features=[0], timeout=5)
    assert (found.signs == 0).all() and found.features[0].open == 3
    with pytest.raises(VerifierError, match="positive"):
        monotonicity(jumps, torch.rand(3, 2), 0.0, 1.0, timeout=0)
