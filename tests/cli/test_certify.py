"""`verifier certify`: data in every layout, and what is said of data that does not fit."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests.cli.conftest import Ran

DATA = Path(__file__).parent.parent / "data"
MODEL = DATA / "digits_mlp.onnx"
Runner = Callable[..., Ran]


@pytest.fixture(scope="module")
def digits() -> tuple[np.ndarray, np.ndarray]:
    loaded = np.load(DATA / "digits_test.npz")
    return loaded["images"][:12], loaded["labels"][:12]


def test_table_and_rows(run: Runner, tmp_path: Path) -> None:
    out = tmp_path / "rows.json"
    ran = run(
        *("certify", MODEL, DATA / "digits_test.npz", "--eps", 0.02, "--clip", 0, 1),
        *("--count", 20, "--until", "crown", "--json", out),
    )
    assert ran.code == 0, ran.err
    lines = ran.out.splitlines()
    assert [line.split()[0] for line in lines] == ["accuracy", "clean", "attacked", "interval", "crown"]
    rows = json.loads(out.read_text())["samples"]
    assert len(rows) == 20 and len(ran.err.splitlines()) == 20
    share = sum(r["verdict"] == "certified" for r in rows) / 20
    assert lines[-1].split()[1] == f"{share:.4f}"


def test_without_a_budget_nothing_is_branched(run: Runner) -> None:
    words = ("certify", MODEL, DATA / "digits_test.npz", "--eps", 0.1, "--count", 12, "--no-progress")
    tables = [run(*words, *more).out.splitlines() for more in (("--until", "alpha-crown"), ("--budget", 0))]
    assert [line.split()[1:3] for line in tables[0][1:]] == [line.split()[1:3] for line in tables[1][1:6]]
    assert tables[1][6].split()[1:3] == tables[1][5].split()[1:3]
    assert run(*words, "--budget", -1).code == 2


def test_folders_hold_the_same_data(
    run: Runner, tmp_path: Path, digits: tuple[np.ndarray, np.ndarray]
) -> None:
    x, y = digits
    arrays, classes = tmp_path / "arrays", tmp_path / "classes"
    arrays.mkdir()
    np.save(arrays / "x.npy", (x * 16).astype(np.uint8))
    np.save(arrays / "y.npy", y)
    for k, (sample, label) in enumerate(zip(x, y, strict=True)):
        (classes / str(label)).mkdir(parents=True, exist_ok=True)
        np.save(classes / str(label) / f"{k}.npy", sample)
    np.savez(tmp_path / "named.npz", values=x, kinds=y)
    words = ("--eps", 0.02, "--until", "crown", "--no-progress")
    tables = [
        run("certify", MODEL, data, *words, *more).out.splitlines()
        for data, more in ((arrays, ("--scale", 16)), (classes, ()), (tmp_path / "named.npz", ()))
    ]
    shares = [[line.split()[:3] for line in table] for table in tables]
    assert shares[0] == shares[1] == shares[2] and len(shares[0]) == 5


def test_errors_say_what_to_do(run: Runner, tmp_path: Path, digits: tuple[np.ndarray, np.ndarray]) -> None:
    x, y = digits
    np.savez(tmp_path / "bytes.npz", x=(x * 16).astype(np.uint8), y=y)
    np.savez(tmp_path / "lone.npz", x=x)
    np.savez(tmp_path / "odd.npz", x=x, y=y[:3])
    (tmp_path / "empty").mkdir()
    for name, words in (
        ("bytes.npz", "--scale 255"),
        ("lone.npz", "Name the samples x"),
        ("odd.npz", "one whole number per sample"),
        ("empty", "neither x.npy"),
        ("missing.npz", "does not exist"),
    ):
        ran = run("certify", MODEL, tmp_path / name, "--eps", 0.02)
        assert ran.code == 2 and words in ran.err, ran.err
