"""Many queries over one network in one batch: the same verdicts as one by one, and nothing lost by a killed process."""

from __future__ import annotations

import sys
import threading

import numpy as np
import pytest

from verifier import api
from verifier.bench import runner, share
from verifier.bench.instances import by_network, find_instances
from verifier.bench.live import Board
from verifier.bench.record import Record
from verifier.bench.runner import Resources, run_together
from verifier.bench.share import joined, verify_together
from verifier.errors import VerifierError
from verifier.options import Options
from verifier.results import Result, Status
from verifier.specs.load import load_query
from verifier.specs.normalise import normalise
from verifier.transforms.centers import has_means


def test_verdicts_are_those_of_separate_runs(root, tmp_path):
    data = root / "tests" / "data"
    sat, unsat = data / "digits_mlp_sat.vnnlib", data / "digits_mlp_unsat.vnnlib"
    (broken := tmp_path / "broken.vnnlib").write_text("(assert (<= X_0 1)")
    (empty := tmp_path / "empty.vnnlib").write_text(
        unsat.read_text() + "\n(assert (>= X_0 5))\n(assert (<= X_0 4))\n"
    )
    told: dict[int, object] = {}
    specs = [unsat, sat, broken, empty, unsat]
    verify_together(
        data / "digits_mlp.onnx", specs, [60.0] * 5, Options(), lambda i, answer, s: told.update({i: answer})
    )
    assert isinstance(told.pop(2), VerifierError)
    results = {i: r for i, r in told.items() if isinstance(r, Result)}
    assert {i: r.status for i, r in results.items()} == {
        0: Status.UNSAT, 1: Status.SAT, 3: Status.UNSAT, 4: Status.UNSAT
    }  # fmt: skip
    point = results[1].counterexample
    assert point is not None and point.assignment.startswith("((X_0 ")
    assert set(results[0].stats.seconds) == {"shared"}  # the batch itself proved it


def test_joined_cases_ask_what_they_asked_alone(root):
    data = root / "tests" / "data"
    problems = [normalise(load_query(data / f"digits_mlp_{kind}.vnnlib")) for kind in ("sat", "unsat", "sat")]
    whole = joined(problems)
    assert whole.cases == sum(p.cases for p in problems) and whole.atoms < sum(p.atoms for p in problems)
    v = np.random.default_rng(0).standard_normal((50, len(whole.position)))

    def atoms(p):
        dense = np.zeros((p.atoms, len(p.position)))
        dense[p.rows, p.cols] = p.values
        return v @ dense.T + p.constants <= 0

    def holds(tree, truth):
        if isinstance(tree, int):
            return truth[:, tree]
        parts = [holds(child, truth) for child in tree.children]
        return np.all(parts, 0) if type(tree).__name__ == "And" else np.any(parts, 0)

    alone = [holds(p.formulas[i], atoms(p)) for p in problems for i in p.formula_index]
    both = [holds(whole.formulas[i], atoms(whole)) for i in whole.formula_index]
    assert np.array_equal(alone, both) and np.any(alone) and not np.all(alone)


def test_attention_is_bounded_about_the_middle_of_each_box(root, monkeypatch):
    """In place of one batch: with the same answers, each query compiled for itself."""
    compiled = []
    compile_query = share.compile_query
    monkeypatch.setattr(share, "has_means", lambda graph: True)
    monkeypatch.setattr(share, "compile_query", lambda *a: compiled.append(a[0]) or compile_query(*a))
    data = root / "tests" / "data"
    told: dict[int, object] = {}
    specs = [data / f"digits_mlp_{kind}.vnnlib" for kind in ("unsat", "sat", "unsat")]
    verify_together(
        data / "digits_mlp.onnx", specs, [60.0] * 3, Options(), lambda i, answer, s: told.update({i: answer})
    )
    assert [told[i].status for i in range(3)] == [Status.UNSAT, Status.SAT, Status.UNSAT]  # type: ignore[attr-defined]
    assert len(compiled) == 3  # all together for the attack, then what it left


@pytest.mark.full
def test_vision_transformers_are_settled_in_the_batch_as_alone(shared):
    folder = shared / "vnncomp-dev" / "vit"
    told: dict[int, object] = {}
    specs = [folder / "vnnlib" / f"pgd_2_3_16_{k}.vnnlib" for k in (1298, 6506)]
    model = folder / "onnx" / "pgd_2_3_16.onnx"
    verify_together(model, specs, [100.0] * 2, Options(), lambda i, answer, s: told.update({i: answer}))
    for result in told.values():
        assert isinstance(result, Result) and result.status is Status.UNSAT
        assert set(result.stats.seconds) == {"shared"}
    network = api.load_network(model)
    assert has_means(network.graph)


# Answers the queries it is given until it comes to the marked one, which it begins and never answers.
FAKE = """
import json, sys
job = json.load(open(sys.argv[-1]))
with open(job["answers"], "a") as out:
    for i, spec in enumerate(job["specs"]):
        if "heavy" in spec:
            sys.exit("no room")
        out.write(json.dumps({"number": i, "begun": True}) + chr(10))
        if "bad" in spec:
            out.flush()
            sys.exit("no luck")
        result = {"verdict": "unsat", "explanation": "", "seconds": {"shared": 0.1}, "bound": 1.0}
        out.write(json.dumps({"number": i, "seconds": 0.1, "result": result, "witness": ""}) + chr(10))
"""
# One instance in a process of its own.
ALONE = "import sys; print('unsat' if 'heavy' in sys.argv[2] else 'sat')"


def _fake(tmp_path, monkeypatch, names):
    for file, text in (("fake.py", FAKE), ("alone.py", ALONE)):
        (tmp_path / file).write_text(text)
    monkeypatch.setattr(runner, "SHARE", (sys.executable, "-S", "-E", str(tmp_path / "fake.py")))
    monkeypatch.setattr(runner, "VERIFIER", (sys.executable, "-S", "-E", str(tmp_path / "alone.py")))
    (tmp_path / "instances.csv").write_text("".join(f"n.onnx,{name}.vnnlib,5\n" for name in names))
    (group,) = by_network(find_instances(tmp_path))
    found: list[Record] = []
    begun: list[int] = []
    run_together(
        group,
        1.0,
        Resources(),
        lambda _: None,
        threading.Event(),
        found.append,
        lambda i: begun.append(i.row),
    )
    return found, begun


@pytest.mark.skipif(sys.platform != "linux", reason="kills processes as Linux lets one")
def test_a_process_that_dies_costs_the_instance_that_it_was_at(tmp_path, monkeypatch):
    found, begun = _fake(tmp_path, monkeypatch, ["a", "bad", "c", "d"])
    assert [(r.row, r.verdict) for r in found] == [(1, "unsat"), (2, "error"), (3, "unsat"), (4, "unsat")]
    assert found[0].phases == {"shared": 0.1} and found[0].bound == 1.0
    assert found[1].message == "no luck" and begun == [1, 2, 3, 4]


@pytest.mark.skipif(sys.platform != "linux", reason="kills processes as Linux lets one")
def test_a_batch_that_dies_costs_nothing(tmp_path, monkeypatch):
    """In place of one instance after the other, with a batch as large each time."""
    found, begun = _fake(tmp_path, monkeypatch, ["heavy", "c", "d"])
    assert [(r.row, r.verdict) for r in found] == [(1, "unsat"), (2, "sat"), (3, "sat")] and begun == [
        1,
        2,
        3,
    ]


def test_several_jobs_divide_the_queries_of_one_network(tmp_path):
    rows = [f"{'m' if i == 3 else 'n'}.onnx,{i}.vnnlib,5\n" for i in range(7)]
    (tmp_path / "instances.csv").write_text("".join(rows))
    instances = find_instances(tmp_path)
    sizes = {jobs: [len(g) for g in by_network(instances, jobs)] for jobs in (1, 2, 3, 9)}
    assert sizes == {1: [6, 1], 2: [4, 2, 1], 3: [3, 3, 1], 9: [1] * 7}
    assert {len(i.networks) for g in by_network(instances, 2) for i in g} == {1}
    assert sorted(i.row for g in by_network(instances, 2) for i in g) == list(range(1, 8))


def test_the_table_tells_a_batch_from_what_is_looked_at_alone(tmp_path):
    pytest.importorskip("rich")
    (tmp_path / "instances.csv").write_text("".join(f"n.onnx,{i}.vnnlib,5\n" for i in range(4)))
    group, board = find_instances(tmp_path), Board(4, 0)

    def rows():
        columns = [list(column.cells) for column in board.table().columns[:2]]
        return [
            (str(name).replace(f"{tmp_path.name}/", ""), word) for name, word in zip(*columns, strict=True)
        ]

    board.together(group)
    assert rows() == [("4 queries of n.onnx", "in one batch")]
    board.ended(group[1].record(5, "unsat", 0.1))
    assert rows() == [("n.onnx/1.vnnlib", "unsat"), ("3 queries of n.onnx", "in one batch")]
    board.started(group[0])
    assert rows()[1:] == [("n.onnx/0.vnnlib", "..."), ("2 queries of n.onnx", "waiting")]
    board.ended(group[0].record(5, "sat", 0.1))
    board.started(group[2])
    assert rows()[2:] == [("n.onnx/2.vnnlib", "..."), ("1 query of n.onnx", "waiting")]
    board.started(group[3])
    assert rows()[2:] == [("n.onnx/2.vnnlib", "..."), ("n.onnx/3.vnnlib", "...")]
