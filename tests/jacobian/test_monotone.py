"""Signs of derivatives that are proved are those that are sampled."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from verifier import Options, VerifierError, lipschitz, monotonicity, trace


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
