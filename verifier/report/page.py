"""`verifier report`: runs of benchmarks as one self-contained HTML page."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from importlib.resources import files
from pathlib import Path

from verifier.bench.record import VERDICTS, Environment, Record, read
from verifier.bench.score import Other, Table, comparison, disagreements, place, read_other, summary
from verifier.errors import VerifierError
from verifier.report.columns import markdown
from verifier.report.figures import FLOOR, cactus, phases, scatter

SHOWN = 20_000
"""Characters of a counterexample that the page holds."""
OURS = "verifier"
_COLUMNS = (
    ("benchmark", "benchmark", ""),
    ("name", "instance", ""),
    ("verdict", "verdict", ""),
    ("seconds", "seconds", "n"),
    ("timeout", "limit", "n"),
    ("bound", "bound", "n"),
    ("domains", "subdomains", "n"),
    ("memory", "MB", "n"),
    ("note", "", ""),
)


@dataclass(frozen=True)
class Runs:
    """What a report is about: our records, each with the folder that its witness is named from, where they were made,
    and other tools' results."""

    records: tuple[Record, ...]
    folders: tuple[Path, ...]
    environments: tuple[Environment, ...]
    others: tuple[Other, ...]


def read_runs(paths: Sequence[Path], against: Sequence[Path] = ()) -> Runs:
    """`paths` are JSON lines of `verifier bench`, or the results.csv beside them; of an instance that several have the
    last one counts. A results.csv with no JSON lines beside it, or in `against`, is another tool's.

    Raises VerifierError where a file is missing or is neither.
    """
    found: dict[str, tuple[Record, Path]] = {}
    environments: list[Environment] = []
    others = [read_other(path) for path in against]
    for path in paths:
        lines = path.with_suffix(".jsonl")
        if not lines.is_file():
            if not path.is_file():
                raise VerifierError(f"there is no file {path}. Give what `verifier bench --out` wrote.")
            others.append(read_other(path))
            continue
        settings, records = read(lines)
        environments += settings
        found |= {record.key: (record, lines.parent) for record in records}
    if not found:
        raise VerifierError(
            "there are no records of `verifier bench` in these files: give its results.csv (with the .jsonl beside it)."
        )
    records, folders = zip(*found.values(), strict=True)
    return Runs(records, folders, tuple(environments), tuple(others))


def markdown_summary(runs: Runs) -> str:
    """The tables of verdicts and of comparisons, as Markdown."""
    parts = [markdown(*summary(runs.records, runs.others))]
    if runs.others:
        parts.append(markdown(*comparison(runs.records, runs.others)))
    return "\n\n".join(parts) + "\n"


def page(runs: Runs, title: str = "Verification report") -> str:
    """The whole page: no other file and no network is needed to read it."""
    own = files("verifier.report")
    style, script = (own.joinpath(name).read_text("utf-8") for name in ("page.css", "page.js"))
    sections = [
        _head(runs, title),
        _section("Benchmarks", _table(summary(runs.records, runs.others))),
        _others(runs),
        _section("Time", f'<div class="figures">{_figures(runs)}</div>'),
        _section("Where the time went", phases(_phases(runs.records))),
        _section("Instances", _instances(runs)),
        _section("Environment", _environments(runs.environments)),
    ]
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{style}</style></head>\n<body>"
        f"{''.join(sections)}<script>{script}</script></body></html>\n"
    )


def _section(title: str, content: str) -> str:
    return f"<section><h2>{escape(title)}</h2>{content}</section>\n"


def _head(runs: Runs, title: str) -> str:
    records = runs.records
    count = {v: sum(r.counted == v for r in records) for v in VERDICTS}
    wrong = sum(r.wrong for r in records)
    tiles = [("instances", len(records)), ("unsat: proved", count["unsat"]), ("sat: refuted", count["sat"])]
    tiles += [("open", len(records) - count["sat"] - count["unsat"]), ("wrong", wrong)]
    boxes = "".join(
        f"<div><b{_class('wrong' if name == 'wrong' and n else '')}>{n}</b><span>{name}</span></div>"
        for name, n in tiles
    )
    names = len({r.benchmark for r in records})
    began = min((e.started for e in runs.environments), default="")
    lead = f"{names} benchmark{'s' if names != 1 else ''}" + (f", begun {escape(began)}" if began else "")
    return f'<h1>{escape(title)}</h1><p class="lead">{lead}</p><div class="tiles">{boxes}</div>'


def _table(table: Table) -> str:
    """Cells that are numbers are on the right."""
    head, lines = table
    kinds = [
        _class("n" if lines and all(_is_number(line[k]) for line in lines) else "") for k in range(len(head))
    ]

    def cells(tag: str, texts: Sequence[str]) -> str:
        return "".join(
            f"<{tag}{kind}>{escape(text)}</{tag}>" for kind, text in zip(kinds, texts, strict=True)
        )

    top, rows = cells("th", head), "".join(f"<tr>{cells('td', line)}</tr>" for line in lines)
    return f'<div class="wide"><table><thead><tr>{top}</tr></thead><tbody>{rows}</tbody></table></div>'


def _class(name: str) -> str:
    return f' class="{name}"' if name else ""


def _is_number(cell: str) -> bool:
    return cell.replace(".", "", 1).lstrip("-").isdigit()


def _others(runs: Runs) -> str:
    if not runs.others:
        return ""
    found = disagreements(runs.records, runs.others)
    lines = [(r.name, r.verdict, o.tool, o.rows[place(r)][0]) for r, o in found]
    table = (
        _table((("instance", "ours", "tool", "theirs"), lines))
        if lines
        else "<p>No tool contradicts another.</p>"
    )
    return _section("Against other tools", _table(comparison(runs.records, runs.others)) + table)


def _figures(runs: Runs) -> str:
    """The cactus plot of all tools, and a scatter plot against each; what has no verdict is at the limit."""
    done = ("sat", "unsat")
    solved = {OURS: [r.seconds for r in runs.records if r.counted in done and not r.wrong]}
    longest = max((r.timeout for r in runs.records), default=10 * FLOOR)
    plots = []
    for other in runs.others:
        known = [
            (r, other.counted(r), *other.rows[place(r)][1:]) for r in runs.records if place(r) in other.rows
        ]
        solved[other.tool] = [s for r, verdict, s in known if verdict in done and other.points(r) > 0]
        pairs = [
            (
                r.name,
                r.seconds if r.counted in done else longest,
                seconds if verdict in done else longest,
                r.counted if r.counted in done else verdict if verdict in done else "open",
            )
            for r, verdict, seconds in known
        ]
        plots.append(scatter(other.tool, pairs, longest))
    return cactus(solved) + "".join(plots)


def _phases(records: Iterable[Record]) -> dict[str, dict[str, float]]:
    """Seconds per benchmark and phase; what no phase accounts for is the process around them."""
    found: dict[str, dict[str, float]] = {}
    for r in records:
        own = found.setdefault(r.benchmark, {})
        parts = {name: s for name, s in r.phases.items() if name != "total"}
        for name, seconds in parts.items():
            own[name] = own.get(name, 0.0) + seconds
        rest = "not told" if not parts else "start and end"
        own[rest] = own.get(rest, 0.0) + max(0.0, r.seconds - sum(parts.values()))
    return found


def _instances(runs: Runs) -> str:
    benchmarks = sorted({r.benchmark for r in runs.records})
    verdicts = [v for v in VERDICTS if any(r.verdict == v for r in runs.records)]
    if any(r.wrong for r in runs.records):
        verdicts.append("wrong")
    controls = (
        '<div class="controls"><input id="search" type="search" placeholder="Search" aria-label="Search">'
        f"{_select('benchmark', 'All benchmarks', benchmarks)}{_select('verdict', 'All verdicts', verdicts)}"
        '<span id="shown" role="status"></span></div>'
    )
    head = "".join(
        f'<th data-key="{key}"{_class(kind)}><button type="button">{label}</button></th>'
        for key, label, kind in _COLUMNS
    )
    rows = "".join(_row(r, folder) for r, folder in zip(runs.records, runs.folders, strict=True))
    return (
        f'{controls}<div class="wide"><table id="instances"><thead><tr>{head}</tr></thead>'
        f"<tbody>{rows}</tbody></table></div>"
    )


def _select(name: str, every: str, values: Sequence[str]) -> str:
    options = "".join(f"<option>{escape(v)}</option>" for v in values)
    return f'<select id="{name}" aria-label="{name}"><option value="">{every}</option>{options}</select>'


def _row(record: Record, folder: Path) -> str:
    wrong = f' <b class="wrong">wrong, expected {record.expected}</b>' if record.wrong else ""
    late = " (after the limit)" if record.counted != record.verdict else ""
    bound = "" if record.bound is None else f"{record.bound:.4g}"
    memory = "" if record.memory_mb is None else f"{record.memory_mb:.0f}"
    name = record.name.removeprefix(f"{record.benchmark}/")
    cells = [
        f"<td>{escape(record.benchmark)}</td>",
        f'<td class="name">{escape(name).replace("/", "/<wbr>")}</td>',
        f'<td class="{record.verdict}">{record.verdict}{late}{wrong}</td>',
        _number("seconds", f"{record.seconds:.2f}"),
        _number("limit", f"{record.timeout:g}"),
        _number("bound", bound),
        _number("subdomains", str(record.domains) if record.domains else ""),
        _number("MB", memory),
        f'<td class="note">{_note(record, folder)}</td>',
    ]
    data = f'data-verdict="{record.verdict}" data-wrong="{int(record.wrong)}"'
    data += f' data-benchmark="{escape(record.benchmark)}"'
    return f"<tr {data}>{''.join(cells)}</tr>"


def _number(label: str, text: str) -> str:
    return f'<td class="n" data-label="{label}">{text}</td>' if text else '<td class="n"></td>'


def _note(record: Record, folder: Path) -> str:
    """What was said where there is no verdict, and the counterexample."""
    parts = [escape(record.message)] if record.message else []
    if record.reason and record.reason != "none":
        parts.insert(0, escape(record.reason))
    witness = _witness(record, folder)
    if witness:
        parts.append(f"<details><summary>counterexample</summary><pre>{escape(witness)}</pre></details>")
    return "<br>".join(parts)


def _witness(record: Record, folder: Path) -> str:
    if not record.witness:
        return ""
    try:
        with (folder / record.witness).open() as file:
            text = file.read(SHOWN + 1)
    except OSError as error:
        return f"{record.witness} cannot be read ({error.strerror})."
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}\n... more in {record.witness}"


def _environments(environments: Sequence[Environment]) -> str:
    return "".join(_environment(e) for e in environments) or "<p>Not recorded.</p>"


def _environment(e: Environment) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in e.versions.items())
    settings = ", ".join(f"{name} {value}" for name, value in e.settings.items() if value not in ("", None))
    pairs = [("begun", e.started), ("system", e.system), ("processor", f"{e.machine}, {e.cores} cores")]
    pairs += [("memory", f"{e.memory_gb:g} GB"), ("GPUs", ", ".join(e.gpus) or "none")]
    pairs += [("versions", versions), ("settings", settings)]
    return f"<dl>{''.join(f'<dt>{name}</dt><dd>{escape(str(value))}</dd>' for name, value in pairs)}</dl>"
