"""parity explain: every check has something to say, which the documents bear out; a mistyped name is told from what."""

from __future__ import annotations

import dataclasses
import re
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from contract.errors import UserError
from parity import cli, explanation
from parity.checks import registry
from parity.checks.check import Check, Question
from parity.checks.kinds import KINDS, kind_of
from parity.mutants import catalogue

ROOT = Path(__file__).parents[2]
EACH = pytest.mark.parametrize("check", registry.CHECKS, ids=lambda check: check.id)

Parity = Callable[..., tuple[object, str, str]]


@pytest.fixture
def parity(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Parity:
    def run(*arguments: str) -> tuple[object, str, str]:
        monkeypatch.setenv("COLUMNS", "200")
        monkeypatch.setattr(sys, "argv", ["parity", *arguments])
        with pytest.raises(SystemExit) as stopped:
            cli.main()
        told = capsys.readouterr()
        return stopped.value.code, told.out, told.err

    return run


@EACH
def test_every_check_is_explained(check: Check) -> None:
    found = explanation.explain(check.id)
    assert found.bound
    assert found.breaks
    assert found.formulas
    assert {cell.question for cell in found.cells} == set(Question)
    page, _, section = found.theory.partition(", ")
    text = (ROOT / page).read_text(encoding="utf-8")
    assert not section or re.search(rf"^##+ {re.escape(section)}$", text, re.MULTILINE), f"{page} has no section {section!r}"


def test_every_kind_is_of_some_check() -> None:
    assert {id(kind_of(check)) for check in registry.CHECKS} == {id(kind) for kind in KINDS}


def test_every_mutant_is_told_of_by_the_check_that_it_names() -> None:
    known = {check.id for check in registry.CHECKS}
    for mutant in catalogue.read_all().values():
        assert mutant.check not in known or mutant in explanation.explain(mutant.check).mutants


def test_a_check_without_mutants_names_those_of_its_operations() -> None:
    named = {mutant.check for mutant in catalogue.read_all().values()}
    check = next(check for check in registry.CHECKS if check.id == "a.law_softmax")
    assert check.id not in named
    assert {one.check for one in explanation.explain(check.id).related} == {"a.softmax"}


def test_a_checks_own_words_come_first(monkeypatch: pytest.MonkeyPatch) -> None:

    own = dataclasses.replace(registry.CHECKS[0], bound="none at all", theory="docs/artifacts.md", breaks="rain")
    monkeypatch.setattr(registry, "CHECKS", (own,))
    found = explanation.explain(own.id)
    assert (found.bound, found.theory, found.breaks) == ("none at all", "docs/artifacts.md", "rain")


def test_the_command_explains_and_lists(parity: Parity) -> None:
    code, out, _ = parity("explain", "c.llama")
    assert code == 0
    for words in (
        "same_function",
        "torch_qlora",
        "docs/theory.md, Graphs",
        "torch-gqa-tiled: ",
        "parity bisect c.llama",
        "parity run --only c.llama",
    ):
        assert words in out, words
    code, out, _ = parity("explain", "a.matmul")
    assert code == 0
    assert "not asked: a stack has one path for this operation" in out
    assert "parity bisect" not in out
    code, out, _ = parity("explain")
    assert code == 0
    assert all(check.id in out for check in registry.CHECKS)


def test_a_mistyped_name_is_told_from_what(parity: Parity) -> None:
    code, out, err = parity("explain", "c.lama")
    assert (code, out) == (2, "")
    assert err.startswith("parity: there is no check 'c.lama'; did you mean c.llama")
    with pytest.raises(UserError, match="no check is spelt like that"):
        explanation.explain("zzz")


def test_a_check_of_a_run_of_yours_is_told_as_one() -> None:
    with pytest.raises(
        UserError, match=r"d\.run is of a run of yours; docs/gate\.md.*parity run --contract run\.yaml --only d\.run asks it"
    ):
        explanation.explain("d.run")
