"""A row of a train file, and what it becomes: an example."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

Role = Literal["system", "user", "assistant"]

IGNORE_INDEX = -100
"""The label of a token that carries no loss."""


@dataclass(frozen=True, kw_only=True)
class Message:
    """One turn of a dialogue."""

    role: Role
    content: str


@dataclass(frozen=True, kw_only=True)
class Row:
    """One line of a train file.

    line: counted from 1. messages: an optional system turn, then user and assistant in turn, the last one the assistant's.
    A row of prompt and response is a dialogue of one user and one assistant turn.
    """

    line: int
    messages: tuple[Message, ...]
    rating: int | None = None
    category: str | None = None
    difficulty: float | None = None

    def with_system(self, text: str) -> Row:
        """The row with a system turn of this text, unless it has one of its own."""
        if self.messages[0].role == "system":
            return self
        return replace(self, messages=(Message(role="system", content=text), *self.messages))


@dataclass(frozen=True, kw_only=True)
class Example:
    """A row as token ids: ids and labels are int32 [tokens], without padding.

    labels[t] is ids[t] where that token is to be predicted and IGNORE_INDEX elsewhere: not shifted, as transformers has it; the loss
    holds the logits of t - 1 against labels[t].
    sample: the row's number in the train file's index, whatever the order of the run; dropout masks are keyed by it.
    """

    sample: int
    ids: np.ndarray
    labels: np.ndarray
