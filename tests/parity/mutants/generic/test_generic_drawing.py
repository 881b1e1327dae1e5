"""Mutants are drawn evenly over files, and the same ones again."""

from __future__ import annotations

from collections import Counter

import pytest

from contract.errors import UserError
from parity.mutants.generic import drawing

LONG = "def f(a, b, c):\n" + "".join(f"    a{number} = a + b * {number}.5\n" for number in range(20))
SHORT = "def f(a, b):\n    return a < b\n"
EMPTY = '"""Nothing."""\n'
MODULES = {"stacks.one.long": LONG, "stacks.one.short": SHORT, "stacks.one.empty": EMPTY, "stacks.other.long": LONG.replace("b", "d")}


def test_each_file_gives_the_same_number_as_far_as_it_has_places() -> None:
    drawn = Counter(place.module for place in drawing.draw(MODULES, 10, 0))
    assert drawn == {"stacks.one.long": 5, "stacks.other.long": 5, "stacks.one.short": 1}


def test_no_more_are_drawn_than_there_are() -> None:
    assert [place.module for place in drawing.draw({"stacks.one.short": SHORT, "stacks.one.empty": EMPTY}, 200, 0)] == ["stacks.one.short"]


def test_the_same_seed_draws_the_same_and_another_draws_others() -> None:
    names = [place.name for place in drawing.draw(MODULES, 20, 3)]
    assert names == [place.name for place in drawing.draw(dict(reversed(MODULES.items())), 20, 3)]
    assert names != [place.name for place in drawing.draw(MODULES, 20, 4)]


def test_a_files_mutants_stay_when_another_file_changes_or_lines_are_added_above() -> None:
    before = [place.name for place in drawing.draw(MODULES, 10, 0) if place.module == "stacks.one.long"]
    changed = {**MODULES, "stacks.other.long": SHORT, "stacks.one.long": f"import math\n\n\n{LONG}"}
    after = [place.name for place in drawing.draw(changed, 10, 0) if place.module == "stacks.one.long"]
    assert after[: len(before)] == before


def test_kinds_take_turns() -> None:
    drawn = drawing.draw({"stacks.one.long": LONG}, 3, 0)
    assert {place.operator for place in drawn} == {"arithmetic", "dropped-term", "nudge"}, "of 100 places three kinds"
    assert len({place.line for place in drawn}) == 3


def test_every_module_of_both_stacks_is_drawn_from_or_left_out_with_a_reason() -> None:
    sources = drawing.sources()
    assert {name.split(".")[1] for name in sources} == set(drawing.STACKS)
    assert not sources.keys() & drawing.left_out().keys()
    assert all(len(why) > 20 for why in drawing.left_out().values())
    assert "stacks.torch_qlora.norm" in sources
    assert "stacks.tinygrad_lora.models.llama" in sources


def test_a_module_that_is_left_out_and_not_there_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drawing, "left_out", lambda: {"stacks.torch_qlora.gone": "it was there"})
    with pytest.raises(UserError, match=r"leaves out stacks\.torch_qlora\.gone, which is no module"):
        drawing.sources()
