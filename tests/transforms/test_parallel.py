"""Gated recurrences in plain operators, and what is none."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction

import pytest
import torch
from torch import Tensor

from verifier.bounds.compute import compute_bounds
from verifier.graph import Builder, Graph, Value
from verifier.ops.arithmetic import ScaleShift, add, scale_shift
from verifier.ops.decay import SigmoidPower
from verifier.ops.exponential import Exp
from verifier.ops.linear import Linear
from verifier.ops.movement import reshape, take
from verifier.ops.power import power
from verifier.ops.product import Product, multiply
from verifier.ops.reduction import Sum
from verifier.ops.repeat import Repeat
from verifier.ops.select import stack
from verifier.ops.sigmoid import sigmoid, tanh
from verifier.sets import Box
from verifier.transforms import parallel as module
from verifier.transforms.composites import write_out
from verifier.transforms.parallel import parallel
from verifier.transforms.prepare import prepare

STEPS, INPUTS, KEYS, VALUES = 5, 3, 2, 3

Gate = Callable[[Builder, Value, Value | None], Value | None]
"""From what the gate's matrix makes of the token [KEYS, 1], and the state before."""

GATES: dict[str, Gate] = {
    "exp": lambda b, z, _: b.add(Exp(), scale_shift(b, z, scale=0.5, shift=-0.3)),
    "sigmoid": lambda b, z, _: sigmoid(b, z),
    "root": lambda b, z, _: power(b, sigmoid(b, z), 1 / 16),
    "power": lambda b, z, _: b.add(SigmoidPower(0.25), z),
    "constant": lambda b, z, _: b.constant(torch.tensor([[0.9], [-0.3]], dtype=torch.float64)),
    "zero": lambda b, z, _: b.constant(torch.tensor([[0.0], [0.7]], dtype=torch.float64)),
    "none": lambda b, z, _: None,
}
STATEFUL: Gate = lambda b, z, s: None if s is None else sigmoid(b, add(b, z, s))  # noqa: E731
UNKNOWN: Gate = lambda b, z, s: scale_shift(b, sigmoid(b, z), scale=0.5, shift=0.5)  # noqa: E731


def recurrence(
    gate: Gate, read: str = "all", steps: int = STEPS, keys: str = "products", spy: bool = False
) -> Graph:
    """o_t = sum over d of q_td S_td of every step, of every one by itself, or of the last one."""
    generator = torch.Generator().manual_seed(3)
    builder = Builder()
    x = builder.input("x", (steps, INPUTS))

    def projected(width: int) -> Value:
        weight = torch.randn(width, INPUTS, generator=generator, dtype=torch.float64)
        return builder.add(Linear(weight, weight[:, 0]), x)

    q, k, v, z = projected(KEYS), projected(KEYS), projected(VALUES), projected(KEYS)

    def row(value: Value, t: int, *shape: int) -> Value:
        return reshape(builder, take(builder, value, lambda w: w[t]), shape)

    def step(t: int, state: Value | None) -> Value:
        written = multiply(builder, row(k, t, KEYS, 1), row(v, t, 1, VALUES))
        if keys == "sums":
            written = tanh(builder, add(builder, row(k, t, KEYS, 1), row(v, t, 1, VALUES)))
        a = gate(builder, row(z, t, KEYS, 1), state)
        if state is None:
            return written
        return add(builder, state if a is None else multiply(builder, a, state), written)

    states: list[Value] = []
    for t in range(steps):
        states.append(step(t, states[-1] if states else None))
    if read == "all":
        queries = reshape(builder, q, (steps, KEYS, 1))
        found = builder.add(Sum((1,)), multiply(builder, queries, stack(builder, states)))
    else:
        times = range(steps) if read == "each" else [steps - 1]
        outputs = [builder.add(Sum((0,)), multiply(builder, row(q, t, KEYS, 1), states[t])) for t in times]
        found = stack(builder, outputs)
    found = reshape(builder, found, (-1,))
    return builder.graph(add(builder, found, tanh(builder, found)), *([states[1]] if spy else []))


def points(graph: Graph, count: int, seed: int = 0) -> Tensor:
    shape = graph.nodes[graph.inputs[0]].shape
    return torch.randn(count, *shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def same(graph: Graph, other: Graph) -> None:
    x = points(graph, 20)
    torch.testing.assert_close(graph.evaluate([x]), other.evaluate([x]), rtol=1e-12, atol=1e-12)


def width(graph: Graph, box: Box) -> Tensor:
    """Of CROWN's bounds, which hold on samples."""
    found = compute_bounds(graph, [box], "crown").outputs[0]
    share = torch.rand(200, *box.lower.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    values = graph.evaluate([(box.lower + share * (box.upper - box.lower)).flatten(0, 1)])[0]
    values = values.unflatten(0, (200, -1))
    assert ((found.lower <= values) & (values <= found.upper)).all()
    return (found.upper - found.lower).mean()


@pytest.mark.parametrize("read", ["all", "each", "last"])
@pytest.mark.parametrize("gate", GATES)
def test_it_is_equal_and_multiplies_no_states(gate: str, read: str) -> None:
    graph = recurrence(GATES[gate], read)
    changed = parallel(graph)
    assert changed is not graph
    same(graph, changed)
    assert max(changed.stages) <= 5 < max(recurrence(GATES["exp"]).stages)


@pytest.mark.parametrize("gate", ["exp", "root", "constant"])
def test_bounds_are_about_as_tight_from_the_start(gate: str) -> None:
    graph = recurrence(GATES[gate])
    box = Box.around(points(graph, 3, 5), 0.1)
    assert width(prepare(graph), box) < 1.03 * width(graph, box)


def test_states_may_be_no_products(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MORE", 10)
    graph = recurrence(GATES["sigmoid"], keys="sums")
    changed = parallel(graph)
    assert changed is not graph
    same(graph, changed)


@pytest.mark.parametrize(
    "graph",
    [
        recurrence(STATEFUL),
        recurrence(UNKNOWN),
        recurrence(GATES["exp"], spy=True),
        recurrence(GATES["exp"], steps=3),
        recurrence(GATES["exp"], steps=20),
    ],
    ids=["gate reads the state", "no known logarithm", "a state is an output", "short", "long"],
)
def test_what_is_none_is_left_alone_and_still_bounded(graph: Graph) -> None:
    assert parallel(graph) is graph
    box = Box.around(points(graph, 2, 5), 0.03)
    ready = prepare(graph)
    found = compute_bounds(ready, [box], "crown" if len(ready.nodes) < 150 else "interval").outputs[0]
    middle = graph.evaluate([(box.lower + box.upper) / 2])[0]
    assert (found.lower <= middle).all() and (middle <= found.upper).all()
    assert found.lower.isfinite().all() and found.upper.isfinite().all()


def test_a_state_that_is_read_elsewhere_stays() -> None:
    b = Builder()
    x = b.input("x", (STEPS, 2))
    rows = [take(b, x, lambda w, t=t: w[t]) for t in range(STEPS)]
    state = rows[0]
    for value in rows[1:]:
        state = add(b, multiply(b, sigmoid(b, value), state), value)
    read = b.add(Sum((0,)), multiply(b, rows[-1], state))
    graph = b.graph(add(b, read, b.add(Sum((0,)), tanh(b, state))))
    assert parallel(graph) is graph


def test_a_loop_that_starts_from_zero(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MORE", 10)
    body = Builder()
    state, key, gate, query = (body.input(name, (KEYS,)) for name in ("s", "k", "g", "q"))
    after = add(body, multiply(body, sigmoid(body, gate), state), key)
    read = body.add(Sum((0,)), multiply(body, query, after))
    loop = Repeat(body.graph(after, read), STEPS, 1, 3, 1)
    b = Builder()
    x = b.input("x", (STEPS, KEYS))
    start = b.constant(torch.zeros(KEYS, dtype=torch.float64))
    graph = b.graph(b.add(loop, start, x, scale_shift(b, x, shift=1.0), tanh(b, x)))
    unrolled = write_out(graph)
    changed = parallel(unrolled)
    assert changed is not unrolled
    same(unrolled, changed)


def test_powers_of_a_constant_gate_are_rounded_once() -> None:
    graph = parallel(recurrence(lambda b, z, _: b.constant(torch.tensor(0.9, dtype=torch.float64)), "last"))
    scales = [s for n in graph.nodes if isinstance(n.op, ScaleShift) and (s := n.op.scale) is not None]
    found = set(torch.cat([s.flatten() for s in scales]).tolist())
    assert {float(Fraction(0.9) ** n) for n in range(STEPS)} <= found
    assert any(isinstance(n.op, Product) for n in graph.nodes)
