"""Lipschitz constants: equal to enumerated ones on small networks, never below what is sampled, or a clear reason."""

from __future__ import annotations

import itertools
import math
import time

import pytest
import torch
from scipy.optimize import linprog
from torch import Tensor, nn

from verifier.errors import UnsupportedError
from verifier.frontends.torch import trace
from verifier.graph import Graph
from verifier.jacobian.lipschitz import Effort, Lipschitz, Method, lipschitz
from verifier.jacobian.objective import Norm, objective
from verifier.sets import Ball, Box
from verifier.transforms.differentiate import push_forward
from verifier.transforms.switches import join_switches

NORMS: tuple[Norm, ...] = ("inf", "2", "1")
ORDER = {"inf": math.inf, "2": 2, "1": 1}


def relu_net(seed: int, inputs: int, widths: tuple[int, ...], outputs: int) -> nn.Sequential:
    torch.manual_seed(seed)
    layers: list[nn.Module] = []
    for a, b in itertools.pairwise((inputs, *widths, outputs)):
        layers += [nn.Linear(a, b), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def graph_of(net: nn.Module, *shape: int) -> Graph:
    return trace(net, torch.zeros(1, *shape)).graph(torch.float64)


def unit_box(inputs: int, radius: float = 1.0) -> Box:
    return Box.around(torch.zeros(1, 1, inputs), radius)


def enumerated(net: nn.Sequential, radius: float, norm: Norm, rows: Tensor) -> float:
    """The largest norm over all activation patterns that some open part of the box has, by linear programs."""
    linear = [(m.weight.double(), m.bias.double()) for m in net if isinstance(m, nn.Linear)]
    inputs, best = linear[0][0].shape[1], 0.0

    def visit(depth: int, matrix: Tensor, shift: Tensor, halves: list[tuple[Tensor, float]]) -> None:
        nonlocal best
        weight, bias = linear[depth]
        matrix, shift = weight @ matrix, weight @ shift + bias
        if depth == len(linear) - 1:
            best = max(best, float(torch.linalg.matrix_norm(rows @ matrix, ORDER[norm])))
            return
        for signs in itertools.product((0.0, 1.0), repeat=len(shift)):
            sign = torch.tensor(signs, dtype=torch.float64)
            more = [
                (-(2 * s - 1) * m, float((2 * s - 1) * c))
                for s, m, c in zip(sign, matrix, shift, strict=True)
            ]
            if open_part([*halves, *more]):
                visit(depth + 1, sign[:, None] * matrix, sign * shift, [*halves, *more])

    def open_part(halves: list[tuple[Tensor, float]]) -> bool:
        """Whether more than a face of the box has all a x <= b: with room t > 0 to all."""
        a = torch.stack([torch.cat([m, m.norm()[None]]) for m, _ in halves]).detach().numpy()
        b = [c for _, c in halves]
        found = linprog([0.0] * inputs + [-1.0], a, b, bounds=[(-radius, radius)] * inputs + [(None, 1.0)])
        return found.status == 0 and -found.fun > 1e-9

    visit(0, torch.eye(inputs, dtype=torch.float64), torch.zeros(inputs, dtype=torch.float64), [])
    return best


def check_enumerated(seed: int, widths: tuple[int, ...], norm: Norm, rows: Tensor, seconds: float) -> None:
    net = relu_net(seed, 2, widths, rows.shape[1])
    with torch.no_grad():
        truth = enumerated(net, 1.0, norm, rows)
    effort = Effort(deadline=time.monotonic() + seconds, dtype=torch.float64, gap=1e-7)
    found = lipschitz(graph_of(net, 2), [unit_box(2)], norm, rows, effort)
    assert found.lower <= truth * (1 + 1e-9)
    assert truth * (1 - 1e-9) <= found.upper <= truth * (1 + 1e-6)


@pytest.mark.parametrize("norm", NORMS)
def test_equal_to_the_enumerated_constant(norm: Norm) -> None:
    check_enumerated(1, (3, 3), norm, torch.eye(1, dtype=torch.float64), 30.0)


@pytest.mark.full
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("seed", range(10, 16))
@pytest.mark.parametrize("widths", [(12,), (6, 6), (4, 4, 4)])
def test_equal_to_the_enumerated_constant_with_twelve_neurons(
    seed: int, widths: tuple[int, ...], norm: Norm
) -> None:
    rows = torch.eye(1 if norm == "2" else 2, dtype=torch.float64)
    check_enumerated(seed, widths, norm, rows, 120.0)


class Gates(nn.Module):
    """A little of everything smooth."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.last = nn.Linear(3, 6), nn.Linear(3, 6), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.sigmoid(self.first(x)) * torch.tanh(self.second(x))
        return self.last(nn.functional.layer_norm(h, (6,)) + nn.functional.softplus(h))


def cases() -> dict[str, nn.Module]:
    torch.manual_seed(5)
    return {
        "relu": relu_net(1, 3, (8, 8), 2),
        "leaky": nn.Sequential(nn.Linear(3, 8), nn.LeakyReLU(0.1), nn.Linear(8, 2)),
        "clip": nn.Sequential(nn.Linear(3, 8), nn.Hardtanh(-0.2, 0.4), nn.Linear(8, 2)),
        "tanh": nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 2)),
        "gelu": nn.Sequential(nn.Linear(3, 8), nn.GELU(), nn.Linear(8, 2)),
        "gates": Gates(),
        "softmax": nn.Sequential(nn.Linear(3, 5), nn.Softmax(-1), nn.Linear(5, 2)),
        "linear": nn.Linear(3, 2),
    }


def sampled(net: nn.Module, norm: Norm, rows: Tensor, radius: float, count: int) -> float:
    generator = torch.Generator().manual_seed(3)
    x = radius * (2 * torch.rand(count, 3, generator=generator, dtype=torch.float64) - 1)
    jacobian = torch.func.vmap(torch.func.jacrev(lambda v: rows @ net(v.unsqueeze(0))[0]))(x)
    return float(torch.linalg.matrix_norm(jacobian, ORDER[norm]).amax().detach())


def check_sampled(name: str, norm: Norm, rows: Tensor, count: int, seconds: float) -> Lipschitz:
    net = cases()[name]
    graph = graph_of(net, 3)
    effort = Effort(deadline=time.monotonic() + seconds)
    found = lipschitz(graph, [unit_box(3, 0.5)], norm, rows, effort)
    truth = sampled(net.double(), norm, rows, 0.5, count)
    assert found.lower * (1 - 1e-6) <= found.upper
    assert all(bound.value >= truth * (1 - 1e-6) for bound in found.bounds), found.bounds
    if found.exact_norm:
        assert found.lower >= 0.5 * truth
    overall = lipschitz(graph, None, norm, rows)
    assert overall.upper >= truth * (1 - 1e-6)
    assert overall.scope == "global"
    return found


SOME = [(name, "inf") for name in cases()] + [("relu", "2"), ("gates", "2"), ("relu", "1"), ("linear", "2")]


@pytest.mark.parametrize(("name", "norm"), SOME)
def test_never_below_a_sampled_norm(name: str, norm: Norm) -> None:
    check_sampled(name, norm, torch.eye(2, dtype=torch.float64), 500, 0.5)


@pytest.mark.full
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("name", list(cases()))
def test_never_below_a_million_sampled_norms(name: str, norm: Norm) -> None:
    check_sampled(name, norm, torch.tensor([[1.0, -1.0]], dtype=torch.float64), 10**6, 20.0)


def test_local_bounds_are_ordered_and_below_the_global_one() -> None:
    net = relu_net(2, 3, (10, 10), 1)
    rows = torch.eye(1, dtype=torch.float64)
    effort = Effort(deadline=time.monotonic() + 3)
    found = lipschitz(graph_of(net, 3), [unit_box(3, 0.3)], "inf", rows, effort)
    values = {bound.method: bound.value for bound in found.bounds}
    assert values[Method.CROWN] <= values[Method.INTERVAL]
    overall = lipschitz(graph_of(net, 3), None, "inf", rows)
    assert found.upper <= overall.upper
    assert found.gap < 1.01


def test_balls() -> None:
    net = relu_net(4, 3, (8,), 1)
    rows = torch.eye(1, dtype=torch.float64)
    ball = Ball.around(torch.zeros(1, 1, 3), 0.5, 2)
    methods = (Method.CROWN, Method.OPTIMISED)
    inside = lipschitz(graph_of(net, 3), [ball], "2", rows, Effort(methods))
    around = lipschitz(graph_of(net, 3), [unit_box(3, 0.5)], "2", rows, Effort(methods))
    assert inside.upper <= around.upper * (1 + 1e-6)
    point = torch.randn(2000, 3)
    point = 0.5 * point / point.norm(dim=1, keepdim=True) * torch.rand(2000, 1)
    jacobian = torch.func.vmap(torch.func.jacrev(lambda v: net(v)))(point)
    assert inside.upper >= float(torch.linalg.matrix_norm(jacobian, 2).amax().detach())
    assert inside.point is not None and float(inside.point.norm()) <= 0.5 * (1 + 1e-6)


class Jump(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.where(x > 0.25, x + 1, x)


class Root(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.sqrt(torch.relu(x))


class Floor(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.floor(x) * x


def test_a_jump_an_infinite_derivative_and_no_derivative() -> None:
    rows = torch.eye(1, dtype=torch.float64)
    found = lipschitz(graph_of(Jump(), 1), [unit_box(1)], "inf", rows)
    assert found.upper == math.inf and "jump" in found.reason
    off = lipschitz(graph_of(Jump(), 1), [unit_box(1, 0.2)], "inf", rows)
    assert off.upper == pytest.approx(1.0)
    root = lipschitz(graph_of(Root(), 1), [unit_box(1)], "inf", rows, Effort(deadline=time.monotonic() + 1))
    assert root.upper == math.inf and "infinite" in root.reason
    assert lipschitz(graph_of(Root(), 1), None, "inf", rows).upper == math.inf
    floor = graph_of(Floor(), 1)
    assert "jump" in lipschitz(floor, [unit_box(1)], "inf", rows).reason
    with pytest.raises(UnsupportedError, match="jump"):
        lipschitz(floor, None, "inf", rows)


@pytest.mark.parametrize("name", list(cases()))
def test_jacobian_vector_products(name: str) -> None:
    net = cases()[name].double()
    pushed = push_forward(graph_of(net.float(), 3))
    net = net.double()
    x, v = torch.randn(2, 7, 3, dtype=torch.float64)
    _, truth = torch.func.jvp(net, (x,), (v,))
    for graph in (pushed, join_switches(pushed)):
        found = graph.evaluate([x.unsqueeze(1), v.unsqueeze(1)])[0].squeeze(1)
        assert torch.allclose(found, truth, atol=1e-12)


@pytest.mark.parametrize(("norm", "outputs"), [*[(norm, 2) for norm in NORMS], ("2", 5)])
def test_objectives_are_the_norms(norm: Norm, outputs: int) -> None:
    net = relu_net(7, 3, (8, 8), outputs).double()
    asked = objective(graph_of(net.float(), 3), norm, torch.eye(outputs, dtype=torch.float64))
    net = net.double()
    x = torch.randn(50, 3, dtype=torch.float64)
    jacobian = torch.func.vmap(torch.func.jacrev(net))(x)
    truth = torch.linalg.matrix_norm(jacobian, "fro" if (norm, outputs) == ("2", 5) else ORDER[norm])
    by_seed = [
        asked.graph.evaluate([x.unsqueeze(1), s.expand(len(x), *s.shape)])[0].amax(1) for s in asked.seeds
    ]
    found = torch.stack(by_seed, 1).amax(1)
    found = found if asked.power == 1 else found.sqrt()
    if (norm, outputs) == ("2", 2):  # in many directions, each a little too long
        assert (found >= truth).all() and (found <= 1.0006 * truth).all()
    else:
        assert torch.allclose(found, truth, atol=1e-12)


class Both(nn.Module):
    """What decides a ReLU's derivative is also a factor: x^2 for x > 0, whose slope has no bound."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x) * x


def test_a_value_that_switches_and_counts_has_its_whole_range() -> None:
    rows = torch.eye(1, dtype=torch.float64)
    assert lipschitz(graph_of(Both(), 1), None, "inf", rows).upper == math.inf
    found = lipschitz(graph_of(Both(), 1), [unit_box(1)], "inf", rows, Effort(deadline=time.monotonic() + 2))
    assert 2 * (1 - 1e-6) <= found.upper <= 2.5
