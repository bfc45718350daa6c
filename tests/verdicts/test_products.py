"""Networks that multiply their own values: bounds hold sampled points, and verdicts are right."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import verifier
from verifier import Box, Options, Property, Status, Y, compute_bounds
from verifier.bounds.compute import BoundMethod
from verifier.frontends.onnx import load
from verifier.frontends.torch import TorchModel
from verifier.specs.load import load_query
from verifier.specs.normalise import normalise

METHODS: list[BoundMethod] = ["interval", "forward", "crown", "crown-ibp", "alpha-crown"]


class Gated(nn.Module):
    """A gate, a square, and scores of linear attention without a softmax."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)
        self.q, self.k, self.v = nn.Linear(2, 2), nn.Linear(2, 2), nn.Linear(2, 2)
        self.last = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.relu(self.a(x)) * self.b(x) + 0.1 * self.b(x) ** 2
        h = h.reshape(-1, 2, 2)
        return self.last(((self.q(h) @ self.k(h).mT) @ self.v(h)).flatten(1))


@pytest.fixture(scope="module")
def gated() -> tuple[nn.Module, TorchModel]:
    net = Gated().eval()
    return net, verifier.trace(net, torch.randn(1, 4))


def sampled(inputs: Box, count: int) -> Tensor:
    """[count * B, *shape] random points and corners, all instances' points one after the other."""
    shares = torch.rand(count, *inputs.lower.shape, dtype=torch.float64)
    shares[::2] = shares[::2].round()
    return (inputs.lower + shares * (inputs.upper - inputs.lower)).flatten(0, 1)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_bounds_hold_sampled_points(
    gated: tuple[nn.Module, TorchModel], method: BoundMethod, dtype: torch.dtype
) -> None:
    net, traced = gated
    x = torch.randn(3, 4)
    for eps in (1e-3, 0.5):
        inputs = Box.around(x.to(dtype), eps)
        found = compute_bounds(traced, inputs, method)
        y = net.double()(sampled(Box(inputs.lower.double(), inputs.upper.double()), 400)).unflatten(
            0, (400, 3)
        )
        net.float()
        assert (y >= found.lower.flatten(1)).all() and (y <= found.upper.flatten(1)).all()


def test_optimised_planes_are_tighter(gated: tuple[nn.Module, TorchModel]) -> None:
    net, inputs = gated[1], Box.around(torch.randn(3, 4), 0.1)
    widths = [compute_bounds(net, inputs, m) for m in ("crown", "alpha-crown")]
    plain, optimised = ((w.upper - w.lower).mean() for w in widths)
    assert optimised < 0.98 * plain


@pytest.mark.parametrize(
    ("limit", "expected"), [(0.5, Status.SAT), (1.0, Status.UNKNOWN), (1.1, Status.UNSAT)]
)
def test_verdicts(limit: float, expected: Status) -> None:
    """x y - x^2 / 4 + y^2 / 4 on [0, 1] x [-1, 1] has its maximum 1 at (1, 1)."""

    class Net(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            a, b = x[:, :1], x[:, 1:]
            return a * b - 0.25 * a * a + 0.25 * b.square()

    box = Box(torch.tensor([[0.0, -1.0]]), torch.tensor([[1.0, 1.0]]))
    net = verifier.trace(Net(), torch.zeros(1, 2))
    result = verifier.verify(net, Property(box, Y[0] < limit), timeout=20, options=Options(seed=0))
    if expected is Status.UNKNOWN:  # the maximum itself: anything but a proof
        assert result.status is not Status.UNSAT
    else:
        assert result.status is expected


@pytest.mark.full
@pytest.mark.parametrize("size", ["14", "118"])
def test_dev_models(shared: Path, size: str) -> None:
    """Power-flow networks with products and squares: outputs at sampled inputs lie inside all bounds."""
    folder = shared / "vnncomp-dev" / "ml4acopf_2024"
    model = next(folder.rglob(f"{size}_ieee_ml4acopf-linear-nonresidual.onnx*"))
    spec = sorted(folder.rglob(f"{size}_ieee_prop*.vnnlib*"))[0]
    problem = normalise(load_query(spec))
    lower, upper = (torch.from_numpy(t[:1]) for t in (problem.lower, problem.upper))
    net = load(model)
    shape = net.graph.nodes[net.graph.inputs[0]].shape
    inputs = Box(lower.view(1, *shape), upper.view(1, *shape))
    methods = METHODS if size == "14" else ["interval", "crown-ibp"]
    y = net.graph.evaluate([sampled(inputs, 2000)])[0]
    for method in methods:
        found = compute_bounds(net, inputs, method)
        assert (y >= found.lower).all() and (y <= found.upper).all(), method
