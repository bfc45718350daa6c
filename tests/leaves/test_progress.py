from __future__ import annotations

import io

from verifier.progress import describe, display, throttled
from verifier.results import Progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


SNAPSHOT = Progress(domains_done=30, domains_open=5, worst_bound=-0.25, best_attack_margin=None, seconds=2.0)
LINE = "2.0 s  30 domains done, 5 open  worst bound -0.25  best attack margin none yet  15/s"


def test_one_line_has_everything():
    assert describe(SNAPSHOT) == LINE
    assert describe(Progress()).endswith("0/s")


def test_plain_lines_without_a_terminal_and_not_too_many(monkeypatch):
    now = [100.0]
    monkeypatch.setattr("verifier.progress.time.monotonic", lambda: now[0])
    stream = io.StringIO()
    with display(stream) as show:
        show(SNAPSHOT)  # a short run leaves the log alone
        now[0] += 6
        show(SNAPSHOT)
        show(SNAPSHOT)
    assert stream.getvalue() == LINE + "\n"


def test_a_live_line_on_a_terminal_that_gives_the_cursor_back(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "200")
    stream = Terminal()
    with display(stream) as show:
        show(SNAPSHOT)
    assert "30 domains done" in stream.getvalue()
    assert stream.getvalue().rindex("\x1b[?25h") > stream.getvalue().rindex("\x1b[?25l")


def test_throttled_lets_the_next_period_through():
    seen: list[Progress] = []
    show = throttled(seen.append, 0.0)
    show(SNAPSHOT)
    show(SNAPSHOT)
    assert len(seen) == 2
