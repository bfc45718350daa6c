"""The command line with the real engine, on the committed networks. Few processes: each loads torch."""

from __future__ import annotations

import csv
import gzip
import json
import shutil
import subprocess
import sys
from pathlib import Path

import jsonschema
import numpy as np
import onnx
import onnxruntime
import pytest

import verifier.api  # noqa: F401  (loaded here once, and not in every forked worker)
from verifier.bench.record import read
from verifier.specs.evaluator import satisfies
from verifier.specs.load import load_query
from verifier.specs.witness import read_witness

VERIFIER = (sys.executable, "-m", "verifier")


def process(*words: object, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    command = [*VERIFIER, *map(str, words)]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=120, check=False)


@pytest.fixture
def data(root: Path) -> Path:
    return root / "tests/data"


def test_a_counterexample_stands_up_to_whoever_checks_it(data, root, tmp_path):
    """Gzipped files found without their suffix; stdout, --witness and --json tell one story, and it is true."""
    for name in ("digits_mlp.onnx", "digits_mlp_sat.vnnlib"):
        (tmp_path / f"{name}.gz").write_bytes(gzip.compress((data / name).read_bytes()))
    words = ["verify", "digits_mlp.onnx", "digits_mlp_sat.vnnlib", "--witness", "w.txt", "--json", "r.json"]
    ran = process(*words, "--timeout", 60, cwd=tmp_path)
    assert ran.returncode == 0, ran.stderr
    verdict, _, assignment = ran.stdout.partition("\n")
    assert verdict == "sat" and assignment == (tmp_path / "w.txt").read_text()

    query = load_query(data / "digits_mlp_sat.vnnlib")
    values = read_witness(query, assignment)
    assert satisfies(query, values)
    runtime = onnxruntime.InferenceSession(data / "digits_mlp.onnx", providers=["CPUExecutionProvider"])
    x = values["X"].astype(np.float32).reshape(1, 64)
    assert (x.astype(np.float64).reshape(-1) == values["X"].reshape(-1)).all()
    (y,) = runtime.run(None, {"x": x})
    assert (y.astype(np.float64).reshape(-1) == values["Y"].reshape(-1)).all()

    told = json.loads((tmp_path / "r.json").read_text())
    jsonschema.validate(told, json.loads((root / "verifier/results.schema.json").read_text()))
    assert (told["verdict"], told["holds"]) == ("sat", False)
    assert told["counterexample"]["inputs"]["X"]["values"] == x.reshape(-1).tolist()
    assert told["peak_memory_mb"] > 10 and {"torch", "onnxruntime"} <= set(told["versions"])


HEAVY = """
import json, sys
from pathlib import Path
import numpy as np
import verifier
data = Path(sys.argv[1])
def verdict(net, kind):
    return verifier.verify(data / f"digits_{net}.onnx", data / f"digits_{net}_{kind}.vnnlib", timeout=60).status.value
found = [verdict("cnn", "unsat"), verdict("mlp", "sat")]
digits = np.load(data / "digits_test.npz")
hard = verifier.robust(digits["images"][:1], int(digits["labels"][0]), eps=0.1)
domains = []
for branching in ("input", "activation"):
    options = verifier.Options(branching=branching, attack=False, batch_size=8, max_domains=64, timeout=60)
    domains.append(verifier.verify(data / "digits_mlp.onnx", hard, options=options).stats.domains)
print(json.dumps([found, domains, sorted(sys.modules)]))
"""


def test_the_verify_path_loads_nothing_heavy_beside_torch(data):
    """An attack, a proof, and a search that splits."""
    words = [sys.executable, "-c", HEAVY, str(data)]
    ran = subprocess.run(words, capture_output=True, text=True, timeout=120, check=False)
    assert ran.returncode == 0, ran.stderr
    verdicts, domains, modules = json.loads(ran.stdout)
    assert verdicts == ["unsat", "sat"] and min(domains) > 1
    heavy = {
        *("torch._dynamo", "torch._inductor", "torch.fx.experimental.symbolic_shapes"),
        *("sympy", "scipy", "sklearn", "rich", "onnx.reference", "vnnlib", "highspy"),
    }
    assert sorted(heavy & set(modules)) == []


def benchmark(data: Path, folder: Path, rows: list[tuple[str, str, str]]) -> Path:
    folder.mkdir()
    for net, verdict, _ in rows:
        shutil.copy(data / f"digits_{net}.onnx", folder)
        shutil.copy(data / f"digits_{net}_{verdict}.vnnlib", folder)
    lines = [f"digits_{net}.onnx,digits_{net}_{verdict}.vnnlib,60,{known}" for net, verdict, known in rows]
    (folder / "instances.csv").write_text("\n".join(lines) + "\n")
    return folder


def test_bench_runs_real_instances_and_catches_a_wrong_verdict(data, run, tmp_path):
    rows = [("cnn", "unsat", "unsat"), ("mlp", "sat", "unsat")]  # the second says what is not so
    folder = benchmark(data, tmp_path / "digits", rows)
    ran = run("bench", folder, "--out", tmp_path / "results.csv")
    assert ran.code == 1, ran.err
    head, line = ran.out.splitlines()
    named = dict(zip(head.split(), line.split(), strict=True))
    assert (named["instances"], named["solved"], named["wrong"], named["errors"]) == ("2", "1", "1", "0")
    with (tmp_path / "results.csv").open(newline="") as file:
        assert [row[4] for row in csv.reader(file)] == ["unsat", "sat"]
    _, kept = read(tmp_path / "results.jsonl")
    assert [(record.verdict, record.wrong) for record in kept] == [("unsat", False), ("sat", True)]


def test_every_unsupported_node_is_listed(run, data, tmp_path):
    nodes = [
        onnx.helper.make_node("Erf", ["x"], ["a"], name="first"),
        onnx.helper.make_node("Relu", ["a"], ["b"], name="fine"),
        onnx.helper.make_node("Det", ["b"], ["y"], name="second"),
    ]
    values = [onnx.helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, [1, 8, 8]) for n in "xy"]
    graph = onnx.helper.make_graph(nodes, "g", values[:1], values[1:])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 13)], ir_version=8)
    onnx.save(model, tmp_path / "net.onnx")
    refused = ["Det"] if "Erf" in _operators() else ["Erf", "Det"]
    ran = run("verify", tmp_path / "net.onnx", data / "digits_mlp_sat.vnnlib")
    assert (ran.code, ran.out) == (2, "")
    assert all(f"{name} (opset 13): " in ran.err for name in refused) and "Relu" not in ran.err
    ran = run("inspect", tmp_path / "net.onnx")
    assert ran.code == 0 and ran.out.startswith(f"{len(refused)} not supported:\nnode")


def _operators() -> set[str]:
    import verifier.ops  # noqa: F401
    from verifier.graph.registry import onnx_operators

    return set(onnx_operators())


def swap(old: str, new: str):
    return lambda text: text.replace(old, new, 1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (swap("(assert", "(asert"), ":78:1: asert is not an operator of VNN-LIB 1; did you mean assert?"),
        (swap("(declare-const Y_3 ", "(declare-const Y_33 "), ": Y_3 is not declared; "),
        (lambda text: text[:4000], "the file ends inside this expression; a closing parenthesis is missing"),
        (swap("(>= X_0 ", "(<= X_0 "), "X_0"),
    ],
    ids=["operator", "declaration", "end", "unbounded"],
)
def test_a_typing_error_in_a_query(run, data, tmp_path, change, message):
    text = (data / "digits_mlp_sat.vnnlib").read_text()
    changed = change(text)
    assert changed != text
    (tmp_path / "query.vnnlib").write_text(changed)
    ran = run("verify", data / "digits_mlp.onnx", tmp_path / "query.vnnlib")
    assert (ran.code, ran.out) == (2, ""), ran.err
    assert ran.err.startswith("error: ") and message in ran.err and "Traceback" not in ran.err


def test_files_in_the_wrong_order(run, data):
    ran = run("verify", data / "digits_mlp_sat.vnnlib", data / "digits_mlp.onnx")
    assert (ran.code, ran.out) == (2, "") and "was the model given in its place?" in ran.err


def test_a_query_of_another_size(run, data, tmp_path):
    text = "(declare-const X_0 Real)(declare-const Y_0 Real)(assert (>= X_0 0))(assert (<= X_0 1))(assert (<= Y_0 0))"
    (tmp_path / "query.vnnlib").write_text(text)
    ran = run("verify", data / "digits_mlp.onnx", tmp_path / "query.vnnlib")
    assert (ran.code, ran.out) == (2, "")
    assert "1 element" in ran.err and "64 elements" in ran.err


def test_an_empty_input_set_is_unsat_with_the_reason(run, data, tmp_path):
    text = (data / "digits_mlp_sat.vnnlib").read_text() + "(assert (>= X_7 5.0))\n"
    (tmp_path / "query.vnnlib").write_text(text)
    ran = run("verify", data / "digits_mlp.onnx", tmp_path / "query.vnnlib")
    assert (ran.code, ran.out) == (0, "unsat\n") and "X_7" in ran.err and "input set is empty" in ran.err


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda data: data[:9000], "is not an ONNX model, or it is damaged"),
        (lambda data: b"", "is empty (0 bytes)"),
        (lambda data: gzip.compress(data)[:4000], "is damaged"),
    ],
    ids=["cut off", "empty", "cut off gzip"],
)
def test_a_damaged_model(run, data, tmp_path, damage, message):
    (tmp_path / "net.onnx").write_bytes(damage((data / "digits_mlp.onnx").read_bytes()))
    ran = run("verify", tmp_path / "net.onnx", data / "digits_mlp_sat.vnnlib")
    assert (ran.code, ran.out) == (2, "") and message in ran.err


def test_inspect_counts_unstable_neurons(run, data):
    ran = run("inspect", data / "digits_cnn.onnx", data / "digits_cnn_unsat.vnnlib")
    assert ran.code == 0
    assert "inputs: x [1, 1, 8, 8]" in ran.out and "outputs: head.out [1, 10]" in ran.out
    relus = [line.split() for line in ran.out.splitlines() if " Relu " in line]
    assert len(relus) == 5 and all(int(line[-2]) < 512 for line in relus)


def test_bounds_hold_at_the_image_and_are_tighter_by_the_better_method(run, data, tmp_path):
    image = np.load(data / "digits_test.npz")["images"][:1]
    np.save(tmp_path / "x.npy", image)
    runtime = onnxruntime.InferenceSession(data / "digits_mlp.onnx", providers=["CPUExecutionProvider"])
    (y,) = runtime.run(None, {"x": image.astype(np.float32)})
    widths = {}
    for method in ("interval", "crown"):
        out = tmp_path / f"{method}.npz"
        words = ["--input", tmp_path / "x.npy", "--eps", 0.02, "--method", method, "--out", out]
        ran = run("bounds", data / "digits_mlp.onnx", *words)
        assert ran.code == 0 and ran.out.count("\noutput") == 10, ran.err
        found = np.load(out)
        low, high = found["output/lower"], found["output/upper"]
        assert (low <= y).all() and (y <= high).all()
        widths[method] = float((high - low).sum())
    assert widths["crown"] < widths["interval"]


def test_bounds_of_a_value_by_its_name_in_the_model(run, data):
    words = ["bounds", data / "digits_cnn.onnx", data / "digits_cnn_unsat.vnnlib", "--method", "interval"]
    ran = run(*words, "--node", "pool.out")
    assert ran.code == 0 and "\npool.out  all 64" in ran.out
    ran = run(*words, "--node", "pool.in")
    assert ran.code == 2 and "no node named 'pool.in'" in ran.err
