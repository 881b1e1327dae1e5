"""A training session: a run's optimiser steps one by one, each from any state; the requests train_open, train_state and train_step.

It is the trainer of a user's run, with a user's batches and learning rates, so that what is compared is what is trained. A stack answers

    def train_open(self, **values: Any) -> Reply:
        return self._stepwise.open(**values)

and so on, with self._stepwise = Stepwise(lambda run: MyTrainer(run)). Legend: K micro-batches, S rows.
"""

from __future__ import annotations

import hashlib
import math
import tempfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np

from contract.data.batches import Batch
from contract.data.steps import Step
from contract.errors import ContractError
from contract.run.spec import FineTuneContract
from contract.training.inputs import Run, prepare
from contract.training.trainer import NotFinite, Trainer, TrainerState
from contract.worker.stack import Reply, Tensors

PARTS = ("adapter", "m", "v")
"""Of a state: tensors adapter.NAME, m.NAME and v.NAME, NAME as of the run's initial adapter, and updates []."""

DONE: Mapping[str, str] = {
    "loss": "float64", "grad_norm": "float64", "learning_rate": "float64", "tokens": "int64", "batch_tokens": "int64", "samples": "int64",
    "batches": "uint8",
}  # fmt: skip
"""What a step answers, and in which dtype: all are of shape [] but batch_tokens [K], samples [S] and batches [K, 32]."""


class Stepwise:
    """At most one open session.

    Args:
        make: a stack's trainer for a run, in the dtype of run.plan, with the initial adapter in place.
    """

    def __init__(self, make: Callable[[Run], Trainer]) -> None:
        self._make = make
        self._name = ""
        self._run: Run | None = None
        self._trainer: Trainer | None = None

    def open(self, session: str, contract: Mapping[str, Any], dtype: Literal["float64"] | None = None) -> Reply:
        """Prepares a run in place of the session that was open; answers how many `steps` it has.

        Args:
            contract: all fields of a contract.
            dtype: in place of the contract's compute_dtype; the state then is float64, too.

        Raises:
            ValueError: another dtype.
            ContractError, ContractErrors, MissingError: as contract.training.inputs.prepare, and what the stack refuses.
        """
        if dtype not in (None, "float64"):
            raise ValueError(f"dtype is {dtype!r}; allowed: float64, or none for the contract's compute_dtype; set that field instead")
        self._name, self._run, self._trainer = "", None, None  # what it held goes before the next one comes
        settled = FineTuneContract.model_validate(dict(contract))
        if dtype is not None and settled.exec.optimizer != "adamw":
            raise ContractError(
                "exec.optimizer", got=settled.exec.optimizer, allowed=f"adamw in a session in {dtype}: the others hold m and v in 8 bits",
                remedy="set it, or open the session without a dtype",
            )  # fmt: skip
        # An index in the user's cache would stay there for good; what is mapped is there until nobody maps it.
        with tempfile.TemporaryDirectory(prefix="twostack-session-") as cache:
            self._run = prepare(settled, cache=Path(cache), dtype=dtype)
        self._trainer = self._make(self._run)
        self._name = session
        return Reply(values={"steps": self._run.steps.total})

    def state(self, session: str, tensors: Tensors | None = None) -> Reply:
        """Sets the state, all of it; without tensors, answers it.

        Raises:
            ValueError: a session that is not open, or tensors that are not its state.
        """
        run, trainer = self._opened(session)
        if tensors is None:
            return Reply(tensors=state_tensors(trainer.state()))
        trainer.restore(state_of(tensors, run))
        return Reply()

    def step(self, session: str, number: int) -> Reply:
        """Takes the optimiser step of that number, from 0, at its learning rate; answers DONE.

        A loss or gradient that is none is answered as it is, and the state stays; so it does where no row has a token to learn.

        Raises:
            ValueError: a session that is not open, or a step that the run lacks.
            OutOfMemory.
        """
        run, trainer = self._opened(session)
        if not 0 <= number < run.steps.total:
            raise ValueError(f"train_step: number is {number}; allowed: 0 to {run.steps.total - 1}, the run's steps; take one of them")
        step = next(run.steps.steps(number))
        rate = float(run.learning_rates[number])
        loss, norm = math.nan, 0.0
        if step.batches:
            try:
                done = trainer.step(step, rate)
                loss, norm = done.loss, done.grad_norm
            except NotFinite as error:
                loss, norm = (error.value, math.nan) if error.what == "loss" else (math.nan, error.value)
        return Reply(tensors=done_tensors(step, loss=loss, grad_norm=norm, learning_rate=rate))

    def _opened(self, session: str) -> tuple[Run, Trainer]:
        if self._run is None or self._trainer is None or session != self._name:
            is_open = f"{self._name!r} is open" if self._trainer is not None else "none is open"
            raise ValueError(f"training session {session!r} was asked of, and {is_open}; open {session!r} first: train_open")
        return self._run, self._trainer


def done_tensors(step: Step, *, loss: float, grad_norm: float, learning_rate: float) -> dict[str, np.ndarray]:
    """A step's answer: what was computed, and the ledger of what it was computed from."""
    samples = [sample for batch in step.batches for sequence in batch.samples for sample in sequence]
    values = {
        "loss": loss, "grad_norm": grad_norm, "learning_rate": learning_rate, "tokens": step.tokens,
        "batch_tokens": [batch.tokens for batch in step.batches], "samples": samples,
        "batches": np.array([digest_of(batch) for batch in step.batches], np.uint8).reshape(-1, hashlib.sha256().digest_size),
    }  # fmt: skip
    return {name: np.array(values[name], dtype) for name, dtype in DONE.items()}


def digest_of(batch: Batch) -> np.ndarray:
    """SHA-256, uint8 [32], of a micro-batch's shape, ids, labels, positions, segments and samples: int64, little-endian, row by row.

    Taken once the trainer is done with it, so that a trainer that changes what it is given is seen.
    """
    found = hashlib.sha256(np.array(batch.ids_BT.shape, "<i8").tobytes())
    for part_BT in (batch.ids_BT, batch.labels_BT, batch.positions_BT, batch.segments_BT, batch.samples_BT):
        found.update(np.ascontiguousarray(part_BT, "<i8").tobytes())
    return np.frombuffer(found.digest(), np.uint8)


def state_tensors(state: TrainerState) -> dict[str, np.ndarray]:
    """A state as it travels."""
    parts: Iterable[tuple[str, Mapping[str, np.ndarray]]] = ((part, getattr(state, part)) for part in PARTS)
    tensors = {f"{part}.{name}": matrix for part, matrices in parts for name, matrix in matrices.items()}
    return tensors | {"updates": np.array(state.updates, np.int64)}


def state_of(tensors: Tensors, run: Run) -> TrainerState:
    """A state that travelled, in the order of the run's initial adapter.

    Raises:
        ValueError: a tensor is missing, unknown, or of the wrong shape or dtype.
    """
    wanted = expected_state(run)
    got = {name: (tensor.shape, tensor.dtype.name) for name, tensor in tensors.items()}
    for name in sorted({*wanted, *got}):
        if got.get(name) != wanted.get(name):
            raise ValueError(f"train_state: {name} is {_spelt(got.get(name))}; must be {_spelt(wanted.get(name))}; send the whole state")
    updates = int(tensors["updates"])
    if updates < 0:
        raise ValueError(f"train_state: updates is {updates}; allowed: 0 and more, the optimiser updates so far; start with 0")
    adapter, m, v = ({name: tensors[f"{part}.{name}"] for name in run.initial} for part in PARTS)
    return TrainerState(adapter=adapter, m=m, v=v, updates=updates)


def expected_state(run: Run) -> dict[str, tuple[tuple[int, ...], str]]:
    """Shape and dtype of each tensor of a run's state: float64 in a session in float64, else float32."""
    dtype = run.dtype or "float32"
    shapes: dict[str, tuple[tuple[int, ...], str]] = {
        f"{part}.{name}": (matrix.shape, dtype) for part in PARTS for name, matrix in run.initial.items()
    }
    return shapes | {"updates": ((), "int64")}


def _spelt(tensor: tuple[tuple[int, ...], str] | None) -> str:
    return "nothing" if tensor is None else f"{tensor[1]}{list(tensor[0])}"
