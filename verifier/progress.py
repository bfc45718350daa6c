"""Shows a running search on stderr: one live line on a terminal, a plain line now and then elsewhere."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TextIO

from verifier.results import Progress

ProgressCallback = Callable[[Progress], None]

_LIVE_PERIOD = 0.2  # seconds between two updates of the live line
_PLAIN_PERIOD = 5.0  # seconds between two plain lines: a log should stay readable


def describe(p: Progress) -> str:
    """One line: domains done and open, worst bound, best attack margin, rate."""
    rate = p.domains_done / p.seconds if p.seconds > 0 else 0.0
    parts = [
        f"{p.seconds:.1f} s",
        f"{p.domains_done} domains done, {p.domains_open} open",
        f"worst bound {_short(p.worst_bound)}",
        f"best attack margin {_short(p.best_attack_margin)}",
        f"{rate:.0f}/s",
    ]
    return "  ".join(parts)


@contextmanager
def display(stream: TextIO | None = None) -> Iterator[ProgressCallback]:
    """Yields the callback to give to a search. `stream` is stderr unless told; rich serves terminals only."""
    target = stream or sys.stderr
    if not target.isatty():
        yield throttled(lambda p: _plain(p, target), _PLAIN_PERIOD, at_once=False)
        return
    from rich.console import Console
    from rich.live import Live
    from rich.text import Text

    with Live(Text(""), console=Console(file=target), refresh_per_second=4, transient=True) as live:
        yield throttled(
            lambda p: live.update(Text(describe(p), overflow="ellipsis", no_wrap=True)), _LIVE_PERIOD
        )


def _plain(p: Progress, stream: TextIO) -> None:
    stream.write(describe(p) + "\n")
    stream.flush()


def throttled(show: ProgressCallback, period: float, at_once: bool = True) -> ProgressCallback:
    """`show`, called at most once per `period` seconds, the first time `at_once` or after one; other calls are
    dropped."""
    last = -math.inf if at_once else time.monotonic()

    def call(p: Progress) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last >= period:
            last = now
            show(p)

    return call


def _short(value: float | None) -> str:
    return "none yet" if value is None else f"{value:.4g}"
