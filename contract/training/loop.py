"""A run's steps in order, and what is written on the way: telemetry, checkpoints, at the end the adapters."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np

from contract.artifacts.telemetry import FILE as TELEMETRY
from contract.artifacts.telemetry import TelemetryRow, TelemetryWriter
from contract.artifacts.training_checkpoint import Progress, TrainingCheckpoint
from contract.data.steps import Step
from contract.training import checkpoints
from contract.training.inputs import Run
from contract.training.outputs import write_adapters
from contract.training.trainer import NotFinite, OutOfMemory, StepDone, Trainer

End = Literal["done", "paused", "not_finite", "out_of_memory", "skip_rate", "output"]
"""How a run ended: all steps done; asked to stop; a loss or gradient that is none; no memory; too many rows skipped; a file that can't
be written."""

BEGINNING = Progress(step=0, epoch=0, step_of_epoch=0, skipped=0, rows_of_epoch=0, skipped_of_epoch=0)

_LISTED = 16
"""Rows of a batch that a message names."""


class Channel(Protocol):
    """What is asked of contract.worker.serve.Channel."""

    @property
    def cancelled(self) -> bool: ...

    def progress(self, **values: Any) -> None: ...


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How a run ended.

    step, total: optimiser steps that were done, and all of them. skipped: rows without a token to learn, so far.
    checkpoint: the newest one on disk, None where there is none.
    message: what is wrong; empty where the end is done or paused. notes: what the user must know of the files that were written.
    """

    end: End
    step: int
    total: int
    skipped: int
    checkpoint: str | None
    message: str = ""
    notes: tuple[str, ...] = ()

    def values(self) -> dict[str, Any]:
        """As a request's answer has it."""
        return asdict(self) | {"notes": list(self.notes)}


def drive(
    run: Run, trainer: Trainer, channel: Channel, folder: Path, *, stack: str, packages: Mapping[str, str],
    resumed: TrainingCheckpoint | None = None,
) -> Outcome:  # fmt: skip
    """Takes the steps that are left.

    Args:
        trainer: with the state of `resumed`, or else with the initial adapter.
        folder: the run's own; nobody else writes to it.
        stack, packages: what checkpoints say of the program.

    Raises:
        ContractError, ContractErrors: a row that can't be rendered or encoded, a train file that has changed, a telemetry file that
            is none, an adapter's folder that holds something else.
    """
    course = _Course(run, trainer, channel, folder, BEGINNING if resumed is None else resumed.progress)
    course.stack, course.packages = stack, packages
    telemetry = None
    try:
        telemetry = course.telemetry = TelemetryWriter(folder / TELEMETRY, after_step=course.progress.step)
        return course.go()
    except _Ended as ended:
        return course.outcome(ended.end, ended.message)
    except (OutOfMemory, MemoryError) as error:
        return course.outcome("out_of_memory", f"no memory is left {course.doing} ({error or 'of the process'})")
    except OSError as error:
        place = error.filename or folder
        return course.outcome("output", f"{place}: {error.strerror or error}")
    finally:
        if telemetry is not None:
            telemetry.close()


class _Ended(Exception):
    """The run ends here."""

    def __init__(self, end: End, message: str = "") -> None:
        super().__init__(message)
        self.end, self.message = end, message


class _Course:
    """A run under way. progress: where it stands; doing: what it is at, in words."""

    telemetry: TelemetryWriter
    stack: str
    packages: Mapping[str, str]

    def __init__(self, run: Run, trainer: Trainer, channel: Channel, folder: Path, progress: Progress) -> None:
        self._run, self._trainer, self._channel, self._folder = run, trainer, channel, folder
        self.progress, self.doing = progress, "before the first step"
        self._total = run.steps.total
        self._saved = progress.step
        self._before: float | None = None
        self._compile_seconds, self._compiling_steps = 0.0, 0

    def go(self) -> Outcome:
        """From here to the end."""
        if self.progress.step == 0:
            self._before = self._validation()
        if self.progress.step_of_epoch == 0 or self.progress.step == self._total:
            self._require_few_skipped()  # a run that was ended by it does not get past it by resuming
        for step in self._run.steps.steps(self.progress.step):
            if self._channel.cancelled:
                self._save()
                raise _Ended("paused")
            self._take(step)
        self.doing = "at the end"
        self._tell("save")
        return self.outcome("done", notes=write_adapters(self._run, self._trainer.state(), self._folder))

    def outcome(self, end: End, message: str = "", notes: tuple[str, ...] = ()) -> Outcome:
        """An end, and what is on disk by then."""
        if self._compiling_steps:
            seconds, steps = self._compile_seconds, self._compiling_steps
            what = f"compiling took {seconds:.0f} s, in or just before {steps:,} of the steps"
            notes = (f"{what}: their tokens_per_second in {TELEMETRY} is no speed of training", *notes)
        found = checkpoints.of_run(self._folder)
        newest = str(found[-1]) if found else None
        step, skipped = self.progress.step, self.progress.skipped
        return Outcome(
            end=end, step=step, total=self._total, skipped=skipped, checkpoint=newest, message=message, notes=notes
        )  # fmt: skip

    def _take(self, step: Step) -> None:
        """One step, its row, and what is due after it."""
        rate, started = float(self._run.learning_rates[step.number]), time.monotonic()
        self.doing = f"in step {step.number + 1}"
        try:
            done = self._trainer.step(step, rate) if step.batches else _NOTHING
        except NotFinite as error:
            row = self._row(step, rate, _not_finite(error), 0.0)
            self.telemetry.append(row)
            raise _Ended("not_finite", self._where(step, error)) from None
        seconds = time.monotonic() - started
        self._advance(step)
        self._compile_seconds += done.compile_seconds
        self._compiling_steps += done.compile_seconds > 0
        row = self._row(step, rate, done, done.positions / seconds if seconds > 0 else 0.0)
        over = self.progress.step_of_epoch == 0
        last = self.progress.step == self._total
        if over or last:
            row = row.model_copy(update={"validation_loss": self._validation()})
        self.telemetry.append(row)
        self._tell("train", row, compile_seconds=done.compile_seconds)
        if last or self.progress.step % self._run.contract.exec.checkpoint_every == 0:
            self._save()
        if over or last:
            self._require_few_skipped()

    def _advance(self, step: Step) -> None:
        was, number = self.progress, step.number + 1
        first = was.step_of_epoch == 0
        rows = sum(len(sequence) for batch in step.batches for sequence in batch.samples) + len(step.skipped)
        epoch, step_of_epoch = checkpoints.place(self._run, number)
        self.progress = Progress(
            step=number,
            epoch=epoch,
            step_of_epoch=step_of_epoch,
            skipped=was.skipped + len(step.skipped),
            rows_of_epoch=rows + (0 if first else was.rows_of_epoch),
            skipped_of_epoch=len(step.skipped) + (0 if first else was.skipped_of_epoch),
        )

    def _row(self, step: Step, rate: float, done: StepDone, speed: float) -> TelemetryRow:
        before, self._before = self._before, None
        return TelemetryRow(
            step=step.number + 1, loss=done.loss, lr=rate, grad_norm=done.grad_norm, tokens=step.tokens, tokens_per_second=speed,
            memory_bytes=done.memory_bytes, skipped=self.progress.skipped, validation_loss_before=before,
        )  # fmt: skip

    def _validation(self) -> float | None:
        """The mean loss over the rows that are held back; None where none are, or where the run is to stop."""
        steps, self.doing = self._run.validation, f"in the validation after step {self.progress.step}"
        total, tokens = 0.0, 0
        for step in steps.steps():
            if self._channel.cancelled:
                return None
            total += math.fsum(self._trainer.loss_sum(batch) for batch in step.batches)
            tokens += step.tokens
            self._tell("validate", done=step.number + 1, of=steps.total)
        return total / tokens if tokens else None

    def _require_few_skipped(self) -> None:
        """Ends the run where too many of an epoch's rows had nothing to learn."""
        progress, allowed = self.progress, self._run.contract.exec.max_skip_rate
        rate = progress.skipped_of_epoch / max(1, progress.rows_of_epoch)
        if rate > allowed:
            rows = f"{progress.skipped_of_epoch:,} of the epoch's {progress.rows_of_epoch:,} rows"
            self._save()
            raise _Ended("skip_rate", f"{rows} ({rate:.1%}) have no token to learn; exec.max_skip_rate allows {allowed:.1%}")

    def _save(self) -> None:
        """A checkpoint, unless this step's is on disk."""
        if self._saved == self.progress.step:
            return
        self.doing = f"in the checkpoint after step {self.progress.step}"
        self._tell("save")
        self.telemetry.to_disk()
        state = self._trainer.state()
        for part in ("adapter", "m", "v"):
            for name, matrix in getattr(state, part).items():
                if not np.isfinite(matrix).all():
                    raise _Ended("not_finite", f"{part} of {name} holds NaN or infinity after step {self.progress.step}")
        checkpoints.save(self._folder, self._run, state, self.progress, stack=self.stack, packages=self.packages)
        self._saved = self.progress.step

    def _where(self, step: Step, error: NotFinite) -> str:
        """Step, micro-batch and rows of a loss or gradient that is none."""
        samples = [sample for sequence in step.batches[error.batch].samples for sample in sequence]
        lines = ", ".join(str(self._run.rows.index.line(sample)) for sample in samples[:_LISTED])
        more = f" and {len(samples) - _LISTED} more" if len(samples) > _LISTED else ""
        batch, path = f"micro-batch {error.batch + 1} of {len(step.batches)}", self._run.rows.index.path
        return f"the {error.what} of step {step.number + 1} is {error.value}, in {batch}: lines {lines}{more} of {path}"

    def _tell(self, stage: str, row: TelemetryRow | None = None, **values: Any) -> None:
        """A progress frame. A launcher that is gone is no reason to lose the run: the channel says `cancelled` then."""
        if row is not None:
            speed = row.tokens_per_second
            values |= {"loss": _finite(row.loss), "lr": row.lr, "tokens_per_second": speed, "memory_bytes": row.memory_bytes}
            for name in ("validation_loss", "validation_loss_before"):
                if (measured := getattr(row, name)) is not None:
                    values[name] = _finite(measured)
        with suppress(OSError):
            self._channel.progress(stage=stage, step=self.progress.step, total=self._total, **values)


_NOTHING = StepDone(loss=math.nan, grad_norm=0.0, positions=0, memory_bytes=None)
"""Of a step whose rows were all skipped."""


def _not_finite(error: NotFinite) -> StepDone:
    loss, norm = (error.value, math.nan) if error.what == "loss" else (math.nan, error.value)
    return StepDone(loss=loss, grad_norm=norm, positions=0, memory_bytes=None)


def _finite(value: float) -> float | None:
    """JSON has no other numbers."""
    return value if math.isfinite(value) else None
