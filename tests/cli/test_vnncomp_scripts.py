"""The scripts that the competition's harness calls, over a stand-in for Python and once over the real one."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

pytestmark = pytest.mark.skipif(os.name != "posix", reason="the scripts are for bash")

# Called as `python -m verifier verify WORDS`: tells its words, and does what the query says.
FAKE = """#!/bin/bash
shift 3
printf '%s\\n' "$@" >"$(dirname "$0")/words"
for word in "$@"; do case $word in *.vnnlib) query=$word ;; esac; done
. "$query"
"""


@pytest.fixture
def call(root, tmp_path):
    """Runs one of the scripts; gives the process."""
    fake = tmp_path / "python"
    fake.write_text(FAKE)
    fake.chmod(0o755)

    def start(script: str, *words: object, python: object = fake) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [root / "vnncomp" / script, *map(str, words)],
            env={**os.environ, "VERIFIER_PYTHON": str(python)},
            cwd=tmp_path,
            stderr=subprocess.DEVNULL,
        )

    return start


def query(folder: Path, behaviour: str) -> str:
    (folder / "q.vnnlib").write_text(behaviour)
    return "q.vnnlib"


def test_a_verdict_and_its_assignment_are_the_whole_file(call, tmp_path):
    name = query(tmp_path, "printf 'sat\\n((X_0 1.0))\\n'")
    assert call("run_instance.sh", "v1", "c", "net.onnx", name, "out", "100").wait(20) == 0
    assert (tmp_path / "out").read_text() == "sat\n((X_0 1.0))\n"
    model, spec, timeout, progress = (tmp_path / "words").read_text().splitlines()
    assert (model, spec, progress) == ("net.onnx", "q.vnnlib", "--no-progress")
    assert 90 < float(timeout.removeprefix("--timeout=")) <= 97
    assert not list(tmp_path.glob("out.part*"))


def test_two_networks_become_flags(call, tmp_path):
    pairs = "[('f', 'dir one/a.onnx'), (\"g\", \"b.onnx\")]"
    name = query(tmp_path, "echo timed-out")
    assert call("run_instance.sh", "v1", "c", pairs, name, "out", "1").wait(20) == 0
    words = (tmp_path / "words").read_text().splitlines()
    assert words[:3] == ["q.vnnlib", "--network=f=dir one/a.onnx", "--network=g=b.onnx"]
    assert (tmp_path / "out").read_text() == "timed-out\n"


def test_a_quote_in_the_name_of_a_network_is_part_of_it(call, tmp_path):
    pairs = '[(\'f\', "the pilot\'s/a.onnx"), ("g", \'"b".onnx\')]'
    name = query(tmp_path, "echo unsat")
    assert call("run_instance.sh", "v1", "c", pairs, name, "out", "1").wait(20) == 0
    words = (tmp_path / "words").read_text().splitlines()
    assert words[:3] == ["q.vnnlib", "--network=f=the pilot's/a.onnx", '--network=g="b".onnx']


@pytest.mark.parametrize(("model", "word"), [("-net.onnx", "./-net.onnx"), ("[a].onnx", "[a].onnx")])
def test_a_name_like_an_option_or_a_list_is_a_file(call, tmp_path, model, word):
    (tmp_path / model).touch()
    name = query(tmp_path, "echo unsat")
    assert call("run_instance.sh", "v1", "c", model, name, "-out", "1").wait(20) == 0
    assert (tmp_path / "words").read_text().splitlines()[:2] == [word, "q.vnnlib"]
    assert (tmp_path / "-out").read_text() == "unsat\n"


def test_the_folder_of_the_result_is_made_and_never_taken_for_it(call, tmp_path):
    name = query(tmp_path, "echo unsat")
    assert call("run_instance.sh", "v1", "c", "net.onnx", name, "new dir/out", "1").wait(20) == 0
    assert (tmp_path / "new dir" / "out").read_text() == "unsat\n"
    assert call("run_instance.sh", "v1", "c", "net.onnx", name, "new dir", "1").wait(20) == 1
    assert [path.name for path in (tmp_path / "new dir").iterdir()] == ["out"]


def test_no_room_for_the_result_leaves_none(root, call, tmp_path):
    """With files of at most no bytes: the old result is gone, and no empty one stands for it."""
    (tmp_path / "out").write_text("unsat\n")
    words = (root / "vnncomp/run_instance.sh", "v1", "c", "net.onnx", query(tmp_path, "echo sat"), "out", "1")
    fake = {**os.environ, "VERIFIER_PYTHON": str(tmp_path / "python")}
    limited = ["bash", "-c", 'trap "" XFSZ; ulimit -f 0; exec "$@"', "bash", *map(str, words)]
    assert subprocess.run(limited, env=fake, cwd=tmp_path, capture_output=True, timeout=20).returncode != 0
    assert not list(tmp_path.glob("out*"))


@pytest.mark.parametrize(
    "behaviour", ["echo unsat; exit 1", "echo nonsense", "exit 2", "echo unsat; kill -9 $$"]
)
def test_a_failure_is_an_error_and_never_a_verdict(call, tmp_path, behaviour):
    name = query(tmp_path, behaviour)
    assert call("run_instance.sh", "v1", "c", "net.onnx", name, "out", "10").wait(20) == 0
    assert (tmp_path / "out").read_text() == "error\n"


def ended(process: int, seconds: float) -> bool:
    """Whether a process is gone within so many seconds, or only waits for its parent to hear of it."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        with contextlib.suppress(psutil.NoSuchProcess):
            if psutil.Process(process).status() != psutil.STATUS_ZOMBIE:
                time.sleep(0.05)
                continue
        return True
    return False


def test_a_run_that_is_ended_leaves_no_result_and_no_process(call, tmp_path):
    (tmp_path / "out").write_text("unsat\n")  # of an earlier run
    name = query(tmp_path, "echo $$ >mark; echo uns; exec sleep 60")
    process = call("run_instance.sh", "v1", "c", "net.onnx", name, "out", "100")
    mark = tmp_path / "mark"
    deadline = time.monotonic() + 20
    while not (mark.exists() and mark.read_text().strip()) and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    assert process.wait(10) != 0
    assert not list(tmp_path.glob("out*"))
    assert ended(int(mark.read_text()), 10.0)


def test_preparing_never_fails(call):
    assert call("prepare_instance.sh", "v1", "c", "[('f', 'no.onnx')]", "no.vnnlib").wait(20) == 0
    assert call("prepare_instance.sh", python="/nowhere/python").wait(20) == 0


@pytest.mark.full
@pytest.mark.parametrize("limit", [4, 12])
def test_the_answer_is_there_in_time_beside_competitors(call, tmp_path, shared, limit):
    folder = shared / "vnncomp-dev" / "vit"
    model, spec, *_ = (folder / "instances.csv").read_text().splitlines()[-1].split(",")
    busy = "import os\nos.nice(10)\nwhile True: pass"
    load = [subprocess.Popen([sys.executable, "-S", "-c", busy]) for _ in range(2 * (os.cpu_count() or 1))]
    try:
        began = time.monotonic()
        words = ("v1", "vit", folder / model, folder / spec, "out", limit)
        assert call("run_instance.sh", *words, python=sys.executable).wait(limit + 30) == 0
        took = time.monotonic() - began
    finally:
        for process in load:
            process.kill()
            process.wait()
    assert took < limit
    assert (tmp_path / "out").read_text().partition("\n")[0] in ("sat", "unsat", "unknown", "timeout")
