"""Answers that were written down, for tests, for examples, and for scoring what something else generated.

FOLDER/answers.jsonl has a line an answer: {"task", "seed", "attempt", "text"}, and, where they are known, "finish", "tokens_in",
"tokens_out", "latency_ms". A line without a seed holds for every seed that has none of its own. Attempts beyond the last that is there
get that one again: a generator that has nothing new to say. FOLDER/training.json, which may be missing, says how the adapters that gave
them were trained (conditions_training.Training).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, ValidationError

from contract.artifacts.record import Name, Record, read_record
from contract.errors import ContractError
from contract.reading import bytes_of
from parity.scorecard.conditions import Ask, Doing, Facts, Outcome, Said
from parity.scorecard.conditions_training import Training
from parity.scorecard.event import Count, Milliseconds
from parity.scorecard.spec import FixtureFile, Seed
from parity.scorecard.task import sha256_of

FILE, TRAINING = "answers.jsonl", "training.json"
MAX_BYTES = 2**30


class Answer(Record):
    """A line of answers.jsonl."""

    task: Name
    seed: Seed | None = None
    attempt: Annotated[int, Field(ge=1, le=1024)] = 1
    text: str
    finish: Literal["stop", "length", "unknown"] = "stop"
    tokens_in: Count = 0
    tokens_out: Count = 0
    latency_ms: Milliseconds = 0.0


class Fixture:
    """A folder of answers."""

    batch = 256

    def __init__(self, condition: FixtureFile, *, beside: Path) -> None:
        """Reads the folder.

        Raises:
            ContractError: it has no answers.jsonl, or a line of it is no answer.
        """
        self._path = beside / condition.fixture_dir / FILE
        content = bytes_of(self._path, limit=MAX_BYTES, remedy="correct fixture_dir, or write the answers there")
        self._sha256 = hashlib.sha256(content).hexdigest()
        self._answers: dict[tuple[str, int | None], dict[int, Answer]] = {}
        for number, line in enumerate(content.splitlines(), start=1):
            answer = _answer(line, f"{self._path}:{number}")
            rows = self._answers.setdefault((answer.task, answer.seed), {})
            if answer.attempt in rows:
                what = f"attempt {answer.attempt} of {answer.task} twice"
                raise ContractError(f"{self._path}:{number}", got=what, allowed="each once", remedy="remove one")
            rows[answer.attempt] = answer

    def require(self, tasks: Sequence[str], seeds: Sequence[int]) -> None:
        """Raises ContractError where a task has no answer for a seed."""
        for task in tasks:
            for seed in seeds:
                if 1 not in self._rows(task, seed):
                    got = f"no first answer to {task}, seed {seed}"
                    raise ContractError(str(self._path), got=got, allowed="one for every task and seed", remedy="add it")

    def _rows(self, task: str, seed: int) -> dict[int, Answer]:
        return self._answers.get((task, seed)) or self._answers.get((task, None), {})

    def answer(self, asks: Sequence[Ask], doing: Doing) -> Iterator[Sequence[tuple[Ask, Outcome]]]:
        """Reads each from the folder (Generator.answer)."""
        yield [(ask, self._said(ask)) for ask in asks]

    def _said(self, ask: Ask) -> Said:
        rows = self._rows(ask.asked.task, ask.asked.seed)
        found = rows[max(number for number in rows if number <= ask.asked.attempt)]
        return Said(
            text=found.text, finish=found.finish, tokens_in=found.tokens_in, tokens_out=found.tokens_out, latency_ms=found.latency_ms
        )

    def facts(self) -> Facts:
        """The file of answers; what training.json says of who gave them."""
        place = self._path.with_name(TRAINING)
        training = read_record(Training, place, remedy="correct it, or remove it") if place.is_file() else None
        same = sha256_of("fixture_file")
        return Facts(hashes={"answers": self._sha256}, runtime_sha256=same, generation_sha256=same, training=training)

    def close(self) -> None:
        """Holds nothing open."""


def _answer(line: bytes, place: str) -> Answer:
    try:
        return Answer.model_validate_json(line)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"]))
        raise ContractError(
            f"{place}: {where}" if where else place, got=first["msg"], allowed=", ".join(Answer.model_fields), remedy="correct it"
        ) from None
