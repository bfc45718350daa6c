"""What only a process of its own shows: start-up, Ctrl-C, and that no worker outlives its supervisor."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

DRIVER = """
import os, sys, time, types
import verifier
from verifier.results import Progress
def verify(*_, progress, **__):
    progress(Progress(domains_done=3, worst_bound=-0.5))
    time.sleep(0.5)  # the supervisor has read it by then
    open({mark!r}, "w").write(str(os.getpid()))
    time.sleep(60)
sys.modules["verifier.api"] = verifier.api = types.SimpleNamespace(verify=verify)
from verifier.cli.main import main
main()
"""


@pytest.fixture
def sleeping(files, tmp_path):
    """A verification whose engine has reported once and sleeps, and the engine's process id."""
    mark = tmp_path / "worker"
    words = [sys.executable, "-c", DRIVER.format(mark=str(mark)), "verify", *map(str, files)]
    pipe = subprocess.PIPE
    # a test run in the background of a shell script ignores Ctrl-C, and its children would inherit that
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    process = subprocess.Popen(words, stdout=pipe, stderr=pipe, text=True)
    signal.signal(signal.SIGINT, before)
    with process:
        deadline = time.monotonic() + 30
        while not (mark.exists() and mark.read_text()) and time.monotonic() < deadline:
            time.sleep(0.01)
        yield process, int(mark.read_text())
        process.kill()


def gone(pid: int, seconds: float = 5.0) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if not Path(f"/proc/{pid}").exists() and os.name == "posix":
            return True
        time.sleep(0.01)
    return False


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="looks processes up in /proc")
def test_ctrl_c_prints_the_best_bound_and_ends_the_worker(sleeping):
    process, worker = sleeping
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=10)
    assert (process.returncode, out) == (130, "unknown\n")
    assert "3 domains, best proved bound -0.5" in err and "interrupted" in err
    assert gone(worker)


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="looks processes up in /proc")
def test_the_worker_leaves_with_its_supervisor(sleeping):
    process, worker = sleeping
    process.kill()
    process.wait()
    assert gone(worker)


def test_help_version_and_name_import_neither_torch_nor_numpy():
    code = """
import sys
from verifier.cli.main import main
for words in (["--help"], ["--version"], ["--name"], ["verify", "--help"]):
    try:
        main(words)
    except SystemExit as left:
        assert left.code == 0, (words, left.code)
heavy = {"torch", "numpy", "onnx", "onnxruntime", "scipy", "rich", "verifier.graph"} & set(sys.modules)
assert not heavy, heavy
"""
    ran = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False
    )
    assert ran.returncode == 0, ran.stderr
    assert "\n0." in ran.stdout and "\nverifier\n" in ran.stdout and "--timeout" in ran.stdout
