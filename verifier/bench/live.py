"""Shows a run while it goes on: a table on a terminal, a line per instance elsewhere."""

from __future__ import annotations

import sys
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, TextIO

from verifier.bench.instances import Instance
from verifier.bench.record import Record

if TYPE_CHECKING:
    from rich.table import Table

_SHOWN = 8  # ended instances that stay in the table


class Show(Protocol):
    """What is told of a run as it happens, from several threads: instances that are looked at in one batch, and each
    that is looked at alone."""

    def together(self, group: Sequence[Instance]) -> None: ...
    def started(self, instance: Instance) -> None: ...
    def ended(self, record: Record) -> None: ...


@contextmanager
def showing(total: int, done: int = 0, stream: TextIO | None = None) -> Iterator[Show]:
    """`total` instances, of which `done` were there before; `stream` is stderr unless told."""
    target = stream or sys.stderr
    if not target.isatty():
        yield Lines(total, done, target)
        return
    from rich.console import Console
    from rich.live import Live

    board = Board(total, done)
    with Live(get_renderable=board.table, console=Console(file=target), refresh_per_second=2, transient=True):
        yield board


class Lines:
    """One line per ended instance."""

    def __init__(self, total: int, done: int, stream: TextIO) -> None:
        self._total, self._done, self._stream = total, done, stream

    def together(self, group: Sequence[Instance]) -> None:
        """Nothing is said before the end."""

    def started(self, instance: Instance) -> None:
        """Nor here."""

    def ended(self, record: Record) -> None:
        self._done += 1
        mark = "  WRONG" if record.wrong else ""
        note = f"{record.verdict:8}{record.seconds:8.2f} s{mark}"
        self._stream.write(f"[{self._done}/{self._total}] {record.name}: {note}\n")
        self._stream.flush()


@dataclass
class _Batch:
    """Instances of one network: looked at together until one of them is looked at alone, for which others then wait."""

    name: str
    keys: set[str]
    began: float
    over: bool = False

    def row(self) -> tuple[str, str, str]:
        queries = f"{len(self.keys)} {'query' if len(self.keys) == 1 else 'queries'} of {self.name}"
        age = f"{time.monotonic() - self.began:.1f}"
        return (queries, "waiting", "") if self.over else (queries, "in one batch", age)


class Board:
    """What runs, for how long, what ended last, and the counts."""

    def __init__(self, total: int, done: int) -> None:
        self._total, self._done = total, done
        self._running: dict[str, tuple[Instance, float]] = {}
        self._batches: list[_Batch] = []
        self._ended: deque[Record] = deque(maxlen=_SHOWN)
        self._counts: dict[str, int] = {}
        self._lock = threading.Lock()

    def together(self, group: Sequence[Instance]) -> None:
        with self._lock:
            name = group[0].name.rpartition("/")[0]
            self._batches.append(_Batch(name, {instance.key for instance in group}, time.monotonic()))

    def started(self, instance: Instance) -> None:
        with self._lock:
            for batch in self._batches:
                batch.over |= instance.key in batch.keys
            self._left_batch(instance.key)
            self._running[instance.key] = (instance, time.monotonic())

    def ended(self, record: Record) -> None:
        with self._lock:
            self._running.pop(record.key, None)
            self._left_batch(record.key)
            self._ended.append(record)
            self._done += 1
            for word in (record.verdict, *(["wrong"] if record.wrong else [])):
                self._counts[word] = self._counts.get(word, 0) + 1

    def _left_batch(self, key: str) -> None:
        for batch in self._batches:
            batch.keys.discard(key)
        self._batches = [batch for batch in self._batches if batch.keys]

    def table(self) -> Table:
        """As it is now."""
        from rich.table import Table

        with self._lock:
            counts = ", ".join(f"{n} {word}" for word, n in self._counts.items())
            table = Table(title=f"{self._done} of {self._total}  {counts}", title_justify="left", box=None)
            for head in ("instance", "verdict", "seconds", "limit"):
                table.add_column(head, justify="left" if head in ("instance", "verdict") else "right")
            for record in self._ended:
                style = (
                    "bold red" if record.wrong else "dim" if record.verdict not in ("sat", "unsat") else ""
                )
                table.add_row(
                    record.name, record.verdict, f"{record.seconds:.1f}", f"{record.timeout:g}", style=style
                )
            for instance, began in self._running.values():
                age = f"{time.monotonic() - began:.1f}"
                table.add_row(instance.name, "...", age, f"{instance.timeout:g}", style="cyan")
            for batch in self._batches:
                table.add_row(*batch.row(), "", style="dim" if batch.over else "cyan")
            return table
