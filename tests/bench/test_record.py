"""The lines that a run of benchmarks leaves, also when it is killed while it writes one."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from verifier.bench.record import Record, append, environment, read, repair
from verifier.errors import VerifierError

ONE = Record(
    "acasxu", {"": "onnx/a.onnx"}, "vnnlib/p.vnnlib", 116.0, "unsat", 3.5, 2, "1.0", "unsat",
    {"load": 0.5, "search": 3.0}, 0.25, memory_mb=300.0,
)  # fmt: skip


def test_records_read_back_as_written_and_a_torn_line_goes(tmp_path):
    file = tmp_path / "run.jsonl"
    two = replace(
        ONE, networks={"f": "a.onnx", "g": "b.onnx"}, bound=-math.inf, timeout=math.inf, message="é\n"
    )
    place = environment("2026-01-01T00:00:00+00:00", {"jobs": 2})
    for item in (place, ONE, two):
        append(file, item)
    with file.open("ab") as stream:
        stream.write(b'{"kind": "instance", "benchm')
    assert read(file) == ([place], [ONE, two])
    repair(file)
    append(file, ONE)
    assert read(file) == ([place], [ONE, two, ONE])
    assert place.cores > 0 and place.versions["python"]


def test_points_are_the_competition_s():
    assert ONE.points == 10 and not ONE.wrong
    assert replace(ONE, expected="sat").points == -150
    assert replace(ONE, seconds=116.5).points == 0 and replace(ONE, seconds=116.5).counted == "timeout"
    assert replace(ONE, verdict="unknown").points == 0


def test_other_files_are_refused_with_their_line(tmp_path):
    file = tmp_path / "run.jsonl"
    file.write_text('{"kind": "instance", "benchmark": "a"}\n')
    with pytest.raises(VerifierError, match=r"run.jsonl:1: not a record"):
        read(file)
    file.write_text("sat\n")
    with pytest.raises(VerifierError, match=r"run.jsonl:1: not a line of JSON"):
        read(file)
