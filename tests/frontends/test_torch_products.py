"""Modules with attention, norms, gates and products: traced, compared with torch, and bounded."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from verifier.bounds.compute import compute_bounds
from verifier.frontends.torch import trace
from verifier.ops.gated import Gated
from verifier.sets import Box
from verifier.transforms.fold import fold
from verifier.transforms.prepare import prepare


class Lambda(nn.Module):
    """A function of the input and of a weight matrix."""

    def __init__(self, function: Callable[..., Tensor], size: int = 4) -> None:
        super().__init__()
        self.function = function
        self.linear = nn.Linear(size, size)
        self.other = nn.Linear(size, size)

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, x)


class Quadratic(nn.Module):
    """(W_r x + b_r)(W_g x + b_g) + W_b (x * x) + c, then ReLU."""

    def __init__(self) -> None:
        super().__init__()
        self.r, self.g, self.b = nn.Linear(4, 3), nn.Linear(4, 3), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return (self.r(x) * self.g(x) + self.b(x * x)).relu()


class PolyNorm(nn.Module):
    """w0 N(x^3) + w1 N(x^2) + w2 N(x) + b, N(y) = y rsqrt(mean(y^2) + 1e-6)."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3) / 3)
        self.bias = nn.Parameter(torch.zeros(1))

    @staticmethod
    def normed(y: Tensor) -> Tensor:
        return y * torch.rsqrt(y.pow(2).mean(-1, keepdim=True) + 1e-6)

    def forward(self, x: Tensor) -> Tensor:
        parts = [self.weight[2 - k] * self.normed(x ** (k + 1)) for k in range(3)]
        return parts[0] + parts[1] + parts[2] + self.bias


class Heads(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.attention(x, x, x, need_weights=False)[0]


def heads(m: Lambda, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    q, k, v = (f(x).view(1, 3, 2, 2).transpose(1, 2) for f in (m.linear, m.other, m.linear))
    return q, k, v


ALLOWED = torch.tensor([[True, False, True], [True, True, False], [False, False, True]])
MODULES = {
    "causal": (Lambda(lambda m, x: F.scaled_dot_product_attention(*heads(m, x), is_causal=True)), (3, 4)),
    "masked": (Lambda(lambda m, x: F.scaled_dot_product_attention(*heads(m, x), attn_mask=ALLOWED)), (3, 4)),
    "additive": (
        Lambda(
            lambda m, x: F.scaled_dot_product_attention(
                *heads(m, x), attn_mask=torch.ones(3, 3).tril(), scale=0.3
            )
        ),
        (3, 4),
    ),
    "multihead": (Heads(), (3, 4)),
    "encoder": (nn.TransformerEncoderLayer(4, 2, 8, batch_first=True, dropout=0.0), (3, 4)),
    "layer norm": (nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4)), (4,)),
    "rms norm": (nn.Sequential(nn.Linear(4, 4), nn.RMSNorm(4, eps=1e-5)), (4,)),
    "rms norm without epsilon": (nn.Sequential(nn.Linear(4, 4), nn.RMSNorm(4)), (4,)),
    "group norm": (nn.GroupNorm(2, 4), (4, 2, 2)),
    "instance norm": (nn.InstanceNorm2d(2, affine=True), (2, 2, 2)),
    "normalize": (Lambda(lambda m, x: F.normalize(m.linear(x), dim=-1)), (4,)),
    "norm": (Lambda(lambda m, x: torch.linalg.vector_norm(m.linear(x), dim=-1)), (4,)),
    "norm 1": (Lambda(lambda m, x: m.linear(x).norm(p=1, dim=-1)), (4,)),
    "largest": (Lambda(lambda m, x: torch.linalg.vector_norm(m.linear(x), ord=float("inf"), dim=-1)), (4,)),
    "variance": (Lambda(lambda m, x: m.linear(x).var(-1) + m.other(x).var(-1, correction=0)), (4,)),
    "log softmax": (Lambda(lambda m, x: m.linear(x).log_softmax(-1)), (4,)),
    "log sum exp": (Lambda(lambda m, x: m.linear(x).logsumexp(-1)), (4,)),
    "product": (Lambda(lambda m, x: m.linear(x).prod(-1)), (4,)),
    "running product": (Lambda(lambda m, x: m.linear(x).cumprod(-1)), (4,)),
    "running sum": (Lambda(lambda m, x: m.linear(x).cumsum(-1) * x.flip(-1)), (4,)),
    "gate": (Lambda(lambda m, x: torch.sigmoid(m.linear(x)) * m.other(x)), (4,)),
    "two gates": (Lambda(lambda m, x: torch.sigmoid(m.linear(x)) * torch.tanh(m.other(x))), (4,)),
    "quotient": (Lambda(lambda m, x: m.linear(x) / (1 + m.other(x).exp())), (4,)),
    "reciprocal": (Lambda(lambda m, x: 2.0 / (3 + m.other(x).square())), (4,)),
    "glu": (Lambda(lambda m, x: F.glu(m.linear(x), -1)), (4,)),
    "where": (Lambda(lambda m, x: torch.where(m.linear(x) > m.other(x), x, m.other(x))), (4,)),
    "filled": (Lambda(lambda m, x: m.linear(x).masked_fill(m.other(x) < 0, 0.5)), (4,)),
    "strides": (Lambda(lambda m, x: m.linear(x)[..., ::2] * m.other(x).flip(-1)[..., 1::2]), (4,)),
    "sorted": (Lambda(lambda m, x: m.linear(x).sort(-1, descending=True).values), (4,)),
    "two largest": (
        Lambda(lambda m, x: (m.linear(x) >= m.linear(x).topk(2).values[..., -1:]) * m.other(x)),
        (4,),
    ),
    "einsum": (Lambda(lambda m, x: torch.einsum("bij,bkj->bik", m.linear(x), m.other(x))), (3, 4)),
    "quadratic": (Quadratic(), (4,)),
    "PolyNorm": (PolyNorm(), (4,)),
}


@pytest.mark.parametrize("name", MODULES)
def test_traced_and_bounded(name: str) -> None:
    """`trace` compares with the module on random points; bounds hold at corners and random points of boxes."""
    torch.manual_seed(0)
    module, shape = MODULES[name]
    for layer in module.modules():
        for parameter in layer.parameters(recurse=False):
            nn.init.normal_(parameter, std=0.7)
    x = torch.randn(2, *shape)
    model = trace(module.eval(), x)
    with torch.no_grad():
        graph = model.graph(torch.float64)
    box = Box.around(x.double().unsqueeze(1), 0.02)
    ready = fold(prepare(graph, [box.box().center]))
    widths = {}
    for method in ("interval", "crown", "alpha-crown"):
        found = compute_bounds(ready, [box], method).outputs[0]
        widths[method] = float((found.upper - found.lower).mean())
        for _ in range(20):
            share = torch.rand(2, 1, *shape, dtype=torch.float64).mul(2).round().div(2)
            (y,) = graph.evaluate([box.lower + share * (box.upper - box.lower)])
            slack = 1e-10 * (1 + y.abs())
            assert (y >= found.lower - slack).all() and (y <= found.upper + slack).all()
    assert widths["crown"] < 1 and widths["alpha-crown"] <= widths["crown"] * (1 + 1e-9)


def test_gates_are_joined() -> None:
    for name in ("gate", "two gates", "quotient", "glu"):
        module, shape = MODULES[name]
        graph = prepare(trace(module.eval(), torch.randn(1, *shape)).graph())
        assert any(isinstance(n.op, Gated) for n in graph.nodes), name
