"""Cactus and scatter plots and bars of phases as SVG, in the colours of the page that they stand in."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from html import escape

WIDTH, HEIGHT = 460, 320
LEFT, RIGHT, TOP, BOTTOM = 52, 12, 12, 40
FLOOR = 0.1
"""Seconds: what takes less is drawn as this."""

Series = Mapping[str, Sequence[float]]


def cactus(solved: Series) -> str:
    """How many instances (across) every tool solves with at most so many seconds for each (up, logarithmic)."""
    most = max((len(times) for times in solved.values()), default=0)
    longest = max((max(times, default=FLOOR) for times in solved.values()), default=FLOOR)
    longest = 10.0 ** math.ceil(math.log10(max(longest, 10 * FLOOR)))  # the axis ends with a number
    across, up = _linear(max(most, 1)), _logarithmic(longest, HEIGHT - BOTTOM, TOP)
    parts = [_axes("instances solved", "seconds"), _ticks(_whole(most), across, down=True)]
    parts.append(_ticks(_decades(longest), up, down=False))
    keys = []
    for k, (tool, times) in enumerate(solved.items()):
        heights = sorted(max(t, FLOOR) for t in times)
        drawn = [*heights[:1], *heights]  # from the axis on: one instance is a line, too
        points = " ".join(f"{across(n):.1f},{up(t):.1f}" for n, t in enumerate(drawn))
        parts.append(f'<polyline class="line c{k % 6}" points="{points}"/>')
        keys.append(f'<span class="key c{k % 6}">{escape(tool)} ({len(times)})</span>')
    return _figure("cactus", "Instances solved within a time each", parts, "".join(keys))


def scatter(tool: str, pairs: Sequence[tuple[str, float, float, str]], longest: float) -> str:
    """Ours across and the other tool's seconds up, both logarithmic: (name, ours, theirs, class of the point)."""
    across = _logarithmic(longest, LEFT, WIDTH - RIGHT)
    up = _logarithmic(longest, HEIGHT - BOTTOM, TOP)
    parts = [_axes("our seconds", f"seconds of {tool}")]
    parts += [_ticks(_decades(longest), across, down=True), _ticks(_decades(longest), up, down=False)]
    ends = f'x1="{across(FLOOR):.1f}" y1="{up(FLOOR):.1f}" x2="{across(longest):.1f}" y2="{up(longest):.1f}"'
    parts.append(f'<line class="diagonal" {ends}/>')
    parts += [
        f'<circle class="dot {kind}" cx="{across(a):.1f}" cy="{up(b):.1f}" r="4">'
        f"<title>{escape(name)}: {a:.2f} s, {b:.2f} s</title></circle>"
        for name, a, b, kind in pairs
    ]
    note = "Below the diagonal the other tool is faster; at the upper and right edges a tool has no verdict."
    return _figure("scatter", f"Against {tool}", parts, f"<span>{note}</span>")


def phases(seconds: Mapping[str, Mapping[str, float]]) -> str:
    """One bar per benchmark, divided by what its time went to."""
    names = sorted({name for parts in seconds.values() for name in parts})
    most = max((sum(parts.values()) for parts in seconds.values()), default=0.0) or 1.0
    rows = []
    for benchmark, parts in seconds.items():
        bits = "".join(
            f'<span class="bit c{names.index(name) % 6}" style="width:{100 * value / most:.3f}%" '
            f'title="{escape(name)}: {value:.1f} s"></span>'
            for name, value in sorted(parts.items())
            if value > 0
        )
        total = sum(parts.values())
        rows.append(
            f'<div class="bar"><b>{escape(benchmark)}</b><span class="track">{bits}</span><i>{total:.1f} s</i></div>'
        )
    keys = "".join(f'<span class="key c{k % 6}">{escape(name)}</span>' for k, name in enumerate(names))
    return f'<div class="phases">{"".join(rows)}<div class="keys">{keys}</div></div>'


def _figure(kind: str, title: str, parts: Sequence[str], below: str) -> str:
    box = f'viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)}"'
    return (
        f'<figure class="{kind}"><figcaption>{escape(title)}</figcaption>'
        f'<svg {box}>{"".join(parts)}</svg><div class="keys">{below}</div></figure>'
    )


def _axes(across: str, up: str) -> str:
    bottom = HEIGHT - BOTTOM
    return (
        f'<path class="axis" d="M{LEFT} {TOP}V{bottom}H{WIDTH - RIGHT}"/>'
        f'<text x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - 6}" text-anchor="middle">{escape(across)}</text>'
        f'<text x="12" y="{(TOP + bottom) / 2}" text-anchor="middle" '
        f'transform="rotate(-90 12 {(TOP + bottom) / 2})">{escape(up)}</text>'
    )


def _ticks(values: Sequence[float], place: Callable[[float], float], down: bool) -> str:
    bottom = HEIGHT - BOTTOM
    if down:
        return "".join(
            f'<text x="{place(v):.1f}" y="{bottom + 15}" text-anchor="middle">{v:g}</text>' for v in values
        )
    return "".join(
        f'<path class="grid" d="M{LEFT} {place(v):.1f}H{WIDTH - RIGHT}"/>'
        f'<text x="{LEFT - 5}" y="{place(v) + 4:.1f}" text-anchor="end">{v:g}</text>'
        for v in values
    )


def _linear(most: float) -> Callable[[float], float]:
    return lambda v: LEFT + (WIDTH - LEFT - RIGHT) * v / most


def _logarithmic(longest: float, start: float, end: float) -> Callable[[float], float]:
    span = math.log(max(longest, 10 * FLOOR) / FLOOR)
    return lambda v: start + (end - start) * math.log(max(v, FLOOR) / FLOOR) / span


def _decades(longest: float) -> list[float]:
    top = math.floor(math.log10(max(longest, 10 * FLOOR)) + 1e-9)
    return [10.0**k for k in range(round(math.log10(FLOOR)), top + 1)]


def _whole(most: int) -> list[float]:
    """At most six round numbers up to `most`."""
    step = 1
    while most / step > 6:
        step *= 5 if str(step)[0] == "2" else 2 if str(step)[0] in "15" else 1
        if str(step)[0] not in "125":
            step = 10 ** len(str(step))
    return [float(v) for v in range(0, most + 1, step)]
