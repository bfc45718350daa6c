"""The report: what a person sees of a run, in a browser where there is one."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import replace
from html import unescape
from pathlib import Path

import pytest

from verifier.bench.record import Environment, Record, append
from verifier.errors import VerifierError
from verifier.report.figures import cactus
from verifier.report.page import markdown_summary, page, read_runs

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


def _records() -> list[Record]:
    plain = Record(
        "acasxu", {"": "onnx/N_1_1.onnx"}, "vnnlib/p1.vnnlib", 100.0, "unsat", 4.25, row=1, bound=0.5
    )
    return [
        replace(plain, phases={"load": 0.5, "search": 3.0}, domains=321, memory_mb=512.0),
        replace(
            plain,
            row=2,
            spec="vnnlib/p2.vnnlib",
            verdict="sat",
            seconds=0.4,
            witness="witness.txt",
            bound=None,
        ),
        replace(
            plain, row=3, spec="vnnlib/<p3>&.vnnlib", verdict="unknown", seconds=12.0, message="<b>loose</b>"
        ),
        replace(plain, row=4, spec="vnnlib/p4.vnnlib", verdict="sat", seconds=30.0, expected="unsat"),
        replace(plain, benchmark="rl", row=1, spec="vnnlib/cart.vnnlib", verdict="timeout", seconds=100.0),
    ]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    lines = tmp_path / "results.jsonl"
    append(
        lines,
        Environment(
            "2026-01-02T03:04:05Z", {"verifier": "0.1"}, "Linux", "A processor", 2, 8.0, (), {"jobs": 2}
        ),
    )
    for record in _records():
        append(lines, record)
    (tmp_path / "witness.txt").write_text("sat\n((X_0 0.25) (Y_0 <1>))\n")
    return lines


@pytest.fixture
def other(tmp_path: Path) -> Path:
    folder = tmp_path / "rival"
    folder.mkdir()
    rows = [
        "acasxu,onnx/N_1_1.onnx,vnnlib/p1.vnnlib,0,unsat,2.0",
        "acasxu,onnx/N_1_1.onnx,vnnlib/p2.vnnlib,0,unsat,9.0",
        "rl,onnx/N_1_1.onnx,vnnlib/cart.vnnlib,0,unsat,50.0",
    ]
    (folder / "results.csv").write_text("\n".join(rows) + "\n")
    return folder / "results.csv"


def test_the_page_holds_everything(run: Path, other: Path) -> None:
    text = page(read_runs([run], [other]), "A run & more")
    assert "A run &amp; more" in text and "p1.vnnlib" in text and "rival" in text and "A processor" in text
    assert "&lt;p3&gt;&amp;.vnnlib" in text and "&lt;b&gt;loose" in text and "<b>loose" not in text
    assert "(Y_0 &lt;1&gt;)" in text and "wrong, expected unsat" in text
    assert not re.search(r'(src|href)="|@import|url\(', text), "it needs no other file"
    assert text.count("<svg") == 2 and text.count("<circle") == 3
    assert "search: 3.0 s" in text and "start and end" in text


def test_markdown_and_errors(run: Path, other: Path, tmp_path: Path) -> None:
    table = markdown_summary(read_runs([run.with_suffix(".csv"), other]))
    assert "| acasxu | 4 |" in table and "rival" in table
    with pytest.raises(VerifierError, match="there is no file"):
        read_runs([tmp_path / "none.csv"])
    with pytest.raises(VerifierError, match="no records"):
        read_runs([other])


def test_the_last_of_two_runs_counts(run: Path, tmp_path: Path) -> None:
    later = tmp_path / "later.jsonl"
    append(later, replace(_records()[2], verdict="unsat", message=""))
    runs = read_runs([run, later])
    assert len(runs.records) == 5 and [r.verdict for r in runs.records].count("unknown") == 0


def test_the_command_writes_it(run: Path, tmp_path: Path) -> None:
    from typer.testing import CliRunner

    from verifier.cli.app import app

    out = tmp_path / "page.html"
    ran = CliRunner().invoke(app, ["report", str(run), "-o", str(out), "--markdown", str(tmp_path / "t.md")])
    assert ran.exit_code == 0, ran.output
    assert "acasxu" in ran.output and out.read_text().startswith("<!DOCTYPE html>")
    assert (tmp_path / "t.md").read_text().startswith("| benchmark")


def _browser(*words: str) -> str:
    assert CHROMIUM
    flags = [
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--virtual-time-budget=3000",
    ]
    ran = subprocess.run([CHROMIUM, *flags, *words], capture_output=True, text=True, timeout=120, check=True)
    return ran.stdout


SEEN = """
<script>addEventListener("load", () => { const rows = [...document.querySelectorAll("#instances tbody tr")];
const at = (e) => e.getBoundingClientRect();
const seen = JSON.stringify({
  rows: rows.filter(r => at(r).height > 0).map(r => r.cells[1].innerText),
  count: document.getElementById("shown").innerText, wide: document.documentElement.scrollWidth,
  bars: [...document.querySelectorAll(".track")].map(t => at(t).width), window: innerWidth,
  sorted: [...document.querySelectorAll("th[aria-sort=ascending], th[aria-sort=descending]")].map(h => h.innerText),
  background: getComputedStyle(document.body).backgroundColor });
document.body.innerHTML = "<pre id=seen></pre>"; document.getElementById("seen").textContent = seen; });</script>"""


@pytest.fixture
def see(run: Path, other: Path, tmp_path: Path) -> Callable[..., dict]:
    """What a browser shows of the page, asked by a script that the test appends."""
    if CHROMIUM is None:
        pytest.skip("no Chromium: install Debian's package chromium")
    file = tmp_path / "seen.html"
    file.write_text(page(read_runs([run], [other])).replace("</body>", f"{SEEN}</body>"))

    def call(view: str = "", *flags: str) -> dict:
        text = _browser(*flags, "--dump-dom", f"{file.as_uri()}#{view}")
        found = re.search(r'<pre id="seen">(.*?)</pre>', text, re.DOTALL)
        assert found, text[-2000:]
        return json.loads(unescape(found[1]))

    return call


def test_one_solved_instance_is_a_line_and_the_axis_ends_with_a_number() -> None:
    drawn = cactus({"ours": [3.0], "none": []})
    ours, none = re.findall(r'<polyline[^>]* points="([^"]*)"', drawn)
    assert len({point.split(",")[0] for point in ours.split()}) == 2 and none == ""
    assert ">10</text>" in drawn


@pytest.mark.full
def test_filters_and_orders_in_a_browser(see: Callable[..., dict]) -> None:
    every = see()
    assert len(every["rows"]) == 5 and every["count"] == "5 of 5 instances" and every["sorted"] == []
    assert len(see("verdict=sat")["rows"]) == 2 and len(see("verdict=wrong")["rows"]) == 1
    assert see("benchmark=rl")["rows"] == ["N_1_1.onnx/cart.vnnlib"]
    assert see("search=loose")["rows"] == ["N_1_1.onnx/<p3>&.vnnlib"]
    slow = see("sort=-seconds")
    assert slow["rows"][0].endswith("cart.vnnlib") and slow["rows"][-1].endswith("p2.vnnlib")
    assert [h.split()[0] for h in slow["sorted"]] == ["seconds"]


@pytest.mark.full
def test_a_phone_and_the_dark(see: Callable[..., dict]) -> None:
    phone = see("", "--window-size=500,900")
    assert phone["wide"] <= phone["window"] and len(phone["rows"]) == 5
    assert phone["bars"] and min(phone["bars"]) > 0.8 * phone["window"]
    dark = see("", "--blink-settings=preferredColorScheme=0")
    assert dark["background"] != phone["background"]


@pytest.mark.full
def test_a_screenshot_has_content(run: Path, other: Path, tmp_path: Path) -> None:
    if CHROMIUM is None:
        pytest.skip("no Chromium: install Debian's package chromium")
    file, shot = tmp_path / "page.html", tmp_path / "shot.png"
    file.write_text(page(read_runs([run], [other])))
    _browser("--window-size=1100,2200", f"--screenshot={shot}", file.as_uri())
    kept = os.environ.get("KEEP_SCREENSHOT")
    if kept:
        shutil.copy(shot, kept)
    assert shot.stat().st_size > 20_000
