"""The search against brute force, planted regions, and its promises."""

from __future__ import annotations

import itertools
import time
from collections.abc import Mapping
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from verifier.attack.gradient import AttackOptions, Candidates, Search, search
from verifier.attack.surrogate import StraightThrough, with_gradients
from verifier.errors import OptionsError
from verifier.graph import Builder, Elementwise, Graph, Interval, Parameter, Relaxation
from verifier.ops.linear import Linear
from verifier.ops.piecewise_linear import Relu, absolute
from verifier.results import Progress


def network(seed: int, sizes: list[int], activation: Elementwise | None = None) -> Graph:
    generator = torch.Generator().manual_seed(seed)
    builder = Builder()
    value = builder.input("x", (sizes[0],))
    for i, (n, m) in enumerate(itertools.pairwise(sizes)):
        weight = torch.randn(m, n, generator=generator, dtype=torch.float64)
        bias = torch.randn(m, generator=generator, dtype=torch.float64) / 2
        value = builder.add(Linear(weight, bias), value)
        if i + 2 < len(sizes):
            value = builder.add(activation or Relu(), value)
    return builder.graph(value)


def score(hand, points: Tensor, cases: Tensor) -> Tensor:
    """The definition, written out."""
    margins = hand.graph.evaluate([points])[0]
    result = []
    for row, case in zip(margins, cases.tolist(), strict=True):
        disjuncts = [[int(k) for k in d if k >= 0] for d in hand.clauses[case]]
        result.append(min((max(float(row[k]) for k in d) for d in disjuncts if d), default=float("inf")))
    return torch.tensor(result, dtype=torch.float64)


def first_rounds(hand, count: int, **options) -> Candidates:
    found = None
    for found in itertools.islice(Search(hand, AttackOptions(**options)).rounds(), count):
        if found.hit:
            break
    assert found is not None
    return found


@pytest.mark.parametrize("seed", range(6))
def test_finds_what_a_grid_finds(compiled, seed):
    """On a plane, a fine grid's minimum is reached or beaten, for conjunctions, disjunctions and several cases."""
    graph = network(seed, [2, 12, 12, 4])
    hand = compiled(
        graph, [[-1.0, -1.0], [0.0, -2.0]], [[1.0, 1.0], [2.0, 0.5]], [[[0, 1], [2, 3]], [[1, 2], [0]]]
    )
    axis = torch.linspace(0, 1, 61, dtype=torch.float64)
    unit = torch.cartesian_prod(axis, axis)
    best = min(
        float(score(hand, low + unit * (up - low), torch.full((len(unit),), n)).min())
        for n, (low, up) in enumerate(zip(hand.lower, hand.upper, strict=True))
    )
    found = first_rounds(hand, 4, seed=seed, restarts=32, steps=20)
    assert found.hit if best <= 0 else found.best <= best + 0.02 * abs(best) + 1e-3
    assert torch.allclose(found.scores, score(hand, found.points, found.cases), atol=1e-9)
    assert bool((found.scores[1:] >= found.scores[:-1]).all())


@pytest.mark.parametrize("radius", [1e-2, 1e-4])
def test_thin_planted_region(compiled, radius):
    """Only a ball of the 1-norm around a random point of six dimensions is unsafe."""
    generator = torch.Generator().manual_seed(5)
    center = torch.rand(6, generator=generator, dtype=torch.float64)
    builder = Builder()
    x = builder.input("x", (6,))
    away = absolute(builder, builder.add(Linear(torch.eye(6, dtype=torch.float64), -center), x))
    shift = torch.tensor([-radius], dtype=torch.float64)
    graph = builder.graph(builder.add(Linear(torch.ones(1, 6, dtype=torch.float64), shift), away))
    hand = compiled(graph, [[0.0] * 6], [[1.0] * 6], [[[0]]])
    found = search(hand, 20.0)
    assert found.hit and float((found.points[0] - center).abs().sum()) <= radius


def test_conflicting_conjunction(compiled):
    """A strip where opposite gradients meet is found; an empty one is not."""
    for gap, expected in ((-1e-4, True), (1e-4, False)):
        builder = Builder()
        x = builder.input("x", (3,))
        weight = torch.tensor([[1.0, -2.0, 0.5], [-1.0, 2.0, -0.5], [0.0, 1.0, 1.0]], dtype=torch.float64)
        bias = torch.tensor([gap, gap, -0.3], dtype=torch.float64)
        hand = compiled(
            builder.graph(builder.add(Linear(weight, bias), x)), [[-1.0] * 3], [[1.0] * 3], [[[0, 1, 2]]]
        )
        found = first_rounds(hand, 5)
        assert found.hit is expected
        assert expected or found.best >= 1e-4 - 1e-12


def test_strict_atoms_need_more_than_zero(compiled):
    builder = Builder()
    graph = builder.graph(builder.add(Relu(), builder.input("x", (1,))))
    assert first_rounds(compiled(graph, [[-1.0]], [[1.0]], [[[0]]], [False]), 3).hit
    assert not first_rounds(compiled(graph, [[-1.0]], [[1.0]], [[[0]]], [True]), 3).hit


def test_absent_disjuncts_and_padding(compiled):
    graph = network(0, [2, 3])
    hand = compiled(graph, [[-1.0, -1.0]], [[1.0, 1.0]], [[[0]]])
    hand.clauses[:] = -1
    assert first_rounds(hand, 3).best == float("inf")
    weight = torch.tensor([[0.0, 0.0], [1.0, 0.0]], dtype=torch.float64)
    builder = Builder()
    margins = builder.add(
        Linear(weight, torch.tensor([5.0, 0.0], dtype=torch.float64)), builder.input("x", (2,))
    )
    hand = compiled(builder.graph(margins), [[-1.0, -1.0]], [[1.0, 1.0]], [[[0, 1], [1], []]])
    assert first_rounds(hand, 3).hit  # by the second disjunct: the first never holds, the third is absent


def test_points_stay_in_boxes(compiled):
    """Coordinates without width keep their exact value, also beside wide and tiny ones."""
    lower = torch.tensor([[0.1, -1.0, 1 / 3, 5.0]], dtype=torch.float64)
    upper = lower + torch.tensor([[0.0, 2.0, 0.0, 1e-9]], dtype=torch.float64)
    for seed in range(4):
        hand = compiled(network(seed, [4, 8, 2]), lower, upper, [[[0], [1]]])
        points = first_rounds(hand, 4, seed=seed).points
        assert bool((points >= lower).all() & (points <= upper).all())
        assert bool((points[:, [0, 2]] == lower[0, [0, 2]]).all())


def test_many_cases_one_unsafe(compiled):
    """Of 3000 boxes only one holds a point below the plane."""
    corners = torch.rand(3000, 3, generator=torch.Generator().manual_seed(2), dtype=torch.float64) + 1
    corners[1234] = -3.0
    builder = Builder()
    margins = builder.add(Linear(torch.ones(1, 3, dtype=torch.float64)), builder.input("x", (3,)))
    hand = compiled(builder.graph(margins), corners, corners + 0.5, [[[0]]] * 3000)
    found = search(hand, 10.0)
    assert found.hit and set(found.cases[found.scores <= 0].tolist()) == {1234}


def test_same_seed_same_search(compiled):
    hand = compiled(network(3, [5, 20, 4]), [[-0.1] * 5], [[0.1] * 5], [[[0, 1, 2, 3]]])
    one, two = (first_rounds(hand, 4, seed=7) for _ in range(2))
    assert torch.equal(one.points, two.points) and torch.equal(one.scores, two.scores)
    one, other = (Search(hand, AttackOptions(seed=s)).sample() for s in (7, 8))
    assert not torch.equal(one.points, other.points)


@dataclass(frozen=True, eq=False)
class Flat(Elementwise):
    """The sign, an operator without a useful derivative."""

    def forward(self, *xs: Tensor) -> Tensor:
        return xs[0].sign()

    def interval(self, *xs: Interval) -> Interval:
        return Interval(xs[0].lower.sign(), xs[0].upper.sign())

    def parameters(self, *xs: Interval) -> dict[str, Parameter]:
        return {}

    def relax(self, parameters: Mapping[str, Tensor], *xs: Interval) -> Relaxation:
        raise NotImplementedError


def test_straight_through_gradients():
    graph = network(0, [6, 10, 10, 1], Flat())
    useful = with_gradients(graph)
    assert [type(n.op) for n in useful.nodes].count(StraightThrough) == 2
    x = torch.randn(9, 6, dtype=torch.float64, requires_grad=True)
    value = useful.evaluate([x])[0]
    assert torch.equal(value, graph.evaluate([x.detach()])[0])
    (gradient,) = torch.autograd.grad(value.sum(), x)
    assert bool(gradient.isfinite().all() & (gradient != 0).any())
    relus = network(0, [6, 10, 1])
    assert all(a.op is b.op for a, b in zip(relus.nodes, with_gradients(relus).nodes, strict=True))


def test_only_elements_that_can_flip_get_gradients():
    builder = Builder()
    graph = with_gradients(builder.graph(builder.add(Flat(), builder.input("x", (3,)))))
    spread = torch.tensor([0.1, 0.1, 1e-9], dtype=torch.float64)
    near = torch.tensor([0.05, 5.0, 1e-9], dtype=torch.float64)
    x = near + spread * torch.linspace(-1, 1, 7, dtype=torch.float64).unsqueeze(1)
    for points in (x, x[:1]):  # one point alone has no spread to go by
        points.requires_grad_()
        (gradient,) = torch.autograd.grad(graph.evaluate([points])[0].sum(), points)
        assert bool((gradient[:, [0, 2]] > 0).all())
        assert bool((gradient[:, 1] < 1e-6 * gradient[:, 0]).all())


def test_sign_network(compiled):
    """64 random signs must agree with a planted point more than sampling ever reaches."""
    generator = torch.Generator().manual_seed(0)
    planted = torch.rand(40, generator=generator, dtype=torch.float64) * 2 - 1
    weight = torch.randn(64, 40, generator=generator, dtype=torch.float64)
    pattern = (weight @ planted).sign()
    builder = Builder()
    signs = builder.add(Flat(), builder.add(Linear(weight), builder.input("x", (40,))))
    level = torch.tensor([50.0], dtype=torch.float64)
    hand = compiled(
        builder.graph(builder.add(Linear(-pattern[None], level), signs)), [[-1.0] * 40], [[1.0] * 40], [[[0]]]
    )
    run = Search(hand, AttackOptions())
    assert not run.sample().hit
    assert search(hand, 20.0).hit


def test_nan_is_no_hit(compiled):
    builder = Builder()
    weight = torch.full((1, 2), float("nan"), dtype=torch.float64)
    hand = compiled(
        builder.graph(builder.add(Linear(weight), builder.input("x", (2,)))),
        [[0.0] * 2],
        [[1.0] * 2],
        [[[0]]],
    )
    assert first_rounds(hand, 3).best == float("inf")


def test_deadline_callback_and_options(compiled):
    hand = compiled(network(1, [4, 64, 2]), [[0.0] * 4], [[1e-3] * 4], [[[0, 1]]])
    hand.strict[:] = True
    seen: list[Progress] = []
    begin = time.monotonic()
    search(compiled(hand.graph, [[0.0] * 4], [[0.0] * 4], [[[0, 1]]]), 0.5, callback=seen.append)
    assert time.monotonic() - begin < 3.0
    assert seen and all(p.best_attack_margin is not None for p in seen)
    with pytest.raises(OptionsError):
        AttackOptions(restarts=0)


def test_no_cases(compiled):
    hand = compiled(network(1, [4, 2]), [[0.0] * 4], [[1.0] * 4], [[[0]]])
    none = type(hand)(hand.graph, hand.lower[:0], hand.upper[:0], hand.clauses[:0], hand.strict)
    found = search(none, 1.0)
    assert not found.hit and found.best == float("inf")


@dataclass(frozen=True, eq=False)
class Probabilities(Flat):
    """The softmax of two logits."""

    def forward(self, *xs: Tensor) -> Tensor:
        return xs[0].softmax(-1)


def test_saturated_output_is_searched_in_float64(compiled):
    """Behind a softmax of far apart logits float32 has no gradient left; float64 still has."""
    generator = torch.Generator().manual_seed(3)
    first = torch.randn(500, 400, generator=generator, dtype=torch.float64) / 20
    second = torch.randn(2, 500, generator=generator, dtype=torch.float64) / 20
    center = torch.randn(400, generator=generator, dtype=torch.float64)
    logits = second @ (first @ center).clamp(min=0)
    shift = torch.tensor([150.0, 0.0], dtype=torch.float64) - 500 * (logits - logits[1])
    shift[1] = 0.0
    builder = Builder()
    hidden = builder.add(Relu(), builder.add(Linear(first), builder.input("x", (400,))))
    output = builder.add(Probabilities(), builder.add(Linear(500 * second, shift - 500 * logits[1]), hidden))
    margin = builder.add(Linear(torch.tensor([[1.0, -1.0]], dtype=torch.float64)), output)
    hand = compiled(builder.graph(margin), center[None] - 0.03, center[None] + 0.03, [[[0]]])
    run = Search(hand, AttackOptions())
    assert run.lower.dtype == torch.float32
    assert any(found.hit for found in itertools.islice(run.rounds(), 4))
    assert run.lower.dtype == torch.float64
