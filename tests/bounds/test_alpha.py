"""What is particular to the optimised bounds."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from verifier.bounds.alpha import AlphaOptions, Optimised, optimise
from verifier.bounds.crown import inner_bounds, specification_bound
from verifier.graph import Graph
from verifier.graph.coefficients import Dense
from verifier.sets import Box


def rows(dtype: torch.dtype = torch.float64) -> Dense:
    return Dense(torch.cat([torch.eye(3), -torch.eye(3)]).to(dtype).unsqueeze(0))


def boxes(batch: int = 4, radius: float = 0.25) -> Box:
    x = torch.randn(batch, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return Box.around(0.5 * x, radius)


def plain(graph: Graph, inputs: Box) -> Tensor:
    bounds = inner_bounds(graph, [inputs], graph.outputs)
    return specification_bound(graph, [inputs], graph.outputs[0], rows(), bounds).minimum(graph, [inputs])


def run(graph: Graph, inputs: Box, **options) -> Optimised:
    return optimise(graph, [inputs], graph.outputs[0], rows(), options=AlphaOptions(**options))


def test_never_below_plain_whatever_the_learning_rate(lab: SimpleNamespace) -> None:
    for seed, activation in enumerate(lab.activations.values()):
        graph = lab.network(seed, activation)
        base = plain(graph, boxes())
        for rate in (1e-3, 0.25, 10.0):
            assert (run(graph, boxes(), iterations=4, learning_rate=rate).lower >= base).all()


def test_more_iterations_and_inner_slopes_help(lab: SimpleNamespace) -> None:
    graph = lab.network(0)
    base = plain(graph, boxes()).mean()
    final = run(graph, boxes(), intermediate=False).lower.mean()
    short = run(graph, boxes(), iterations=3).lower.mean()
    long = run(graph, boxes(), iterations=40).lower.mean()
    assert base < final < long and base < short < long
    assert run(graph, boxes(), iterations=0).lower.mean() == base


def test_result_holds_at_points_and_belongs_together(lab: SimpleNamespace) -> None:
    graph = lab.network(3, lab.activations["prelu"])
    found = run(graph, boxes())
    at = lab.inside(boxes(), 2000)
    keep = sorted(found.bounds)
    values = graph.evaluate([at.flatten(0, 1)], keep=keep)
    for i, value in zip(keep, values, strict=True):
        lab.assert_contains(found.bounds[i], value.view(4, 2000, *value.shape[1:]))
    assert torch.allclose(found.plane.minimum(graph, [boxes()]), found.lower)
    linear = torch.einsum("bpn,brn->bpr", at, found.plane.coefficients[graph.inputs[0]])
    outputs = graph.evaluate([at.flatten(0, 1)])[0].view(4, 2000, 3)
    assert (torch.cat([outputs, -outputs], 2) >= linear + found.plane.constant.unsqueeze(1) - 1e-9).all()


def test_inner_bounds_get_tighter(lab: SimpleNamespace) -> None:
    graph = lab.network(0)
    before = inner_bounds(graph, [boxes()], graph.outputs)
    after = run(graph, boxes()).bounds
    total = sum(
        float((before[i].upper - before[i].lower - after[i].upper + after[i].lower).sum()) for i in before
    )
    assert total > 0
    for i in before:
        assert (after[i].lower >= before[i].lower - 1e-12).all()
        assert (after[i].upper <= before[i].upper + 1e-12).all()


def test_slopes_start_the_next_call(lab: SimpleNamespace) -> None:
    graph = lab.network(0)
    first = run(graph, boxes(), iterations=30)
    options = AlphaOptions(iterations=1, learning_rate=1e-6)
    again = optimise(graph, [boxes()], graph.outputs[0], rows(), None, first.slopes, options)
    assert again.lower.mean() > run(graph, boxes(), iterations=1, learning_rate=1e-6).lower.mean()
    assert torch.allclose(again.lower, first.lower, rtol=1e-2, atol=1e-2)


def test_finished_instances_are_dropped_and_the_others_are_not_changed(lab: SimpleNamespace) -> None:
    graph = lab.network(2)
    seen: list[Tensor] = []

    def stop(lower: Tensor) -> Tensor:
        seen.append(lower.clone())
        return torch.tensor([True, False, len(seen) > 2, False])

    found = run(graph, boxes(), iterations=6, stop=stop)
    full = run(graph, boxes(), iterations=6)
    assert len(seen) == 6 and all(s.shape == (4, 6) for s in seen)
    assert torch.allclose(found.lower[[1, 3]], full.lower[[1, 3]], rtol=1e-5, atol=1e-6)
    assert torch.allclose(found.lower[0], plain(graph, boxes())[0], atol=1e-9)
    assert all(torch.equal(s[0], seen[0][0]) for s in seen)
    everything = run(graph, boxes(), iterations=50, stop=lambda lower: torch.ones(4, dtype=torch.bool))
    assert torch.allclose(everything.lower, plain(graph, boxes()), atol=1e-9)


def test_rows_above_the_threshold_need_no_work(lab: SimpleNamespace) -> None:
    graph = lab.network(2)
    base = plain(graph, boxes())
    threshold = float(base.max()) - 1e-3
    found = run(graph, boxes(), iterations=10, threshold=threshold)
    free = run(graph, boxes(), iterations=10)
    assert (found.lower >= base).all()
    assert (found.lower > threshold).sum() >= (base > threshold).sum()
    assert not torch.equal(found.lower, free.lower)
    done = run(graph, boxes(), iterations=10, threshold=float(base.min()) - 1)
    assert torch.allclose(done.lower, base, atol=1e-9)


@pytest.mark.parametrize("memory", [200_000, 60_000, 10_000, 1])
def test_less_memory_gives_parts_shared_slopes_and_fixed_inner_bounds(
    lab: SimpleNamespace, memory: int
) -> None:
    graph = lab.network(1)
    base = plain(graph, boxes())
    found = run(graph, boxes(), iterations=10, memory=memory)
    assert found.lower.shape == base.shape and (found.lower >= base - 1e-12).all()
    assert found.lower.mean() > base.mean() or memory == 1
    assert found.plane.constant.shape == base.shape
    if memory == 200_000:
        alone = [run(graph, boxes().index(torch.tensor([k])), iterations=10).lower for k in range(4)]
        assert torch.allclose(found.lower, torch.cat(alone), atol=1e-2)  # Adam amplifies rounding


def test_known_bounds_are_respected(lab: SimpleNamespace) -> None:
    graph = lab.network(0)
    first = run(graph, boxes(), iterations=30)
    again = optimise(
        graph, [boxes()], graph.outputs[0], rows(), first.bounds, None, AlphaOptions(iterations=5)
    )
    fixed = specification_bound(graph, [boxes()], graph.outputs[0], rows(), first.bounds)
    assert (again.lower >= fixed.minimum(graph, [boxes()]) - 1e-9).all()
    assert again.lower.mean() > plain(graph, boxes()).mean()
    for i, box in first.bounds.items():
        assert (again.bounds[i].lower >= box.lower - 1e-12).all()


def test_a_graph_without_relaxations(lab: SimpleNamespace) -> None:
    graph = lab.network(0, sizes=(4, 3))
    assert torch.equal(run(graph, boxes()).lower, plain(graph, boxes()))


def test_bounds_that_overflow_are_no_bounds(lab: SimpleNamespace) -> None:
    graph = lab.network(0, scale=18.0).to(torch.float32)
    inputs = boxes().to(torch.float32)
    found = optimise(
        graph, [inputs], graph.outputs[0], rows(torch.float32), options=AlphaOptions(iterations=3)
    )
    assert not found.lower.isnan().any()
    at = lab.inside(inputs, 100).double()
    value = graph.to(torch.float64).evaluate([at.flatten(0, 1)])[0].view(4, 100, 3)
    assert (torch.cat([value, -value], 2) >= found.lower.unsqueeze(1).double()).all()


def test_optimises_where_gradients_are_off(lab: SimpleNamespace) -> None:
    """Branch and bound runs without gradients; once the optimisation was silently skipped there."""
    graph = lab.network(0)
    with torch.no_grad():
        found = run(graph, boxes()).lower
    assert torch.equal(found, run(graph, boxes()).lower) and found.mean() > plain(graph, boxes()).mean()
