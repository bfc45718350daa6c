"""One instance in a process of its own, and the table of what came out."""

from __future__ import annotations

import csv
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from verifier.bench.instances import Instance

VERIFIER = (sys.executable, "-m", "verifier", "verify")
_GRACE = 10.0  # seconds beyond its limit after which a process is killed and counts as an error
_VERDICTS = ("sat", "unsat", "unknown", "timeout")
_CSV_HEAD = (
    "benchmark",
    "networks",
    "spec",
    "timeout_s",
    "expected",
    "verdict",
    "wrong",
    "seconds",
    "message",
)


@dataclass(frozen=True)
class Row:
    """What one run gave: `verdict` is one of the four, or `error`; `seconds` is the whole process's time."""

    instance: Instance
    timeout: float
    verdict: str
    seconds: float
    message: str = ""

    @property
    def wrong(self) -> bool:
        """Whether it is a verdict that contradicts the expected one."""
        expected = self.instance.expected
        return expected is not None and self.verdict in ("sat", "unsat") and self.verdict != expected


def run_instance(instance: Instance, scale: float = 1.0, command: Sequence[str] = VERIFIER) -> Row:
    """Runs `command MODEL SPEC --timeout S`, the instance's limit times `scale`. Its failure is a row too."""
    timeout = instance.timeout * scale
    words = [*command, *instance.arguments(), f"--timeout={timeout:g}", "--no-progress"]
    start = time.monotonic()
    pipe = subprocess.PIPE
    with subprocess.Popen(
        words, stdin=subprocess.DEVNULL, stdout=pipe, stderr=pipe, text=True, start_new_session=True
    ) as process:
        try:
            out, err = process.communicate(timeout=timeout + _GRACE)
        except subprocess.TimeoutExpired:
            out, err = "", f"no verdict {_GRACE:g} s after the limit: killed"
        finally:
            _kill_group(process)
    seconds = time.monotonic() - start
    verdict = out.partition("\n")[0].strip().replace("timed-out", "timeout")
    if verdict not in _VERDICTS or process.returncode != 0:
        verdict = "error"
    message = " ".join(err.split())[:500] if verdict in ("error", "unknown") else ""
    return Row(instance, timeout, verdict, seconds, message)


def _kill_group(process: subprocess.Popen[str]) -> None:
    """Ends the process and what it started, when it still runs."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)


def write_csv(rows: Iterable[Row], path: Path) -> None:
    """One line per row, with a header."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(_CSV_HEAD)
        for row in rows:
            instance = row.instance
            networks = "+".join(str(p) for p in instance.networks.values())
            writer.writerow(
                (
                    *(
                        instance.benchmark,
                        networks,
                        instance.spec,
                        f"{row.timeout:g}",
                        instance.expected or "",
                    ),
                    *(row.verdict, int(row.wrong), f"{row.seconds:.2f}", row.message),
                )
            )


def summary(rows: Iterable[Row]) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """(head, lines): one line per benchmark, and one for all of them when there are several."""
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(row.instance.benchmark, []).append(row)
    if len(groups) > 1:
        groups["all"] = [row for group in list(groups.values()) for row in group]
    head = (
        "benchmark",
        "instances",
        "solved",
        "sat",
        "unsat",
        "unknown",
        "timeouts",
        "errors",
        "wrong",
        "seconds",
    )
    return head, [(name, *_counts(group)) for name, group in groups.items()]


def _counts(rows: Sequence[Row]) -> tuple[str, ...]:
    def count(*verdicts: str) -> int:
        return sum(row.verdict in verdicts for row in rows)

    wrong = sum(row.wrong for row in rows)
    numbers = (len(rows), count("sat", "unsat") - wrong, count("sat"), count("unsat"), count("unknown"))
    numbers += (count("timeout"), count("error"), wrong)
    return (*map(str, numbers), f"{sum(row.seconds for row in rows):.1f}")
