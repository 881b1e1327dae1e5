"""A user's run as the reference takes it: its base's weights, and its steps with their numbers and dropout masks."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import numpy as np

from contract.data import dropout
from contract.data.batches import Batch as MicroBatch
from contract.data.steps import Step
from contract.model.checkpoint import load
from contract.training.inputs import Run
from contract.worker.taps import LM_HEAD
from parity.checks.graph_case import to_bfloat16
from parity.reference import nf4, trajectory
from parity.reference.graph import Batch
from parity.reference.graph_linear import Dropout
from parity.reference.graph_optimizer import Settings
from parity.reference.trajectory import Taken


def weights_of(run: Run) -> Callable[[str], np.ndarray]:
    """The base's weights by name, as the graph means them: of an NF4 base dequantised, in bfloat16 rounded to it.

    Raises:
        ValueError: a base whose absmax is nested: about which offset is each stack's own sum (docs/theory.md, NF4).
    """
    plan = run.plan
    proxy = plan.graph == "qlora_proxy_v1"
    if plan.base is not None and plan.base.double_quant:
        raise ValueError("quant.double_quant nests absmax about an offset that each stack sums by itself; set it to false")

    @cache
    def dequantized(source: str) -> np.ndarray:
        assert plan.base is not None
        weight, size = load(run.checkpoint, source), plan.base.block_size
        quantized = nf4.quantize(weight, size)
        return nf4.dequantize(quantized.packed, quantized.absmax, size, (weight.shape[0], weight.shape[1]))

    def weight(name: str) -> np.ndarray:
        source = "embedding" if proxy and name == LM_HEAD else name
        in_codes = plan.base is not None and (name.rpartition(".")[2] in plan.layout.linears or source != name)
        found = dequantized(source) if in_codes else load(run.checkpoint, source)
        return to_bfloat16(found) if plan.dtype == "bfloat16" else found

    return weight


def taken(run: Run, step: Step) -> Taken:
    """An optimiser step of the run."""
    exec_ = run.contract.exec
    settings = Settings(
        lr=float(run.learning_rates[step.number]), max_norm=exec_.max_grad_norm, weight_decay=exec_.weight_decay,
        host_errs=run.plan.dtype == "float64",
    )  # fmt: skip
    return Taken(batches=[_micro_batch(run, step, batch) for batch in step.batches], settings=settings)


def _micro_batch(run: Run, step: Step, batch: MicroBatch) -> trajectory.MicroBatch:
    tensors = Batch(ids=batch.ids_BT, labels=batch.labels_BT, positions=batch.positions_BT, segments=batch.segments_BT)
    probability = run.contract.adapter.dropout

    @cache
    def keep(path: str, width: int) -> np.ndarray:
        layer = -1 if path == LM_HEAD else int(path.split(".")[1])
        return dropout.mask(
            seed=run.contract.exec.seed, step=step.number, samples=batch.samples_BT, positions=batch.positions_BT, layer=layer,
            site=path.rpartition(".")[2], width=width, probability=probability,
        )  # fmt: skip

    dropped = Dropout(keep=keep, probability=probability) if probability else None
    return trajectory.MicroBatch(batch=tensors, dropout=dropped)
