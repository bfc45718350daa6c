"""The generated tables of README.md and docs/ are current, and plain tables are aligned."""

from __future__ import annotations

import pytest

from verifier.report.columns import columns, markdown
from verifier.report.tables import TABLES, _opsets, current, documents


def test_the_documents_are_current(root):
    stale = [path.name for path in documents(root) if current(path.read_text()) != path.read_text()]
    assert not stale, "run `make tables`"


def test_every_table_is_shown_somewhere(root):
    text = "".join(path.read_text() for path in documents(root))
    assert [name for name in TABLES if f"<!-- {name}:begin -->" not in text] == []


def test_a_table_is_replaced_and_the_rest_stays():
    text = "a\n<!-- verdicts:begin -->\nSTALE\n<!-- verdicts:end -->\nb"
    new = current(text)
    assert new.startswith("a\n<!-- verdicts:begin -->\n| verdict |") and new.endswith(
        "|\n<!-- verdicts:end -->\nb"
    )
    assert "STALE" not in new and current(new) == new


def test_a_table_that_nobody_makes_is_an_error():
    with pytest.raises(KeyError):
        current("<!-- nonsense:begin -->\n<!-- nonsense:end -->")


def test_opsets_are_those_in_which_a_definition_begins():
    assert _opsets({1, 6, 13, 14}) == "9 to 23 (6, 13, 14)"
    assert _opsets({18, 25}) == "18 to 23 (18)"
    assert _opsets({9, 24}) == "9 to 23 (9)"
    assert _opsets({7, 9}, last=9) == "9 (9)"


def test_columns_align_numbers_to_the_right():
    assert columns(("name", "n"), [("a", "1"), ("bcd", "-10.5")]) == "name      n\na         1\nbcd   -10.5"


def test_markdown_escapes_bars():
    assert markdown(("a",), [("x|y",)]) == "| a |\n|---|\n| x\\|y |"
