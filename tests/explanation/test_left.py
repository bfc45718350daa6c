"""What a search left: which disjuncts, and what share of their boxes."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from tests.explanation.conftest import made
from verifier.branching.domains import Domains
from verifier.explanation.left import everything, gathered, left_by, origins
from verifier.explanation.region import SAMPLES, remainder

NAMES = ["a", "b", "c"]


@pytest.mark.parametrize("branching", ["input", "activation"])
def test_bounds_of_open_disjuncts_hold_and_the_others_are_proved(case, branching) -> None:
    result, search = case.search(branching, 60)
    left = left_by(case.compiled, search)
    assert set(left.number.tolist()) == {0, 1}  # the third is far from violated
    assert float(left.bound.min()) == result.bound and len(everything(case.compiled)) == 3
    seen = case.margins(case.points(4000)).amin(0)
    assert bool((left.bound <= seen[left.number]).all()) and bool((seen > 0).all())
    if branching == "activation":  # every disjunct has subdomains of its own
        assert int(left.subdomains.sum()) == len(search)


def test_subdomains_that_nothing_splits_further_leave_everything_open(case) -> None:
    _, search = case.search("input", 60)
    search._stuck = -1.0
    assert len(left_by(case.compiled, search)) == len(left_by(case.compiled, None)) == 3


@pytest.mark.parametrize("halved", [False, True])
def test_the_share_left_is_that_of_the_boxes(case, halved) -> None:
    case = case.halved() if halved else case
    _, search = case.search("input", 40)
    left = left_by(case.compiled, search)
    region, shares = remainder(case.compiled, search, left, NAMES, 0)
    part = Domains.cat(list(search.parts()))
    width = case.compiled.upper[part.case] - case.compiled.lower[part.case]
    volume = ((part.upper - part.lower) / width).prod(1)
    for k in range(len(left)):
        mine = (part.case == left.case[k]) & part.open[:, left.number[k]]
        assert float(shares[k]) == pytest.approx(float(volume[mine].sum()), rel=1e-9)
    assert region.left == pytest.approx(float(shares.sum()) / (3 * len(case.compiled.lower)))
    assert region.samples is None and 0 < region.left < 1 and region.open == len(search)
    worst = left.worst_first()
    mine = (part.case == worst.case[0]) & part.open[:, worst.number[0]]
    for span in region.ranges:
        column = NAMES.index(span.name)
        assert span.lower == float(part.lower[mine, column].min()) and span.share < 1
        assert span.upper == float(part.upper[mine, column].max())


def test_where_neurons_are_split_samples_are_counted() -> None:
    case = made([1.5, 1.5, 50.0])
    _, search = case.search("activation", 400)
    left = left_by(case.compiled, search)
    region, shares = remainder(case.compiled, search, left, NAMES, 0)
    assert region.samples == SAMPLES and sum(region.layers.values()) > 0
    graph = search.bounder.compiled.graph_on(torch.float64, torch.device("cpu"))
    points, origin = case.points(20000), origins(case.compiled, search.bounder.compiled)
    held = torch.zeros(len(points), 3, dtype=torch.bool)
    for part in gathered(search, 64):
        nodes = list(part.splits)
        values = [v.flatten(1) for v in graph.evaluate([points], nodes)]
        for m in range(len(part)):
            inside = ((points >= part.lower[m]) & (points <= part.upper[m])).all(1)
            for i, v in zip(nodes, values, strict=True):
                low, high = (end[m].flatten() for end in part.splits[i])
                inside &= ((v >= low) & (v <= high)).all(1)
            held[:, int(origin[part.case[m], 0])] |= inside
    expected = held.double().mean(0)[left.number]
    assert bool((expected < 0.9).any()) and bool((expected > 0).all())
    assert shares.tolist() == pytest.approx(expected.tolist(), abs=0.08)


def test_every_disjunct_is_found_again(case) -> None:
    whole = case.halved().compiled
    cases, numbers = torch.tensor([1, 0, 1, 1]), torch.tensor([2, 0, 0, 1])
    derived = replace(
        whole,
        lower=whole.lower[cases],
        upper=whole.upper[cases],
        clauses=whole.clauses[cases, numbers].unsqueeze(1),
    )
    assert origins(whole, derived).flatten().tolist() == (3 * cases + numbers).tolist()
    other = replace(derived, lower=derived.lower - 1)
    with pytest.raises(ValueError, match="has a disjunct that the first has not"):
        origins(whole, other)
    padded = replace(derived, clauses=torch.cat([derived.clauses, -torch.ones_like(derived.clauses)], 1))
    assert origins(whole, padded)[:, 1].tolist() == [-1] * 4
