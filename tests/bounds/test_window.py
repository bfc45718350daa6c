"""Passes that end at the enclosures of earlier states."""

from __future__ import annotations

import pytest
import torch

from verifier.bounds.alpha import AlphaOptions
from verifier.bounds.backward import PassOptions, backward
from verifier.bounds.compute import compute_bounds
from verifier.bounds.crown import DEEP, DEPTH, Effort, inner_bounds
from verifier.graph import Builder, Graph, coefficients
from verifier.graph.graph import MANY
from verifier.ops.arithmetic import add
from verifier.ops.linear import Linear
from verifier.ops.movement import Take
from verifier.ops.product import multiply
from verifier.ops.sigmoid import sigmoid, tanh
from verifier.sets import Box

FEATURES = 3


def recurrence(steps: int, seed: int = 0) -> Graph:
    """s_t = sigmoid(A x_t) s_(t-1) + tanh(B x_t + C s_(t-1)), and two forms of tanh(s_T)."""
    generator = torch.Generator().manual_seed(seed)
    a, b, c, d = torch.randn(4, FEATURES, FEATURES, generator=generator, dtype=torch.float64) / FEATURES**0.5
    builder = Builder()
    x = builder.input("x", (steps * FEATURES,))
    state = None
    for t in range(steps):
        token = builder.add(Take(torch.arange(t * FEATURES, (t + 1) * FEATURES), (FEATURES,)), x)
        fresh = builder.add(Linear(b), token)
        if state is None:
            state = tanh(builder, fresh)
            continue
        fresh = tanh(builder, add(builder, fresh, builder.add(Linear(c / 2), state)))
        gate = sigmoid(builder, builder.add(Linear(a), token))
        state = add(builder, multiply(builder, gate, state), fresh)
    assert state is not None
    return builder.graph(builder.add(Linear(d[:2]), tanh(builder, state)))


def box(steps: int, radius: float) -> Box:
    generator = torch.Generator().manual_seed(1)
    return Box.around(torch.randn(2, steps * FEATURES, generator=generator, dtype=torch.float64), radius)


@pytest.mark.parametrize("method", ["crown", "alpha-crown"])
def test_bounds_hold_at_every_depth(method) -> None:
    graph, inputs = recurrence(12), box(12, 0.1)
    part = torch.rand(4000, 2, 12 * FEATURES, dtype=torch.float64).round()
    points = inputs.lower + part * (inputs.upper - inputs.lower)
    values = graph.evaluate([points.flatten(0, 1)])[0].view(4000, 2, 2)
    widths = []
    for depth in (1, 2, 4, 100):
        found = compute_bounds(graph, [inputs], method, options=AlphaOptions(iterations=4, depth=depth))
        assert (found.lower <= values).all() and (values <= found.upper).all()
        widths.append(float((found.upper - found.lower).mean()))
    whole = compute_bounds(graph, [inputs], method, options=AlphaOptions(iterations=4))
    assert widths[-1] == pytest.approx(float((whole.upper - whole.lower).mean()), rel=1e-12)
    assert widths[0] > widths[-1], "the passes do not end early"
    assert widths[2] < widths[0]


def test_the_work_for_states_does_not_grow_with_their_number() -> None:
    graph, effort = recurrence(DEEP), Effort()
    states = [i for i, n in enumerate(graph.repeats) if n > MANY and graph.stages[i] > 4 * DEPTH]
    assert len(states) > DEEP
    windows = [effort.window(graph, i) for i in states]
    assert max(len(w.nodes) for w in windows) < len(graph.nodes) / 2
    assert all(w.ends and all(graph.relaxed[j] for j in w.ends) for w in windows)
    assert effort.window(graph, graph.outputs[0]).ends == frozenset()


def test_short_recurrences_are_bounded_from_the_inputs() -> None:
    graph, effort = recurrence(8), Effort()
    assert not any(effort.window(graph, i).ends for i in range(len(graph.nodes)))


def gated(steps: int, mixing: bool) -> Graph:
    """s_t = sigmoid(A x_t) s_(t-1) + B x_t, where the product's second factor is C s_(t-1) with `mixing`, and tanh of
    all states."""
    generator = torch.Generator().manual_seed(2)
    a, b, c = torch.randn(3, FEATURES, FEATURES, generator=generator, dtype=torch.float64)
    builder = Builder()
    x = builder.input("x", (steps * FEATURES,))
    state = builder.constant(torch.ones(FEATURES, dtype=torch.float64))
    for t in range(steps):
        token = builder.add(Take(torch.arange(t * FEATURES, (t + 1) * FEATURES), (FEATURES,)), x)
        before = builder.add(Linear(c), state) if mixing else state
        kept = multiply(builder, sigmoid(builder, builder.add(Linear(a), token)), before)
        state = builder.rename(add(builder, kept, builder.add(Linear(b), token)), f"state{t}")
    return builder.graph(tanh(builder, state))


@pytest.mark.parametrize("mixing", [False, True])
def test_a_state_that_is_read_element_by_element_ends_a_pass_without_loss(mixing: bool) -> None:
    graph = gated(6, mixing)
    target, last = graph.by_name["state4"], graph.by_name["state3"]
    window = graph.state_window(target)
    assert window is not None and graph.by_name["state2"] not in window.nodes
    mixed = [i for i in graph.users[last] if isinstance(graph.nodes[i].op, Linear)]
    assert mixing == bool(mixed) and all(graph.state_window(i) is None for i in mixed), "elements meet there"
    inputs = box(6, 0.2)
    near = inner_bounds(graph, [inputs], graph.outputs)
    far = inner_bounds(graph, [inputs], graph.outputs, effort=Effort(depth=1000))
    for i in (target, graph.outputs[0]):
        assert (near[i].lower >= far[i].lower - 1e-9).all() and (near[i].upper <= far[i].upper + 1e-9).all()


def test_tokens_that_are_read_twice_have_no_state_window() -> None:
    """Where a step reads what its state has seen, ending there would lose what they share."""
    builder = Builder()
    x = builder.input("x", (2 * FEATURES,))
    first, second = (
        builder.add(Take(torch.arange(k * FEATURES, (k + 1) * FEATURES), (FEATURES,)), x) for k in (0, 1)
    )
    state = builder.rename(add(builder, multiply(builder, tanh(builder, first), second), second), "state")
    graph = builder.graph(
        tanh(builder, add(builder, multiply(builder, sigmoid(builder, first), state), second))
    )
    assert len(graph.pieces) == 2
    assert all(graph.state_window(i) is None for i in graph.users[graph.users[graph.by_name["state"]][0]])


def test_the_end_of_a_pass_counts_its_rounding(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sums that may be taken in any order are taken in the worst one: each of 4095 terms is lost."""

    def one_after_the_other(a: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        total = torch.zeros(1, a.shape[1])
        for k in range(a.shape[2]):
            total = total + a[:, :, k] * x[:, k]
        return total

    monkeypatch.setattr(coefficients, "plain_dot", one_after_the_other)
    radius = torch.full((1, 4096), 2.0**-24)
    radius[0, 0] = 1.0
    builder = Builder()
    graph = builder.graph(builder.input("x", (4096,)))
    inputs = Box(-radius, radius)
    rows = coefficients.Dense(torch.ones(1, 1, 4096))
    how = PassOptions(ends=frozenset({0}))
    found = backward(graph, {0: rows}, {}, {0: inputs.box()}, how).minimum(graph, [inputs])
    assert float(found) <= -float(radius.double().sum())
