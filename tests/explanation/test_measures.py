"""Layers, smaller sets, and words for disjuncts."""

from __future__ import annotations

import time

import pytest
import torch

from verifier import Box, Property, X, Y, api
from verifier.bounds.final import AscentOptions
from verifier.branching.bounding import Bounder, BoundOptions
from verifier.branching.sizes import cases
from verifier.explanation.layers import layers
from verifier.explanation.radius import CLOSE, largest, scaled
from verifier.explanation.words import Words
from verifier.specs.compile import compile_query
from verifier.specs.normalise import normalise

CPU = torch.device("cpu")


@pytest.fixture
def bounder(case) -> Bounder:
    settings = BoundOptions(gaps=True, ascent=AscentOptions(steps=0))
    return Bounder(case.compiled, CPU, torch.float32, settings)


def test_widths_by_intervals_by_crown_and_as_seen(case, bounder) -> None:
    whole = cases(case.compiled, CPU)
    with torch.no_grad():
        bounded = bounder.bound(whole)
    found = layers(bounder, whole, bounded, case.points(10), time.monotonic() + 60, 0)
    assert [layer.readers for layer in found] == ["Relu", "Relu"]
    for layer, node in zip(found, bounder.split_nodes, strict=True):
        enclosure = bounded.bounds[node]
        crossing = (enclosure.lower < 0) & (enclosure.upper > 0)
        assert layer.undecided == int(crossing.sum()) == layer.driven and layer.neurons == 16
        assert layer.seen and layer.crown and layer.intervals and layer.loose and layer.widest
        assert layer.seen <= 1.001 * layer.crown <= 1.01 * layer.intervals
        assert layer.loose == pytest.approx(layer.crown / layer.seen) and layer.widest >= layer.crown
    assert found[0].loose == pytest.approx(1.0, abs=1e-3)  # a linear layer: its ends are reached
    assert (found[1].loose or 0) > 1.1 and (found[1].intervals or 0) > 1.1 * (found[1].crown or 0)
    assert sum(layer.loses or 0 for layer in found) == pytest.approx(1.0)


def test_without_time_nothing_is_driven(case, bounder) -> None:
    whole = cases(case.compiled, CPU)
    with torch.no_grad():
        found = layers(bounder, whole, bounder.bound(whole), case.points(1), time.monotonic(), 0)
    assert [(layer.driven, layer.loose, layer.seen) for layer in found] == [(0, None, None)] * 2
    assert all(layer.undecided and layer.widest for layer in found)


def test_a_smaller_set_is_proved_and_a_little_larger_one_is_not(case) -> None:
    bounder = Bounder(case.compiled, CPU, torch.float32)
    whole = cases(case.compiled, CPU)
    found = largest(bounder, whole, time.monotonic() + 60)
    assert found is not None and 0 < found.proved < found.open < 1
    assert found.open - found.proved <= CLOSE * found.open + 2e-4
    with torch.no_grad():
        assert bool(bounder.bound(scaled(whole, found.proved)).refuted.all())
        assert not bool(bounder.bound(scaled(whole, found.open)).refuted.all())
    middle = scaled(whole, 0.5)
    assert torch.equal(middle.lower + middle.upper, whole.lower + whole.upper)
    assert torch.equal(2 * (middle.upper - middle.lower), whole.upper - whole.lower)
    assert largest(bounder, whole, time.monotonic() - 1) is None


def test_what_takes_too_long_counts_as_open(case, monkeypatch) -> None:
    def slow(self, domains):
        width = float((domains.upper - domains.lower).amax())
        if width > 0.1:
            raise MemoryError
        return whole_bound(self, domains)

    whole_bound = Bounder.bound
    monkeypatch.setattr(Bounder, "bound", slow)
    found = largest(
        Bounder(case.compiled, CPU, torch.float32), cases(case.compiled, CPU), time.monotonic() + 60
    )
    assert found is not None and 0 < found.proved <= 0.05 < found.open < 0.06


def test_disjuncts_in_the_query_s_words(case) -> None:
    words = Words(case.query, normalise(case.query))
    assert words.inputs() == ["X_0", "X_1", "X_2"]
    said = [words.conjunction(case.compiled.clauses[0, d].tolist()) for d in range(3)]
    assert [text[:5] for text in said] == ["Y_0 <", "Y_1 <", "Y_2 <"]
    claim = (2 * Y[0] + Y[1] - X[1] <= 3) & (Y[1] <= Y[2])
    box = Box(-torch.ones(1, 3), torch.ones(1, 3))
    query, networks = api.prepare_query(case.model, Property(box, claim))
    words, compiled = Words(query, normalise(query)), compile_query(query, networks)
    atoms = [[k for k in row if k >= 0] for row in compiled.clauses[0].tolist()]
    assert sorted(words.conjunction(k) for k in atoms) == ["X_1 < 2*Y_0 + Y_1 - 3", "Y_2 < Y_1"]
    assert (
        words.conjunction([0] * 5).endswith(" and 2 more") and words.atom(99) == "another part of the query"
    )
    least = Property(box, Y[0] <= 5)
    query, _ = api.prepare_query(case.model, least)
    assert Words(query, normalise(query)).atom(0) == "Y_0 > 5"
