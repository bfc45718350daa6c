"""Univariate functions from ONNX and from torch: attributes, decompositions; values, and bounds around them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from tests.frontends.test_onnx_operators import C, Case
from verifier.bounds.crown import inner_bounds
from verifier.frontends.onnx import load
from verifier.frontends.replay import run
from verifier.frontends.torch import trace
from verifier.graph import Graph
from verifier.sets import Box

X = (2, 6)


LARGEST = float(np.finfo(np.float32).max)
"""What older exporters write for an end that is missing."""


def _one(value: float) -> C:
    return C(np.float32(value))


# (the node, the range of its arguments)
CASES = [
    *[
        (Case(op, (X,)), (-4.0, 4.0))
        for op in ("Sigmoid", "Tanh", "Softplus", "Softsign", "Erf", "Elu", "Selu", "Sin", "Cos", "Atan")
    ],
    *[
        (Case(op, (X,)), (-4.0, 4.0))
        for op in ("Sinh", "Cosh", "Asinh", "Floor", "Ceil", "Round", "HardSigmoid")
    ],
    *[(Case(op, (X,)), (-0.95, 0.95)) for op in ("Asin", "Acos", "Atanh", "Tan")],
    *[(Case(op, (X,)), (0.1, 4.0)) for op in ("Log", "Sqrt", "Reciprocal")],
    (Case("Acosh", (X,)), (1.1, 4.0)),
    (Case("Elu", (X,), {"alpha": 0.3}), (-4.0, 4.0)),
    (Case("Selu", (X,), {"alpha": 1.1, "gamma": 2.5}), (-4.0, 4.0)),
    (Case("Celu", (X,), {"alpha": 0.7}), (-4.0, 4.0)),
    (Case("Celu", (X,)), (-4.0, 4.0)),
    (Case("Mish", (X,), opset=18), (-4.0, 4.0)),
    (Case("HardSwish", (X,), opset=14), (-5.0, 5.0)),
    (Case("HardSigmoid", (X,), {"alpha": 0.1, "beta": 0.4}), (-7.0, 7.0)),
    (Case("Gelu", (X,), opset=20), (-4.0, 4.0)),
    (Case("Gelu", (X,), {"approximate": "tanh"}, opset=20), (-4.0, 4.0)),
    *[(Case("Pow", (X, _one(p)), note=f"{p:g}"), (-2.0, 2.0)) for p in (0.0, 1.0, 2.0, 3.0, 4.0, 7.0)],
    *[
        (Case("Pow", (X, _one(p)), note=f"{p:g}"), (0.3, 3.0))
        for p in (-1.0, -2.0, -3.0, 0.5, -0.5, 1.5, 0.3)
    ],
    *[(Case("Pow", (X, _one(p)), note=f"{p:g} left"), (-3.0, -0.3)) for p in (-1.0, -2.0, -3.0)],
    (Case("Pow", (_one(2.5), X), note="variable exponent"), (-2.0, 2.0)),
    (Case("Clip", (X, _one(-LARGEST), _one(1.0)), note="no lower end"), (-4.0, 4.0)),
    (Case("Clip", (X, _one(-1.0), _one(LARGEST)), note="no upper end"), (-4.0, 4.0)),
]


def _inputs(span: tuple[float, float], count: int, shape: tuple[int, ...]) -> np.ndarray:
    return np.random.default_rng(1).uniform(*span, (count, *shape)).astype(np.float32)


def _enclosed(graph: Graph, points: Tensor) -> None:
    """Bounds on boxes around the points hold the values at points inside, in both dtypes."""
    for dtype in (torch.float32, torch.float64):
        own = graph.to(dtype)
        radius = 0.05
        box = Box((points - radius).to(dtype), (points + radius).to(dtype))
        target = own.outputs[0]
        found = inner_bounds(own, [box], [target])[target]
        inside = (
            points
            + radius * (2 * torch.rand(points.shape, generator=torch.Generator().manual_seed(0)) - 1) * 0.999
        )
        value = graph.to(torch.float64).evaluate([inside.double()])[0]
        assert found.lower.isfinite().all() and found.upper.isfinite().all()
        assert (value >= found.lower.double()).all() and (value <= found.upper.double()).all()


@pytest.mark.parametrize(("case", "span"), CASES, ids=[str(c) for c, _ in CASES])
def test_onnx(case: Case, span: tuple[float, float]) -> None:
    model = load(case.model())
    x = _inputs(span, 5, X)
    ours = model.graph.evaluate([torch.from_numpy(x).double()])[0]
    theirs = torch.from_numpy(np.asarray(run(model, [x])[0])).double()
    torch.testing.assert_close(ours, theirs, atol=2e-6, rtol=4e-6)
    margin = 0.06
    inner = (span[0] + margin, span[1] - margin)
    _enclosed(model.graph, torch.from_numpy(_inputs(inner, 5, X)))


class Function(nn.Module):
    def __init__(self, f) -> None:
        super().__init__()
        self.f = f
        self.w = nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor) -> Tensor:
        return self.f(x * self.w)


FUNCTIONS = {
    "sigmoid": (torch.sigmoid, (-4.0, 4.0)),
    "tanh": (torch.tanh, (-4.0, 4.0)),
    "softplus": (functional.softplus, (-4.0, 4.0)),
    "softplus beta": (lambda x: functional.softplus(x, beta=3.0, threshold=9.0), (-4.0, 4.0)),
    "log sigmoid": (functional.logsigmoid, (-4.0, 4.0)),
    "softsign": (functional.softsign, (-4.0, 4.0)),
    "elu": (lambda x: functional.elu(x, 0.3), (-4.0, 4.0)),
    "selu": (functional.selu, (-4.0, 4.0)),
    "celu": (lambda x: functional.celu(x, 0.7), (-4.0, 4.0)),
    "gelu": (functional.gelu, (-4.0, 4.0)),
    "gelu tanh": (lambda x: functional.gelu(x, approximate="tanh"), (-4.0, 4.0)),
    "silu": (functional.silu, (-4.0, 4.0)),
    "mish": (functional.mish, (-4.0, 4.0)),
    "hardtanh": (lambda x: functional.hardtanh(x, -0.5, 2.0), (-4.0, 4.0)),
    "hardsigmoid": (functional.hardsigmoid, (-4.0, 4.0)),
    "hardswish": (functional.hardswish, (-4.0, 4.0)),
    "tanhshrink": (functional.tanhshrink, (-4.0, 4.0)),
    "erf": (torch.erf, (-3.0, 3.0)),
    "erfc": (torch.erfc, (-3.0, 3.0)),
    "log": (torch.log, (0.1, 4.0)),
    "log2": (torch.log2, (0.1, 4.0)),
    "log10": (torch.log10, (0.1, 4.0)),
    "log1p": (torch.log1p, (-0.8, 4.0)),
    "expm1": (torch.expm1, (-2.0, 2.0)),
    "exp2": (torch.exp2, (-2.0, 2.0)),
    "sqrt": (torch.sqrt, (0.1, 4.0)),
    "rsqrt": (torch.rsqrt, (0.1, 4.0)),
    "cube": (lambda x: x**3, (-2.0, 2.0)),
    "power -3": (lambda x: x**-3, (0.3, 2.0)),
    "power 1.5": (lambda x: x**1.5, (0.3, 2.0)),
    "base": (lambda x: 2.5**x, (-2.0, 2.0)),
    "sin": (torch.sin, (-7.0, 7.0)),
    "cos": (torch.cos, (-7.0, 7.0)),
    "tan": (torch.tan, (-1.3, 1.3)),
    "atan": (torch.atan, (-4.0, 4.0)),
    "asin": (torch.asin, (-0.9, 0.9)),
    "acos": (torch.acos, (-0.9, 0.9)),
    "sinh": (torch.sinh, (-3.0, 3.0)),
    "cosh": (torch.cosh, (-3.0, 3.0)),
    "asinh": (torch.asinh, (-3.0, 3.0)),
    "acosh": (torch.acosh, (1.2, 3.0)),
    "atanh": (torch.atanh, (-0.9, 0.9)),
    "floor": (torch.floor, (-4.0, 4.0)),
    "ceil": (torch.ceil, (-4.0, 4.0)),
    "round": (torch.round, (-4.0, 4.0)),
    "heaviside": (lambda x: torch.heaviside(x, torch.tensor(0.5).to(x)), (-4.0, 4.0)),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_torch(name: str) -> None:
    f, span = FUNCTIONS[name]
    inner = (span[0] + 0.06, span[1] - 0.06)
    x = torch.from_numpy(_inputs(inner, 5, (1, 6)))
    model = trace(Function(f), x[:, 0])
    graph = model.graph(torch.float64)
    ours = graph.evaluate([x.double()])[0]
    tolerance = 1e-6 if name in ("softplus", "softplus beta") else 1e-12
    torch.testing.assert_close(ours, f(x.double()), atol=tolerance, rtol=tolerance)
    _enclosed(graph, x)
