"""The competition's three scripts over folders of benchmarks, and every `sat` checked again without the verifier.

    python -m benchmarks.scripts [FOLDER ...] [--jobs N] [--scale X] [--only GLOB] [--install] [--out scripts.csv]

Each instance is prepared and run by vnncomp/prepare_instance.sh and run_instance.sh in a process group that is killed
30 s after its limit, from an empty folder. A `sat` is accepted when a reader of its own (this file: brackets, exact
fractions) finds the query true at the assignment, with the outputs that onnxruntime computes there for the original
model; inputs may leave their ranges by 1e-4 where no float32 lies in them, which is counted apart. By default all
benchmark instances (environment variable VERIFIER_SHARED). Ends with 1 where a verdict is wrong, a `sat` refused, or a
result missing.
"""

from __future__ import annotations

import argparse
import ast
import csv
import gzip
import itertools
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from benchmarks.common import ROOT, instances, machine

TOLERANCE = Fraction(1, 10_000)
Assignment = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Row:
    folder: Path
    onnx: str
    spec: str
    timeout: float
    expected: str

    @property
    def networks(self) -> dict[str, Path]:
        pairs = ast.literal_eval(self.onnx) if self.onnx.startswith("[") else [("", self.onnx)]
        return {name: self.folder / path for name, path in pairs}

    @property
    def given(self) -> str:
        """The scripts' argument for the model: a path, or the list with absolute paths."""
        if "" in self.networks:
            return str(self.networks[""])
        return str([(name, str(path)) for name, path in self.networks.items()])


@dataclass(frozen=True)
class Outcome:
    verdict: str  # the first line of the result; "missing" where there is no file
    seconds: float
    check: str = ""  # of a sat: "accepted", "within tolerance", or why it is refused

    def wrong(self, row: Row) -> bool:
        expected = row.expected in ("sat", "unsat") and self.verdict in ("sat", "unsat")
        refused = self.verdict == "sat" and self.check not in ("accepted", "within tolerance")
        return refused or self.verdict == "missing" or (expected and self.verdict != row.expected)


def content(path: Path) -> bytes:
    packed = path.with_name(path.name + ".gz")
    return path.read_bytes() if path.exists() else gzip.decompress(packed.read_bytes())


def tree(text: str) -> list[Any]:
    """Nested lists of words."""
    words = re.findall(r"[()]|[^\s()]+", re.sub(r";[^\n]*", "", text))
    stack: list[list[Any]] = [[]]
    for word in words:
        if word == "(":
            stack.append([])
        elif word == ")":
            inner = stack.pop()
            stack[-1].append(inner)
        else:
            stack[-1].append(word)
    return stack[0]


def holds(term: Any, values: Assignment, slack: Fraction) -> bool:
    """Whether a formula is true; comparisons of inputs alone are given `slack`."""
    head, *rest = term
    if head == "and":
        return all(holds(t, values, slack) for t in rest)
    if head == "or":
        return any(holds(t, values, slack) for t in rest)
    terms = [number(t, values) for t in rest]
    room = Fraction(0) if any(re.search(r"\bY", w) for w in flat(rest)) else slack
    pairs = list(itertools.pairwise(terms))
    if head == "!=":
        return all(a != b for a, b in pairs)
    compare = {
        "<=": lambda a, b: a <= b + room,
        ">=": lambda a, b: a + room >= b,
        "<": lambda a, b: a < b + room,
        ">": lambda a, b: a + room > b,
        "==": lambda a, b: abs(a - b) <= room,
        "=": lambda a, b: abs(a - b) <= room,
    }
    return all(compare[head](a, b) for a, b in pairs)


def flat(term: Any) -> Iterator[str]:
    if isinstance(term, str):
        yield term
    else:
        for t in term:
            yield from flat(t)


def number(term: Any, values: Assignment) -> Fraction:
    if isinstance(term, str):
        if place := re.fullmatch(r"([^\[\]]+)\[([\d,\s]+)\]", term):
            return Fraction(float(values[place[1]][tuple(int(i) for i in place[2].split(","))]))
        if place := re.fullmatch(r"([XY])_(\d+)", term):
            return Fraction(float(values[place[1]].reshape(-1)[int(place[2])]))
        return Fraction(term)
    head, *rest = term
    terms = [number(t, values) for t in rest]
    if head == "-" and len(terms) == 1:
        return -terms[0]
    total = terms[0]
    for t in terms[1:]:
        total = {"+": total + t, "-": total - t, "*": total * t}[head]
    return total


def assigned(text: str, declared: Mapping[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    """The arrays of a result file, of either version, under the query's names; `declared` has shapes of version 2."""
    if not declared:
        found: dict[str, dict[int, float]] = {"X": {}, "Y": {}}
        for name, index, value in re.findall(r"\(\s*([XY])_(\d+)\s+([^\s()]+)\s*\)", text):
            found[name][int(index)] = float(value)
        return {name: np.array([v[i] for i in range(len(v))]) for name, v in found.items()}
    lines = [line.split() for line in text.splitlines() if line.strip()]
    arrays, place = {}, 0
    while place < len(lines):
        name, shape = lines[place][0], declared[lines[place][0]]
        count = int(np.prod(shape))
        arrays[name] = np.array([float(v[0]) for v in lines[place + 1 : place + 1 + count]]).reshape(shape)
        place += 1 + count
    return arrays


def check(row: Row, text: str) -> str:
    """ "accepted", "within tolerance", or why an assignment is refused."""
    terms = tree(content(row.folder / row.spec).decode())
    declarations = {t[1]: t[2:] for t in terms if t and t[0] == "declare-network"}
    shapes = {
        d[1]: tuple(int(n) for n in re.findall(r"\d+", " ".join(flat(d[3:]))))
        for network in declarations.values()
        for d in network
        if d[0] in ("declare-input", "declare-output", "declare-hidden")
    }
    values = assigned(text, shapes)
    for name, path in row.networks.items():
        inputs = [d[1] for d in declarations.get(name, [["declare-input", "X"]]) if d[0] == "declare-input"]
        outputs = [
            d[1] for d in declarations.get(name, [["declare-output", "Y"]]) if d[0] == "declare-output"
        ]
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        session = onnxruntime.InferenceSession(content(path), options, providers=["CPUExecutionProvider"])
        feed = {}
        kinds = {"tensor(float)": np.float32, "tensor(double)": np.float64, "tensor(int64)": np.int64}
        for variable, formal in zip(inputs, session.get_inputs(), strict=True):
            shape = [n if isinstance(n, int) else 1 for n in formal.shape]
            feed[formal.name] = values[variable].astype(kinds[formal.type]).reshape(shape)
            values[variable] = feed[formal.name].astype(np.float64).reshape(values[variable].shape)
        for variable, value in zip(outputs, session.run(None, feed), strict=False):
            computed = np.asarray(value).astype(np.float64).reshape(values[variable].shape)
            if not np.allclose(values[variable], computed, rtol=1e-4, atol=1e-4):
                return f"the outputs given are off by {np.abs(values[variable] - computed).max():.3g}"
            values[variable] = computed
    formulas = [t[1] for t in terms if t and t[0] == "assert"]
    for slack, word in ((Fraction(0), "accepted"), (TOLERANCE, "within tolerance")):
        if all(holds(f, values, slack) for f in formulas):
            return word
    return "the query does not hold at the assignment"


def run(row: Row, scale: float) -> Outcome:
    words = ["v1", row.folder.name, row.given, str(row.folder / row.spec)]
    limit = max(1.0, row.timeout * scale)
    with tempfile.TemporaryDirectory() as empty:
        result = Path(empty) / "result.txt"
        subprocess.run([ROOT / "vnncomp" / "prepare_instance.sh", *words], cwd=empty, check=True)
        start = time.perf_counter()
        ran = [ROOT / "vnncomp" / "run_instance.sh", *words, str(result), str(limit)]
        process = subprocess.Popen(
            ran, cwd=empty, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        try:
            process.wait(limit + 30)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
        seconds = time.perf_counter() - start
        if not result.exists():
            return Outcome("missing", seconds)
        verdict, _, rest = result.read_text().partition("\n")
    try:
        return Outcome(verdict, seconds, check(row, rest) if verdict == "sat" else "")
    except Exception as error:  # whatever a malformed assignment does to the reader, it is refused
        return Outcome(verdict, seconds, f"{type(error).__name__}: {error}")


def rows_of(folder: Path) -> Iterator[Row]:
    with open(folder / "instances.csv", newline="") as file:
        for onnx, spec, timeout, *rest in csv.reader(file):
            yield Row(folder, onnx, spec, float(timeout), rest[0] if rest else "")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folders", nargs="*", type=Path)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--scale", type=float, default=1.0, help="of the limits of instances.csv")
    parser.add_argument("--only", default="*", help="a pattern for the folders' names")
    parser.add_argument("--install", action="store_true", help="run install_tool.sh first")
    parser.add_argument("--out", type=Path, default=Path("scripts.csv"))
    arguments = parser.parse_args()
    if arguments.install:
        subprocess.run([ROOT / "vnncomp" / "install_tool.sh", "v1"], cwd="/", check=True)
    folders = arguments.folders or sorted(p.parent for p in instances().glob("*/instances.csv"))
    rows = [row for f in folders if f.match(arguments.only) for row in rows_of(f.resolve())]
    outcomes: list[Outcome] = []
    with ThreadPoolExecutor(arguments.jobs) as pool, open(arguments.out, "w", newline="") as file:
        writer = csv.writer(file)
        for row, outcome in zip(rows, pool.map(lambda r: run(r, arguments.scale), rows), strict=True):
            outcomes.append(outcome)
            seconds = f"{outcome.seconds:.1f}"
            writer.writerow(
                [row.folder.name, row.onnx, row.spec, row.expected, outcome.verdict, seconds, outcome.check]
            )
            file.flush()
            if outcome.wrong(row):
                print(f"WRONG {row.folder.name} {row.onnx} {row.spec}: expected {row.expected}, {outcome}")
    print(f"{machine()}\nlimits times {arguments.scale:g}, {arguments.jobs} at a time\n")
    print(
        "| benchmark | instances | unsat | sat | open | error |\n| --- | ---: | ---: | ---: | ---: | ---: |"
    )
    for folder in folders:
        count = Counter(
            o.verdict for r, o in zip(rows, outcomes, strict=True) if r.folder == folder.resolve()
        )
        if total := sum(count.values()):
            known = count["unsat"] + count["sat"] + count["error"]
            print(
                f"| {folder.name} | {total} | {count['unsat']} | {count['sat']} | {total - known} | {count['error']} |"
            )
    wrong = sum(o.wrong(r) for r, o in zip(rows, outcomes, strict=True))
    checks = Counter(o.check for o in outcomes if o.verdict == "sat")
    print(f"\n{len(rows)} instances, {wrong} wrong; sat: {dict(checks)}")
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
