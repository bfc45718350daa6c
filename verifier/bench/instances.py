"""Benchmark folders as the yearly competition lays them out: instances.csv beside onnx/ and vnnlib/."""

from __future__ import annotations

import ast
import csv
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from verifier.bench.record import Record
from verifier.errors import VerifierError

_VERDICTS = ("sat", "unsat")
_VERSIONS = ("1.0", "2.0")


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
    row: int = 0  # the line in instances.csv, from 1
    version: str = ""  # of a folder `1.0` or `2.0` inside the benchmark's
    given: tuple[str, str] = ("", "")  # the cells of instances.csv for networks and query

    @property
    def name(self) -> str:
        """The row as a person would call it, and what `--only` matches."""
        models = "+".join(path.name for path in self.networks.values())
        return "/".join(filter(None, (self.benchmark, self.version, models, self.spec.name)))

    def record(self, timeout: float, verdict: str, seconds: float, **more: Any) -> Record:
        """What is kept of a run of it that ended so."""
        onnx, spec = self.given
        return Record(
            self.benchmark,
            parse_networks(onnx),
            spec,
            timeout,
            verdict,
            seconds,
            self.row,
            self.version,
            self.expected,
            **more,
        )

    @property
    def key(self) -> str:
        """The same as that of its records."""
        return self.record(self.timeout, "unknown", 0.0).key

    def arguments(self) -> list[str]:
        """What `verifier verify` is given for it."""
        if "" in self.networks:
            return [str(self.networks[""]), str(self.spec)]
        named = [f"--network={name}={path}" for name, path in self.networks.items()]
        return [str(self.spec), *named]


def find_all(folders: Sequence[Path], only: str = "*", shard: tuple[int, int] = (1, 1)) -> list[Instance]:
    """The instances of all `folders` in order, or of these the i-th, (i + n)-th ... for the `shard` (i, n).

    Raises VerifierError where one has none, or two have the same name and rows, so that results could not tell them
    apart.
    """
    found = [instance for folder in folders for instance in find_instances(folder, "*")]
    seen: dict[str, Instance] = {}
    for instance in found:
        other = seen.setdefault(instance.key, instance)
        if other is not instance:
            raise VerifierError(
                f"{instance.spec} and {other.spec} are both row {instance.row} of a benchmark {instance.benchmark}. "
                "Rename a folder, or run them one after the other."
            )
    part, parts = shard
    return _chosen(found, only)[part - 1 :: parts]


def find_instances(folder: Path, only: str = "*") -> list[Instance]:
    """The instances of `folder` and, when it has no instances.csv itself, of its subfolders, in order. Each may have
    them in `1.0/` and `2.0/` as well.

    `only` is a glob for `Instance.name` or the benchmark's name. Raises VerifierError when nothing is there.
    """
    tables = _tables(folder) or [table for inner in sorted(folder.glob("*/")) for table in _tables(inner)]
    if not tables:
        raise VerifierError(
            f"{folder} has no instances.csv, nor has a folder in it. Give a benchmark's folder."
        )
    return _chosen([instance for table in tables for instance in _read(table)], only)


def _tables(folder: Path) -> list[Path]:
    places = (folder, *(folder / version for version in _VERSIONS))
    return [place / "instances.csv" for place in places if (place / "instances.csv").is_file()]


def _chosen(found: list[Instance], only: str) -> list[Instance]:
    chosen = [i for i in found if any(fnmatch(name, only) for name in (i.name, i.benchmark))]
    if not chosen:
        raise VerifierError(
            f"none of {len(found)} instances matches --only {only}; an example is {found[0].name}."
        )
    return chosen


def by_network(instances: Sequence[Instance], jobs: int = 1) -> list[list[Instance]]:
    """Those of the same networks together, in the order of the first of each; for several jobs cut into parts, so that
    none has more than its share of all."""
    groups: dict[tuple[tuple[str, Path], ...], list[Instance]] = {}
    for instance in instances:
        groups.setdefault(tuple(instance.networks.items()), []).append(instance)
    most = max(1, math.ceil(len(instances) / jobs))
    return [group[i : i + most] for group in groups.values() for i in range(0, len(group), most)]


def _read(table: Path) -> list[Instance]:
    """Rows are onnx, vnnlib, timeout in seconds, and optionally a verdict; further columns are ignored."""
    folder = table.parent
    version = folder.name if folder.name in _VERSIONS else ""
    benchmark = (folder.resolve().parent if version else folder.resolve()).name
    instances = []
    with table.open(newline="") as file:
        for number, row in enumerate(csv.reader(file), start=1):
            if not row:
                continue
            try:
                onnx, spec, timeout = row[0].strip(), row[1].strip(), float(row[2])
                paths = {name: folder / path for name, path in parse_networks(onnx).items()}
            except (IndexError, ValueError, SyntaxError) as error:
                raise VerifierError(
                    f"{table}:{number}: expected onnx, vnnlib, timeout in seconds; got {','.join(row)!r}."
                ) from error
            verdict = row[3].strip() if len(row) > 3 else ""
            expected = verdict if verdict in _VERDICTS else None
            place = (number, version, (onnx, spec))
            instances.append(Instance(benchmark, paths, folder / spec, timeout, expected, *place))
    if not instances:
        raise VerifierError(f"{table} has no rows. Each should be onnx, vnnlib, timeout in seconds.")
    return instances


def parse_networks(cell: str) -> dict[str, str]:
    """A path, or a Python list of (name, path) pairs."""
    if not cell.startswith("["):
        return {"": cell}
    pairs = ast.literal_eval(cell)
    return {str(name): str(path) for name, path in pairs}
