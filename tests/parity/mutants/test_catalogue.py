"""The catalogue of real bugs and planted ones: each bug has one fate, and each mutant still applies to today's source."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import pytest

from contract.errors import UserError
from contract.worker import discover, taps
from contract.worker.plan import GraphPlan, Lora
from parity.checks import registry
from parity.checks.graph_layouts import OPTIONS, PLAIN
from parity.find import bisect
from parity.mutants import catalogue
from parity.mutants.catalogue import CONTRACT, Bug, Mutant

ROOT = Path(__file__).parents[3]
PRODUCTION = sorted(path for folder in ("contract", "stacks") for path in (ROOT / folder).rglob("*.py"))
EACH = pytest.mark.parametrize("mutant", catalogue.read_all().values(), ids=lambda mutant: mutant.name)
TWO = """
[one]
stack = "torch_qlora"
what = "w"
check = "a.matmul"
module = "stacks.torch_qlora.linear"
find = "f"
replace = "r"

[other]
what = "of two places"
check = "a.matmul"

[[other.patches]]
stack = "tinygrad_lora"
module = "m"
find = "f"
replace = "r"

[[other.patches]]
stack = "contract"
module = "m"
find = "g"
replace = "s"

[both]
together = ["one", "other"]
what = "both"
check = "c.llama"
located = ["loss"]
"""


def source_of(module: str) -> str:
    spec = importlib.util.find_spec(module)
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).read_text(encoding="utf-8")


@EACH
def test_each_patch_applies_once_and_what_comes_of_it_compiles(mutant: Mutant) -> None:
    for module in dict.fromkeys(patch.module for patch in mutant.patches):
        changed = source_of(module)
        for patch in (one for one in mutant.patches if one.module == module):
            assert changed.count(patch.find) == 1, f"{module}: the text to replace: {patch.find!r}"
            assert patch.replace != patch.find
            changed = changed.replace(patch.find, patch.replace)
        compile(changed, module, "exec")


@EACH
def test_each_mutant_is_of_known_stacks_of_their_own_modules_and_of_a_known_check(mutant: Mutant) -> None:
    assert mutant.check in {check.id for check in registry.CHECKS}
    assert set(mutant.stacks) <= {*discover.discover(), CONTRACT}
    for patch in mutant.patches:
        assert patch.module.startswith("contract." if patch.stack == CONTRACT else f"stacks.{patch.stack}.")


def test_what_is_located_is_an_operation_of_a_graph_or_that_there_is_none() -> None:
    known = {*operations(), bisect.NO_SINGLE_OPERATION, bisect.BETWEEN_SECTIONS}
    for mutant in catalogue.read_all().values():
        assert set(mutant.located) <= known, mutant.name
        assert not mutant.located or mutant.check.startswith("c.")


def operations() -> set[str]:
    """Every tap of some graph, by its own name."""
    lora = Lora(rank=1, alpha=1.0)
    layouts = [recipe.layout for recipes in (*PLAIN.values(), *OPTIONS.values()) for recipe in recipes]
    plans = [GraphPlan(layout=layout, dtype="float64", lora=lora) for layout in layouts]
    plans.append(GraphPlan(layout=PLAIN["gpt2"][0].layout, dtype="float64", graph="qlora_proxy_v1", lora=lora))
    return {tap.name for plan in plans for section in taps.sections(plan.blocks) for tap in taps.section_taps(plan, section)}


# The bugs


def fates(bug: Bug) -> list[str]:
    return [name for name in ("mutants", "not_applicable", "equivalent") if getattr(bug, name)]


def test_each_bug_has_exactly_one_fate() -> None:
    found = catalogue.bugs()
    assert len(found) == 91
    for bug in found.values():
        assert len(fates(bug)) == 1, f"{bug.id}: {fates(bug)}"
        assert bool(bug.measured) == bool(bug.equivalent), f"{bug.id}: what is equivalent was measured"
        assert "\n" not in bug.what
        assert bug.url.startswith("https://")
        assert bug.tier in registry.TIERS


def test_each_mutant_that_a_bug_names_exists_and_stands_for_it_alone() -> None:
    named = [name for bug in catalogue.bugs().values() for name in bug.mutants]
    assert sorted(set(named)) == sorted(named)
    for bug in catalogue.bugs().values():
        assert {catalogue.read(name).bug for name in bug.mutants} <= {bug.id}


def test_a_bug_that_applies_is_planted_in_each_stack_or_in_what_they_share() -> None:
    alone = {"torch_qlora": {"ga-tail-dropped-and-leaks"}, "tinygrad_lora": {"loss-counts-one-pad-per-row"}}
    for bug in catalogue.bugs().values():
        stacks = {stack for name in bug.mutants for stack in catalogue.read(name).stacks}
        assert not bug.mutants or CONTRACT in stacks or stacks == {"torch_qlora", "tinygrad_lora"} or bug.id in alone


def test_production_code_knows_no_mutant() -> None:
    names = re.compile("|".join(re.escape(name) for name in catalogue.read_all()))
    for path in PRODUCTION:
        text = path.read_text(encoding="utf-8")
        assert not re.search(r"^\s*(from|import) parity\b", text, re.MULTILINE), path
        assert not names.search(text), path


# Reading


def test_a_file_of_mutants(tmp_path: Path) -> None:
    path = tmp_path / "some.toml"
    path.write_text(TWO)
    both = catalogue.read(f"{path}#both")
    assert both.name == f"{path}#both"
    assert both.stacks == ("torch_qlora", "tinygrad_lora", CONTRACT)
    assert [one.find for one in both.mutations_of("tinygrad_lora")] == ["f", "g"]
    assert [one.find for one in both.mutations_of(CONTRACT)] == ["g"]
    assert (both.located, both.bug) == (("loss",), None)
    one = catalogue.read(f"{path}#one")
    assert one.changes("torch_qlora")
    assert not one.changes("tinygrad_lora")
    assert both.changes("any other stack"), "the contract is every stack's"
    assert catalogue.changing((one.name, both.name), ("tinygrad_lora",)) == (both.name,)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "can't be read"),
        ("[", "is no TOML"),
        ("[one]\nwhat = 'w'", "one"),
        (TWO.replace("replace", "puts", 1), "one"),
        (TWO.replace('["one", "other"]', '["one", "none"]'), "together names 'none'"),
        (TWO.replace("[both]", "[another]"), "holds no mutant 'both'; allowed: one, other, another"),
    ],
)
def test_a_file_that_is_none_is_refused_in_one_line(tmp_path: Path, text: str | None, message: str) -> None:
    path = tmp_path / "some.toml"
    if text is not None:
        path.write_text(text)
    with pytest.raises(UserError, match=re.escape(message)) as refused:
        catalogue.read(f"{path}#both")
    assert "\n" not in str(refused.value)
