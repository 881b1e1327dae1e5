"""What an asking's facts depend on, and whether a mutant still applies."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from contract.worker import discover
from parity.mutants import catalogue, keys
from parity.mutants.catalogue import Mutant, Patch
from tests.parity.mutants.askables import FIND, MODULE, mutant

KNOWN = discover.discover()


def key(one: Mutant | None = None, *, checks: tuple[str, ...] = ("a.exp",), stacks: tuple[str, ...] = (), **more: object) -> str:
    given: dict[str, object] = {"profile": "quick", "seed": 1, **more}
    return keys.key(one, checks, stacks, keys.of_stacks(KNOWN, stacks), **given)  # type: ignore[arg-type]


def test_every_part_changes_the_key() -> None:
    several = [
        key(), key(mutant()), key(mutant(replace="return b @ a")), key(mutant(stacks=("two",))), key(checks=("a.log",)),
        key(checks=("a.exp", "a.log")), key(profile="ci"), key(seed=2), key(stacks=("torch_qlora",)), key(stacks=("tinygrad_lora",)),
    ]  # fmt: skip
    assert len(set(several)) == len(several)


def test_words_about_a_mutant_do_not() -> None:
    assert key(mutant()) == key(dataclasses.replace(mutant(), name="other", what="other words", located=("rope.cos",), blocks="layers.0"))


def test_changed_source_changes_the_key(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for folder in ("contract", "parity/mutants/planted", "parity/judge", "stacks/torch_qlora", "stacks/tinygrad_lora"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "one.py").write_text("1")
    monkeypatch.setattr(keys, "ROOT", tmp_path)
    before = key(stacks=("torch_qlora",))
    for folder, changes in {
        "parity/mutants/planted": False, "stacks/tinygrad_lora": False, "contract": True, "parity/judge": True, "stacks/torch_qlora": True,
    }.items():  # fmt: skip
        (tmp_path / folder / "one.py").write_text("2")
        assert (key(stacks=("torch_qlora",)) != before) is changes, folder
        (tmp_path / folder / "one.py").write_text("1")


def test_a_name_and_a_content_do_not_run_together(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(keys, "ROOT", tmp_path)
    (tmp_path / "contract").mkdir()
    (tmp_path / "contract" / "a.py").write_text("1")
    one = keys.sources(["contract"])
    (tmp_path / "contract" / "a.py").write_text("")
    (tmp_path / "contract" / "b.py").write_text("1")
    assert keys.sources(["contract"]) != one


def test_a_mutant_that_applies() -> None:
    assert keys.stale(mutant()) == ""
    assert keys.stale(mutant(stacks=("one", "two"))) == "", "the same change in two processes"


def changed(*changes: tuple[str, str, str]) -> Mutant:
    patches = tuple(Patch(stack="one", module=module, find=find, replace=replace) for module, find, replace in changes)
    return dataclasses.replace(mutant(), patches=patches)


@pytest.mark.parametrize(
    ("one", "why"),
    [
        (changed((MODULE, "return b @ a", "")), "occurs 0 times"),
        (changed((MODULE, "a", "b")), "must occur once"),
        (changed((MODULE, FIND, "return a @")), "does not compile"),
        (changed((MODULE, FIND, "return a\0")), "does not compile"),
        (changed(("tests.parity.mutants.gone", FIND, "")), "there is no module"),
        (changed(("gone.for.good", FIND, "")), "there is no module"),
        (changed(("tests.parity", FIND, "")), "there is no module"),
        (changed((MODULE, FIND, "return b"), (MODULE, FIND, "return a")), "occurs 0 times"),
    ],
)
def test_a_mutant_that_does_not_apply_any_more(one: Mutant, why: str) -> None:
    assert why in keys.stale(one)


def test_the_source_of_a_module_is_found_without_importing_it() -> None:
    import sys

    before = set(sys.modules)
    assert keys.stale(catalogue.read("torch-bfloat16-operand")) == ""
    assert not {name for name in set(sys.modules) - before if name.startswith("stacks")}
