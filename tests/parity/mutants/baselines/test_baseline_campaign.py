"""A measurement: what is done is not done again, what fails is told, and what is asked of the stacks as they are is asked once."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from parity.mutants import catalogue
from parity.mutants.baselines import asked, campaign, measuring, rules, units
from parity.mutants.baselines.asked import Step
from parity.mutants.baselines.campaign import Tell
from parity.mutants.baselines.record import Seen
from parity.mutants.baselines.seeing import Found, Sight
from parity.mutants.baselines.units import Unit

PAIR = ("tinygrad_lora", "torch_qlora")
MUTANT = catalogue.read("torch-bfloat16-operand")


class Started(Exception):
    """A process was started."""


def never(*arguments: object, **options: object) -> None:
    raise Started(arguments)


def done(home: Path, check: str) -> None:
    """As if the stacks as they are had answered."""
    for stack in PAIR:
        for unit in units.units(check):
            file = asked.whole(home, stack, unit.check.id)
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(b"")


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(campaign, "digest", lambda: "d" * 64)
    monkeypatch.setattr(campaign.Steps, "_one", never)
    return tmp_path / ("d" * 16)


def test_what_is_there_is_not_asked_again(tmp_path: Path, home: Path) -> None:
    done(home, MUTANT.check)
    seen = Seen(name=MUTANT.name, what=MUTANT.what, check=MUTANT.check, stacks=MUTANT.stacks, hard={"r": Sight.SEEN}, ordinary={})
    file = home / "seen" / f"{campaign.file_name(MUTANT)}.json"
    file.parent.mkdir(parents=True)
    file.write_text(seen.model_dump_json())
    steps: list[int] = []
    evidence = campaign.measure([MUTANT], tmp_path, jobs=2, tell=Tell(total=steps.append))
    assert evidence.mutants == (seen,)
    assert steps == [0]


@pytest.mark.parametrize("missing", ["clean", "planted"])
def test_what_is_missing_is_asked(tmp_path: Path, home: Path, missing: str) -> None:
    done(home, MUTANT.check)
    if missing == "clean":
        asked.whole(home, PAIR[0], "a.matmul").unlink()
    with pytest.raises(Started):
        campaign.measure([MUTANT], tmp_path, jobs=1, tell=Tell())


def test_a_unit_of_several_checks_is_asked_once_a_stack() -> None:
    mutants = [catalogue.read(name) for name in ("torch-bfloat16-operand", "torch-transposed-square-weight", "torch-mean-over-all-rows")]
    steps = campaign.of_clean(Path("nowhere"), PAIR, mutants)
    for stack in PAIR:
        every = [unit for step in steps.values() if step.stacks == (stack,) for unit in step.only]
        assert len(set(every)) == len(every)
        assert "losses.llama" in every
        assert {unit.check.id for mutant in mutants for unit in units.units(mutant.check)} == set(every)


def test_the_stack_with_the_bug_comes_first() -> None:
    file = Path("seen.json")
    both = next(mutant for mutant in catalogue.read_all().values() if set(mutant.stacks) == set(PAIR))
    assert campaign.of_planted(Path(), PAIR, MUTANT, file).pair == ("torch_qlora", "tinygrad_lora")
    assert campaign.of_planted(Path(), PAIR, MUTANT, file).stacks == ("torch_qlora",)
    assert campaign.of_planted(Path(), PAIR, both, file).pair == PAIR
    assert campaign.of_planted(Path(), PAIR, both, file).stacks == PAIR


def test_a_changed_patch_is_another_file() -> None:
    other = catalogue.read("tinygrad-swapped-nibble")
    renamed = catalogue.Mutant(name=MUTANT.name, what="", bug=None, check=MUTANT.check, patches=other.patches)
    assert campaign.file_name(renamed) != campaign.file_name(MUTANT)


def test_a_step_that_fails_says_why_in_one_line(tmp_path: Path) -> None:
    step = Step(home=tmp_path, stacks=PAIR, check="a.matmul", mutant="nowhere.toml#x", pair=PAIR, seen=tmp_path / "seen.json")
    told: list[str] = []
    failed = campaign.Steps(1, Tell(step=told.append)).run({"one": step})
    assert "nowhere.toml can't be read" in failed["one"]
    assert "\n" not in failed["one"]
    assert told == ["one"]
    assert not list(tmp_path.iterdir())


def test_alarms_of_a_run_are_those_of_every_rule_that_some_check_asks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked_of: list[Unit] = []

    def found(unit: Unit, pair: tuple[str, str], folders: Mapping[str, Path]) -> dict[str, Found]:
        asked_of.append(unit)
        return {rule.name: Found(compared={(0, 0, "y"), (1, 0, "y")}, failed={(1, 0, "y")}) for rule in rules.EVERY}

    monkeypatch.setattr(measuring, "found", found)
    mutants = [MUTANT, catalogue.read("torch-train-not-divided"), MUTANT]
    told = list(campaign.alarms(tmp_path, PAIR, mutants))
    (run,) = [unit for unit in asked_of if unit.check.id == "ordinary.losses.llama"]
    assert set(run.what) == {"tensors", "losses"}
    assert len({unit.check.id for unit in asked_of}) == len(asked_of)
    assert {(alarm.compared, alarm.failing) for alarm in told} == {(2, 1)}
    assert len(told) == len(asked_of) * len(rules.EVERY)
