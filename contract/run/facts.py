"""What gates judge: a contract, the stacks that are known, and what was found on disk and on the device.

A fact that is None was not to be had; what it would have come from is refused by itself, so a gate that needs it says nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from contract.errors import printable
from contract.model.layout import Layout
from contract.model.preflight import Inspected, ProxyStack
from contract.run.device_memory import DeviceMemory
from contract.run.memory import Estimate
from contract.run.promotion import Promotion
from contract.run.spec import FineTuneContract
from contract.worker.capabilities import Capabilities, Training

# Before, since a path that is no UTF-8 is no text to pydantic.
Words = Annotated[str, BeforeValidator(printable), Field(min_length=1)]


class Refusal(BaseModel):
    """Why a run may not be: which gate says so, what was got, what is allowed, and what to do; each on one line."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    gate: Words
    got: Words
    allowed: Words
    remedy: Words


@dataclass(frozen=True, kw_only=True)
class Rows:
    """The rows of the train file: all, those that the filters leave, and those of them that are held back for validation."""

    total: int
    kept: int
    held_back: int

    @property
    def trained(self) -> int:
        """Rows of an epoch."""
        return self.kept - self.held_back


@dataclass(frozen=True, kw_only=True)
class Facts:
    """All that is known of a run before it starts.

    Attributes:
        stacks: what each known stack declares.
        missing: packages that a stack needs and this environment lacks.
        inferred: the stacks that lane, method and base lead to.
        has_tokenizer: whether there is a tokenizer.json.
        has_template: whether a chat template lies beside it; None where none is asked for.
        resumed: the digest of the run that the checkpoint at exec.resume_from is of; None where none is set, or it can't be read.
        inspected: the model's layout and headers.
        promotion: of the chosen stack, where it is a research stack.
        steps: optimiser steps of the whole run.
    """

    contract: FineTuneContract
    stacks: Mapping[str, Capabilities]
    missing: Mapping[str, tuple[str, ...]]
    inferred: tuple[str, ...]
    has_tokenizer: bool | None = None
    resumed: str | None = None
    has_template: bool | None = None
    inspected: Inspected | None = None
    promotion: Promotion | None = None
    rows: Rows | None = None
    steps: int | None = None
    estimate: Estimate | None = None
    device_memory: DeviceMemory | None = None

    @property
    def stack(self) -> str | None:
        """The stack that the run goes to: the one that is named, or else the one that is inferred."""
        named = self.contract.stack or (self.inferred[0] if len(self.inferred) == 1 else None)
        return named if named in self.stacks else None

    @property
    def capabilities(self) -> Capabilities | None:
        """What that stack declares."""
        return None if self.stack is None else self.stacks[self.stack]

    @property
    def training(self) -> Training | None:
        """The runs that it takes."""
        return None if self.capabilities is None else self.capabilities.training

    @property
    def layout(self) -> Layout | None:
        """The model's layout."""
        return None if self.inspected is None else self.inspected.layout

    @property
    def proxy(self) -> ProxyStack | None:
        """What the proxy graph would find in the checkpoint."""
        return None if self.inspected is None else self.inspected.proxy
