"""Writes the benchmark: networks, properties and instances.csv.

    python -m vnncomp.benchmarks.gated_sequences.generate [--only NAME ...] [--long TASK:STEPS:FAMILY ...]
                                                          [--train] [--epochs N] [--out FOLDER]

A network whose weights are in weights.npz is written as it is stored, others are trained first (seeded; a second to two
minutes each on one thread); `--train` trains all. `--only` takes parts of names of networks. `--long` adds longer
sequences, such as `recall:256:GLA`. Properties speak of held-out sequences that are classified as they should be; their
radii are parts of the radius at which gradient descents find another class, and what lies beyond it is known to be
false: its counterexample, confirmed by onnxruntime on the written files, is kept in witness/. What the tables list of
other networks stays.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from benchmarks.common import exported
from benchmarks.networks import accuracy, train
from verifier.attack.replay import confirm
from verifier.frontends import onnx as frontend
from verifier.specs.load import load_query
from verifier.specs.property import robust
from vnncomp.benchmarks.gated_sequences.attacks import attacked_radii, descend
from vnncomp.benchmarks.gated_sequences.networks import (
    HERE,
    Classifier,
    build,
    families,
    forms,
    in_form,
    load_weights,
    save_weights,
    slug,
)
from vnncomp.benchmarks.gated_sequences.tasks import DIGITS, Data, Task, long_task

LONG = (
    ("parity", 32, "DeltaNet, eigenvalues in [-1, 1]"),
    ("parity", 32, "DeltaProduct"),
    ("recall", 32, "GLA"),
    ("reversal", 64, "GLA"),
)
FACTORS = {"near": 0.12, "middle": 0.35, "far": 0.7, "beyond": 1.2}
"""Radii of properties over the radius at which attacks succeed."""
ROW = 0.5
"""The same where one token moves alone."""
LIMIT = 60
RATE = 1e-2


@dataclass(frozen=True)
class Entry:
    """One trained network."""

    task: Task
    family: str

    @property
    def name(self) -> str:
        steps = "" if self.task is DIGITS else str(self.task.steps)
        return f"{self.task.name}{steps}_{slug(self.family)}"

    def untrained(self) -> Classifier:
        """In the last form that the family has: the parallel one where there is one."""
        task = self.task
        places = task.steps if task.places else 0
        return build(self.family, task.features, task.classes, places, forms(self.family)[-1])


@dataclass(frozen=True)
class Instance:
    """A row of instances.csv; `witness` where it is known to be false."""

    network: str
    spec: str
    witness: str = ""


class Every(nn.Module):
    """A classifier's scores at the last `outputs` tokens: [B, classes, outputs]."""

    def __init__(self, classifier: Classifier, outputs: int) -> None:
        super().__init__()
        self.classifier, self.outputs = classifier, outputs

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier.head(self.classifier.hidden(x)[:, -self.outputs :]).transpose(1, 2)


def entries(only: Sequence[str] = (), more: Sequence[str] = ()) -> list[Entry]:
    """All networks whose names hold one of `only`; `more` as on the command line."""
    found = [Entry(DIGITS, family) for family in families()]
    words = (text.split(":", 2) for text in more)
    asked = [(task, int(steps), family) for task, steps, family in words]
    found += [Entry(long_task(task, steps), family) for task, steps, family in (*LONG, *asked)]
    return [e for e in found if not only or any(part in e.name for part in only)]


def trained(entry: Entry, data: Data, epochs: int | None = None) -> Classifier:
    """Trains a network anew."""
    module, (x, y), task = entry.untrained(), data, entry.task
    for steps in (*task.prefixes, None):
        inputs, labels = x[:, :steps], y[:, :steps]
        train(Every(module, labels.shape[1]), inputs, labels, task.eps, epochs or task.epochs, RATE)
    return module


def write_networks(entry: Entry, module: Classifier, x: Tensor, folder: Path) -> dict[str, str]:
    """The network in all its forms, gzipped: paths in `folder` by form, the smallest file first."""
    paths: dict[str, str] = {}
    for form in forms(entry.family):
        path = f"onnx/{entry.name}_{form}.onnx.gz"
        data = exported(in_form(entry.family, module, form), x[:1])
        (folder / path).write_bytes(gzip.compress(data, mtime=0))
        paths[form] = path
    return dict(sorted(paths.items(), key=lambda item: (folder / item[1]).stat().st_size))


def instances(
    entry: Entry, module: Classifier, data: Data, paths: Mapping[str, str], folder: Path
) -> Iterator[Instance]:
    """Writes the properties of a network: one sequence for each of `FACTORS`, one of which another form gets as well,
    and one with a token that moves alone."""
    x, labels = data[0], data[1][:, -1]
    with torch.no_grad():
        right = (module(x).argmax(1) == labels).nonzero()[: len(FACTORS) + 1, 0]
    smallest, *others = paths.values()
    steps = entry.task.steps
    for index, (kind, factor) in zip(right.tolist(), FACTORS.items(), strict=False):
        case = Case(
            entry, module, index, x[index : index + 1], labels[index : index + 1], torch.ones(steps), factor
        )
        spec, witness = case.write(folder, smallest)
        yield Instance(smallest, spec, witness)
        if kind == "middle":
            yield from (Instance(path, spec) for path in others)
    if len(right) > len(FACTORS):
        index, token = int(right[-1]), torch.arange(steps) == steps // 2
        case = Case(entry, module, index, x[index : index + 1], labels[index : index + 1], token.float(), ROW)
        yield Instance(smallest, case.write(folder, smallest)[0])


@dataclass(frozen=True, eq=False)
class Case:
    """A sequence [1, T, F] around which the tokens `moving` [T] move by a part of what attacks need."""

    entry: Entry
    module: Classifier
    index: int
    x: Tensor
    label: Tensor
    moving: Tensor
    factor: float

    def write(self, folder: Path, network: str) -> tuple[str, str]:
        """Paths of the property and, where `factor` is more than 1, of its witness."""
        least = float(attacked_radii(self.module, self.x, self.label, self.moving)[0])
        radius = _rounded(self.factor * min(least, 1.0))
        which = "" if bool(self.moving.all()) else f"_token{int(self.moving.argmax())}"
        stem = f"{self.entry.name}_{self.index}{which}_{radius}"
        spec, eps = f"vnnlib/{stem}.vnnlib.gz", (radius * self.moving)[:, None].double()
        wanted = robust(self.x.double(), int(self.label), eps, (0.0, 1.0), (1, self.entry.task.classes))
        wanted.to_vnnlib(folder / spec)
        if self.factor < 1 or math.isinf(least):
            return spec, ""
        point = descend(self.module, self.x, self.label, eps[None].float())[1]
        query, model = load_query(folder / spec), frontend.load(folder / network)
        found = confirm(query, {query.networks[0].name: model}, point.double().flatten().numpy())
        if found is None:
            return spec, ""
        witness = f"witness/{stem}.txt.gz"
        (folder / witness).write_bytes(gzip.compress(found.assignment.encode(), mtime=0))
        return spec, witness


def _rounded(value: float) -> float:
    """Two digits."""
    return float(f"{value:.1e}")


def read_tables(folder: Path) -> list[Instance]:
    """What the two tables list, nothing where there are none."""
    if not (folder / "instances.csv").is_file():
        return []
    rows, known = (list(csv.reader((folder / n).open())) for n in ("instances.csv", "expected.csv"))
    witnesses = {(network, spec): witness for network, spec, _, witness in known}
    return [Instance(network, spec, witnesses.get((network, spec), "")) for network, spec, _ in rows]


def write_tables(rows: Sequence[Instance], folder: Path) -> None:
    """instances.csv, and expected.csv with what is known to be false and why."""
    with (folder / "instances.csv").open("w", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows((r.network, r.spec, LIMIT) for r in rows)
    with (folder / "expected.csv").open("w", newline="") as file:
        known = [(r.network, r.spec, "sat", r.witness) for r in rows if r.witness]
        csv.writer(file, lineterminator="\n").writerows(known)


def without(rows: Sequence[Instance], paths: Mapping[str, str], folder: Path) -> list[Instance]:
    """The rows of other networks; the properties of this one, whose files have these `paths`, are deleted."""
    for row in rows:
        if row.network in paths.values():
            for path in filter(None, (row.spec, row.witness)):
                (folder / path).unlink(missing_ok=True)
    return [row for row in rows if row.network not in paths.values()]


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME")
    parser.add_argument("--long", nargs="+", default=[], metavar="TASK:STEPS:FAMILY")
    parser.add_argument("--out", type=Path, default=HERE)
    parser.add_argument("--train", action="store_true")
    parser.add_argument("--epochs", type=int)
    given = parser.parse_args(words)
    torch.set_num_threads(1)
    for name in ("onnx", "vnnlib", "witness"):
        (given.out / name).mkdir(parents=True, exist_ok=True)
    weights = load_weights(given.out / "weights.npz")
    rows = read_tables(given.out)
    for entry in entries(given.only, given.long):
        began = time.process_time()
        data, held_out = entry.task.make(entry.task.steps)
        if given.train or entry.name not in weights:
            weights[entry.name] = trained(entry, data, given.epochs).state_dict()
            save_weights(weights, given.out / "weights.npz")
        module = entry.untrained()
        module.load_state_dict(weights[entry.name])
        paths = write_networks(entry, module, held_out[0], given.out)
        rows = without(rows, paths, given.out)
        found = list(instances(entry, module, held_out, paths, given.out))
        rows += found
        write_tables(rows, given.out)
        print(
            line(entry, module, held_out, paths, found, given.out),
            f"{time.process_time() - began:.0f} s",
            flush=True,
        )


def line(
    entry: Entry,
    module: Classifier,
    data: Data,
    paths: Mapping[str, str],
    found: Sequence[Instance],
    folder: Path,
) -> str:
    """A row of the table in README.md: network, family, parameters, kB per form, held-out accuracy, instances, how many
    of them are known to be false."""
    size = ", ".join(f"{form} {(folder / path).stat().st_size / 1e3:.0f}" for form, path in paths.items())
    count = sum(p.numel() for p in module.parameters())
    right = accuracy(Every(module, 1), data[0], data[1][:, -1:])
    known = sum(bool(i.witness) for i in found)
    return f"| {entry.name} | {entry.family} | {count} | {size} | {right:.2f} | {len(found)} | {known} |"


if __name__ == "__main__":
    main()
