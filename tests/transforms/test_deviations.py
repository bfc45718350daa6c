"""States of delta rules are where their norms say, and nothing is said of other rules."""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from verifier.bounds.crown import Effort, inner_bounds
from verifier.bounds.interval import interval_bounds
from verifier.frontends.onnx import load
from verifier.frontends.torch import trace
from verifier.graph import Graph
from verifier.models import RWKV7, DeltaNet, DeltaProduct, GatedDeltaNet
from verifier.ops.near import Near
from verifier.sets import Box
from verifier.transforms import delta_rules
from verifier.transforms.composites import write_out
from verifier.transforms.deviations import FEWEST, bound_deviations
from verifier.transforms.prepare import prepare
from verifier.transforms.quotients import bound_quotients
from verifier.transforms.unroll import unroll

WIDTH, STEPS = 8, 6
MODELS: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "DeltaNet": (lambda: DeltaNet(WIDTH, 2), STEPS - 1),
    "negative": (lambda: DeltaNet(WIDTH, 2, negative=True, conv=0), STEPS - 1),
    "gated": (lambda: GatedDeltaNet(WIDTH, 2, 3), STEPS - 1),
    "products": (lambda: DeltaProduct(WIDTH, 2, 3), 2 * STEPS - 1),
}

Rule = Callable[[Tensor | None, Tensor, Tensor, Tensor], Tensor]


def outer(a: Tensor, b: Tensor) -> Tensor:
    return a[..., None] * b[..., None, :]


def delta(s: Tensor | None, k: Tensor, v: Tensor, b: Tensor) -> Tensor:
    if s is None:
        return outer(b * k, v)
    return s + outer(b * k, v - (k[..., None] * s).sum(-2))


def other_order(s: Tensor | None, k: Tensor, v: Tensor, b: Tensor) -> Tensor:
    """The rate on the error, and the sum the other way round."""
    if s is None:
        return outer(b * k, v)
    return outer(k, b * (v - (s * k[..., None]).sum(-2))) + s


class Layer(nn.Module):
    """[1, T, 2 K + V + 1] to the last state, with rates in [0, most]."""

    def __init__(
        self, rule: Rule, most: float = 1.0, norm: float = 1.0, rate: Callable = torch.sigmoid
    ) -> None:
        super().__init__()
        self.rule, self.most, self.norm, self.rate = rule, most, norm, rate

    def forward(self, x: Tensor) -> Tensor:
        state = None
        for t in range(x.shape[1]):
            k = x[:, t, :3]
            k = k / (k.square().sum(-1, keepdim=True) / self.norm**2 + 1e-3).sqrt()
            state = self.rule(state, k, x[:, t, 3:5], self.most * self.rate(x[:, t, 5:6]))
        assert state is not None
        return state


def ready(graph: Graph) -> Graph:
    return bound_quotients(write_out(unroll(graph)))


def with_balls(graph: Graph, x: Tensor) -> tuple[Graph, list[int]]:
    """The graph with what is known of its states, and these."""
    found = bound_deviations(ready(graph), [x[None].double()], 3)
    return found, [i for i, node in enumerate(found.nodes) if isinstance(node.op, Near)]


def from_onnx(module: nn.Module, x: Tensor) -> Graph:
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter that needs no further package is deprecated
        torch.onnx.export(module, (x,), file, dynamo=False, opset_version=17)  # pyright: ignore[reportArgumentType]
    return load(file.getvalue()).graph


def check(graph: Graph, states: list[int], x: Tensor, radius: float) -> None:
    """States at points of a box, many at its corners, are within their distances and bounds."""
    box = Box.around(x[None].double(), radius)
    noise = 2 * torch.rand(400, *x.shape, dtype=torch.float64) - 1
    noise[::2] = noise[::2].sign()
    radii = [graph.nodes[i].inputs[1] for i in states]
    values = graph.evaluate([x + radius * noise], [*states, *radii])
    for i, state, most in zip(states, values[: len(states)], values[len(states) :], strict=True):
        op = graph.nodes[i].op
        assert isinstance(op, Near)
        assert ((state - op.center).abs() <= most * (1 + 1e-9) + 1e-12).all()
    for bounds in (
        interval_bounds(graph, [box.box()]),
        inner_bounds(graph, [box], graph.outputs, effort=Effort(depth=4)),
    ):
        for i, state in zip(states, values[: len(states)], strict=True):
            assert (bounds[i].lower <= state).all() and (state <= bounds[i].upper).all()


@pytest.mark.parametrize("radius", [0.01, 0.3])
@pytest.mark.parametrize("name", MODELS)
def test_sampled_states_are_inside(name: str, radius: float) -> None:
    make, count = MODELS[name]
    module, x = make().eval().requires_grad_(False), torch.randn(1, STEPS, WIDTH)
    plain = trace(module, x).graph(torch.float64)
    graph, states = with_balls(plain, x)
    assert len(states) == count
    point = torch.randn(3, 1, STEPS, WIDTH, dtype=torch.float64)
    torch.testing.assert_close(graph.evaluate([point])[0], plain.evaluate([point])[0], atol=0, rtol=0)
    check(graph, states, x, radius)


@pytest.mark.parametrize("name", MODELS)
def test_intervals_are_never_wider_and_soon_narrower(name: str) -> None:
    steps = 12 // (1 + (name == "products"))
    module, x = MODELS[name][0]().eval().requires_grad_(False), torch.randn(1, steps, WIDTH)
    plain = ready(trace(module, x).graph(torch.float64))
    graph, states = with_balls(plain, x)
    box = Box.around(x[None].double(), 0.02).box()
    before, after = interval_bounds(plain, [box]), interval_bounds(graph, [box])
    for i in states:
        old, new = before[plain.by_name[graph.nodes[i].name]], after[i]
        assert (new.lower >= old.lower).all() and (new.upper <= old.upper).all()
    last = states[-1]
    old = before[plain.by_name[graph.nodes[last].name]].radius
    assert after[last].radius.mean() < 0.5 * old.mean()


def test_states_are_found_in_onnx() -> None:
    module, x = DeltaNet(WIDTH, 2).eval().requires_grad_(False), torch.randn(1, STEPS, WIDTH)
    graph, states = with_balls(from_onnx(module, x), x)
    assert len(states) == STEPS - 1
    check(graph, states, x, 0.05)


def test_the_recurrence_may_be_written_otherwise() -> None:
    x = torch.randn(1, STEPS, 6)
    for rule in (delta, other_order):
        graph, states = with_balls(trace(Layer(rule, 2.0), x).graph(torch.float64), x)
        assert len(states) == STEPS - 1
        check(graph, states, x, 0.1)


def low_rank(s: Tensor | None, k: Tensor, v: Tensor, b: Tensor) -> Tensor:
    """As in RWKV-7: what is read is not along what is written."""
    if s is None:
        return outer(b * k, v)
    return s + outer(b * k.flip(-1), v - (k[..., None] * s).sum(-2))


def added(s: Tensor | None, k: Tensor, v: Tensor, b: Tensor) -> Tensor:
    """What is read is added."""
    if s is None:
        return outer(b * k, v)
    return s + outer(b * k, v + (k[..., None] * s).sum(-2))


def mixed(s: Tensor | None, k: Tensor, v: Tensor, b: Tensor) -> Tensor:
    """A column is corrected by what is read of the other."""
    if s is None:
        return outer(b * k, v)
    return s + outer(b * k, v - (k[..., None] * s).sum(-2).flip(-1))


def scaled(s: Tensor | None, k: Tensor, v: Tensor, b: Tensor) -> Tensor:
    """The key that writes is twice the key that reads."""
    if s is None:
        return outer(b * k, v)
    return s + outer(b * (2 * k), v - (k[..., None] * s).sum(-2))


OTHERS = {
    "low rank": Layer(low_rank),
    "added": Layer(added),
    "mixed": Layer(mixed),
    "scaled": Layer(scaled),
    "rates to 3": Layer(delta, 3.0),
    "negative rates": Layer(delta, rate=torch.tanh),
    "keys to 2": Layer(delta, 1.0, 2.0),
}


@pytest.mark.parametrize("name", OTHERS)
def test_other_rules_stay(name: str) -> None:
    x = torch.randn(1, STEPS, 6)
    plain = ready(trace(OTHERS[name], x).graph(torch.float64))
    assert bound_deviations(plain, [x[None].double()], 1) is plain


def test_keys_may_be_longer_where_rates_are_smaller() -> None:
    x = torch.randn(1, STEPS, 6)
    graph, states = with_balls(trace(Layer(delta, 0.49, 2.0), x).graph(torch.float64), x)
    assert len(states) == STEPS - 1
    check(graph, states, x, 0.1)


def test_rwkv7_stays() -> None:
    model, x = RWKV7(8, 2).eval().requires_grad_(False), torch.randn(1, 5, 8)
    plain = ready(trace(model, x).graph(torch.float64))
    assert bound_deviations(plain, [x[None].double()], 1) is plain


def test_with_rates_beyond_2_it_would_be_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    """The check above does find states that are farther away: with rates of 3.5 errors turn and grow."""
    monkeypatch.setattr(delta_rules, "_limit", lambda graph, i: 1.0)
    x = torch.tensor([1.0, -0.5, 0.7, 0.0, 0.0, 2.0]).expand(1, 12, 6).contiguous()
    graph, states = with_balls(trace(Layer(delta, 4.0), x).graph(torch.float64), x)
    assert states
    with pytest.raises(AssertionError):
        check(graph, states, x, 0.01)


def test_several_centers_none_or_few_steps_change_nothing() -> None:
    x = torch.randn(1, STEPS, 6)
    plain = ready(trace(Layer(delta), x).graph(torch.float64))
    assert bound_deviations(plain, [], 3) is plain
    assert bound_deviations(plain, [x[None].double().expand(2, -1, -1, -1)], 3) is plain
    assert bound_deviations(plain, [x[None].double()]) is plain  # too short


def test_bounds_in_float32_hold_states_in_float64() -> None:
    module, x = DeltaNet(WIDTH, 2).eval().requires_grad_(False), torch.randn(1, FEWEST + 1, WIDTH)
    exact = prepare(trace(module, x).graph(torch.float64), [x[None].double()])
    states = [i for i, node in enumerate(exact.nodes) if isinstance(node.op, Near)]
    assert len(states) == FEWEST
    box = Box.around(x[None], 1e-4)
    bounds = interval_bounds(exact.to(torch.float32), [box.box()])
    points = torch.stack([x.double() + 1e-4 * torch.randn(1, FEWEST + 1, WIDTH).sign() for _ in range(50)])
    for i, state in zip(states, exact.evaluate([points], states), strict=True):
        assert (bounds[i].lower.double() <= state).all() and (state <= bounds[i].upper.double()).all()
