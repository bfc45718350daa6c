"""`verifier bench` over an engine that a few lines of shell-like Python stand in for."""

from __future__ import annotations

import csv
import sys
from pathlib import Path

import pytest

from verifier.bench import runner
from verifier.bench.instances import find_instances
from verifier.bench.record import read
from verifier.bench.runner import run_instance
from verifier.bench.score import summary, write_csv
from verifier.errors import VerifierError

# Prints the first word of the spec as the verdict; the second is the exit code.
FAKE = """
import sys, time, pathlib
words = sys.argv[1:]
spec = next(w for w in words if w.endswith(".vnnlib"))
verdict, code = pathlib.Path(spec).read_text().split()
if verdict == "hang":
    time.sleep(60)
print(verdict, *words[-2:], sep="\\n")
print("why not", file=sys.stderr)
sys.exit(int(code))
"""


@pytest.fixture
def command(tmp_path: Path) -> tuple[str, ...]:
    script = tmp_path / "fake.py"
    script.write_text(FAKE)
    return sys.executable, "-S", "-E", str(script)


def benchmark(folder: Path, rows: list[tuple[str, str, str]]) -> Path:
    """`rows`: what the stand-in does, the limit, and the expected verdict."""
    folder.mkdir()
    lines = []
    for i, (behaviour, limit, expected) in enumerate(rows):
        (folder / f"{i}.vnnlib").write_text(behaviour)
        lines.append(f"net.onnx,{i}.vnnlib,{limit}{',' + expected if expected else ''}")
    (folder / "instances.csv").write_text("\n".join(lines) + "\n")
    return folder


def test_verdicts_are_counted_per_benchmark(tmp_path, command):
    benchmark(
        tmp_path / "a", [("sat 0", "5", "sat"), ("unsat 0", "5", "sat,1.5,x,y"), ("unknown 0", "5", "")]
    )
    benchmark(
        tmp_path / "b", [("timed-out 0", "5", "unknown"), ("unsat 1", "5", "unsat"), ("nonsense 0", "5", "")]
    )
    rows = [run_instance(instance, command=command) for instance in find_instances(tmp_path)]
    assert [row.verdict for row in rows] == ["sat", "unsat", "unknown", "timeout", "error", "error"]
    assert [row.wrong for row in rows] == [False, True, False, False, False, False]
    assert rows[2].message == "why not"
    head, lines = summary(rows)
    assert head[:-1] == (
        "benchmark", "instances", "solved", "sat", "unsat", "unknown", "timeouts", "errors", "wrong", "points",
        "percent",
    )  # fmt: skip
    assert [line[:-1] for line in lines] == [
        ("a", "3", "1", "1", "1", "1", "0", "0", "1", "-140", "-466.7"),
        ("b", "3", "0", "0", "0", "0", "1", "2", "0", "0", "0.0"),
        ("all", "6", "1", "1", "1", "1", "1", "2", "1", "-140", "-466.7"),
    ]
    write_csv(rows, tmp_path / "results.csv")
    with (tmp_path / "results.csv").open(newline="") as file:
        written = list(csv.reader(file))
    assert [row[:5] for row in written[:2]] == [
        ["a", "a/net.onnx", "a/0.vnnlib", "0", "sat"],
        ["a", "a/net.onnx", "a/1.vnnlib", "0", "unsat"],
    ]
    assert float(written[0][5]) > 0


def test_a_process_that_outlives_its_limit_is_killed_and_an_error(tmp_path, command, monkeypatch):
    monkeypatch.setattr(runner, "_GRACE", 0.2)
    benchmark(tmp_path / "a", [("hang 0", "1", "unsat")])
    row = run_instance(find_instances(tmp_path / "a")[0], 0.1, command)
    assert row.verdict == "error" and row.timeout == 0.1 and row.seconds < 5
    assert "killed" in row.message


def test_two_networks_become_flags_and_plain_rows_positions(tmp_path):
    (tmp_path / "instances.csv").write_text(
        "\"[('f', 'a.onnx'), ('g', 'b.onnx')]\",q.vnnlib,100\nc.onnx,r.vnnlib,9.5,sat\n"
    )
    two, one = find_instances(tmp_path)
    assert two.arguments() == [
        str(tmp_path / "q.vnnlib"),
        f"--network=f={tmp_path}/a.onnx",
        f"--network=g={tmp_path}/b.onnx",
    ]
    assert two.name == f"{tmp_path.name}/a.onnx+b.onnx/q.vnnlib" and two.expected is None
    assert one.arguments() == [str(tmp_path / "c.onnx"), str(tmp_path / "r.vnnlib")]
    assert (one.timeout, one.expected) == (9.5, "sat")


def test_only_takes_benchmarks_and_instances(tmp_path):
    benchmark(tmp_path / "a", [("sat 0", "5", ""), ("sat 0", "5", "")])
    benchmark(tmp_path / "b", [("sat 0", "5", "")])
    names = [i.name for i in find_instances(tmp_path)]
    assert names == ["a/net.onnx/0.vnnlib", "a/net.onnx/1.vnnlib", "b/net.onnx/0.vnnlib"]
    assert [i.name for i in find_instances(tmp_path, "a")] == names[:2]
    assert [i.name for i in find_instances(tmp_path, "*/0.vnnlib")] == names[::2]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "has no instances.csv"),
        ("", "has no rows"),
        (
            "net.onnx,a.vnnlib\n",
            "instances.csv:1: expected onnx, vnnlib, timeout in seconds; got 'net.onnx,a.vnnlib'",
        ),
        ("n.onnx,a.vnnlib,5\n[('f',n.onnx,a.vnnlib,x\n", "instances.csv:2: expected"),
        ("n.onnx,a.vnnlib,5\n", "none of 1 instances matches --only zzz; an example is"),
    ],
)
def test_bad_folders(tmp_path, text, message):
    if text is not None:
        (tmp_path / "instances.csv").write_text(text)
    with pytest.raises(VerifierError) as caught:
        find_instances(tmp_path, "zzz")
    assert message in str(caught.value)


def test_the_command_prints_a_table_and_fails_on_a_wrong_verdict(tmp_path, command, monkeypatch, capsys):
    from verifier.cli.main import main

    benchmark(tmp_path / "a", [("sat 0", "5", "unsat")])
    monkeypatch.setattr(runner, "VERIFIER", command)
    out = tmp_path / "rows.csv"
    with pytest.raises(SystemExit) as left:
        main(["bench", str(tmp_path / "a"), "--out", str(out), "--timeout-scale", "0.5"])
    captured = capsys.readouterr()
    assert left.value.code == 1
    assert captured.out.splitlines()[1].split()[:-1] == [
        "a",
        "1",
        "0",
        "1",
        "0",
        "0",
        "0",
        "0",
        "1",
        "-150",
        "-1500.0",
    ]
    assert "[1/1] a/net.onnx/0.vnnlib: sat" in captured.err and "WRONG" in captured.err
    assert out.read_text().count("\n") == 1
    assert read(out.with_suffix(".jsonl"))[1][0].points == -150


def test_the_real_folders_are_read(shared):
    instances = find_instances(shared / "vnncomp-dev")
    assert len({i.benchmark for i in instances}) >= 30
    assert {"sat", "unsat", None} == {i.expected for i in instances}
