"""The request `train`: a run's optimiser steps on tinygrad, each one captured function.

A step is one TinyJit at a bucketed shape; with accumulation, one for all of its micro-batches but the last, and one for that, which ends
with the update.

Legend: R rank, I in_features, O out_features.
"""

from __future__ import annotations

import math
import resource
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

import numpy as np
from tinygrad import Tensor
from tinygrad.helpers import NUM_CPU_THREADS

from contract.data.batches import Batch
from contract.data.steps import Step
from contract.training import session
from contract.training.account import Prepared
from contract.training.inputs import Run
from contract.training.trainer import NotFinite, StepDone, TrainerState
from contract.worker.plan import GraphPlan
from contract.worker.serve import Channel
from contract.worker.stack import Reply
from contract.worker.taps import EMBEDDING
from stacks.tinygrad_lora import optim, weights
from stacks.tinygrad_lora.buckets import Arrays, Buckets
from stacks.tinygrad_lora.failures import told
from stacks.tinygrad_lora.host import to_device, write
from stacks.tinygrad_lora.models.build import build
from stacks.tinygrad_lora.models.section import TOKENS
from stacks.tinygrad_lora.replay import COMPILING, Replay
from stacks.tinygrad_lora.step import FIRST, KEPT_SHARE, MAX_NORM, TOKENS_OF_STEP, Adapted, accumulate, finish, loss_sum
from stacks.tinygrad_lora.weights import Weights
from stacks.tinygrad_lora.widen import inside

BETA1, BETA2, EPS = 0.9, 0.999, 1e-8
"""AdamW's, as PyTorch has them unless told otherwise."""

Progress = Callable[..., None]
"""Told a stage, and its numbers."""


def respond(
    values: Mapping[str, Any], device: str, channel: Channel | None, *, require: Callable[[GraphPlan], None], notes: tuple[str, ...] = ()
) -> Reply:  # fmt: skip
    """Answers the request `train`.

    Args:
        require: raises NotSupported for a plan that the stack or the device lacks.
        notes: for the manifest, beside the paths that are taken.
    """
    assert channel is not None, "a worker has one"

    def report(**said: Any) -> None:
        with suppress(OSError):  # a launcher that is gone
            channel.progress(**said)

    def make(run: Run) -> Prepared:
        require(run.plan)
        trainer = TinygradTrainer(run, device, report=report)
        return Prepared(trainer=trainer, notes=(*trainer.choices, *notes), threads=NUM_CPU_THREADS.value if device == "CPU" else None)

    return session.train(channel, make, **values)


class TinygradTrainer:
    """contract.training.trainer.Trainer on one device, in `run.plan.dtype`.

    Args:
        device: tinygrad's name of it.
        report: told how many of the model's weights were read, and of compiling.

    Attributes:
        choices: which production paths the run takes, for the manifest.

    Raises:
        NotSupported: a weight past the device's largest tensor.
        OutOfMemory, MemoryError: the graph does not fit.
    """

    @told
    def __init__(self, run: Run, device: str, *, report: Progress = lambda **said: None) -> None:
        self._run, self._device, self._report, self._exec = run, device, report, run.contract.exec
        plan = with_paths(run.plan)
        self.choices = tuple(f"path {path}" for path in paths(run.plan))
        self._graph, self._buckets = _open(run, plan, device, report)
        self._updates = 0
        self._captured: dict[tuple[Any, ...], Replay] = {}
        self._last: Replay | None = None
        self._compiled = 0.0

    @told
    def step(self, step: Step, learning_rate: float) -> StepDone:
        """See the protocol. A weight changes only where loss and gradient are finite: that is decided in the kernels."""
        total, norm, positions = 0.0, 0.0, 0
        for number, batch in enumerate(step.batches):
            last = number == len(step.batches) - 1
            arrays = self._buckets.arrays(batch, step=step.number) | self._numbers(step, learning_rate, first=number == 0)
            answer = self._run_captured(finish if last else accumulate, arrays)
            batch_loss, norm = float(answer["loss"][0]), float(answer["norm"][0])
            for what, value in (("loss", batch_loss), ("gradient", norm)):
                if not math.isfinite(value):
                    raise NotFinite(batch=number, what=what, value=value)
            total += batch_loss
            positions += batch.ids_BT.size
        self._updates += 1
        compiled, self._compiled = self._compiled, 0.0
        return StepDone(
            loss=total / step.tokens, grad_norm=norm, positions=positions, memory_bytes=_peak_memory(self._device), compile_seconds=compiled
        )

    @told
    def loss_sum(self, batch: Batch) -> float:
        """See the protocol."""
        return float(self._run_captured(loss_sum, self._buckets.arrays(batch, step=None))["loss"][0])

    def state(self) -> TrainerState:
        """See the protocol; in float64 where the run is computed in it."""
        adapter, m, v = ({name: one.numpy().copy() for name, one in part.items()} for part in self._parts())
        return TrainerState(adapter=adapter, m=m, v=v, updates=self._updates)

    def restore(self, state: TrainerState) -> None:
        """See the protocol."""
        for part, arrays in zip(self._parts(), (state.adapter, state.m, state.v), strict=True):
            for name, tensor in part.items():
                # into the buffer that captured functions hold
                write(tensor, np.ascontiguousarray(arrays[name], inside(self._graph.plan.dtype)))
        self._updates = state.updates

    def _parts(self) -> tuple[Mapping[str, Tensor], ...]:
        return self._graph.adapter, self._graph.m, self._graph.v

    def _numbers(self, step: Step, learning_rate: float, *, first: bool) -> Arrays:
        """The numbers of a step, each rounded once."""
        numbers = optim.adamw_numbers(
            self._updates, lr=learning_rate, beta1=BETA1, beta2=BETA2, eps=EPS, weight_decay=self._exec.weight_decay
        ) | {TOKENS_OF_STEP: step.tokens, MAX_NORM: self._exec.max_grad_norm, KEPT_SHARE: 1 - self._run.contract.adapter.dropout}
        dtype = inside(self._graph.plan.dtype)
        return {name: np.array([value], dtype) for name, value in numbers.items()} | {FIRST: np.array([first])}

    def _run_captured(self, function: Callable[..., dict[str, Tensor]], arrays: Arrays) -> dict[str, np.ndarray]:
        """What one of the step's functions answers; captured by its shapes."""
        given = dict(sorted(arrays.items()))
        key = (function.__name__, *((name, array.shape) for name, array in given.items()))
        if key not in self._captured:
            state = [tensor for part in (*self._parts(), self._graph.sums) for tensor in part.values()]
            self._captured[key] = Replay(lambda tensors: function(self._graph, tensors), self._device, state=state)
        captured = self._captured[key]
        if self._last is not None and self._last is not captured:
            self._last.release()
        self._last = captured
        if captured.calls >= COMPILING:
            return captured(given)
        started = time.monotonic()
        self._tell(function.__name__, given, captured.calls, 0.0)
        answer = captured(given)
        captured.release()  # what the first call took is not what a captured one takes
        seconds = time.monotonic() - started
        self._compiled += seconds
        self._tell(function.__name__, given, captured.calls, seconds)
        return answer

    def _tell(self, name: str, given: Arrays, calls: int, seconds: float) -> None:
        sequences, tokens = given[TOKENS].shape[:2]
        what = "a validation batch" if name == "loss_sum" else "a step" if name == "finish" else "a micro-batch"
        self._report(stage="compile", calls=calls, of=COMPILING, seconds=seconds, what=f"{what} of {sequences} x {tokens} tokens")


def with_paths(plan: GraphPlan) -> GraphPlan:
    """The plan with the production paths that a run takes: products from NF4's codes, but in float64."""
    return plan.model_copy(update={"paths": ("nf4_linear",)}) if plan.base is not None and plan.dtype != "float64" else plan


def paths(plan: GraphPlan) -> tuple[str, ...]:
    """Every production path of a run: those of its graph, and the loss of its steps, which never holds the whole logits."""
    return ("chunked_loss", *with_paths(plan).paths)


def _open(run: Run, plan: GraphPlan, device: str, report: Progress) -> tuple[Adapted, Buckets]:
    """The graph on its device, with the run's initial adapter."""
    model, dtype = build(plan), inside(plan.dtype)
    read = Weights(plan, weights.of_checkpoint(run.checkpoint), device)
    buckets = Buckets(run, model, read.embeddings())
    held, sections = {}, [section for section in plan.held if section != EMBEDDING]
    for number, section in enumerate(sections):
        numbers = {name: to_device(np.array([value], dtype), device) for name, value in model.scalars(section).items()}
        held[section] = {**read.section(section), **numbers}
        report(stage="load", done=number + 1, of=len(sections))
    # from NumPy arrays, a buffer each: matrices of zeros that tinygrad makes would be one constant
    own = {name: to_device(matrix.astype(dtype), device) for name, matrix in run.initial.items()}
    zeros = [{name: to_device(np.zeros_like(matrix, dtype), device) for name, matrix in run.initial.items()} for _ in range(3)]
    sums = zeros[2] if run.contract.exec.grad_accum > 1 else {}
    graph = Adapted(plan=plan, model=model, held=held, adapter=own, m=zeros[0], v=zeros[1], sums=sums, chunk=buckets.chunk)
    return graph, buckets


def _peak_memory(device: str) -> int | None:
    """The most that this process has had resident (Linux counts KiB, macOS bytes); of other devices' memory nobody tells."""
    if device != "CPU":
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
