"""A run's computation in torch: optimiser steps, validation losses, and the state between two steps.

Control (order, schedule, checkpoints, telemetry) is contract/training/loop.py's. Legend: B sequences, T tokens, I in_features.
"""

from __future__ import annotations

import math
import resource
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

import numpy as np
import torch

from contract.data import dropout
from contract.data.batches import Batch
from contract.data.steps import Step
from contract.errors import ContractError
from contract.run.spec import ExecSpec
from contract.training import session
from contract.training.account import Prepared
from contract.training.inputs import Run
from contract.training.trainer import NotFinite, OutOfMemory, StepDone, TrainerState
from contract.worker.serve import Channel
from contract.worker.stack import Reply
from stacks.torch_qlora import lora, paths
from stacks.torch_qlora.graph import GraphBatch, open_graph
from stacks.torch_qlora.models.proxy import Proxy
from stacks.torch_qlora.optim import AdamW, clip
from stacks.torch_qlora.optim_8bit import AdamW8
from stacks.torch_qlora.weights import CheckpointWeights, CountedWeights, to_tensor

BETA1, BETA2, EPS = 0.9, 0.999, 1e-8
"""AdamW's; torch's and transformers' defaults, and not a field of the contract."""


def respond(values: Mapping[str, Any], device: torch.device, channel: Channel | None) -> Reply:
    """Answers the request `train`."""
    assert channel is not None, "a worker has one"

    def report(done: int, total: int) -> None:
        with suppress(OSError):  # a launcher that is gone
            channel.progress(stage="load", done=done, of=total)

    def make(run: Run) -> Prepared:
        trainer = TorchTrainer(run, device, report=report)
        on_gpu = device.type == "cuda"
        return Prepared(
            trainer=trainer, notes=trainer.notes, threads=None if on_gpu else torch.get_num_threads(),
            device=torch.cuda.get_device_name(device) if on_gpu else None,
        )  # fmt: skip

    return session.train(channel, make, **values)


class TorchTrainer:
    """contract.training.trainer.Trainer on one device.

    Args:
        report: told how many of the model's weights were read, and of how many.

    Attributes:
        notes: which production paths the run takes, and why, for the manifest.

    Raises:
        ContractError: an optimiser that this device lacks.
        OutOfMemory: the graph does not fit.
    """

    def __init__(self, run: Run, device: torch.device, *, report: Callable[[int, int], None] = lambda done, total: None) -> None:
        self._run, self._device, self._exec = run, device, run.contract.exec
        _require_optimizer(self._exec.optimizer, device)
        plan, self.notes = paths.chosen(run, device)
        with _out_of_memory():
            self._graph = open_graph(plan, CountedWeights(CheckpointWeights(run.checkpoint), report), run.initial, device)
            self._parameters = lora.parameters(self._graph)
            self._optimizer = _optimizer(self._exec, self._parameters)

    def step(self, step: Step, learning_rate: float) -> StepDone:
        """The gradient is the sum over all micro-batches over step.tokens, whatever tokens each has; then clipping, then AdamW.

        Raises:
            NotFinite: a loss or gradient; no weight, m or v has changed.
            OutOfMemory.
        """
        try:
            with _out_of_memory():
                losses = [self._backward(step.number, batch) for batch in step.batches]
                loss = self._total(losses)
                norm = self._clipped(step)
                self._optimizer.update(learning_rate)
        finally:
            self._clear()
        # the proxy graph computes the rows that count, and no others
        positions = step.tokens if isinstance(self._graph, Proxy) else sum(batch.ids_BT.size for batch in step.batches)
        return StepDone(loss=loss / step.tokens, grad_norm=norm, positions=positions, memory_bytes=_peak_memory(self._device))

    def loss_sum(self, batch: Batch) -> float:
        """The sum over a batch's supervised tokens, without gradient and dropout.

        Raises:
            OutOfMemory.
        """
        with torch.no_grad(), _out_of_memory():
            return float(self._graph.loss_sum(self._on_device(batch)))

    def state(self) -> TrainerState:
        """A copy on the host."""
        m, v = self._optimizer.moments()
        return TrainerState(adapter=_to_host(self._parameters), m=_to_host(m), v=_to_host(v), updates=self._optimizer.updates)

    @torch.no_grad()
    def restore(self, state: TrainerState) -> None:
        """Goes on from a state.

        Raises:
            ContractError: one that another optimiser gave.
        """
        m, v = (
            {name: to_tensor(moments[name], parameter.dtype, self._device) for name, parameter in self._parameters.items()}
            for moments in (state.m, state.v)
        )
        try:
            self._optimizer.restore(m, v, state.updates)
        except ValueError as error:
            raise ContractError(
                "the checkpoint's m and v", got=str(error), allowed=f"the state of exec.optimizer {self._exec.optimizer}",
                remedy="resume from another checkpoint",
            ) from error  # fmt: skip
        for name, parameter in self._parameters.items():
            parameter.copy_(to_tensor(state.adapter[name], parameter.dtype, self._device))

    # A step

    def _backward(self, number: int, batch: Batch) -> torch.Tensor:
        """Adds a micro-batch's gradient of the sum; the sum, which is not waited for."""
        rate = self._run.contract.adapter.dropout
        lora.set_dropout(self._graph, self._masks(number, batch) if rate else None, rate)
        total = self._graph.loss_sum(self._on_device(batch))
        total.backward()  # type: ignore[no-untyped-call]
        return total.detach()

    def _masks(self, number: int, batch: Batch) -> Callable[[str, int], torch.Tensor]:
        """The masks [B, T, I] of a micro-batch by a linear's path and in_features; the same however often they are asked for."""
        contract = self._run.contract

        def keep(path: str, width: int) -> torch.Tensor:
            layer, site = lora.site(path)
            mask_BTI = dropout.mask(
                seed=contract.exec.seed, step=number, samples=batch.samples_BT, positions=batch.positions_BT, layer=layer, site=site,
                width=width, probability=contract.adapter.dropout,
            )  # fmt: skip
            return torch.from_numpy(mask_BTI).to(self._device)

        return keep

    def _on_device(self, batch: Batch) -> GraphBatch:
        """Without segments where no row shares its sequence: what is padded on the right is seen by no token, and carries no loss."""
        packed = bool(batch.segments_BT.max(initial=0) > 0)
        ids_BT, labels_BT, positions_BT, segments_BT = (
            torch.from_numpy(array).to(self._device) for array in (batch.ids_BT, batch.labels_BT, batch.positions_BT, batch.segments_BT)
        )
        if not packed:
            return GraphBatch(ids_BT=ids_BT, labels_BT=labels_BT)
        return GraphBatch(ids_BT=ids_BT, labels_BT=labels_BT, positions_BT=positions_BT, segments_BT=segments_BT)

    def _total(self, losses: list[torch.Tensor]) -> float:
        """The sum of the micro-batches' sums."""
        values = [float(loss) for loss in losses]
        for number, value in enumerate(values):
            if not math.isfinite(value):
                raise NotFinite(batch=number, what="loss", value=value)
        return math.fsum(values)

    def _clipped(self, step: Step) -> float:
        """Divides the gradients by the step's tokens and clips them; their norm before."""
        gradients = [parameter.grad for parameter in self._parameters.values() if parameter.grad is not None]
        torch._foreach_div_(gradients, float(step.tokens))
        norm = float(clip(list(self._parameters.values()), self._exec.max_grad_norm))
        if not math.isfinite(norm):
            raise NotFinite(batch=self._culprit(step), what="gradient", value=norm)
        return norm

    def _culprit(self, step: Step) -> int:
        """Which micro-batch's gradient is not finite by itself; the last, if it is their sum alone."""
        for number, batch in enumerate(step.batches):
            self._clear()
            self._backward(step.number, batch)
            if not all(bool(parameter.grad.isfinite().all()) for parameter in self._parameters.values() if parameter.grad is not None):
                return number
        return len(step.batches) - 1

    def _clear(self) -> None:
        """Lets go of gradients and masks."""
        for parameter in self._parameters.values():
            parameter.grad = None
        lora.set_dropout(self._graph, None, 0.0)


def _optimizer(settings: ExecSpec, parameters: Mapping[str, torch.nn.Parameter]) -> AdamW | AdamW8:
    if settings.optimizer == "adamw":
        return AdamW(parameters, beta1=BETA1, beta2=BETA2, eps=EPS, weight_decay=settings.weight_decay)
    paged = settings.optimizer == "paged_adamw_8bit"
    return AdamW8(parameters, beta1=BETA1, beta2=BETA2, eps=EPS, weight_decay=settings.weight_decay, paged=paged)


def _require_optimizer(optimizer: str, device: torch.device) -> None:
    if optimizer == "paged_adamw_8bit" and device.type != "cuda":
        raise ContractError(
            "exec.optimizer", got=f"{optimizer} on {device.type.upper()}", allowed="adamw or adamw_8bit (CUDA alone has paged memory)",
            remedy="set exec.optimizer to adamw_8bit",
        )  # fmt: skip


@contextmanager
def _out_of_memory() -> Iterator[None]:
    """An allocator's refusal, whichever it is, as OutOfMemory."""
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError) as error:
        raise OutOfMemory(str(error) or "no memory is left") from error
    except RuntimeError as error:  # what torch's CPU allocator raises has no class of its own
        if "not enough memory" not in str(error) and "can't allocate memory" not in str(error):
            raise
        raise OutOfMemory(str(error)) from error


def _peak_memory(device: torch.device) -> int:
    """Bytes: what torch held on the GPU at most, or the process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak  # bytes there, KiB elsewhere (getrusage(2))


def _to_host(tensors: Mapping[str, torch.Tensor]) -> dict[str, np.ndarray]:
    return {name: tensor.detach().to("cpu", copy=True).numpy() for name, tensor in tensors.items()}
