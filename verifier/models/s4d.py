"""h_t = exp(d A) h_(t-1) + u_t, y_t = 2 Re(C (exp(d A) - 1) / A . h_t) + D u_t per channel, A complex, diagonal"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from verifier.models.layer import Form, SequenceLayer, length
from verifier.models.linear_state_space import filtered


class S4D(SequenceLayer):
    """S4D: [B, T, hidden_size] to the same. Linear in its input but for GELU and GLU at the end; in parallel it is
    one matrix per channel. Complex numbers are written out as real and imaginary parts."""

    source = "Gu et al. 2022, arXiv 2206.11893"
    layout = "S4D of state-spaces/s4 (models/s4/s4d.py)"

    def __init__(self, hidden_size: int, state_size: int = 64, form: Form = "recurrent") -> None:
        super().__init__(form)
        self.D = nn.Parameter(torch.randn(hidden_size))
        self.kernel = _Kernel(hidden_size, state_size // 2)
        self.output_linear = nn.Sequential(nn.Conv1d(hidden_size, 2 * hidden_size, 1), nn.GLU(-2))

    def forward(self, x: Tensor) -> Tensor:
        y = filtered(x, self.kernel(length(x))) if self.form == "parallel" else self._steps(x)
        y = functional.gelu(y + self.D * x).transpose(1, 2)
        a, b = self.output_linear[0](y).chunk(2, 1)
        return (a * b.sigmoid()).transpose(1, 2)

    def _steps(self, u: Tensor) -> Tensor:
        (step_re, step_im), (read_re, read_im) = self.kernel.step(), self.kernel.read()
        re = im = None
        outputs = []
        for v in u.unbind(1):
            if re is None or im is None:
                re = v[..., None].expand(*v.shape, step_re.shape[-1])
                im = torch.zeros_like(re)
            else:
                re, im = step_re * re - step_im * im + v[..., None], step_re * im + step_im * re
            outputs.append(2 * (read_re * re - read_im * im).sum(-1))
        return torch.stack(outputs, 1)


class _Kernel(nn.Module):
    """Parameters of the filter; all complex numbers are pairs (real, imaginary) of [H, N]."""

    def __init__(self, size: int, states: int) -> None:
        super().__init__()
        self.log_dt = nn.Parameter(torch.empty(size).uniform_(math.log(0.001), math.log(0.1)))
        self.C = nn.Parameter(torch.randn(size, states, 2) * 0.5**0.5)
        self.log_A_real = nn.Parameter(torch.full((size, states), math.log(0.5)))
        self.A_imag = nn.Parameter((math.pi * torch.arange(states)).repeat(size, 1))

    def step(self) -> tuple[Tensor, Tensor]:
        """exp(d A)."""
        re, im = self._exponent()
        return re.exp() * im.cos(), re.exp() * im.sin()

    def read(self) -> tuple[Tensor, Tensor]:
        """C (exp(d A) - 1) / A."""
        a_re, a_im = -self.log_A_real.exp(), self.A_imag
        re, im = self.step()
        re = re - 1
        size = a_re.square() + a_im.square()
        re, im = (re * a_re + im * a_im) / size, (im * a_re - re * a_im) / size
        c_re, c_im = self.C[..., 0], self.C[..., 1]
        return c_re * re - c_im * im, c_re * im + c_im * re

    def forward(self, steps: int) -> Tensor:
        """The filter [H, T]."""
        re, im = self._exponent()
        times = torch.arange(steps).to(re)
        size, angle = (re[..., None] * times).exp(), im[..., None] * times
        read_re, read_im = self.read()
        return 2 * (size * (read_re[..., None] * angle.cos() - read_im[..., None] * angle.sin())).sum(-2)

    def _exponent(self) -> tuple[Tensor, Tensor]:
        dt = self.log_dt.exp()[:, None]
        return -dt * self.log_A_real.exp(), dt * self.A_imag
