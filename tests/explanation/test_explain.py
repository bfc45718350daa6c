"""`explain` as a whole: what it finds, when it decides, and what it advises."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

import verifier
from verifier import Box, Options, OptionsError, Property, Status, Y
from verifier.explanation import explain as module
from verifier.explanation.advice import hints
from verifier.explanation.findings import Disjunct, Explanation, Kind, Layer, Radius, Region
from verifier.results import Reason, Result, Stats
from verifier.specs.load import parse_query
from verifier.specs.ties import untie


@pytest.mark.parametrize("branching", ["input", "activation"])
def test_what_is_open_after_a_limited_search(case, branching) -> None:
    options = Options(timeout=5, max_domains=60, branching=branching)
    found = verifier.explain(case.model, case.claim, options=options)
    assert found.result.reason is Reason.DOMAIN_LIMIT and not found.decided
    assert (found.total, found.open) == (3, 2) and len(found.disjuncts) == 2
    seen = case.margins(case.points(4000)).amin(0)
    for d in found.disjuncts:
        assert d.text.startswith(f"Y_{d.number} <") and d.bound is not None and d.attack is not None
        assert d.bound <= 0 < d.attack <= float(seen[d.number]) + 1e-4 and d.gap == d.attack - d.bound
        assert d.middle == pytest.approx(
            float(case.margins(torch.zeros(1, 3, dtype=torch.float64))[0, d.number])
        )
    assert found.disjuncts[0].bound <= found.disjuncts[1].bound  # type: ignore[operator]
    assert found.region is not None and found.region.bounded == 60 and len(found.layers) == 2
    assert found.radius is not None and 0 < found.radius.proved < 1
    kinds = [h.kind for h in found.hints]
    assert kinds[0] is Kind.REASON and Kind.SMALLER_SET in kinds and Kind.FEWER_DISJUNCTS in kinds
    told = json.loads(found.to_json())
    assert told["disjuncts"]["worst"][0]["gap"] == found.disjuncts[0].gap
    assert [h["kind"] for h in told["hints"]] == [k.value for k in kinds]
    assert set(told["seconds"]) == {"load", "search", "bounds", "attack", "region", "layers", "smaller set"}


def test_a_decided_query_is_told_so(case) -> None:
    box = Box(-torch.ones(1, 3), torch.ones(1, 3))
    for claim, status in ((Y[2] >= -1e4, Status.UNSAT), (Y[2] >= 1e4, Status.SAT)):
        found = verifier.explain(case.model, Property(box, claim), timeout=4)
        assert found.result.status is status and found.decided and not found.disjuncts
        assert [h.kind for h in found.hints] == [Kind.DECIDED] and found.result.versions


def test_measuring_may_decide(case, monkeypatch) -> None:
    open_ = Result(Status.UNKNOWN, reason=Reason.MEMORY)
    monkeypatch.setattr(module, "examine", lambda *_: (open_, None))
    box = Box(-torch.ones(1, 3), torch.ones(1, 3))
    for claim, status in ((Y[2] >= -1e4, Status.UNSAT), (Y[2] >= 1e4, Status.SAT)):
        found = verifier.explain(case.model, Property(box, claim), timeout=4)
        assert found.result.status is status and found.decided
    found = verifier.explain(case.model, case.claim, timeout=4)  # with no search there is no region
    assert found.region is None and found.open >= 2 and not found.decided
    assert found.hints[0].kind is Kind.REASON and "memory" in found.hints[0].text.lower()


def test_impossible_options_are_refused(case) -> None:
    with pytest.raises(OptionsError, match="finite timeout"):
        verifier.explain(case.model, case.claim, timeout=float("inf"))


def explained(**changes) -> Explanation:
    stats = Stats(domains=1000, seconds={"root": 1.0}, device="cpu")
    result = changes.pop("result", Result(Status.TIMEOUT, -1.0, stats=stats))
    row = Disjunct(0, 0, "Y_0 <= Y_1", -1.0, 0.5, 1.0, 20, changes.pop("left", 0.5))
    common = {
        "disjuncts": (row,),
        "total": 1,
        "open": 1,
        "region": Region(1000, 20, 1, 0.5, None),
        "phases": {"search": 10.0},
    }
    return Explanation(result, **{**common, **changes})


NEAR = Disjunct(0, 0, "Y_0 <= 1", -1.0, 0.05, 1.0)
LAYERS = (Layer("a", "Relu", 9, 3, loses=0.3), Layer("b", "Tanh", 9, 9, loses=0.7, loose=5.0))


@pytest.mark.parametrize(
    ("changes", "options", "kind", "words"),
    [
        ({}, Options(), Kind.RAISE_TIMEOUT, "50 % of the open disjuncts' boxes is closed"),
        ({"left": 1.0}, Options(), Kind.RAISE_TIMEOUT, "more time alone will not do"),
        ({"region": None}, Options(), Kind.FIRST_BOUNDS, "1.0 of 10.0 s"),
        ({"radius": Radius(0.25, 0.26)}, Options(), Kind.SMALLER_SET, "0.25 times as wide"),
        ({"radius": Radius(0.0, 0.001)}, Options(), Kind.SMALLER_SET, "the bounds prove nothing"),
        ({"total": 9}, Options(), Kind.FEWER_DISJUNCTS, "8 of 9 disjuncts are proved"),
        ({}, Options(attack=False), Kind.NEAR_COUNTEREXAMPLE, "No attack was made"),
        ({"disjuncts": (NEAR,)}, Options(), Kind.NEAR_COUNTEREXAMPLE, "Y_0 <= 1 is missed by 0.05"),
        ({}, Options(method="crown"), Kind.TIGHTER_BOUNDS, "--method crown"),
        ({"layers": LAYERS}, Options(), Kind.LOOSE_LAYER, "lost at b (Tanh): 70 %"),
        ({"result": Result(Status.TIMEOUT, stats=Stats(domains=3, device="cpu"))}, Options(), Kind.GPU, "3 subdomains"),
        ({"result": Result(Status.UNKNOWN, reason=Reason.NUMERICS)}, Options(), Kind.REASON, "--dtype float64"),
    ],
)  # fmt: skip
def test_advice_follows_from_what_was_measured(changes, options, kind, words) -> None:
    found = {h.kind: h.text for h in hints(explained(**changes), options)}
    assert words in found[kind]
    plain = {h.kind for h in hints(explained(), Options())}
    assert plain == {Kind.RAISE_TIMEOUT}


def test_two_networks_that_share_their_inputs(case) -> None:
    """Where inputs are tied, the compiled query has fewer of them and atoms of its own."""
    pytest.importorskip("vnnlib")
    text = """(vnnlib-version <2.0>)
(declare-network f (declare-input A real [1, 3]) (declare-output B real [1, 3]))
(declare-network g (equal-to f) (declare-input C real [1, 3]) (declare-output D real [1, 3]))
(assert (and (<= A[0,0] 1) (>= A[0,0] -1) (<= A[0,1] 1) (>= A[0,1] -1) (<= A[0,2] 1) (>= A[0,2] -1)))
(assert (and (<= C[0,0] 1) (>= C[0,0] -1) (<= C[0,1] 1) (>= C[0,1] -1)))
(assert (and (== C[0,2] A[0,2]) (<= C[0,1] A[0,1]) (== C[0,0] A[0,0])))
(assert (>= B[0,0] (+ D[0,0] 8)))
"""
    query = parse_query(text)
    options = Options(timeout=4, max_domains=30, branching="input")
    found = verifier.explain({"f": case.model}, query, options=options)
    (row,) = found.disjuncts
    assert row.text == "D[0,0] <= B[0,0] - 8 and another part of the query" and row.bound is not None
    assert row.attack is not None and row.bound < row.attack
    words, ties = (
        module.Words(query, module.normalise(query)),
        untie(module.normalise(query), np.repeat([0, 1], 3)),
    )
    assert ties is not None
    assert words.inputs(ties.ties) == ["A[0,0]", "A[0,1]", "A[0,2]", "deviation of C[0,1]"]
