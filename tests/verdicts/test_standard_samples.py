"""The samples of VNN-LIB 2.0 from its authors, decided; of those that the standard does not allow, corrected copies."""

from __future__ import annotations

import csv
import gzip
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

import verifier
from verifier.bench.instances import parse_networks
from verifier.errors import VerifierError
from verifier.results import Status
from verifier.specs.evaluator import satisfies
from verifier.specs.load import load_query, read_text
from verifier.specs.witness import read_witness

pytest.importorskip("vnnlib")

CORRECTED = {
    "acc_1.vnnlib": ("(vnnlib-version 2.0)", "(vnnlib-version <2.0>)"),
    "monotonic_0.vnnlib": ("(Y_f[1] < Y_g[1])", "(< Y_f[1] Y_g[1])"),
}
VERDICTS = {
    "acc_1.vnnlib": Status.UNSAT,  # no input satisfies 200 X_0 >= X_1^2
    "monotonic_0.vnnlib": Status.SAT,
    "isomorphic_0.vnnlib": Status.SAT,
    "isomorphic_1.vnnlib": Status.SAT,
}


@pytest.mark.parametrize("name", list(VERDICTS))
def test_samples_are_decided(name: str, shared: Path, tmp_path: Path) -> None:
    folder = shared / "vnncomp-dev" / "vnnlib2_samples_2026"
    rows = {Path(row[1]).name: row[0] for row in csv.reader((folder / "instances.csv").open())}
    spec = folder / "vnnlib" / f"{name}.gz"
    query = tmp_path / name
    if name in CORRECTED:
        with pytest.raises(VerifierError):
            load_query(spec)
        query.write_text(read_text(spec).replace(*CORRECTED[name]))
    else:
        query.write_text(read_text(spec))
    networks = {key or "f": folder / path for key, path in parse_networks(rows[name]).items()}
    result = verifier.verify(networks, query, timeout=100)
    assert result.status is VERDICTS[name]
    if result.counterexample is None:
        return
    values = read_witness(load_query(query), result.counterexample.assignment)
    for key, path in networks.items():
        data = gzip.decompress(path.with_name(f"{path.name}.gz").read_bytes())
        session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
        (declared,) = session.get_inputs()
        x = (
            values[f"X_{key}"]
            .astype(np.float32)
            .reshape([d if isinstance(d, int) else 1 for d in declared.shape])
        )
        values[f"Y_{key}"] = session.run(None, {declared.name: x})[0]
    assert satisfies(load_query(query), values, 1e-4)
