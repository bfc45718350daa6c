"""A run on a Ray cluster of several processes on this machine, one of which is killed meanwhile."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from verifier.bench.instances import find_instances
from verifier.bench.record import read
from verifier.bench.runner import Resources
from verifier.errors import OptionsError

# Tells the worker that started it; the second instance takes long enough to be killed, once.
FAKE = """
import os, sys, time, pathlib
spec = next(w for w in sys.argv if w.endswith(".vnnlib"))
mark = pathlib.Path(spec + ".pid")
first = not mark.exists()
mark.write_text(str(os.getppid()) + chr(10))
if first and spec.endswith("1.vnnlib"):
    time.sleep(60)
print("unsat")
"""


@pytest.mark.full
@pytest.mark.skipif(sys.platform != "linux", reason="kills processes as Linux lets one")
def test_a_lost_worker_s_instance_is_run_again(tmp_path):
    ray = pytest.importorskip("ray", reason="needs the extra ray")
    from verifier.bench.cluster import run_on_ray

    script = tmp_path / "fake.py"
    script.write_text(FAKE)
    for i in range(6):
        (tmp_path / f"{i}.vnnlib").write_text("")
    (tmp_path / "instances.csv").write_text("".join(f"n.onnx,{i}.vnnlib,100\n" for i in range(6)))
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    try:
        records, killed, mark = [], 0, tmp_path / "1.vnnlib.pid"
        command = (sys.executable, "-S", "-E", str(script))
        run = run_on_ray(
            "local", find_instances(tmp_path), 1.0, Resources(threads=1), lambda i: tmp_path / i.key, command
        )
        for record in run:
            records.append(record)
            deadline = time.monotonic() + 60
            while not killed and time.monotonic() < deadline:
                if mark.exists() and mark.read_text().endswith("\n"):
                    killed = int(mark.read_text())
                    os.kill(killed, signal.SIGKILL)
                time.sleep(0.05)
    finally:
        ray.shutdown()
    assert killed and int(mark.read_text()) != killed
    assert sorted(r.row for r in records) == [1, 2, 3, 4, 5, 6] and {r.verdict for r in records} == {"unsat"}


def test_without_ray_the_extra_is_named(monkeypatch):
    from verifier.bench.cluster import run_on_ray

    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(OptionsError, match=r"nn-verifier\[ray\]"):
        next(run_on_ray("local", [], 1.0, Resources(), lambda _: Path()))


def test_an_address_at_which_nothing_answers_is_told_at_once(tmp_path):
    pytest.importorskip("ray", reason="needs the extra ray")
    from verifier.bench.cluster import run_on_ray

    with socket.socket() as taken:  # a port that nobody listens at
        taken.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(OptionsError, match=f"answers at {address}"):
            next(run_on_ray(address, [], 1.0, Resources(), lambda _: tmp_path))


def test_more_than_any_machine_has_is_refused():
    from verifier.bench.cluster import _check_room

    class Cluster:
        def nodes(self):
            return [
                {"Alive": True, "Resources": {"CPU": 4.0, "memory": 2.0**33}},
                {"Alive": True, "Resources": {"CPU": 1.0, "GPU": 1.0, "memory": 2.0**31}},
                {"Alive": False, "Resources": {"CPU": 64.0, "GPU": 8.0, "memory": 2.0**40}},
            ]

    for fits in ({"num_cpus": 4}, {"num_cpus": 1, "num_gpus": 1}, {"num_cpus": 1, "memory": 2**33}):
        _check_room(Cluster(), fits)
    for needs in ({"num_cpus": 8}, {"num_cpus": 2, "num_gpus": 1}, {"num_cpus": 1, "memory": 2**34}):
        with pytest.raises(OptionsError, match="ask for less"):
            _check_room(Cluster(), needs)


@pytest.mark.full
@pytest.mark.skipif(sys.platform != "linux", reason="kills processes as Linux lets one")
def test_the_command_line_runs_on_two_machines_and_survives_a_lost_worker(root, tmp_path):
    """Paths are relative, and the workers run in another folder. Nothing is lost, repeated, or run after a resume."""
    pytest.importorskip("ray", reason="needs the extra ray")
    from ray.cluster_utils import Cluster  # pyright: ignore[reportMissingImports]

    shutil.copytree(root / "tests" / "data", folder := tmp_path / "digits")
    rows = [
        f"digits_{net}.onnx,digits_{net}_{v}.vnnlib,100,{v}\n"
        for net in ("mlp", "cnn")
        for v in ("sat", "unsat")
    ]
    (folder / "instances.csv").write_text("".join(rows))
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    try:
        cluster.add_node(num_cpus=1)
        words = [sys.executable, "-m", "verifier", "bench", "digits", "--ray", cluster.address]
        environment = os.environ | {"PYTHONPATH": f"{root}:{os.environ.get('PYTHONPATH', '')}"}
        start = {"cwd": tmp_path, "env": environment, "stdout": subprocess.PIPE, "text": True}
        with subprocess.Popen(words, **start) as process:
            _kill_worker_of("digits_cnn_unsat.vnnlib")
            said, _ = process.communicate(timeout=300)
        assert process.returncode == 0 and " 4       4" in said
        lines = tmp_path / "results.jsonl"
        before = lines.read_text()
        records = read(lines)[1]
        assert sorted(r.row for r in records) == [1, 2, 3, 4]
        assert all(r.verdict == r.expected for r in records)
        assert subprocess.run([*words, "--resume"], **start, timeout=300).returncode == 0
        assert lines.read_text() == before
    finally:
        cluster.shutdown()


def _kill_worker_of(spec: str) -> None:
    """Waits for the process that looks at it, and kills the worker that started that."""
    deadline = time.monotonic() + 200
    while time.monotonic() < deadline:
        for process in psutil.process_iter(["cmdline"]):
            words = process.info["cmdline"] or []
            if "verify" in words and any(word.endswith(f"/{spec}") for word in words):
                worker = process.parent()
                assert worker is not None and worker.name().startswith("ray::")
                worker.kill()
                return
        time.sleep(0.02)
    raise AssertionError("no worker began it")
