"""Small scorecards for tests: tasks that are judged by a word, conditions that are told what to say."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from parity.options import Progress
from parity.scorecard.conditions import Ask, Doing, Facts, Outcome, Said
from parity.scorecard.event_log import FILE, EventLog
from parity.scorecard.event_scores import Judges
from parity.scorecard.runner import Runner
from parity.scorecard.runner_folder import begin
from parity.scorecard.spec import Spec
from parity.scorecard.spec_source import Scorecard
from parity.scorecard.validators import form
from parity.scorecard.validators.judge import Judge

JUDGES = Judges(validate=Judge().validate, form=form.quality)
"""Of validators of the kind contains, which need no process."""


def quiet() -> Progress:
    """Told of progress, and does nothing."""
    return Progress(doing=lambda text: None, total=lambda number: None, step=lambda: None)


def spec_values(**changed: Any) -> dict[str, Any]:
    """A spec of three tasks, each of which wants its own word, and one condition."""
    tasks = [
        {"id": f"t{n}", "family": f"f{n % 2}", "prompt": f"Say {word}.", "language": "text", "expected_contains": [word[:2]],
         "semantic_expected_contains": [word], "reference": f"{word}!"}
        for n, word in enumerate(("alpha", "beta", "gamma"))
    ]  # fmt: skip
    condition = {"id": "c", "kind": "fixture_file", "backend": "qlora", "fixture_dir": "answers"}
    usual: dict[str, Any] = {
        "schema_version": 1, "prompt_pack_version": "1", "seeds": [1, 2], "max_retries": 2, "conditions": [condition], "tasks": tasks,
    }  # fmt: skip
    return usual | changed


def scorecard(folder: Path, **changed: Any) -> Scorecard:
    """A spec of spec_values as if it was read from a folder."""
    spec = Spec.model_validate(spec_values(**changed))
    return Scorecard(spec=spec, tasks=spec.tasks, folder=folder, text="")


FACTS = Facts(runtime_sha256="0" * 64, generation_sha256="0" * 64)


@dataclass
class Scripted:
    """A condition that says what it is told to; asked: everything that it was asked, in order."""

    say: Callable[[Ask], Outcome | str]
    asked: list[Ask]
    batch: int = 2
    closed: bool = False

    def answer(self, asks: Sequence[Ask], doing: Doing) -> Iterator[Sequence[tuple[Ask, Outcome]]]:
        for ask in asks:
            self.asked.append(ask)
            said = self.say(ask)
            yield [(ask, said if not isinstance(said, str) else said_of(said))]

    def facts(self) -> Facts:
        return FACTS

    def close(self) -> None:
        self.closed = True


def said_of(text: str, latency_ms: float = 10.0) -> Said:
    """An answer of ten milliseconds."""
    return Said(text=text, finish="stop", tokens_in=5, tokens_out=7, latency_ms=latency_ms)


def scripted(say: Callable[[Ask], Outcome | str]) -> Scripted:
    """A condition of its own list."""
    return Scripted(say=say, asked=[])


def runner(card: Scorecard, out: Path, opened: Mapping[str, Any], *, cycle: str = "1") -> Runner:
    """A runner on a folder; its log is open."""
    manifest = begin(out, card, cycle=cycle, conditions=dict.fromkeys(opened, FACTS))
    log = EventLog(out / FILE)
    return Runner(scorecard=card, manifest=manifest, opened=opened, judges=JUDGES, log=log, progress=quiet())
