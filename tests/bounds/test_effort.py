"""What a pass need not do, or has no time for: elements that do not count, patience, deadlines."""

from __future__ import annotations

import math
import time
from collections.abc import Callable

import pytest
import torch

from verifier.bounds import alpha, backward, crown
from verifier.bounds.alpha import AlphaOptions, optimise
from verifier.bounds.backward import OutOfTime
from verifier.bounds.condense import condense
from verifier.bounds.crown import Effort, inner_bounds, specification_bound
from verifier.bounds.interval import interval_bounds
from verifier.bounds.rows import interval_is_exact
from verifier.graph import Builder, Graph
from verifier.graph.coefficients import Dense, Rows
from verifier.ops.convolution import Conv, Window
from verifier.ops.linear import Linear
from verifier.ops.matmul import matmul
from verifier.ops.movement import Take, permute, reshape, take
from verifier.ops.piecewise_linear import relu
from verifier.sets import Box

WINDOW = Window((3,), (1,), (1,), (1,), (1,))


def one_cell(cell: int = 3, layers: int = 3) -> Graph:
    """Cell `cell` of 12, in both channels, of convolutions that see one cell to either side."""
    generator = torch.Generator().manual_seed(0)
    builder = Builder()
    h = reshape(builder, builder.input("x", (24,)), (1, 2, 12))
    for layer in range(layers):
        h = relu(builder, h) if layer else h
        weight = torch.randn(2, 2, 3, generator=generator, dtype=torch.float64)
        h = builder.add(Conv(weight, torch.zeros(2).double(), WINDOW), h)
    return builder.graph(take(builder, h, lambda t: t[0, :, cell]))


def box(radius: float = 0.3) -> Box:
    x = torch.linspace(-1, 1, 24, dtype=torch.float64).sin().unsqueeze(0)
    return Box(x - radius, x + radius)


def rows(graph: Graph) -> Rows:
    return Rows(torch.arange(2).unsqueeze(0), torch.ones(1, 2).double(), graph.nodes[graph.outputs[0]].shape)


def lower(graph: Graph, inputs: Box, effort: Effort = Effort()) -> torch.Tensor:
    bounds = inner_bounds(graph, [inputs], graph.outputs, effort=effort)
    return specification_bound(graph, [inputs], graph.outputs[0], rows(graph), bounds).minimum(
        graph, [inputs]
    )


def test_what_one_cell_depends_on() -> None:
    graph = one_cell()
    relevant = graph.relevant(graph.outputs)
    convolutions = [i for i, n in enumerate(graph.nodes) if isinstance(n.op, Conv)]
    for distance, i in enumerate(reversed(convolutions)):
        seen = relevant[i].all(1).flatten().nonzero()[:, 0].tolist()
        assert seen == list(range(max(0, 3 - distance), 3 + distance + 1))
        assert torch.equal(relevant[i].all(1), relevant[i].any(1))
    assert int(relevant[graph.inputs[0]].sum()) == 2 * 7


def test_all_of_a_target_counts() -> None:
    graph = one_cell()
    middle = next(i for i, n in enumerate(graph.nodes) if isinstance(n.op, Conv))
    assert middle not in graph.relevant([*graph.outputs, middle])
    assert not graph.relevant([middle])


def test_bounds_are_the_same_without_the_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    graph, count = one_cell(), []
    plain = crown.backward

    def counted(graph: Graph, start, *args, **kwargs):
        count.extend(r.index.numel() for r in start.values())
        return plain(graph, start, *args, **kwargs)

    monkeypatch.setattr(crown, "backward", counted)
    found = lower(graph, box())
    few = sum(count)
    monkeypatch.setattr(Graph, "relevant", lambda *_: {})
    count.clear()
    assert torch.allclose(found, lower(graph, box()), rtol=1e-12)
    assert few < 0.8 * sum(count)


def test_condensed_without_the_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    graph, inputs = one_cell(), box(0.02)
    bounds = inner_bounds(graph, [inputs], graph.outputs)
    small = condense(graph, graph.outputs[0], bounds, 10**9)
    monkeypatch.setattr(Graph, "relevant", lambda *_: {})
    whole = condense(graph, graph.outputs[0], bounds, 10**9)
    assert small is not None
    assert whole is not None

    def kept(made) -> int:
        return sum(len(index) for _, index in made.operators.values())

    assert kept(small) < kept(whole)
    assert torch.allclose(lower(small.graph, inputs), lower(whole.graph, inputs), atol=1e-9)


def test_what_counts_after_all_is_in_the_doubt(monkeypatch: pytest.MonkeyPatch) -> None:
    """Relevance is an estimate: where it is wrong, condensed networks are loose and not unsound."""
    graph, inputs = one_cell(), box()
    bounds = inner_bounds(graph, [inputs], graph.outputs)
    none = {i: torch.zeros(n.shape, dtype=torch.bool) for i, n in enumerate(graph.nodes)}
    monkeypatch.setattr(Graph, "relevant", lambda *_: none)
    small = condense(graph, graph.outputs[0], bounds, 10**9)
    assert small is not None
    assert not small.operators
    generator = torch.Generator().manual_seed(1)
    at = inputs.lower + (inputs.upper - inputs.lower) * torch.rand(500, 24, generator=generator).double()
    values = graph.evaluate([at])[0]
    found = interval_bounds(small.graph, [inputs.box()])[small.graph.outputs[0]]
    assert bool(((found.lower <= values) & (values <= found.upper)).all())


def test_without_patience_intervals_stand() -> None:
    graph, inputs = one_cell(), box()
    found = inner_bounds(graph, [inputs], graph.outputs, effort=Effort(patience=time.monotonic() - 1))
    plain = interval_bounds(graph, [inputs.box()])
    assert all(torch.equal(found[i].lower, plain[i].lower) for i in found)
    loose = lower(graph, inputs, Effort(patience=time.monotonic() - 1))
    assert bool(loose.isfinite().all())
    assert bool((loose <= lower(graph, inputs)).all())


def ticking(calls: int) -> Callable[[], float]:
    """A clock that stands at 0 for so many calls and then is at 100."""
    left = [calls]

    def clock() -> float:
        left[0] -= 1
        return 0.0 if left[0] >= 0 else 100.0

    return clock


@pytest.mark.parametrize("calls", [8, 30, 60])
def test_patience_ends_in_the_middle(monkeypatch: pytest.MonkeyPatch, calls: int) -> None:
    """Neurons bounded before keep their bounds, the others intervals; all are sound."""
    graph, inputs = one_cell(), box()
    monkeypatch.setattr(crown, "SMALL", 0)
    full = inner_bounds(graph, [inputs], graph.outputs)
    plain = interval_bounds(graph, [inputs.box()])
    monkeypatch.setattr(crown.time, "monotonic", ticking(calls))
    some = inner_bounds(graph, [inputs], graph.outputs, effort=Effort(memory=8000, patience=50.0))
    assert all(bool((plain[i].lower <= some[i].lower).all()) for i in some)
    width = [sum(float((b[i].upper - b[i].lower).sum()) for i in full) for b in (full, some, plain)]
    assert width[0] <= width[1] <= width[2]


@pytest.mark.parametrize("calls", [0, 1, 4])
def test_a_pass_ends_at_the_deadline(monkeypatch: pytest.MonkeyPatch, calls: int) -> None:
    graph, inputs = one_cell(), box()
    monkeypatch.setattr(backward.time, "monotonic", ticking(calls))
    with pytest.raises(OutOfTime):
        lower(graph, inputs, Effort(deadline=50.0))


def test_an_optimisation_that_comes_too_late_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    graph, inputs = one_cell(), box()
    plain = optimise(graph, [inputs], graph.outputs[0], rows(graph), options=AlphaOptions(iterations=0))

    def late(*_) -> None:
        raise OutOfTime

    monkeypatch.setattr(alpha, "_finish", late)
    found = optimise(graph, [inputs], graph.outputs[0], rows(graph), options=AlphaOptions(iterations=3))
    assert torch.equal(found.lower, plain.lower)
    assert math.isfinite(float(found.lower.sum()))


def test_enough_patience_leaves_nothing_out() -> None:
    """Nodes below which nothing is relaxed have a share too: the first products of attention, say."""
    builder = Builder()
    generator = torch.Generator().manual_seed(2)
    h = reshape(builder, builder.input("x", (24,)), (4, 6))
    first, second = (
        builder.add(Linear(torch.randn(6, 6, generator=generator, dtype=torch.float64)), h) for _ in range(2)
    )
    first = builder.add(Linear(torch.randn(6, 6, generator=generator, dtype=torch.float64)), first)
    graph = builder.graph(
        relu(builder, matmul(builder, relu(builder, first), permute(builder, second, (1, 0))))
    )
    inputs = box(0.1)
    whole, patient = (
        inner_bounds(graph, [inputs], graph.outputs, effort=effort)
        for effort in (Effort(), Effort(patience=time.monotonic() + 3600))
    )
    for i, bound in whole.items():
        assert torch.equal(bound.lower, patient[i].lower)
        assert torch.equal(bound.upper, patient[i].upper)


@pytest.mark.parametrize(("places", "exact"), [([2, 0, 3], True), ([2, 0, 2], False)])
def test_intervals_of_a_map_of_distinct_elements_are_exact(places: list[int], exact: bool) -> None:
    """And those of a map that reads an element twice are not: it may cancel."""
    builder = Builder()
    x = builder.input("x", (4,))
    taken = builder.add(Take(torch.tensor(places), (3,)), x)
    y = builder.add(Linear(torch.tensor([[1.0, 2.0, -1.0]], dtype=torch.float64)), taken)
    graph = builder.graph(y)
    box = Box(torch.zeros(1, 4).double(), torch.ones(1, 4).double())
    assert interval_is_exact(graph, graph.outputs[0], True) is exact
    assert not interval_is_exact(graph, graph.outputs[0], False)
    bounds = interval_bounds(graph, [box.box()])
    plain = bounds[graph.outputs[0]]
    row = specification_bound(graph, [box], graph.outputs[0], Dense(torch.ones(1, 1, 1).double()), bounds)
    least = float(row.minimum(graph, [box]))
    assert (abs(float(plain.lower) - least) < 1e-9) is exact
