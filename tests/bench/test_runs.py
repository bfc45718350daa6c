"""Runs of several instances at once: killed, resumed, sharded, limited and compared."""

from __future__ import annotations

import csv
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from verifier.bench import runner
from verifier.bench.instances import find_all, find_instances
from verifier.bench.pool import divide, run_all
from verifier.bench.record import Record, append, read
from verifier.bench.runner import Resources, run_instance
from verifier.bench.score import alone, comparison, disagreements, read_other, summary, write_csv
from verifier.errors import OptionsError, VerifierError

# What the spec says: a Python program that sees its words as `words`.
FAKE = """
import json, sys, time, os, pathlib
words = sys.argv[1:]
specs = [w for w in words if w.endswith(".vnnlib")]
if specs:
    exec(pathlib.Path(specs[0]).read_text())
else:  # as `bench.share`: a job with many
    job = json.loads(pathlib.Path(words[0]).read_text())
    for number, spec in enumerate(job["specs"]):
        exec(pathlib.Path(spec).read_text())
        result = {"verdict": "unsat", "explanation": "", "seconds": {}}
        with open(job["answers"], "a") as out:
            out.write(json.dumps({"number": number, "seconds": 0.1, "result": result, "witness": ""}) + chr(10))
"""
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="kills processes as Linux lets one")


@pytest.fixture
def command(tmp_path, monkeypatch):
    script = tmp_path / "fake.py"
    script.write_text(FAKE)
    monkeypatch.setattr(runner, "VERIFIER", (sys.executable, "-S", "-E", str(script)))
    return script


def benchmark(folder: Path, specs: list[str], limit: float = 5) -> Path:
    folder.mkdir(parents=True)
    for i, text in enumerate(specs):
        (folder / f"{i}.vnnlib").write_text(text)
    (folder / "instances.csv").write_text("".join(f"n.onnx,{i}.vnnlib,{limit}\n" for i in range(len(specs))))
    return folder


def bench(*words: object) -> int | str | None:
    from verifier.cli.main import main

    with pytest.raises(SystemExit) as left:
        main(["bench", *map(str, words)])
    return left.value.code


def test_a_process_tree_over_its_memory_is_killed(tmp_path, command):
    inner = "x = b'1' * 200_000_000; import time; time.sleep(20)"
    grow = f"import subprocess\nsubprocess.run([sys.executable, '-c', {inner!r}])"
    instance = find_instances(benchmark(tmp_path / "a", [grow]))[0]
    record = run_instance(instance, resources=Resources(memory_gb=0.15))
    assert record.verdict == "error" and "0.15 GB" in record.message and record.seconds < 5
    assert record.memory_mb is not None and record.memory_mb > 150


def test_jobs_run_at_the_same_time_and_devices_are_dealt_out(tmp_path, command):
    say = (
        "print('unsat'); gpu = os.environ['CUDA_VISIBLE_DEVICES']; "
        "open({!r}, 'a').write(' '.join([gpu, *words]) + '\\n'); time.sleep(0.3)"
    )
    log = str(tmp_path / "log")
    instances = find_all([benchmark(tmp_path / "a", [say.format(log)] * 4)])
    slots = divide(2, ["cuda:0", "cuda:1"], threads=3)
    began = time.monotonic()
    records = list(
        run_all(instances, slots, lambda i, r, s, emit: emit(run_instance(i, resources=r, stop=s)))
    )
    assert time.monotonic() - began < 0.9 * sum(r.seconds for r in records)
    assert sorted(r.row for r in records) == [1, 2, 3, 4] and {r.verdict for r in records} == {"unsat"}
    said = Path(log).read_text().splitlines()
    assert {line[0] for line in said} == {"0", "1"}
    assert all("--threads=3" in line and "--device=cuda " in line for line in said)
    with pytest.raises(OptionsError, match="cuda:0,cuda:1"):
        divide(None, ["gpu"])


def test_the_gpus_of_a_batch_system_are_counted_as_it_shows_them(tmp_path, command, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,GPU-7")
    slots = divide(None, ["cuda:0", "cuda:1"])
    assert [slot.environment()["CUDA_VISIBLE_DEVICES"] for slot in slots] == ["4", "GPU-7"]
    threads = {slot.environment()["OMP_NUM_THREADS"] for slot in slots}
    assert threads == {str(slots[0].threads)} and slots[0].threads == slots[1].threads
    with pytest.raises(OptionsError, match="shows 2 of them"):
        divide(None, ["cuda:0", "cuda:2"])


def test_resuming_runs_what_is_missing_and_shards_are_disjoint(tmp_path, command, capsys):
    count = f"print('sat'); open({str(tmp_path / 'log')!r}, 'a').write('x')"
    folder, out = benchmark(tmp_path / "a", [count] * 5), tmp_path / "r.csv"
    assert bench(folder, "--out", out, "--shard", "2/2") == 0
    lines = out.with_suffix(".jsonl")
    assert [r.row for r in read(lines)[1]] == [2, 4]
    with lines.open("a") as file:
        file.write('{"kind": "inst')  # torn by a kill
    assert bench(folder, "--out", out, "--resume") == 0
    environments, records = read(lines)
    assert sorted(r.row for r in records) == [1, 2, 3, 4, 5]
    assert [e.settings["shard"] for e in environments] == ["2/2", "1/1"]
    assert (tmp_path / "log").read_text() == "xxxxx"
    assert [row[2] for row in csv.reader(out.open())] == [f"a/{i}.vnnlib" for i in range(5)]
    assert bench(folder, "--out", out, "--resume", "--timeout-scale", 2) == 2
    assert bench(folder, "--out", out, "--shard", "3/2") == 2


def test_a_second_run_that_writes_to_the_same_lines_is_refused(tmp_path, command, capsys):
    wait = f"open({str(tmp_path / 'log')!r}, 'a').write('x'); time.sleep(20); print('unsat')"
    folder, out = benchmark(tmp_path / "a", [wait], 30), tmp_path / "r.csv"
    first = _start(folder, out, command)
    deadline = time.monotonic() + 20
    while not (tmp_path / "log").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    before = out.with_suffix(".jsonl").read_bytes()
    for words in ((), ("--resume",)):
        assert bench(folder, "--out", out, *words) == 2
        said = capsys.readouterr().err
        assert f"process {first.pid}" in said and "r.jsonl" in said and "--out" in said
    assert out.with_suffix(".jsonl").read_bytes() == before and not out.exists()
    first.kill()
    first.wait()
    (folder / "0.vnnlib").write_text("print('sat')")
    assert bench(folder, "--out", out, "--resume") == 0  # a killed run holds nothing
    assert (tmp_path / "log").read_text() == "x" and [
        r.verdict for r in read(out.with_suffix(".jsonl"))[1]
    ] == ["sat"]


def test_versions_are_told_apart_and_equal_rows_refused(tmp_path):
    for version in ("1.0", "2.0"):
        benchmark(tmp_path / "x" / "deep" / version, ["", ""])
    found = find_all([tmp_path / "x"])
    assert [i.name for i in found][1:3] == ["deep/1.0/n.onnx/1.vnnlib", "deep/2.0/n.onnx/0.vnnlib"]
    assert found == find_all([tmp_path / "x" / "deep"])
    with pytest.raises(VerifierError, match="both row 1 of a benchmark deep"):
        find_all([tmp_path / "x", tmp_path / "x" / "deep"])


def test_other_tools_are_compared_by_the_competition_s_rule(tmp_path):
    def record(row: int, verdict: str, expected: str | None = None, seconds: float = 1.0) -> Record:
        return Record(
            "a", {"": f"onnx/{row}.onnx"}, "p.vnnlib", 10.0, verdict, seconds, row, expected=expected
        )

    ours = [record(1, "sat", "sat"), record(2, "unsat"), record(3, "timeout"), record(4, "unsat", None, 11.0)]
    two = Record("a", {"f": "x.onnx", "g": "y.onnx"}, "q.vnnlib", 10.0, "unsat", 1.0, 5)
    rows = [
        "a,some/folder/onnx/1.onnx,v/p.vnnlib,0,holds,1.0",  # refuted by our counterexample
        "a,onnx/2.onnx.gz,v/p.vnnlib.gz,0.1,timeout,10.0",
        "a,onnx/3.onnx,v/p.vnnlib,0.1,unsat,9.0",
        "a,onnx/4.onnx,v/p.vnnlib,0.1,unsat,10.5",  # too late
        "a,\"[('f', 'o/x.onnx'), ('g', 'o/y.onnx')]\",q.vnnlib,0,unsat,2",
        "b,onnx/1.onnx,v/p.vnnlib,0,unsat,1.0",
    ]
    file = tmp_path / "tool" / "results.csv"
    file.parent.mkdir()
    file.write_text("\n".join(rows) + "\n")
    other = read_other(file)
    assert other.tool == "tool"
    assert [other.points(r) for r in (*ours, two)] == [-150, 0, 10, 0, 10]
    assert [(r.row, o.tool) for r, o in disagreements(ours, [other])] == [(1, "tool")]
    us, them = alone([*ours, two], [other])
    assert [r.row for r in us] == [2] and [r.row for r in them] == [3]
    assert comparison([*ours, two], [other])[1] == [("a", "tool", "5", "2", "1", "1", "1", "30", "-130")]
    assert summary(ours, [other])[1][0][-3:-1] == ("20", "100.0")
    write_csv([*ours, two], tmp_path / "mine.csv")
    again = read_other(tmp_path / "mine.csv")
    assert again.tool == "mine" and [again.counted(r) for r in (*ours, two)] == [
        r.counted for r in (*ours, two)
    ]
    (tmp_path / "bad.csv").write_text("a,b\n")
    with pytest.raises(VerifierError, match=r"bad.csv:1: expected"):
        read_other(tmp_path / "bad.csv")


def test_a_killed_run_leaves_no_process(tmp_path, command):
    text = f"open({str(tmp_path / 'pid')!r}, 'w').write(str(os.getpid()) + '\\n'); time.sleep(60)"
    folder, mark = benchmark(tmp_path / "a", [text], 60), tmp_path / "pid"
    process = _start(folder, tmp_path / "r.csv", command)
    deadline = time.monotonic() + 20
    while not (mark.exists() and mark.read_text().endswith("\n")) and time.monotonic() < deadline:
        time.sleep(0.02)
    process.kill()
    process.wait()
    _gone(int(mark.read_text()))


@pytest.mark.full
@pytest.mark.parametrize("share", [(), ("--share",)])
def test_runs_killed_at_ten_random_moments_lose_and_repeat_nothing(tmp_path, command, share):
    text = "import random\ntime.sleep(random.random() / 5)\nprint('unsat')"
    folder, out = benchmark(tmp_path / "a", [text] * 60), tmp_path / "r.csv"
    lines, dice, before = out.with_suffix(".jsonl"), random.Random(0), []
    for _ in range(10):
        process = _start(folder, out, command, "--jobs", "2", "--resume", *share)
        time.sleep(1 + 1.5 * dice.random())
        process.send_signal(signal.SIGKILL)
        process.wait()
        if lines.exists():
            now = read(lines)[1]
            assert now[: len(before)] == before  # nothing that was there is lost or changed
            before = now
    assert _start(folder, out, command, "--jobs", "2", "--resume", *share).wait() == 0
    rows = [record.row for record in read(lines)[1]]
    assert sorted(rows) == list(range(1, 61)) and len(before) > 10
    assert len(list(csv.reader(out.open()))) == 60


def test_a_record_is_on_the_disk_in_one_write(tmp_path, monkeypatch):
    seen: list[str] = []
    write, sync = os.write, os.fsync
    monkeypatch.setattr(os, "write", lambda h, d: (seen.append("write"), write(h, d))[1])
    monkeypatch.setattr(os, "fsync", lambda h: (seen.append("sync"), sync(h))[1])
    append(tmp_path / "x", Record("a", {"": "n"}, "p", 1.0, "sat", 1.0))
    assert seen == ["write", "sync"]


def _start(folder: Path, out: Path, command: Path, *words: str) -> subprocess.Popen[bytes]:
    code = (
        "import sys; from verifier.bench import runner; from verifier.cli.main import main; "
        f"runner.VERIFIER = runner.SHARE = (sys.executable, '-S', '-E', {str(command)!r}); main(sys.argv[1:])"
    )
    line = [sys.executable, "-c", code, "bench", str(folder), "--out", str(out), *words]
    return subprocess.Popen(line, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def _gone(pid: int) -> None:
    deadline = time.monotonic() + 5
    while Path(f"/proc/{pid}").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not Path(f"/proc/{pid}").exists()
