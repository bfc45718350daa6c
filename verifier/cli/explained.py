"""What the worker of `verifier explain` does, and how it words what was found. Imports no typer."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from io import StringIO
from typing import TYPE_CHECKING

from verifier.cli import failures
from verifier.cli.solve import Clock, Target
from verifier.cli.supervise import Answer, Tell
from verifier.options import Options
from verifier.report.columns import columns

if TYPE_CHECKING:
    from verifier.explanation.findings import Explanation

_SHOWN = 12
"""Rows of a table on the terminal; all are in the JSON form."""
_WIDTH = 100


def measure(
    target: Target, options: Options, clock: Clock, debug: bool, terminal: int | None, tell: Tell
) -> Answer:
    """The explanation as text, with drafts on the way; for a terminal of so many columns, if for one. Never raises."""
    try:
        from verifier.explanation.explain import explain

        inner = replace(options, progress=False)
        found = explain(
            target.model, target.spec, clock.left(), inner, tell, lambda part: tell(_answer(part, terminal))
        )
    except Exception as error:
        text, code = failures.explain(error, debug)
        return Answer(stderr=text, code=code)
    return _answer(found, terminal)


def _answer(found: Explanation, terminal: int | None) -> Answer:
    return Answer(stdout=_text(found, terminal), json=found.to_json(indent=2) + "\n")


@dataclass(frozen=True)
class _Table:
    title: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""


def _text(found: Explanation, terminal: int | None) -> str:
    """rich tables on a terminal, plain ones elsewhere."""
    tables = [table for make in (_disjuncts, _layers, _ranges) for table in make(found)]
    if terminal is not None:
        parts = [_rich(tables, terminal)]
    else:
        parts = [
            "\n" + "\n".join(filter(None, (table.title, columns(table.head, table.rows), table.note)))
            for table in tables
        ]
    advice = [
        textwrap.fill(hint.text, _WIDTH, initial_indent=f"{number}. ", subsequent_indent="   ")
        for number, hint in enumerate(found.hints, 1)
    ]
    return "\n".join([_summary(found), *parts, "", *advice]).rstrip("\n") + "\n"


def _rich(tables: Sequence[_Table], width: int) -> str:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    console = Console(file=StringIO(), force_terminal=True, width=width)
    for table in tables:
        drawn = Table(title=table.title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD)
        for k, head in enumerate(table.head):
            text = any(not _numeric(row[k]) for row in table.rows)
            drawn.add_column(head, justify="left" if text else "right", overflow="fold")
        for row in table.rows:
            drawn.add_row(*row)
        console.print(drawn)
        if table.note:
            console.print(table.note, style="dim", highlight=False)
    return console.file.getvalue()  # type: ignore[attr-defined]


def _numeric(cell: str) -> bool:
    return not cell or cell[0].isdigit() or (cell[0] in "-<" and cell[1:2].isdigit())


def _summary(found: Explanation) -> str:
    status, seconds = found.result.status.value, sum(found.phases.values())
    if found.decided:
        return f"{status} after {seconds:.1f} s: the query is decided, there is nothing to explain."
    bound = found.result.bound
    lines = [
        f"{status} after {found.phases.get('search', 0.0):.1f} s of search, {_measured(found):.1f} s of measuring: "
        f"{found.open} of {found.total} disjuncts {'is' if found.open == 1 else 'are'} open, best proved bound "
        f"{'none' if bound is None else f'{bound:.4g}'}."
    ]
    region = found.region
    if region is not None:
        left = (
            ""
            if region.left is None
            else f" They hold {_share(region.left, region.samples)} of the boxes of all disjuncts"
        )
        how = " (exactly)" if left and region.samples is None else ""
        how = f" (of {region.samples} random inputs)" if region.samples else how
        lines.append(
            f"{region.bounded} subdomains were bounded, {region.open} are open.{left}{how}{'.' if left else ''}"
        )
    return "\n".join(textwrap.fill(line, _WIDTH) for line in lines)


def _measured(found: Explanation) -> float:
    return sum(s for name, s in found.phases.items() if name not in ("load", "search"))


def _disjuncts(found: Explanation) -> Iterator[_Table]:
    several = len({d.case for d in found.disjuncts}) > 1
    rows = [
        (
            *((str(d.case),) if several else ()),
            d.text,
            *map(_number, (d.bound, d.attack, d.gap, d.middle)),
            "" if d.subdomains is None else str(d.subdomains),
            "" if d.left is None else _share(d.left, found.region.samples if found.region else None),
        )
        for d in found.disjuncts[:_SHOWN]
    ]
    head = ("disjunct", "bound", "attack", "gap", "middle", "open", "left")
    if rows:
        rest = found.open - len(rows)
        note = f"and {rest} more that are open" if rest > 0 else ""
        yield _Table("Open disjuncts, worst first", (*(("box",) if several else ()), *head), rows, note)


def _layers(found: Explanation) -> Iterator[_Table]:
    loose = [layer for layer in found.layers if layer.undecided]
    chosen = sorted(loose, key=lambda layer: -(layer.loses or 0.0))[:_SHOWN]
    rows = [
        (
            layer.name,
            layer.readers,
            str(layer.neurons),
            str(layer.undecided),
            *map(_number, (layer.intervals, layer.crown, layer.widest, layer.seen)),
            "" if layer.loose is None else f"{layer.loose:.3g}",
            "" if layer.loses is None else f"{100 * layer.loses:.1f} %",
        )
        for layer in loose
        if layer in chosen
    ]
    head = (
        "layer",
        "read by",
        "neurons",
        "undecided",
        "intervals",
        "CROWN",
        "widest",
        "seen",
        "loose",
        "loses",
    )
    if rows:
        rest = len(loose) - len(rows)
        note = f"and {rest} more layers that lose less" if rest > 0 else ""
        yield _Table("Where bounds get loose: mean widths, and CROWN's over the seen one", head, rows, note)


def _ranges(found: Explanation) -> Iterator[_Table]:
    ranges = () if found.region is None else found.region.ranges
    rows = [(r.name, f"{r.lower:.6g}", f"{r.upper:.6g}", f"{100 * r.share:.3g} %") for r in ranges]
    if rows:
        head = ("input", "from", "to", "of its width")
        yield _Table("What the open part of the worst disjunct's box spans", head, rows)


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"


def _share(share: float, samples: int | None) -> str:
    if share == 0 and samples:
        return f"<{100 / samples:.1g} %"
    return f"{100 * share:.3g} %"
