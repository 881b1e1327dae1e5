"""A campaign as a table on the terminal, and as one HTML file."""

from __future__ import annotations

import io
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from rich.console import Console

from parity.report import mutants_html, mutants_table
from tests.parity.report.campaigns import OUTCOMES, campaign

WHOLE = campaign(*OUTCOMES)
PAGE = mutants_html.render(WHOLE)
EMPTY = ("meta", "input", "br", "link", "img")


class Page(HTMLParser):
    """Checks that every element is closed, and collects elements."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.rows: list[int] = []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in EMPTY:
            self.open.append(tag)
        if tag == "tr":
            self.rows.append(0)
        if tag in ("td", "th"):
            self.rows[-1] += 1

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


FOUND = Page(PAGE)


def test_every_header_has_a_scope() -> None:
    scopes = [attributes.get("scope") for tag, attributes in FOUND.elements if tag == "th"]
    assert set(scopes) == {"col", "row"}
    assert scopes.count("row") == len(WHOLE.mutants) + len(WHOLE.bugs)


def test_every_row_has_a_cell_for_every_column() -> None:
    assert len(set(FOUND.rows[: len(WHOLE.mutants) + 1])) == 1
    assert len(set(FOUND.rows[len(WHOLE.mutants) + 1 :])) == 1


def test_nothing_is_asked_of_the_network() -> None:
    assert not [tag for tag, attributes in FOUND.elements if attributes.get("src") or tag in ("link", "iframe", "img", "object")]
    assert "url(" not in PAGE
    assert "@import" not in PAGE
    assert "default-src 'none'" in PAGE
    assert {attributes["href"] for tag, attributes in FOUND.elements if tag == "a"} == {bug.url for bug in WHOLE.bugs}


def test_what_mutants_say_is_text() -> None:
    assert "alert(1)" in PAGE
    assert "<script>alert" not in PAGE
    assert "<b>" not in PAGE


def test_it_can_be_used_by_keyboard_in_the_dark_and_filtered() -> None:
    assert "prefers-color-scheme: dark" in PAGE
    assert ":focus-visible" in PAGE
    frames = [attributes for _, attributes in FOUND.elements if attributes.get("class") == "frame"]
    assert frames
    assert all(frame.get("tabindex") == "0" and frame.get("aria-label") for frame in frames)
    ids = {attributes.get("id") for _, attributes in FOUND.elements}
    assert {"mutants-filter", "mutants-table", "bugs-table"} <= ids
    assert [tag for tag, _ in FOUND.elements].count("label") == 1


def test_the_matrix_alone_can_be_included() -> None:
    part = mutants_html.render(WHOLE, template="mutants_matrix.html.j2")
    assert part.strip().startswith("<main>")
    assert part.strip() in PAGE
    Page(part)


def test_a_url_of_another_kind_is_no_link() -> None:
    bug = WHOLE.bugs[0].model_copy(update={"url": "javascript:alert(2)"})
    assert "javascript:" not in mutants_html.render(WHOLE.model_copy(update={"bugs": (bug,)}))


def test_the_file_is_the_page(tmp_path: Path) -> None:
    mutants_html.write(WHOLE, tmp_path / "out.html")
    assert (tmp_path / "out.html").read_text(encoding="utf-8") == PAGE


def table(width: int = 120) -> str:
    text = io.StringIO()
    mutants_table.show(WHOLE, Console(file=text, width=width))
    return text.getvalue()


@pytest.mark.parametrize("width", [60, 120, 200])
def test_the_table_names_every_mutant(width: int) -> None:
    for one in WHOLE.mutants:
        assert one.name in table(width)


def test_what_was_not_killed_or_not_located_is_told_of() -> None:
    told = re.sub(r"\s+", " ", table())
    assert "NOT ALL KILLED 5 killed, 2 survived, 1 crashed, 1 hung, 1 stale, 1 equivalent, 1 not applicable" in told
    assert "1 of 4 in graphs named at the exact operation and block" in told
    assert "elsewhere not localised: bisect named attention_norm first in layers.1; it is attention_norm first in layers.0" in told
    assert "not_named not localised: bisect named nothing first in no block; it is q_proj" in told
    assert "a.matmul is red without any mutant" in told
