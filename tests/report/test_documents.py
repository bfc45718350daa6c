"""What README.md and docs/ tell a reader to type is typed here."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"^```(python|console)\n(.*?)^```", re.MULTILINE | re.DOTALL)
ELSEWHERE = ("make ", "pip ", "verifier doctor")  # set-up, and one that a test of its own runs


def blocks(kind: str) -> list[tuple[str, str]]:
    """(document, text) of all fenced blocks of a kind."""
    found = [(path.name, m) for path in DOCUMENTS for m in BLOCK.finditer(path.read_text())]
    return [(name, match[2]) for name, match in found if match[1] == kind]


def lines(text: str) -> list[tuple[str, str]]:
    """(command, the output shown under it, perhaps none) of a console block."""
    parts = [part.partition("\n") for part in re.split(r"^\$ ", text, flags=re.MULTILINE)[1:]]
    return [(command.partition("  #")[0].strip(), output.strip()) for command, _, output in parts]


def commands() -> list[tuple[str, str]]:
    """Those of all console blocks that verify committed files, each command once."""
    shown: dict[str, str] = {}
    for _, text in blocks("console"):
        for command, output in lines(text):
            shown[command] = max(shown.get(command, ""), output, key=len)
    return [(c, output) for c, output in shown.items() if c.startswith("verifier verify tests/data/")]


def scripts() -> list[tuple[str, str]]:
    """(document, all commands in a row) of console blocks with others, which may rest on each other."""
    found = [
        (name, [c for c, _ in lines(text) if not c.startswith(ELSEWHERE)]) for name, text in blocks("console")
    ]
    return [(name, "\n".join(c)) for name, c in found if any(not x.startswith("verifier verify ") for x in c)]


@pytest.fixture
def folder(tmp_path: Path, root: Path) -> Path:
    """A folder where the committed data lies where the documents say, and nothing is written to the project."""
    shutil.copytree(root / "tests/data", tmp_path / "tests/data")
    return tmp_path


@cache
def _python_blocks() -> list[tuple[str, str]]:
    return blocks("python")


@pytest.mark.parametrize("place", range(len(_python_blocks())), ids=lambda i: f"{_python_blocks()[i][0]}-{i}")
def test_python_blocks_run(folder, monkeypatch, capsys, place):
    name, text = _python_blocks()[place]
    monkeypatch.chdir(folder)
    exec(compile(text, name, "exec"), {"__name__": name})


@pytest.mark.parametrize(("command", "output"), commands(), ids=[command for command, _ in commands()])
def test_console_blocks_do_what_is_shown(folder, command, output):
    program, *words = shlex.split(command)
    assert program == "verifier", command
    ran = subprocess.run(
        [sys.executable, "-m", "verifier", *words], cwd=folder, capture_output=True, text=True, timeout=120
    )
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.startswith(output)
    assert ran.stdout.splitlines()[0] in ("sat", "unsat")


@pytest.mark.full
@pytest.mark.parametrize(("name", "script"), scripts(), ids=lambda text: text[:40])
def test_console_blocks_run_in_a_row(folder, name, script):
    head = f'set -e\nverifier() {{ {shlex.quote(sys.executable)} -m verifier "$@"; }}\n'
    ran = subprocess.run(
        ["bash", "-c", head + script], cwd=folder, capture_output=True, text=True, timeout=300
    )
    assert ran.returncode == 0, f"{name}: {ran.stderr}"


def test_there_is_something_to_run():
    names = [name for name, _ in _python_blocks()]
    assert "README.md" in names and "properties.md" in names
    assert sum(command.startswith("verifier verify") for command, _ in commands()) >= 2


def test_links_between_documents_lead_somewhere():
    dead = [
        f"{path.name}: {target}"
        for path in (*DOCUMENTS, ROOT / "CONTRIBUTING.md", ROOT / "ARCHITECTURE.md")
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", path.read_text())
        if not (path.parent / target).exists()
    ]
    assert dead == []
