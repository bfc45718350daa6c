"""GroupSort, MaxMin and Householder as operators: values from both front ends, bounds, derivatives, exact verdicts."""

from __future__ import annotations

import io
import warnings

import onnx
import pytest
import torch
from torch import Tensor, nn

import verifier
from verifier import Options, Property, Status, Y
from verifier.bounds.compute import compute_bounds
from verifier.frontends import onnx as onnx_frontend
from verifier.frontends.torch import trace
from verifier.graph import Builder, Interval
from verifier.models.sorting import GroupSort, Householder, MaxMin
from verifier.ops.piecewise_linear import Relu
from verifier.ops.sorting import Sorted, comparators
from verifier.sets import Box
from verifier.transforms.comparators import share_relus
from verifier.transforms.composites import write_out
from verifier.transforms.differentiate import differentiate
from verifier.transforms.prepare import prepare

ACTIVATIONS = {
    "sort 2": lambda: GroupSort(2),
    "sort 3": lambda: GroupSort(3),
    "sort 6": lambda: GroupSort(6),
    "maxmin": MaxMin,
    "householder 2": lambda: Householder(6, 2),
    "householder 3": lambda: Householder(6, 3),
}


def network(name: str) -> nn.Module:
    torch.manual_seed(sorted(ACTIVATIONS).index(name))
    f = ACTIVATIONS[name]
    return nn.Sequential(nn.Linear(4, 6), f(), nn.Linear(6, 6), f(), nn.Linear(6, 2)).double().eval()


def boxes(count: int) -> tuple[Tensor, Tensor]:
    rng = torch.Generator().manual_seed(1)
    center = torch.randn(count, 1, 4, generator=rng, dtype=torch.float64)
    return center, 10 ** (3 * torch.rand(count, 1, 1, generator=rng, dtype=torch.float64) - 2.5)


@pytest.mark.parametrize("method", ["interval", "crown", "alpha-crown"])
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_bounds_hold(name: str, method) -> None:
    if (name, method) == ("sort 6", "alpha-crown"):
        pytest.skip("takes long")
    module = network(name)
    graph = prepare(trace(module, torch.zeros(1, 4, dtype=torch.float64)).graph())
    center, radius = boxes(30)
    found = compute_bounds(graph, [Box(center - radius, center + radius)], method)
    for _ in range(40):
        x = center + radius * (2 * torch.rand(center.shape, dtype=torch.float64) - 1)
        y = module(x.squeeze(1)).unsqueeze(1)
        assert (found.lower <= y + 1e-12).all() and (y <= found.upper + 1e-12).all()


@pytest.mark.parametrize("name", [name for name in ACTIVATIONS if name != "sort 6"])
def test_derivatives_are_autograds_and_bounds_of_them_hold(name: str) -> None:
    module = network(name)
    graph = trace(module, torch.zeros(1, 4, dtype=torch.float64)).graph()
    steep = differentiate(graph, cotangent=torch.tensor([[1.0, -2.0]], dtype=torch.float64))
    center, radius = boxes(10)
    found = compute_bounds(steep, [Box(center - radius, center + radius)], "crown")
    for _ in range(20):
        x = center + radius * (2 * torch.rand(center.shape, dtype=torch.float64) - 1)
        leaf = x.squeeze(1).requires_grad_(True)
        own = torch.autograd.grad((module(leaf) * torch.tensor([1.0, -2.0])).sum(), leaf)[0].unsqueeze(1)
        torch.testing.assert_close(steep.evaluate([x])[0], own)
        assert (found.lower <= own + 1e-12).all() and (own <= found.upper + 1e-12).all()


@pytest.mark.parametrize("size", [2, 3, 5])
@pytest.mark.parametrize("largest", [False, True])
def test_a_sort_of_a_box_is_bounded_exactly(size: int, largest: bool) -> None:
    b = Builder()
    graph = b.graph(b.add(Sorted(1, size, largest), b.input("x", (3, size))))
    center = torch.randn(200, 3, size, dtype=torch.float64)
    radius = torch.rand(200, 3, size, dtype=torch.float64) * 3
    low, high = ((center + s * radius).sort(2, descending=largest).values for s in (-1, 1))
    plain = graph.nodes[-1].op.interval(Interval(center - radius, center + radius))
    assert torch.equal(plain.lower, low) and torch.equal(plain.upper, high)
    written = compute_bounds(write_out(graph), [Box(center - radius, center + radius)], "interval")
    torch.testing.assert_close(written.lower, low)
    torch.testing.assert_close(written.upper, high)


def test_the_sum_of_a_group_stays_exact() -> None:
    """max(a, b) + min(a, b) = a + b, by backward passes through one Relu."""
    for module in (GroupSort(2), MaxMin()):
        net = nn.Sequential(module, nn.Linear(2, 1, bias=False)).double()
        net[1].weight.data.fill_(1.0)
        graph = prepare(trace(net, torch.zeros(1, 2, dtype=torch.float64)).graph())
        assert sum(isinstance(n.op, Relu) for n in graph.nodes) == 1
        box = Box(torch.tensor([[[-1.0, -2.0]]]).double(), torch.tensor([[[3.0, 1.0]]]).double())
        found = compute_bounds(graph, [box], "alpha-crown")
        assert float(found.lower) == pytest.approx(-3, abs=1e-6) and float(found.upper) == pytest.approx(
            4, abs=1e-6
        )


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_onnx_and_torch_agree(name: str) -> None:
    module = network(name).float()
    x = torch.randn(1, 4)
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(module, (x,), file, dynamo=False, opset_version=17)
    onnx.checker.check_model(onnx.load_from_string(file.getvalue()))
    graph = onnx_frontend.load(file.getvalue()).graph.to(torch.float64)
    points = torch.randn(50, 1, 4)
    expected = module(points.squeeze(1)).double()
    torch.testing.assert_close(
        graph.evaluate([points.double()])[0].flatten(1), expected, rtol=1e-4, atol=1e-5
    )


def test_relus_are_shared_only_where_they_are_equal() -> None:
    class Four(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            a, b = x[:, :2], x[:, 2:]
            return torch.relu(a - b) + torch.relu(b - a) + torch.relu(a - b) + torch.relu(2 * (a - b))

    graph = trace(Four(), torch.zeros(1, 4)).graph().to(torch.float64)
    shared = share_relus(graph)
    relus = [sum(isinstance(n.op, Relu) for n in g.nodes) for g in (graph, shared)]
    assert relus == [4, 3] and share_relus(shared) is shared
    x = torch.randn(20, 1, 4, dtype=torch.float64)
    torch.testing.assert_close(shared.evaluate([x])[0], graph.evaluate([x])[0])


@pytest.mark.parametrize("name", ["sort 3", "maxmin", "householder 3"])
def test_search_decides_the_order(name: str) -> None:
    """A property that is off the exact maximum by little, on either side."""
    module = network(name)
    x = torch.zeros(1, 4, dtype=torch.float64)
    grid = 2 * torch.rand(200_000, 4, dtype=torch.float64) - 1
    top = float(module(grid)[:, 0].detach().max())
    model, box = trace(module, x), Box(-torch.ones(1, 4), torch.ones(1, 4))
    for limit, expected in ((top + 0.3 * abs(top), Status.UNSAT), (top - 0.05 * abs(top), Status.SAT)):
        result = verifier.verify(model, Property(box, Y[0] < limit), timeout=30, options=Options(seed=0))
        assert result.status is expected


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 6, 7, 9, 12])
def test_comparators_sort_all_zeros_and_ones(size: int) -> None:
    """Which proves that they sort anything (Knuth, 5.3.4, theorem Z)."""
    bits = (torch.arange(2**size).unsqueeze(1) >> torch.arange(size)) & 1
    for count in {1, 2, size // 2 + 1, size} & set(range(1, size + 1)):
        x = bits.clone()
        for layer in comparators(size, count):
            assert len({k for pair in layer for k in pair}) == 2 * len(layer)
            for i, j in layer:
                x[:, [i, j]] = torch.stack([x[:, i] | x[:, j], x[:, i] & x[:, j]], 1)
        assert torch.equal(x[:, :count], bits.sort(1, descending=True).values[:, :count])
