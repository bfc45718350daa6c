"""Every property file of the real benchmarks is read and has a normal form."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from verifier.specs.errors import SpecError
from verifier.specs.evaluator import satisfies
from verifier.specs.load import load_query, parse_query, read_text
from verifier.specs.normalise import normalise
from verifier.specs.query import Kind, Query

MISTAKES = {  # what the standard has not, and the way to write it
    "acc_1.vnnlib.gz": (":5:17: ", "vnnlib-version 2.0", "vnnlib-version <2.0>"),
    "monotonic_0.vnnlib.gz": (":30:17: ", "(Y_f[1] < Y_g[1])", "(< Y_f[1] Y_g[1])"),
}


def assignment(query: Query, v: np.ndarray, position: np.ndarray) -> dict[str, np.ndarray]:
    flat = v[position]
    return {x.name: flat[x.offset : x.offset + x.size] for x in query.variables}


def load_corrected(file: Path) -> Query:
    """The query; of a file with a known mistake, after that is seen to be refused with its place, the corrected one."""
    if file.name not in MISTAKES:
        return load_query(file)
    place, wrong, right = MISTAKES[file.name]
    with pytest.raises(SpecError) as caught:
        load_query(file)
    assert place in str(caught.value) and right in str(caught.value)
    return parse_query(read_text(file).replace(wrong, right))


def check(file: Path) -> int:
    """Normalise a file and compare one point with the evaluator; returns the number of cases."""
    query = load_corrected(file)
    problem = normalise(query)
    assert problem.cases > 0
    assert np.isfinite(problem.lower).all() and (problem.lower <= problem.upper).all()
    assert problem.inputs == sum(v.size for v in query.of_kind(Kind.INPUT))
    v = np.zeros(query.size)
    v[: problem.inputs] = (problem.lower[0] + problem.upper[0]) / 2
    if not problem.nonlinear:
        totals = problem.constants.copy()
        np.add.at(totals, problem.rows, problem.values * v[problem.cols])
        conjunctions = problem.dnf(0, 100_000)
        if conjunctions is not None and problem.cases == 1:
            held = any(
                all(totals[k] < 0 if problem.strict[k] else totals[k] <= 0 for k in c) for c in conjunctions
            )
            assert satisfies(query, assignment(query, v, problem.position), 1e-6) == held
    return problem.cases


def test_one_file_of_every_benchmark(shared: Path) -> None:
    folders = sorted(f / "vnnlib" for f in (shared / "vnncomp-dev").iterdir() if (f / "vnnlib").is_dir())
    assert folders
    for folder in folders:
        files = sorted(folder.rglob("*.vnnlib*"), key=lambda f: f.stat().st_size)
        if folder.parent.name.startswith("vnnlib2"):
            pytest.importorskip("vnnlib")
            assert [check(file) for file in files]
        check(files[0])


@pytest.mark.full
def test_all_files(shared: Path) -> None:
    files = sorted((shared / "vnncomp-dev").rglob("*.vnnlib*"))
    cases = {file.name: check(file) for file in files if file.is_file()}
    assert max(cases.values()) > 1000
