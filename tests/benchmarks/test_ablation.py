"""The ablation: verdicts of single runs, what is left to the methods, and the table."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.ablation import METHODS, ROOT_METHOD, Instance, place, run, solved, still_open, table
from verifier.branching.activation_split import HEURISTICS

DATA = Path(__file__).resolve().parent.parent / "data"


@pytest.mark.parametrize("name", ["root", "BBPS, chosen"])
def test_a_run_is_a_row(name: str) -> None:
    method = next(m for m in (ROOT_METHOD, *METHODS) if m.name == name)
    instance = Instance("demo", str(DATA / "digits_mlp.onnx"), str(DATA / "digits_mlp_unsat.vnnlib"))
    usual = dict(HEURISTICS)
    row = run(instance, method, limit=20.0, memory=1.0)
    assert row["verdict"] == "unsat" and row["method"] == name and row["domains"] >= 1
    assert solved(row) and usual == HEURISTICS


def test_an_error_is_no_verdict() -> None:
    row = run(Instance("demo", "nowhere.onnx", "nowhere.vnnlib"), METHODS[0], limit=5.0, memory=1.0)
    assert row["verdict"] == "error" and row["remark"] and not solved(row)


def rows(verdicts: dict[str, str]) -> dict:
    found = {}
    for spec in ("1", "2", "3"):
        for method, verdict in {"root": "unsat" if spec == "3" else "unknown", **verdicts}.items():
            row = {"suite": "demo", "model": "m.onnx", "spec": spec, "method": method, "verdict": verdict}
            found["demo", "m.onnx", spec, method] = row | {"domains": 10 * int(spec), "seconds": float(spec)}
    return found


def test_what_the_first_bounds_leave_open_and_no_more() -> None:
    chosen = [Instance("demo", "m.onnx", spec, eps=0.1) for spec in ("3", "1", "2")]
    assert still_open(chosen, rows({}), images=1) == chosen[1:2]
    assert still_open(chosen, rows({}), images=5) == chosen[1:]
    assert place(chosen[0], ROOT_METHOD) in rows({})


def test_the_table() -> None:
    verdicts = {m.name: "timeout" if m.name == "input" else "unsat" for m in METHODS}
    line = list(table(rows(verdicts), ["demo"], limit=60.0))[-1]
    assert (
        line
        == " | ".join(["| demo |  |  | 3 | 1 | 0 / 15 / 60.0 s", *["2 / 15 / 1.5 s"] * (len(METHODS) - 1)])
        + " |"
    )
