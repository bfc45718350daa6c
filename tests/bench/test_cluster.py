"""A run on a Ray cluster of several processes on this machine, one of which is killed meanwhile."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

import pytest

from verifier.bench.instances import find_instances
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
        run = run_on_ray("local", find_instances(tmp_path), 1.0, Resources(threads=1), Path, command)
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
