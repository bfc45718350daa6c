"""Benchmark instances with known counterexamples: each must be found again, and confirmed."""

from __future__ import annotations

import csv
import time
from pathlib import Path

import pytest

from verifier.attack.falsify import falsify
from verifier.errors import UnsupportedError
from verifier.frontends.onnx import load
from verifier.specs.compile import compile_query
from verifier.specs.evaluator import satisfies
from verifier.specs.load import load_query

QUICK = (
    "acasxu",
    "rl_benchmarks",
    "cora",
    "mnist_fc",
    "collins_rul_cnn",
    "safenlp",
    "reach_prob_density",
    "sat_relu_2025",
)
LONG = (
    "tllverifybench",
    "traffic_signs",
    "marabou_cifar10_2021",
    "sri_resnet_a",
    "malbeware_2025",
    "verivital_2021",
)
SECONDS = 60.0
"""Far more than any of them needs on a quiet machine."""


@pytest.mark.parametrize(
    "benchmark", [*QUICK, *[pytest.param(name, marks=pytest.mark.full) for name in LONG]]
)
def test_known_counterexamples_are_found(benchmark, shared):
    folder = shared / "vnncomp-dev" / benchmark
    missed, unsupported, tried = [], [], 0
    for onnx, vnnlib, *_ in known(folder, "sat"):
        try:
            model = load(folder / f"{onnx}.gz")
        except UnsupportedError:
            unsupported.append(onnx)
            continue
        tried += 1
        query = load_query(folder / f"{vnnlib}.gz")
        deadline = time.monotonic() + SECONDS
        outcome = falsify(compile_query(query, {"f": model}), query, {"f": model}, deadline)
        found = outcome.counterexample
        if found is None:
            missed.append((vnnlib, outcome.margin))
        else:
            assert satisfies(query, {**found.inputs, **found.outputs}, found.tolerance)
    assert not missed
    if not tried:
        pytest.skip(f"operators of {unsupported} are not supported yet")


@pytest.mark.parametrize("benchmark", ["acasxu", "rl_benchmarks", "safenlp"])
def test_nothing_is_found_where_nothing_is(benchmark, shared):
    """A second of attack on proved instances: no confirmed point."""
    folder = shared / "vnncomp-dev" / benchmark
    for onnx, vnnlib, *_ in known(folder, "unsat"):
        model, query = load(folder / f"{onnx}.gz"), load_query(folder / f"{vnnlib}.gz")
        outcome = falsify(compile_query(query, {"f": model}), query, {"f": model}, time.monotonic() + 0.5)
        assert outcome.counterexample is None, vnnlib
        assert outcome.margin > -1e-6, vnnlib


def known(folder: Path, verdict: str) -> list[list[str]]:
    with (folder / "instances.csv").open() as lines:
        return [row for row in csv.reader(lines) if row[3] == verdict]
