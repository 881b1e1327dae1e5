"""What a stack brings to a run: the computation of one optimiser step, and its state.

All that follows from the contract alone (order, batches, learning rates, checkpoints, telemetry) is contract/training/loop.py's.
Legend: R rank, I in_features, O out_features.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from contract.data.batches import Batch
from contract.data.steps import Step


@dataclass(frozen=True, kw_only=True)
class StepDone:
    """What came of an optimiser step.

    loss: the mean over the step's supervised tokens. grad_norm: over all trainable gradients, before clipping.
    positions: token positions that went through the graph. memory_bytes: the peak so far, None where it is not known.
    compile_seconds: of this step and of loss_sum since the step before, what went into calls that compiled kernels.
    """

    loss: float
    grad_norm: float
    positions: int
    memory_bytes: int | None
    compile_seconds: float = 0.0


@dataclass(frozen=True, kw_only=True)
class TrainerState:
    """What a run's next step depends on, beside the contract and the step's number.

    adapter, m, v: float32 by PATH.lora_a [R, I] and PATH.lora_b [O, R]; PATH is layers.N.LINEAR or lm_head.
    updates: optimiser updates that were done, which AdamW's bias correction counts; a step without a supervised token adds none.
    """

    adapter: Mapping[str, np.ndarray]
    m: Mapping[str, np.ndarray]
    v: Mapping[str, np.ndarray]
    updates: int


class Trainer(Protocol):
    """A stack's side of a run, on its device, with the run's initial adapter in place."""

    def step(self, step: Step, learning_rate: float) -> StepDone:
        """A whole optimiser step: all micro-batches, the loss' sum divided by step.tokens, clipping, AdamW.

        It's never called for a step without batches.

        Raises:
            NotFinite, OutOfMemory.
        """

    def loss_sum(self, batch: Batch) -> float:
        """The sum of -log softmax over a batch's supervised tokens; without gradient and without dropout.

        Raises:
            OutOfMemory.
        """

    def state(self) -> TrainerState:
        """A copy that later steps do not change."""

    def restore(self, state: TrainerState) -> None:
        """Goes on from a state, as if the steps before it had been taken here."""


class NotFinite(Exception):
    """A loss or gradient that is NaN or infinite; no weight, m or v has changed.

    Attributes:
        batch: number of the micro-batch in its step, from 0.
        what: "loss" or "gradient".
        value: the number that is none.
    """

    def __init__(self, *, batch: int, what: str, value: float) -> None:
        super().__init__(f"the {what} of micro-batch {batch} is {value}")
        self.batch, self.what, self.value = batch, what, value


class OutOfMemory(Exception):
    """The device has no memory left; the message is what its allocator said."""
