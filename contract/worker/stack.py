"""What a stack is: the requests that it answers, and what it declares before it is started."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, Protocol

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, field_validator

from contract.worker.operations import OPERATIONS, WORK_DTYPES
from contract.worker.plan import Path

Tensors = Mapping[str, np.ndarray]
Attributes = Mapping[str, Any]

REQUESTS: tuple[str, ...] = (
    "probe", "compute", "open", "state", "forward", "gradients", "block", "step",
    "merge", "save", "train", "generate", "mutate", "cancel", "close",
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


class Elementary(BaseModel):
    """A stack's declared worst error of one elementary function over one range.

    |y - f(x)| <= ulp * spacing(f(x)) + absolute, for every x of the dtype in [low, high], on the named devices (all, where none is named).
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    function: Literal["exp", "log"]
    dtype: Literal["float32", "float64"]
    low: float
    high: float
    ulp: float = Field(ge=0)
    absolute: float = Field(ge=0)
    devices: tuple[str, ...] = ()


class Graphs(BaseModel):
    """The whole graphs that a stack opens (contract.worker.graph)."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    architectures: dict[str, tuple[Literal["float32", "float64"], ...]] = Field(description="model_type -> dtypes")
    nf4: bool = Field(description="whether the block linears may be NF4")
    paths: tuple[Path, ...] = Field(description="production paths that it has beside the plain one")


class Capabilities(BaseModel):
    """What a stack can do at all: static, beside its entry point, readable without importing it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    protocol: Literal[1]
    lane: Literal["production", "research"]
    extra: str = Field(description="the extra of the distribution that installs the stack")
    packages: tuple[Annotated[str, Field(min_length=1)], ...] = Field(description="distributions whose versions belong into every report")
    devices: tuple[Annotated[str, Field(pattern=r"^[A-Za-z0-9_.:-]+$")], ...] = Field(
        min_length=1, description="the first one is the default"
    )
    requests: tuple[str, ...]
    operations: dict[str, tuple[str, ...]] = Field(description="operation -> dtypes that it computes in")
    nf4_block_sizes: tuple[int, ...] = ()
    elementary: tuple[Elementary, ...] = ()
    graphs: Graphs | None = None

    @field_validator("operations")
    @classmethod
    def _known(cls, operations: dict[str, tuple[str, ...]]) -> dict[str, tuple[str, ...]]:
        for name, dtypes in operations.items():
            if name not in OPERATIONS:
                raise ValueError(f"there is no operation {name!r}; allowed: {', '.join(OPERATIONS)}")
            if not set(dtypes) <= set(WORK_DTYPES):
                raise ValueError(f"{name}: dtypes are {list(dtypes)}; allowed: {', '.join(WORK_DTYPES)}")
        return operations

    def elementary_on(self, device: str) -> tuple[Elementary, ...]:
        """The declarations that hold on a device."""
        return tuple(one for one in self.elementary if not one.devices or device in one.devices)
