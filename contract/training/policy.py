"""What both stacks take from the contract instead of computing it, shown in full: the request `policy`.

Two stacks that share it can't see a mistake in it by being compared. So a gate asks a stack's own process for it, and holds it against what
others make of the same rows (docs/protocol.md, The shared policy). Nothing here decides anything: each part is made by the code that a
run makes it with.

    run     a run's optimiser steps and their micro-batches, its learning rates, its initial adapter, its validation
    masks   dropout masks
    draws   the random numbers that tokens are drawn with
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from contract.data import dropout, sampling
from contract.data.batches import Batch
from contract.data.steps import Steps
from contract.run.spec import FineTuneContract
from contract.training.inputs import prepare
from contract.worker.stack import Reply, Tensors

PARTS = ("run", "masks", "draws")

RAGGED: Mapping[str, str] = {name: f"{name}_BT" for name in ("ids", "labels", "positions", "segments", "samples")}
"""Of a micro-batch: what is answered -> the field of `Batch`, int64 [sequences, tokens]."""


def answer(of: str, *, tensors: Tensors | None = None, **values: Any) -> Reply:
    """One part of the policy.

    Raises:
        ValueError: there is no such part.
        ContractError, ContractErrors, MissingError: as contract.training.inputs.prepare.
    """
    if of == "run":
        return run(**values)
    values |= tensors or {}
    if of == "masks":
        return Reply(tensors={"kept": dropout.mask(**values)})
    if of == "draws":
        return Reply(tensors={"u": np.asarray(sampling.uniform(**values))})
    raise ValueError(f"there is no part {of!r} of the policy; allowed: {', '.join(PARTS)}")


def run(contract: Mapping[str, Any], start: int = 0, count: int | None = None) -> Reply:
    """A run from its step `start` on: `count` steps, or all that are left.

    Answers `learning_rates`, float64 [steps]; `initial.NAME`, each matrix of the initial adapter; what `ledger` says of the steps; and the
    same of the validation's steps, each name after `validation.`.

    Raises:
        ContractError, ContractErrors, MissingError: as contract.training.inputs.prepare.
    """
    # An index in the user's cache would stay there for good; what is mapped is there until nobody maps it.
    with tempfile.TemporaryDirectory(prefix="twostack-policy-") as cache:
        prepared = prepare(FineTuneContract.model_validate(dict(contract)), cache=Path(cache))
    tensors = {"learning_rates": prepared.learning_rates}
    tensors |= {f"initial.{name}": matrix for name, matrix in prepared.initial.items()}
    tensors |= ledger(prepared.steps, start, count)
    tensors |= {f"validation.{name}": tensor for name, tensor in ledger(prepared.validation, 0, count).items()}
    return Reply(values={"steps": prepared.steps.total, "rows": prepared.rows.index.kept}, tensors=tensors)


def ledger(steps: Steps, start: int, count: int | None) -> dict[str, np.ndarray]:
    """Steps in full, int64; N steps, K micro-batches in all, in order.

    steps [N, 4] (number, epoch, tokens, micro-batches), skipped [., 2] (number of the step, row), shapes [K, 2] (sequences, tokens);
    lengths, of every sequence of every micro-batch; and of RAGGED each micro-batch, row by row, one after the other.
    """
    found = list(islice(steps.steps(start), count))
    batches = [batch for step in found for batch in step.batches]
    told = [(step.number, step.epoch, step.tokens, len(step.batches)) for step in found]
    skipped = [(step.number, row) for step in found for row in step.skipped]
    shapes = [batch.ids_BT.shape for batch in batches]
    return {
        "steps": np.array(told, np.int64).reshape(-1, 4),
        "skipped": np.array(skipped, np.int64).reshape(-1, 2),
        "shapes": np.array(shapes, np.int64).reshape(-1, 2),
        "lengths": _joined([batch.lengths_B for batch in batches]),
        **{name: _joined([_field(batch, field) for batch in batches]) for name, field in RAGGED.items()},
    }


def _field(batch: Batch, name: str) -> np.ndarray:
    tensor: np.ndarray = getattr(batch, name)
    return tensor


def _joined(parts: list[np.ndarray]) -> np.ndarray:
    return np.concatenate([np.zeros(0, np.int64), *(part.reshape(-1) for part in parts)])
