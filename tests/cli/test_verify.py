"""`verifier verify`: what is on stdout, in which order, by when, and with which exit code."""

from __future__ import annotations

import ctypes
import gzip
import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jsonschema
import numpy as np
import pytest

from verifier.errors import UnsupportedError, VerifierError
from verifier.results import Counterexample, Progress, Reason, Result, Stats, Status

ASSIGNMENT = "((X_0 0.5)\n (Y_0 -1.0))"
POINT = Counterexample(
    {"x": np.array([0.5], np.float32)}, {"y": np.array([-1.0], np.float32)}, assignment=ASSIGNMENT
)


def answers(result: Result) -> Callable[..., Result]:
    return lambda *_, **__: result


def fails(error: BaseException) -> Callable[..., Result]:
    def verify(*_: Any, **__: Any) -> Result:
        raise error

    return verify


def test_sat_is_the_first_line_and_the_assignment_follows(run, engine, files):
    engine.verify = answers(Result(Status.SAT, counterexample=POINT))
    ran = run("verify", *files)
    assert (ran.code, ran.out) == (0, f"sat\n{ASSIGNMENT}\n")


def test_unsat_with_bound(run, engine, files):
    engine.verify = answers(Result(Status.UNSAT, bound=0.25, stats=Stats(domains=7)))
    ran = run("verify", *files)
    assert (ran.code, ran.out) == (0, "unsat\n")
    assert "7 domains, best proved bound 0.25" in ran.err


def test_unknown_says_why_and_what_to_try_on_stderr(run, engine, files):
    engine.verify = answers(Result(Status.UNKNOWN, reason=Reason.DOMAIN_LIMIT, detail="512 subdomains."))
    ran = run("verify", *files)
    assert (ran.code, ran.out) == (0, "unknown\n")
    assert (
        "512 subdomains. The limit on subdomains was reached. Raise --max-domains or leave it out." in ran.err
    )


def test_what_libraries_print_does_not_reach_stdout(run, engine, files):
    def verify(*_: Any, **__: Any) -> Result:
        os.write(1, b"banner of a solver\n")
        return Result(Status.UNSAT)

    engine.verify = verify
    ran = run("verify", *files)
    assert ran.out == "unsat\n" and "banner" in ran.err


def test_options_arrive_and_the_engine_gets_less_time_than_the_process(run, engine, files, tmp_path):
    def verify(model: Path, spec: Path, timeout: float, options: Any, progress: Any) -> Result:
        chosen = f"{options.seed} {options.attack} {options.max_domains}"
        text = f"{chosen} {0 < timeout < 20} {model.name} {spec.name}"
        return Result(Status.UNKNOWN, detail=text)

    engine.verify = verify
    ran = run("verify", *files, "--seed", 5, "--no-attack", "--max-domains", 9, "--timeout", 20)
    assert "5 False 9 True net.onnx query.vnnlib" in ran.err


def test_no_limit(run, engine, files):
    engine.verify = lambda *_, timeout, **__: Result(Status.UNKNOWN, detail=f"limit {timeout}")
    assert "limit None" in run("verify", *files, "--timeout", "inf").err


def test_json_and_witness_files(run, engine, files, tmp_path, root):
    engine.verify = answers(Result(Status.SAT, counterexample=POINT, stats=Stats(seconds={"attack": 0.5})))
    ran = run("verify", *files, "--json", tmp_path / "r.json", "--witness", tmp_path / "w.txt")
    assert ran.code == 0
    value = json.loads((tmp_path / "r.json").read_text())
    jsonschema.validate(value, json.loads((root / "verifier/results.schema.json").read_text()))
    assert value["verdict"] == "sat" and value["counterexample"]["inputs"]["x"]["values"] == [0.5]
    assert (tmp_path / "w.txt").read_text() == ASSIGNMENT + "\n"


def test_a_file_that_cannot_be_written_is_refused_before_the_search(run, engine, files, tmp_path):
    engine.verify = fails(AssertionError("must not start"))
    ran = run("verify", *files, "--json", tmp_path / "missing" / "r.json")
    assert ran.code == 2 and ran.out == "" and "Make it first." in ran.err
    ran = run("verify", *files, "--witness", tmp_path)
    assert ran.code == 2 and ran.out == "" and "it is a folder" in ran.err


def test_a_file_that_cannot_be_written_after_all_leaves_the_verdict(run, engine, files, tmp_path):
    (tmp_path / "late").mkdir()

    def verify(*_: Any, **__: Any) -> Result:
        (tmp_path / "late").rmdir()
        return Result(Status.UNSAT)

    engine.verify = verify
    ran = run("verify", *files, "--json", tmp_path / "late" / "r.json")
    assert (ran.code, ran.out) == (2, "unsat\n")
    assert "error: " in ran.err and "r.json could not be written (No such file or directory)." in ran.err


def sleep_with_the_interpreters_lock(seconds: int) -> None:
    ctypes.PyDLL(None).sleep(seconds)


@pytest.mark.parametrize("block", [time.sleep, sleep_with_the_interpreters_lock])
def test_the_time_limit_holds_whatever_the_engine_does(run, engine, files, tmp_path, block):
    def verify(*_: Any, progress: Callable[[Progress], None], **__: Any) -> Result:
        progress(Progress(domains_done=3, worst_bound=-0.5))
        block(30)
        return Result(Status.UNSAT)

    engine.verify = verify
    start = time.monotonic()
    ran = run("verify", *files, "--timeout", 1.0, "--json", tmp_path / "r.json")
    assert time.monotonic() - start < 2.0
    assert (ran.code, ran.out) == (0, "timeout\n")
    value = json.loads((tmp_path / "r.json").read_text())
    assert (value["verdict"], value["domains"], value["bound"]) == ("timeout", 3, -0.5)
    assert value["peak_memory_mb"] > 1 and {"python", "torch"} <= set(value["versions"])


@pytest.mark.parametrize("packed", [False, True])
def test_two_point_zero_spells_timed_out(run, engine, tmp_path, packed):
    text = b"; a comment\n(vnnlib-version <2.0>)\n"
    query = tmp_path / "query.vnnlib"
    (tmp_path / "query.vnnlib.gz" if packed else query).write_bytes(gzip.compress(text) if packed else text)
    (tmp_path / "f.onnx").write_bytes(b"")
    engine.verify = lambda model, *_, **__: Result(Status.TIMEOUT, detail=f"{sorted(model)}.")
    ran = run(
        "verify", query, "--network", f"f={tmp_path / 'f.onnx'}", "--network", f"g={tmp_path / 'f.onnx'}"
    )
    assert (ran.code, ran.out) == (0, "timed-out\n")
    assert "['f', 'g']." in ran.err


def test_a_worker_that_the_system_kills_is_out_of_memory(run, engine, files):
    engine.verify = lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL)
    ran = run("verify", *files)
    assert (ran.code, ran.out) == (0, "unknown\n")
    assert Reason.MEMORY.text in ran.err


@pytest.mark.parametrize(
    "error",
    [MemoryError(), RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 1 TB.")],
)
def test_out_of_memory_is_unknown(run, engine, files, error):
    engine.verify = fails(error)
    ran = run("verify", *files)
    assert (ran.code, ran.out) == (0, "unknown\n")
    assert Reason.MEMORY.text in ran.err


def test_a_worker_that_crashes_is_a_bug_and_no_verdict(run, engine, files):
    engine.verify = lambda *_, **__: os.kill(os.getpid(), signal.SIGTERM)
    ran = run("verify", *files)
    assert (ran.code, ran.out) == (1, "")
    assert f"the worker process died (signal {int(signal.SIGTERM)})" in ran.err


def test_a_bug_is_short_unless_debugged(run, engine, files):
    engine.verify = fails(ZeroDivisionError("division by zero"))
    ran = run("verify", *files)
    assert (ran.code, ran.out) == (1, "")
    assert ran.err.startswith(
        "internal error: ZeroDivisionError: division by zero\nThis is a bug in verifier"
    )
    assert "Traceback" not in ran.err
    ran = run("verify", *files, "--debug")
    assert (ran.code, ran.out) == (1, "") and "Traceback" in ran.err


def test_bad_input_is_a_message_and_exit_2(run, engine, files):
    engine.verify = fails(
        UnsupportedError([("n1", "Einsum", 12, "no such operator"), ("", "If", 11, "branches")])
    )
    ran = run("verify", *files)
    assert (ran.code, ran.out) == (2, "")
    assert ran.err == (
        "error: 2 nodes of the network are not supported:\n"
        "  n1: Einsum (opset 12): no such operator\n"
        "  (no name): If (opset 11): branches\n"
        "Export the network with other operators, or add the operator (CONTRIBUTING.md shows how); "
        "`verifier inspect MODEL` lists every node.\n"
    )


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["no.onnx", "q.vnnlib"],
            "error: there is no file no.onnx, nor no.onnx.gz beside it. Check the path.\n",
        ),
        (["net.onnx", "."], "error: . is a folder. Give the file itself.\n"),
        (
            ["net.onnx"],
            "error: only one file was given (net.onnx). Give MODEL SPEC, or a VNN-LIB 2.0 query with "
            "--network NAME=MODEL.\n",
        ),
        (
            ["query.vnnlib", "--network", "net.onnx"],
            "error: --network net.onnx is not of the form NAME=MODEL, for example --network f=net.onnx.\n",
        ),
        (
            ["query.vnnlib", "--network", "f=net.onnx"],
            "error: query.vnnlib does not start with (vnnlib-version <2.0>), so it names no networks. "
            "Give MODEL SPEC.\n",
        ),
        (
            ["net.onnx", "query.vnnlib", "--network", "f=net.onnx"],
            "error: give either MODEL SPEC, or one VNN-LIB 2.0 query with a --network NAME=MODEL for each "
            "name.\n",
        ),
        (
            ["net.onnx", "query.vnnlib", "--timeout", "-1"],
            "error: timeout must be a positive number, or None for no limit, not -1.0.\n",
        ),
    ],
)
def test_refused_command_lines(run, files, monkeypatch, words, message):
    monkeypatch.chdir(files[0].parent)
    ran = run("verify", *words)
    assert (ran.code, ran.out, ran.err) == (2, "", message)


def test_unknown_flag_is_exit_2(run, files):
    ran = run("verify", *files, "--fast")
    assert ran.code == 2 and ran.out == "" and "--fast" in ran.err


def test_errors_of_the_engine_are_not_renamed(run, engine, files):
    engine.verify = fails(VerifierError("net.onnx: the file is truncated. Download it again."))
    assert run("verify", *files).err == "error: net.onnx: the file is truncated. Download it again.\n"


def test_inspect(run, engine, files):
    from verifier.errors import UnsupportedNode
    from verifier.results import Inspection, NodeRow

    nodes = (NodeRow("a", "Gemm", (1, 4)), NodeRow("b", "Relu", (1, 4), unstable=3, note="relu_out"))
    refused = (UnsupportedNode("c", "Loop", 13, "the trip count is not constant"),)
    engine.inspect = lambda model: Inspection(nodes, {"x": (1, 2)}, {"y": (1, 4)}, 13, 20, refused)
    ran = run("inspect", files[0])
    assert (ran.code, ran.out) == (
        0,
        "inputs: x [1, 2]\noutputs: y [1, 4]\nopset: 13, parameters: 20\n\n"
        "node  operator  shape   unstable  value in the model\n"
        "a     Gemm      [1, 4]\n"
        "b     Relu      [1, 4]         3  relu_out\n\n"
        "1 not supported:\n"
        "node  operator  opset  reason\n"
        "c     Loop         13  the trip count is not constant\n",
    )


def test_bounds(run, engine, files, tmp_path):
    seen = SimpleNamespace()

    def compute_bounds(model: Path, inputs: Any, method: str, nodes: tuple[str, ...]) -> Any:
        import torch

        from verifier.graph import Interval

        seen.inputs, seen.method, seen.nodes = inputs, method, nodes
        output = Interval(torch.tensor([[-1.0, 0.25]]), torch.tensor([[1.0, 0.5]]))

        class Found(SimpleNamespace):
            def __getitem__(self, name: str) -> Any:
                return Interval(torch.zeros(1, 30), torch.arange(30.0)[None])

        return Found(outputs=(output,))

    engine.compute_bounds = compute_bounds
    np.save(tmp_path / "x.npy", np.zeros((1, 3), np.float32))
    words = ["--input", tmp_path / "x.npy", "--eps", 0.5, "--method", "crown", "--node", "h"]
    ran = run("bounds", files[0], *words, "--out", tmp_path / "b.npz")
    assert ran.code == 0 and (seen.method, seen.nodes) == ("crown", ("h",))
    assert seen.inputs.lower.tolist() == [[[-0.5, -0.5, -0.5]]]
    assert ran.out == (
        "node    element     lower  upper\n"
        "output  0              -1      1\n"
        "output  1            0.25    0.5\n"
        "h       all 30          0     29\n"
        "h       widest, 29      0     29\n"
    )
    assert np.load(tmp_path / "b.npz")["output/upper"].tolist() == [[1.0, 0.5]]


def test_bounds_wants_one_input_set(run, files):
    ran = run("bounds", files[0], "--eps", 0.5)
    assert ran.code == 2 and "give the input set once" in ran.err


def test_doctor_is_one_block(run):
    ran = run("doctor")
    assert ran.code == 0
    for word in ("python", "torch", "onnxruntime", "threads", "cuda", "extra gurobi"):
        assert f"\n{word} " in ran.out
