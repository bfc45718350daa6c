"""Benchmark folders as the yearly competition lays them out: instances.csv beside onnx/ and vnnlib/."""

from __future__ import annotations

import ast
import csv
from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

from verifier.errors import VerifierError

_VERDICTS = ("sat", "unsat")


@dataclass(frozen=True)
class Instance:
    """One row. `networks` has the one model under the empty name, or those of a 2.0 query under theirs.

    `expected` is `sat` or `unsat`, and None where the verdict is open.
    """

    benchmark: str
    networks: Mapping[str, Path]
    spec: Path
    timeout: float
    expected: str | None

    @property
    def name(self) -> str:
        """The row as a person would call it, and what `--only` matches."""
        models = "+".join(path.name for path in self.networks.values())
        return f"{self.benchmark}/{models}/{self.spec.name}"

    def arguments(self) -> list[str]:
        """What `verifier verify` is given for it."""
        if "" in self.networks:
            return [str(self.networks[""]), str(self.spec)]
        named = [f"--network={name}={path}" for name, path in self.networks.items()]
        return [str(self.spec), *named]


def find_instances(folder: Path, only: str = "*") -> list[Instance]:
    """The instances of `folder` and, when it has no instances.csv itself, of its subfolders, in order.

    `only` is a glob for `Instance.name` or the benchmark's name. Raises VerifierError when nothing is there.
    """
    tables = [folder / "instances.csv"]
    if not tables[0].is_file():
        tables = sorted(folder.glob("*/instances.csv"))
    if not tables:
        raise VerifierError(
            f"{folder} has no instances.csv, nor has a folder in it. Give a benchmark's folder."
        )
    found = [instance for table in tables for instance in _read(table)]
    chosen = [i for i in found if any(fnmatch(name, only) for name in (i.name, i.benchmark))]
    if not chosen:
        raise VerifierError(
            f"none of {len(found)} instances matches --only {only}; an example is {found[0].name}."
        )
    return chosen


def _read(table: Path) -> list[Instance]:
    """Rows are onnx, vnnlib, timeout in seconds, and optionally a verdict; further columns are ignored."""
    folder = table.parent
    instances = []
    with table.open(newline="") as file:
        for number, row in enumerate(csv.reader(file), start=1):
            if not row:
                continue
            try:
                onnx, spec, timeout = row[0].strip(), row[1].strip(), float(row[2])
                paths = {name: folder / path for name, path in _networks(onnx).items()}
            except (IndexError, ValueError, SyntaxError) as error:
                raise VerifierError(
                    f"{table}:{number}: expected onnx, vnnlib, timeout in seconds; got {','.join(row)!r}."
                ) from error
            verdict = row[3].strip() if len(row) > 3 else ""
            expected = verdict if verdict in _VERDICTS else None
            instances.append(Instance(folder.resolve().name, paths, folder / spec, timeout, expected))
    if not instances:
        raise VerifierError(f"{table} has no rows. Each should be onnx, vnnlib, timeout in seconds.")
    return instances


def _networks(cell: str) -> dict[str, str]:
    """A path, or a Python list of (name, path) pairs."""
    if not cell.startswith("["):
        return {"": cell}
    pairs = ast.literal_eval(cell)
    return {str(name): str(path) for name, path in pairs}
