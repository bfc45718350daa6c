"""Writes the generated tables into README.md and docs/: `python -m verifier.report.tables` in a checkout.

A table stands between `<!-- NAME:begin -->` and `<!-- NAME:end -->`; a test fails when one is out of date.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import fields
from pathlib import Path

from verifier.options import Options
from verifier.report.columns import markdown
from verifier.results import Reason, Status

OPSETS = range(9, 24)
_FILES = ("README.md", "docs/unsat.md", "docs/operators.md", "docs/command-line.md", "docs/models.md")
_BLOCK = re.compile(r"(<!-- (?P<name>[a-z]+):begin -->\n).*?(<!-- (?P=name):end -->)", re.DOTALL)


def operators() -> str:
    """ONNX operators with the opsets, of those supported, in which their definition begins or changes."""
    import onnx.defs

    import verifier.ops  # noqa: F401  (registers the operators)
    from verifier.graph.registry import onnx_operators

    starts: dict[str, set[int]] = {}
    ends: dict[str, int] = {}
    for schema in onnx.defs.get_all_schemas_with_history():
        if schema.domain == "" and schema.deprecated:
            ends[schema.name] = schema.since_version - 1
        elif schema.domain == "":
            starts.setdefault(schema.name, set()).add(schema.since_version)
    rows = [
        (name, _opsets(starts.get(name, set()), ends.get(name, OPSETS[-1])), note)
        for name, note in onnx_operators().items()
    ]
    return markdown(("operator", "opsets (definitions)", "restrictions"), rows)


def _opsets(starts: set[int], last: int = OPSETS[-1]) -> str:
    first = OPSETS[0]
    known = sorted(s for s in starts if s <= last)
    if not known:
        return ""
    inside = [s for s in known if s > first]
    current = [s for s in known if s <= first][-1:]
    begin = max(first, known[0])
    span = f"{begin} to {last}" if begin < last else str(begin)
    return f"{span} ({', '.join(map(str, [*current, *inside]))})"


def aten() -> str:
    """ATen overloads that the torch front end converts."""
    import verifier.ops  # noqa: F401
    from verifier.graph.registry import aten_operators

    return ", ".join(f"`{name}`" for name in aten_operators())


def reasons() -> str:
    """Why a verdict is unknown, and what to try."""
    return markdown(
        ("reason", "what to try"), [(f"`{r.value}`", r.text) for r in Reason if r is not Reason.NONE]
    )


def verdicts() -> str:
    """The four verdicts."""
    return markdown(("verdict", "meaning"), [(f"`{s.value}`", s.advice) for s in Status])


def options() -> str:
    """The flags of `verifier verify` that are also the fields of Options."""
    rows = []
    for f in fields(Options):
        flag = "--" + f.name.replace("_", "-")
        name = f"`{flag}` / `--no-{flag[2:]}`" if isinstance(f.default, bool) else f"`{flag}`"
        rows.append((name, "" if f.default is None else str(f.default), f.metadata["help"]))
    return markdown(("flag", "default in Python", ""), rows)


def models() -> str:
    """The reference models: equation, forms, and whose parameters they take."""
    from verifier.models.catalogue import rows

    return markdown(
        ("class", "equation", "file", "forms", "layout of", "source"),
        [
            (f"`{name}`", f"`{equation}`", f"`{file}`", forms, layout, source)
            for name, equation, file, forms, layout, source in rows()
        ],
    )


TABLES: Mapping[str, Callable[[], str]] = {
    "operators": operators,
    "aten": aten,
    "reasons": reasons,
    "verdicts": verdicts,
    "options": options,
    "models": models,
}


def current(text: str) -> str:
    """The text with its tables as they should be now. Raises KeyError for a table that nobody makes."""
    return _BLOCK.sub(lambda m: f"{m[1]}{TABLES[m['name']]()}\n{m[3]}", text)


def documents(root: Path) -> list[Path]:
    """The files of a checkout that have tables."""
    return [root / name for name in _FILES]


def main() -> None:
    """Rewrites the documents of the checkout in the current folder."""
    for path in documents(Path.cwd()):
        path.write_text(current(path.read_text()))


if __name__ == "__main__":
    main()
