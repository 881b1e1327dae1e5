"""A task: what is asked, how an answer is judged, and a reference that must pass."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import Field, model_validator

from contract.artifacts.record import Name, Record
from parity.scorecard.validators.spec import ContainsValidator, Fragments, Validator

Language = Literal["sql", "python", "json", "text"]

MAX_TEXT = 2**16
"""Characters of a prompt or a reference."""

Text = Annotated[str, Field(min_length=1, max_length=MAX_TEXT)]


class Task(Record):
    """One task. Its reference is a canary: it is judged before any condition is asked, and must pass every validator."""

    id: Name = Field(description="of this task, once in a suite")
    family: Name = Field(description="tasks of one template; statistics take a family's tasks as one cluster")
    prompt: Text = Field(description="the user's turn, word for word")
    language: Language = Field(description="whose constructs form, triviality and richness are measured by")
    expected_contains: Fragments = Field(default=(), description="texts that must occur: a validator of kind contains, in short")
    semantic_expected_contains: Fragments = Field(default=(), description="texts that must occur for the semantics")
    validators: Annotated[tuple[Validator, ...], Field(strict=False, max_length=16)] = Field(default=(), description="all must pass")
    reference: Text = Field(description="a solution")

    @model_validator(mode="after")
    def _judged(self) -> Task:
        if not self.judges:
            raise ValueError("validators, expected_contains or semantic_expected_contains; a task without any can't fail")
        return self

    @property
    def judges(self) -> tuple[Validator, ...]:
        """Every validator, that of the short fields too."""
        if not (self.expected_contains or self.semantic_expected_contains):
            return self.validators
        short = ContainsValidator(kind="contains", expected=self.expected_contains, semantic_expected=self.semantic_expected_contains)
        return (short, *self.validators)


def sha256_of(value: object) -> str:
    """SHA-256, in hexadecimal, of a value of JSON's kinds as canonical JSON: sorted keys, no blanks, UTF-8."""
    content = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return hashlib.sha256(content.encode()).hexdigest()


def digest(tasks: Sequence[Task]) -> str:
    """The suite's identity: SHA-256 of its tasks, in their order."""
    return sha256_of([task.model_dump(mode="json") for task in tasks])
