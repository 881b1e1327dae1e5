"""What a stack is: the requests that it answers. What it declares before it is started is in contract/worker/capabilities.py."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

Tensors = Mapping[str, np.ndarray]
Attributes = Mapping[str, Any]

REQUESTS: tuple[str, ...] = (
    "probe", "compute", "open", "state", "forward", "gradients", "block", "step",
    "merge", "save", "train", "train_open", "train_state", "train_step", "train_paths", "policy", "generate", "score",
    "mutate", "cancel", "close",
)  # fmt: skip
"""Every request of the protocol. A stack answers one that it lacks with NotSupported."""


class NotSupported(Exception):
    """The stack does not have this request, operation, dtype or shape; the message names it."""


class Reply(BaseModel):
    """What a request answers: plain values, and tensors."""

    model_config = ConfigDict(arbitrary_types_allowed=True, frozen=True)

    values: dict[str, Any] = Field(default_factory=dict)
    tensors: dict[str, np.ndarray] = Field(default_factory=dict)


class Stack(Protocol):
    """A stack inside its worker process, made by a factory (device, channel) that the worker names to `serve`.

    Requests that it lacks need no method: the worker answers NotSupported for them.
    """

    def probe(self) -> Reply:
        """What this machine's device can do: device, name, dtypes, versions, notes."""

    def compute(self, op: str, attrs: Attributes, tensors: Tensors) -> Reply:
        """One operation of `contract.worker.operations`, on host arrays, into host arrays."""

    def open(self, graph: str, plan: Attributes, tensors: Tensors) -> Reply:
        """Opens the graph of a `contract.worker.plan.GraphPlan`, in place of the one that was open; `graph` names it."""

    def state(self, graph: str, tensors: Tensors | None = None) -> Reply:
        """Sets the open graph's adapter, all of it; without tensors, answers it."""

    def forward(self, graph: str, taps: Sequence[str], tensors: Tensors) -> Reply:
        """The wanted taps for `ids` [B, T], and `labels` [B, T] where `loss` is wanted."""

    def gradients(self, graph: str, taps: Sequence[str], tensors: Tensors) -> Reply:
        """As `forward`, and `grad.NAME` of the loss for each adapter matrix."""

    def block(self, graph: str, section: str, tensors: Tensors) -> Reply:
        """One section alone, on given inputs, overrides and cotangents."""
