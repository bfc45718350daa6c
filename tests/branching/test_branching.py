"""Clipping, split constraints, stores and branchers: each against sampled points or the plain way."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import pytest
import torch

from verifier.bounds.alpha import AlphaOptions
from verifier.bounds.crown import inner_bounds
from verifier.bounds.final import HIGH, LOW, AscentOptions, FinalPass
from verifier.branching.activation_split import HEURISTICS, ActivationBrancher, Heuristic
from verifier.branching.bounded import Facts
from verifier.branching.bounding import Bounder, BoundOptions
from verifier.branching.clip import clip
from verifier.branching.domains import Domains, Store
from verifier.branching.input_split import InputBrancher, sensitivities
from verifier.branching.parts import Side, cuts_at, one_part, points_at
from verifier.branching.root import by_disjunct, first_bounds, root_cuts, root_planes
from verifier.branching.search import Search, SearchOptions
from verifier.graph import Builder, Graph, Interval
from verifier.graph.coefficients import Rows
from verifier.ops.arithmetic import add, scale_shift
from verifier.ops.linear import Linear
from verifier.ops.piecewise_linear import clip as clip_values
from verifier.ops.piecewise_linear import leaky_relu, relu
from verifier.ops.sigmoid import tanh
from verifier.results import Counterexample, Reason, Status
from verifier.sets import Box
from verifier.specs.compile import Compiled

ACTIVATIONS = {
    "relu": relu,
    "leaky": lambda b, x: leaky_relu(b, x, 0.1),
    "clip": lambda b, x: clip_values(b, x, -0.4, 0.6),
    "tanh": tanh,
}


def network(seed: int, activation: str = "relu", outputs: int = 3, inputs: int = 3) -> Graph:
    """A small residual network with random float64 weights."""
    generator = torch.Generator().manual_seed(seed)

    def linear(rows: int, columns: int) -> Linear:
        weight = torch.randn(rows, columns, generator=generator, dtype=torch.float64) / columns**0.5
        return Linear(weight, 0.3 * torch.randn(rows, generator=generator, dtype=torch.float64))

    builder = Builder()
    x = builder.input("x", (inputs,))
    h = ACTIVATIONS[activation](builder, builder.add(linear(8, inputs), x))
    h = add(builder, ACTIVATIONS[activation](builder, builder.add(linear(8, 8), h)), h)
    return builder.graph(builder.add(linear(outputs, 8), h))


def compiled(
    graph: Graph, clauses: list[list[list[int]]], size: float = 1.0, strict: bool = False
) -> Compiled:
    count = graph.nodes[graph.inputs[0]].numel
    table = torch.tensor(clauses)
    ends = torch.full((len(table), count), size, dtype=torch.float64)
    rows = graph.nodes[graph.outputs[0]].numel
    return Compiled(graph, -ends, ends, table, torch.full((rows,), strict))


def start(problem: Compiled) -> Domains:
    return Domains(
        problem.lower,
        problem.upper,
        torch.arange(len(problem.lower)),
        (problem.clauses >= 0).any(2),
        torch.full((len(problem.lower),), -math.inf, dtype=torch.float64),
    )


def lifted(graph: Graph, shift: float) -> Graph:
    """The same network with every output raised by `shift`."""
    builder = Builder()
    x = builder.input("x", graph.nodes[graph.inputs[0]].shape)
    (y,) = builder.include(graph, {graph.inputs[0]: x})
    rows = graph.nodes[graph.outputs[0]].numel
    eye = torch.eye(rows, dtype=torch.float64)
    return builder.graph(builder.add(Linear(eye, torch.full((rows,), shift, dtype=torch.float64)), y))


def least(graph: Graph, problem: Compiled, case: int = 0, points: int = 200_000) -> float:
    """The smallest sampled score of a case."""
    generator = torch.Generator().manual_seed(1)
    unit = torch.rand(points, problem.lower.shape[1], generator=generator, dtype=torch.float64)
    x = problem.lower[case] + unit * (problem.upper - problem.lower)[case]
    margins = graph.evaluate([x])[0]
    table = problem.clauses[case]
    scores = [margins[:, [a for a in row if a >= 0]].amax(1) for row in table.tolist() if max(row) >= 0]
    return float(torch.stack(scores).amin(0).min())


@pytest.mark.parametrize("planes", [1, 2, 4])
def test_clip_keeps_every_solution(planes: int) -> None:
    generator = torch.Generator().manual_seed(planes)
    boxes, size = 200, 4
    lower = -torch.rand(boxes, size, generator=generator, dtype=torch.float64)
    upper = torch.rand(boxes, size, generator=generator, dtype=torch.float64)
    upper[:, 0] = torch.where(torch.arange(boxes) % 5 == 0, lower[:, 0], upper[:, 0])
    a = torch.randn(boxes, planes, size, generator=generator, dtype=torch.float64)
    a[::7, 0] = 0
    b = torch.randn(boxes, planes, generator=generator, dtype=torch.float64)
    low, high, empty = clip(lower, upper, a, b)
    x = lower.unsqueeze(1) + torch.rand(boxes, 3000, size, generator=generator, dtype=torch.float64) * (
        upper - lower
    ).unsqueeze(1)
    solves = (torch.einsum("bkn,bpn->bpk", a, x) + b.unsqueeze(1) <= 0).all(2)
    inside = ((x >= low.unsqueeze(1)) & (x <= high.unsqueeze(1))).all(2)
    assert not bool((solves & empty.unsqueeze(1)).any())
    assert bool((inside | ~solves)[~empty].all())
    assert bool(empty.any()) and bool(solves.any())
    assert bool((high - low)[~empty].sum() < 0.95 * (upper - lower)[~empty].sum())


def test_clip_keeps_a_solution_on_the_boundary() -> None:
    """x0 + x1 <= 2 on [1, 2]^2 has the single solution (1, 1), whatever the scale."""
    for scale in (1e-6, 1.0, 1e6):
        lower = torch.full((1, 2), scale, dtype=torch.float64)
        planes = torch.ones(1, 1, 2, dtype=torch.float64)
        low, high, empty = clip(lower, 2 * lower, planes, torch.full((1, 1), -2 * scale, dtype=torch.float64))
        assert not bool(empty.any())
        assert bool(((low <= scale) & (high >= scale)).all()) and bool((high < 1.001 * scale).all())


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_multipliers_of_cuts_are_sound_and_help(activation: str, dtype: torch.dtype) -> None:
    graph = network(3, activation).to(dtype)
    box = Box(-torch.ones(1, 3, dtype=dtype), torch.ones(1, 3, dtype=dtype))
    bounds = inner_bounds(graph, [box], graph.outputs)
    node = next(i for i, n in enumerate(graph.nodes) if isinstance(n.op, Linear) and n.shape == (8,))
    inf = torch.full((1, 8), torch.inf, dtype=dtype)
    low, high = -inf.clone(), inf.clone()
    center = (bounds[node].lower + bounds[node].upper) / 2
    low[0, 0], high[0, 1], low[0, 2], high[0, 2] = (
        center[0, 0],
        center[0, 1],
        center[0, 2] - 0.1,
        center[0, 2] + 0.1,
    )
    splits = {node: Interval(low, high)}
    index = torch.arange(3).unsqueeze(0)
    rows = Rows(index, torch.ones(1, 3, dtype=dtype), (3,))
    plain = FinalPass(graph, [box], graph.outputs[0], rows, 3, bounds).ascend(AscentOptions(30, 0.1, 0.97))
    split = FinalPass(graph, [box], graph.outputs[0], rows, 3, bounds, splits).ascend(
        AscentOptions(30, 0.1, 0.97)
    )
    generator = torch.Generator().manual_seed(0)
    x = 2 * torch.rand(100_000, 3, generator=generator, dtype=torch.float64) - 1
    exact = graph.to(torch.float64)
    inner, y = exact.evaluate([x], keep=[node, graph.outputs[0]])
    kept = ((inner >= low.double()) & (inner <= high.double())).all(1)
    assert 100 < int(kept.sum()) < len(x)
    assert bool((y[kept] >= split.lower.double()).all())
    assert bool((y >= plain.lower.double()).all())
    assert bool((split.lower >= plain.lower - 1e-4).all()) and bool((split.lower > plain.lower + 1e-3).any())
    assert {LOW, HIGH} <= set(split.leaves[graph.outputs[0], node])


def test_sensitivities_bound_difference_quotients() -> None:
    graph = network(5)
    box = Box(-torch.ones(1, 3, dtype=torch.float64), torch.ones(1, 3, dtype=torch.float64))
    found = sensitivities(graph, inner_bounds(graph, [box], graph.outputs), 1)[0]
    generator = torch.Generator().manual_seed(0)
    x = 2 * torch.rand(5000, 3, generator=generator, dtype=torch.float64) - 1
    x.requires_grad_()
    for k in range(3):
        gradient = torch.autograd.grad(graph.evaluate([x])[0][:, k].sum(), x)[0]
        assert bool((gradient.abs().amax(0) <= found[:, k] + 1e-9).all())


def test_store_returns_everything_worst_first() -> None:
    generator = torch.Generator().manual_seed(0)
    store = Store()
    bounds = torch.rand(100, generator=generator, dtype=torch.float64)
    ends = torch.zeros(100, 1, dtype=torch.float64)
    whole = Domains(ends, ends, torch.arange(100), torch.ones(100, 1, dtype=torch.bool), bounds)
    for part in torch.arange(100).split(17):
        store.push(whole.index(part))
    assert len(store) == 100 and store.worst == float(bounds.min())
    seen = []
    while len(store):
        worst = store.worst
        taken = store.take(7)
        assert float(taken.bound.min()) == worst
        seen += taken.case.tolist()
    assert sorted(seen) == list(range(100))


def test_store_forgets_what_can_be_recomputed() -> None:
    ends = torch.zeros(4, 1, dtype=torch.float64)
    known = {0: Interval(ends, ends)}
    domains = Domains(
        ends,
        ends,
        torch.arange(4),
        torch.ones(4, 1, dtype=torch.bool),
        ends[:, 0],
        known,
        {0: Interval(ends, ends)},
    )
    store = Store(budget=0)
    store.push(domains)
    taken = store.take(4)
    assert not taken.known and taken.splits


DEVICES = [
    "cpu",
    pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA")),
]


@pytest.mark.parametrize("device", DEVICES)
def test_store_spills_to_host_memory(device: str) -> None:
    """The best bounds go first, and come back as they were; only what finds no room there is forgotten."""
    generator = torch.Generator().manual_seed(0)
    case = torch.arange(400, device=device)
    ends = case.double().unsqueeze(1)
    whole = Domains(
        ends,
        ends + 1,
        case,
        torch.ones(400, 1, dtype=torch.bool, device=device),
        torch.rand(400, generator=generator, dtype=torch.float64).to(device),
        {3: Interval(ends.expand(400, 50) - 0.5, ends.expand(400, 50) + 0.5)},
        {4: Interval(ends - 0.25, ends + 0.25)},
        {(5, 3): {"slope": (2 * ends).expand(400, 20).unsqueeze(1).unsqueeze(1)}},
    )
    each = whole.bytes // 400
    store = Store(budget=100 * each, host=150 * each)
    for part in case.split(20):
        store.push(whole.index(part))
        assert store.near <= 100 * each and store.away <= 200 * each
    assert store.away > 140 * each and len(store) == 400
    seen, full = [], []
    while len(store):
        taken = store.take(1)
        assert taken.lower.device.type == device and taken.bound.device.type == device
        seen += taken.case.tolist()
        assert bool((taken.splits[4].lower == taken.lower - 0.25).all())
        full.append(bool(taken.known))
        if taken.known:
            assert bool((taken.known[3].upper == taken.lower + 0.5).all())
            assert bool((taken.warm[5, 3]["slope"] == 2 * taken.lower).all())
    assert sorted(seen) == list(range(400)) and store.near == store.away == 0
    assert 200 <= sum(full) <= 250 and all(full[:100])


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("kind", ["input", "activation", "several neurons at once", "neurons or inputs"])
def test_halves_cover_their_subdomain(seed: int, kind: str) -> None:
    """Every point of a subdomain lies in one of its parts, for three rounds of splits."""
    graph = network(seed, ["relu", "clip"][seed % 2])
    problem = compiled(graph, [[[0, 1], [2, -1]]])
    bounder = Bounder(problem, torch.device("cpu"), torch.float64, BoundOptions(gaps=True))
    brancher = InputBrancher(bounder)
    if kind != "input":
        free, tried = 16 * (kind == "several neurons at once"), 2 * (kind == "neurons or inputs")
        brancher = ActivationBrancher(bounder, Heuristic(3, trials=True), free, tried)
    domains, sizes = start(problem), []
    with torch.no_grad():
        for _ in range(3):
            bounded = bounder.bound(domains)
            children, stuck = brancher.branch(domains, bounded)
            assert not bool(stuck.any())
            sizes.append(len(children) // len(domains))
            domains = children
    assert sizes == [2, 2, 2] if kind != "several neurons at once" else sizes[0] > 2
    x = 2 * torch.rand(2000, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64) - 1
    covered = torch.zeros(len(x), dtype=torch.bool)
    for d in range(len(domains)):
        mine = ((x >= domains.lower[d]) & (x <= domains.upper[d])).all(1)
        for node, split in domains.splits.items():
            value = graph.evaluate([x], keep=[node])[0]
            mine &= ((value >= split.lower[d]) & (value <= split.upper[d])).all(1)
        covered |= mine
    assert bool(covered.all())


@pytest.mark.parametrize("seed", [0, 1, pytest.param(2, marks=pytest.mark.full)])
@pytest.mark.parametrize("kind", ["input", *HEURISTICS, "several neurons at once", "neurons or inputs"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_search_proves_what_is_true_and_nothing_more(seed: int, kind: str, dtype: torch.dtype) -> None:
    """The smallest sampled score decides how far the outputs are lifted: a little more is provable, less is not."""
    graph = network(seed, ["relu", "leaky", "clip"][seed % 3])
    clauses = [[[0, 1], [2, -1]]] if seed % 2 else [[[0, -1], [1, 2]]]
    lowest = least(graph, compiled(graph, clauses))
    for shift, provable in ((0.1, True), (-0.02, False)):
        problem = compiled(lifted(graph, shift - lowest), clauses)
        bounder = Bounder(problem, torch.device("cpu"), dtype, BoundOptions(gaps=kind != "input"))
        domains = start(problem)
        if kind != "input":
            single, domains, origin = by_disjunct(problem, domains)
            assert origin.tolist() == [0, 0]
            bounder = Bounder(single, torch.device("cpu"), dtype, bounder.options)
            with torch.no_grad():
                cuts = root_cuts(bounder, domains, math.inf) if seed else None
                planes = root_planes(bounder, domains, 1 << 20)
            assert planes is not None
            bounder = bounder.with_facts(Facts({}, cuts, planes))
            free, tried = 16 * (kind == "several neurons at once"), 2 * (kind == "neurons or inputs")
            brancher = ActivationBrancher(bounder, HEURISTICS.get(kind, HEURISTICS["fsb"]), free, tried)
        else:
            brancher = InputBrancher(bounder)
        search = Search(
            bounder,
            brancher,
            domains,
            lambda x, c: None,
            SearchOptions(math.inf, 64, 2000 if provable else 200),
        )
        outcome = search.run()
        assert outcome is not None
        if provable:
            assert outcome.status is Status.UNSAT and outcome.bound >= 0
        else:
            assert outcome.status is Status.UNKNOWN
            assert outcome.reason in (Reason.DOMAIN_LIMIT, Reason.NUMERICS) and outcome.bound <= 0


@pytest.mark.parametrize("kind", HEURISTICS)
def test_points_have_no_parts(kind: str) -> None:
    """Nothing is left to split, and nothing that is left is bounded."""
    problem = compiled(lifted(network(0), -1e3), [[[0, 1]], [[2, -1]]], size=0.0)
    bounder = Bounder(problem, torch.device("cpu"), torch.float64, BoundOptions(gaps=True))
    domains = start(problem)
    with torch.no_grad():
        parts, stuck = ActivationBrancher(bounder, HEURISTICS[kind]).branch(domains, bounder.bound(domains))
    assert len(parts) == 0 and stuck.tolist() == [True, True]


def test_interval_method_bounds_by_intervals() -> None:
    graph = network(0)
    problem = compiled(graph, [[[0, 1], [2, -1]]])
    bounder = Bounder(problem, torch.device("cpu"), torch.float64, BoundOptions(linear=False))
    with torch.no_grad():
        found = bounder.bound(start(problem))
    assert float(found.score) <= least(graph, problem)
    assert not found.planes.any()


def test_bounds_are_no_looser_than_intervals() -> None:
    """The line below a ReLU that is more positive than negative is the identity."""
    builder = Builder()
    x = builder.input("x", (3,))
    graph = builder.graph(scale_shift(builder, relu(builder, scale_shift(builder, x, shift=0.2)), shift=0.1))
    problem = compiled(graph, [[[0, 1]], [[2, -1]]])
    options = BoundOptions(ascent=AscentOptions(0))
    with torch.no_grad():
        found = Bounder(problem, torch.device("cpu"), torch.float64, options).bound(start(problem))
    assert found.score.tolist() == pytest.approx([0.1, 0.1]) and bool(found.refuted.all())


@pytest.mark.parametrize("kind", ["input", "activation"])
def test_batches_do_not_matter(kind: str) -> None:
    """Bounding one by one and all at once agree up to rounding."""
    problem = compiled(network(2), list(itertools.repeat([[0, 1], [2, -1]], 5)))
    problem.lower.mul_(torch.linspace(0.1, 1, 5, dtype=torch.float64).unsqueeze(1))
    bounder = Bounder(
        problem,
        torch.device("cpu"),
        torch.float64,
        BoundOptions(gaps=kind == "activation", ascent=AscentOptions(0)),
    )
    domains = start(problem)
    with torch.no_grad():
        together = bounder.bound(domains)
        alone = torch.cat([bounder.bound(domains.index(torch.tensor([i]))).score for i in range(5)])
    torch.testing.assert_close(together.score, alone, rtol=1e-6, atol=1e-6)


def test_a_deadline_ends_a_pass() -> None:
    problem = compiled(network(1), [[[0, 1], [2, -1]]])
    bounder = Bounder(problem, torch.device("cpu"), torch.float64, BoundOptions(deadline=-math.inf))
    search = Search(
        bounder, InputBrancher(bounder), start(problem), lambda x, c: None, SearchOptions(math.inf)
    )
    outcome = search.run()
    assert outcome is not None and outcome.status is Status.TIMEOUT and outcome.bound == -math.inf


def test_memory_exhausted_halves_the_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Batches above eight run out of memory; the search goes on with smaller ones and loses nothing."""
    graph = network(0)
    clauses = [[[0, 1], [2, -1]]]
    problem = compiled(lifted(graph, 0.1 - least(graph, compiled(graph, clauses))), clauses)
    bounder = Bounder(problem, torch.device("cpu"), torch.float64)
    bound, sizes = bounder.bound, []

    def limited(domains: Domains):
        sizes.append(len(domains))
        if len(domains) > 8:
            raise MemoryError
        return bound(domains)

    monkeypatch.setattr(bounder, "bound", limited)
    parts = Domains.cat([start(problem)] * 20)
    outcome = Search(bounder, InputBrancher(bounder), parts, lambda x, c: None, SearchOptions(math.inf)).run()
    assert outcome is not None and outcome.status is Status.UNSAT
    assert max(sizes) > 8 and outcome.domains >= 20


@pytest.mark.parametrize("activation", sorted(set(ACTIVATIONS) - {"tanh"}))
def test_halves_start_from_the_bound_of_the_whole(activation: str) -> None:
    """With the multipliers that a split starts with, no half is bounded worse, before any step of ascent; those of
    smooth operators start anew."""
    options = BoundOptions(refine=False, gaps=True, ascent=AscentOptions(steps=6))
    tried = 0
    for seed in range(3):
        graph = network(seed, activation)
        problem = compiled(graph, [[[0, -1]], [[1, 2]]])
        bounder = Bounder(problem, torch.device("cpu"), torch.float64, options)
        still = bounder.with_options(BoundOptions(inherit=True, refine=False, ascent=AscentOptions(steps=0)))
        domains = start(problem)
        with torch.no_grad():
            for _ in range(4):
                bounded = bounder.bound(domains)
                open_ = ~bounded.refuted.all(1)
                left, known = bounded.index(open_), bounder.known(bounded)
                rest = domains.index(open_)
                known = {i: b.index(open_) for i, b in known.items()}
                rest = replace(rest, known=known, warm=left.warm)
                domains, _ = ActivationBrancher(bounder, HEURISTICS["babsr"]).branch(rest, left)
                if not len(domains) or not domains.splits:
                    break
                assert (still.bound(domains).score >= left.score.repeat(2) - 1e-9).all()
                tried += len(domains)
    assert tried > 20


def test_shortcuts_of_the_first_layer_are_bounds_of_the_halves() -> None:
    """There the forms are exact, so a shortcut claims no more than the best bound of the half, and no less than the
    bound of the whole."""
    graph = network(4)
    problem = compiled(graph, [[[0, 1]]])
    problem, domains, _ = by_disjunct(problem, start(problem))
    bounder = Bounder(problem, torch.device("cpu"), torch.float64, BoundOptions(gaps=True))
    with torch.no_grad():
        planes = root_planes(bounder, domains, 1 << 20)
        bounded = bounder.bound(domains)
        domains = replace(domains, bound=bounded.score, warm=bounded.warm, known=bounder.known(bounded))
        brancher = ActivationBrancher(bounder.with_facts(Facts(planes=planes)), HEURISTICS["bbps"])
        node = bounder.split_nodes[0]
        places = (bounded.gaps[node] > 0).flatten().nonzero()[:, 0].unsqueeze(0)
        assert places.shape[1] > 2
        points = points_at(bounder, bounded, [node], places)
        score = brancher._shortcuts(domains, bounded, [node], places, points)[0]
        options = replace(bounder.options, ascent=AscentOptions(400, 0.2, 0.99), inherit=True, refine=False)
        for k, place in list(enumerate(places[0]))[::3]:
            cuts = cuts_at(bounder, bounded, [node], place.view(1), points[:, k])
            for high, side in enumerate((Side.LOW, Side.HIGH)):
                half = one_part(bounder, domains, bounded, cuts, side)
                best = bounder.with_options(options).bound(half).score
                assert float(bounded.score) - 1e-9 <= float(score[k, high]) <= float(best) + 0.02


@pytest.mark.parametrize("rule", ["table", "middle", "shortcut"])
def test_points_lie_inside_and_the_shortcut_chooses_no_worse_ones(rule: str) -> None:
    """By its own estimate; both halves are then proper parts of the whole."""
    graph = network(4, "tanh")
    problem = compiled(graph, [[[0, 1]]])
    problem, domains, _ = by_disjunct(problem, start(problem))
    bounder = Bounder(problem, torch.device("cpu"), torch.float64, BoundOptions(gaps=True))
    with torch.no_grad():
        bounder = bounder.with_facts(Facts(planes=root_planes(bounder, domains, 1 << 20)))
        bounded = bounder.bound(domains)
        domains = replace(domains, bound=bounded.score, warm=bounded.warm, known=bounder.known(bounded))
        nodes = [i for i in bounder.split_nodes if i in bounded.gaps]
        values, places = torch.cat([bounded.gaps[i].flatten(1) for i in nodes], 1).topk(4, dim=1)
        heuristic = replace(HEURISTICS["bbps"], points=rule)
        found = ActivationBrancher(bounder, heuristic)._points(domains, bounded, nodes, values, places, True)
        usual = ActivationBrancher(bounder, replace(heuristic, points="table"))
        other = usual._points(domains, bounded, nodes, values, places, True)
        ends = [
            torch.cat([t.flatten(1) for t in column], 1)
            for column in zip(*(bounded.bounds[i] for i in nodes), strict=True)
        ]
        low, high = (t.gather(1, places) for t in ends)
        assert bool(((found[0] > low) & (found[0] < high)).all())
        assert found[1] is not None and other[1] is not None
        if rule == "shortcut":
            assert bool((found[1] >= other[1]).all())


def test_a_counterexample_comes_without_a_bound() -> None:
    """Even where disjuncts were refuted before, whose bounds are positive."""
    problem = compiled(lifted(network(1), 100.0), [[[0, -1]], [[1, -1]]])
    bounder = Bounder(problem, torch.device("cpu"), torch.float64)
    found = Counterexample({}, {})
    options = SearchOptions(math.inf, closed=1.0)
    problem.upper[1] += 1000
    outcome = Search(bounder, InputBrancher(bounder), start(problem), lambda x, c: found, options).run()
    assert outcome is not None and outcome.status is Status.SAT
    assert outcome.counterexample is found and outcome.bound == -math.inf


def test_halves_of_smooth_operators_start_anew() -> None:
    """Lines that were best for the whole hide what a split gains: trials of one step see it only from a new start."""
    graph = network(5, "tanh")
    problem, domains, _ = by_disjunct(*(lambda p: (p, start(p)))(compiled(graph, [[[0, 1]]])))
    bounder = Bounder(problem, torch.device("cpu"), torch.float64, BoundOptions(gaps=True))
    with torch.no_grad():
        bounded = bounder.bound(domains)
        domains = replace(domains, bound=bounded.score, warm=bounded.warm, known=bounder.known(bounded))
        brancher = ActivationBrancher(bounder, HEURISTICS["babsr"])
        halves, _ = brancher.branch(domains, bounded)
        split = next(iter(halves.splits))
        operator = next(i for i in bounder.elementwise if bounder.graph.nodes[i].inputs == (split,))
        warm = halves.warm[bounder.target, operator]
        assert all(int(t.isnan().any(2).sum()) == len(halves) for n, t in warm.items() if "slope" in n)
        assert bool(bounder.bound(halves).score.isfinite().all())


def test_what_optimised_first_bounds_refute_is_closed() -> None:
    """Half way between plain CROWN's bound and alpha-CROWN's the one leaves open what the other refutes."""
    graph = network(2)
    steps = BoundOptions(ascent=AscentOptions(0))

    def found(shift: float, iterations: int, clauses: list[list[list[int]]]) -> tuple[Domains, float]:
        problem = compiled(lifted(graph, shift), clauses)
        bounder = Bounder(problem, torch.device("cpu"), torch.float64, steps)
        first = first_bounds(bounder, start(problem), AlphaOptions(iterations, memory=1 << 28), batch=8)
        return first.left, first.closed

    with torch.no_grad():
        low = [float(found(-100.0, n, [[[0, -1]]])[0].bound) + 100 for n in (0, 20)]
        assert low[0] < low[1] - 1e-3
        shift = -(low[0] + low[1]) / 2
        left, closed = found(shift, 0, [[[0, -1]]])
        assert len(left) == 1 and closed == math.inf
        left, closed = found(shift, 20, [[[0, -1]]])
    assert len(left) == 0
    assert closed == pytest.approx((low[1] - low[0]) / 2, rel=0.2)
