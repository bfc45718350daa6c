"""What a run is worth: verdicts counted, the competition's points, and a comparison with other tools' results.csv."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from verifier.bench.instances import parse_networks
from verifier.bench.record import PENALTY, POINTS, Record
from verifier.errors import VerifierError

Table = tuple[tuple[str, ...], list[tuple[str, ...]]]
_HEAD = (
    *("benchmark", "instances", "solved", "sat", "unsat", "unknown", "timeouts", "errors", "wrong"),
    *("points", "percent", "seconds"),
)
_WORDS = {"holds": "unsat", "violated": "sat", "timed-out": "timeout", "run_instance_timeout": "timeout"}


@dataclass(frozen=True)
class Other:
    """Another tool's verdicts and seconds, by `place`."""

    tool: str
    rows: Mapping[tuple[str, str], tuple[str, float]]

    def counted(self, record: Record) -> str:
        """What it says of the instance, in its time."""
        verdict, seconds = self.rows.get(place(record), ("", 0.0))
        late = verdict in ("sat", "unsat") and seconds > record.timeout
        return "timeout" if late else verdict

    def points(self, record: Record) -> int:
        """As a Record's; it is also wrong where it says unsat and a counterexample of ours was replayed."""
        verdict = self.counted(record)
        if verdict not in ("sat", "unsat"):
            return 0
        refuted = verdict == "unsat" and record.verdict == "sat" and not record.wrong
        expected = record.expected
        return PENALTY if refuted or (expected is not None and verdict != expected) else POINTS


def write_csv(records: Iterable[Record], path: Path) -> None:
    """The competition's results.csv, without a header: benchmark, network(s), query, seconds of preparation (none),
    verdict, seconds. Complete or not there at all."""
    aside = path.with_name(f"{path.name}.part")
    with aside.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        for r in records:
            networks = r.networks.get("", str(list(r.networks.items())))
            folder = "/".join(filter(None, (r.benchmark, r.version)))
            onnx = f"{folder}/{networks}" if "" in r.networks else networks
            writer.writerow((r.benchmark, onnx, f"{folder}/{r.spec}", "0", r.verdict, f"{r.seconds:.3f}"))
    aside.replace(path)


def read_other(path: Path) -> Other:
    """A results.csv of the competition, called by its folder. Raises VerifierError where it is none."""
    rows = {}
    number = 0
    try:
        with path.open(newline="") as file:
            for row in csv.reader(file):
                number += 1
                if row:
                    rows[_place(row[0], row[1], row[2])] = _verdict(row[4]), float(row[5])
    except (OSError, IndexError, ValueError, SyntaxError) as error:
        raise VerifierError(
            f"{path}:{number}: expected benchmark, network, query, seconds, verdict, seconds ({error})."
        ) from error
    return Other(path.resolve().parent.name if path.stem == "results" else path.stem, rows)


def summary(records: Iterable[Record], others: Sequence[Other] = ()) -> Table:
    """One line per benchmark, and one for all of them when there are several.

    Percentages are of the best tool's points, as in the competition; of all that there are when there is no other
    tool. Those of all benchmarks are added up.
    """
    groups = _groups(records)
    lines = [(name, *_counts(group), *_worth(group, others)) for name, group in groups.items()]
    if len(groups) > 1:
        every = [record for group in groups.values() for record in group]
        percent = sum(float(line[-2]) for line in lines)
        points, _, seconds = _worth(every, others)
        lines.append(("all", *_counts(every), points, f"{percent:.1f}", seconds))
    return _HEAD, lines


def comparison(records: Iterable[Record], others: Sequence[Other]) -> Table:
    """Per benchmark and tool: both solved, we alone, they alone, contradictions, points of both, rows in common."""
    head = ("benchmark", "tool", "common", "both", "ours alone", "theirs alone", "contradict", "our points")
    lines = []
    for name, group in _groups(records).items():
        for other in others:
            common = [r for r in group if place(r) in other.rows]
            ours = {r.key for r in common if r.counted in ("sat", "unsat")}
            theirs = {r.key for r in common if other.counted(r) in ("sat", "unsat")}
            numbers = (len(common), len(ours & theirs), len(ours - theirs), len(theirs - ours))
            points = (sum(r.points for r in common), sum(other.points(r) for r in common))
            against = sum(r in common for r, o in disagreements(group, others) if o is other)
            lines.append((name, other.tool, *map(str, (*numbers, against, *points))))
    return (*head, "their points"), lines


def alone(records: Iterable[Record], others: Sequence[Other]) -> tuple[list[Record], list[Record]]:
    """What no other tool solved and we did, and what some other did and we did not."""
    ours, theirs = [], []
    for record in records:
        them = any(other.counted(record) in ("sat", "unsat") for other in others)
        us = record.counted in ("sat", "unsat")
        if us and not them:
            ours.append(record)
        elif them and not us:
            theirs.append(record)
    return ours, theirs


def disagreements(records: Iterable[Record], others: Sequence[Other]) -> list[tuple[Record, Other]]:
    """Where a tool says sat and we unsat, or the other way round; time does not matter here."""
    found = []
    for record in records:
        for other in others:
            pair = {record.verdict, other.rows.get(place(record), ("", 0.0))[0]}
            if pair == {"sat", "unsat"}:
                found.append((record, other))
    return found


def place(record: Record) -> tuple[str, str]:
    """What an instance is known by across tools, whose files name it by their own folders."""
    return record.benchmark, _files([*record.networks.values(), record.spec])


def _place(benchmark: str, onnx: str, spec: str) -> tuple[str, str]:
    return benchmark.strip(), _files([*parse_networks(onnx.strip()).values(), spec.strip()])


def _files(paths: Iterable[str]) -> str:
    return "|".join(re.sub(r"^.*/|\.gz$", "", path) for path in paths)


def _verdict(word: str) -> str:
    word = word.strip().lower()
    word = _WORDS.get(word, word)
    return word if word in ("sat", "unsat", "unknown", "timeout") else "error"


def _groups(records: Iterable[Record]) -> dict[str, list[Record]]:
    groups: dict[str, list[Record]] = {}
    for record in records:
        groups.setdefault(record.benchmark, []).append(record)
    return groups


def _counts(records: Sequence[Record]) -> tuple[str, ...]:
    def count(*verdicts: str) -> int:
        return sum(record.verdict in verdicts for record in records)

    wrong = sum(record.wrong for record in records)
    numbers = (len(records), count("sat", "unsat") - wrong, count("sat"), count("unsat"), count("unknown"))
    return tuple(map(str, (*numbers, count("timeout"), count("error"), wrong)))


def _worth(records: Sequence[Record], others: Sequence[Other]) -> tuple[str, str, str]:
    points = sum(record.points for record in records)
    best = max([points, *(sum(other.points(r) for r in records) for other in others)])
    most = best if others else POINTS * len(records)
    percent = 100 * points / most if most > 0 else 0.0
    return str(points), f"{percent:.1f}", f"{sum(record.seconds for record in records):.1f}"
