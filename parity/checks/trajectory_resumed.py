"""The law that a run which was stopped and goes on from its checkpoint is the run that never was: each stack alone, bit for bit.

Both runs are the request `train`, as `finetune train` sends it, so that the checkpoint is a file that the stack wrote, and the run that
goes on has a trainer of its own, which knows nothing but that file.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from contract.artifacts import telemetry, training_checkpoint
from contract.artifacts.adapter_fields import tensors_of
from contract.errors import ContractError, ContractErrors
from contract.training.checkpoints import FOLDER
from contract.training.inputs import Run
from contract.training.stepwise import expected_state
from contract.worker.answers import Answer, ProtocolBroken
from contract.worker.process import Pending, StackProcess
from parity.checks import trajectory_judges
from parity.checks.check import Answered, Arrays, Case
from parity.checks.policy_schedule import ROUNDING
from parity.checks.trajectory_case import opened_run
from parity.checks.trajectory_run import GPT2
from parity.judge import verdict
from parity.judge.bounds import Bound
from parity.judge.verdict import Comparison
from parity.reference import policy

WHOLE, RESUMED = "whole.", "resumed."
"""Before a tensor's name: of the run that was never stopped, of the one that went on."""

TELEMETRY: Mapping[str, str] = {"loss": "float64", "lr": "float64", "grad_norm": "float64", "tokens": "int64", "skipped": "int64"}
"""Of each step after the checkpoint; a loss that is none is -1."""


@dataclass(frozen=True, kw_only=True, eq=False)
class ResumedCase(Case):
    """A run, and the step after which it goes on from its checkpoint: one of an epoch's middle."""

    run: Run
    after: int
    folder: tempfile.TemporaryDirectory[str]


def cases() -> Iterator[ResumedCase]:
    """A run with dropout, whose second epoch is in another order than its first, and has a step with nothing to learn."""
    folder, run = opened_run(GPT2, "float32")
    after = run.contract.exec.checkpoint_every
    yield ResumedCase(name=f"resumed after step {after} of {run.steps.total}", inputs={}, run=run, after=after, folder=folder)


@dataclass(frozen=True, kw_only=True, eq=False)
class ResumedAsk:
    """Trains the run, then trains it again from its checkpoint; answers what both left (an Ask)."""

    case: ResumedCase

    def key(self) -> tuple[object, ...]:
        """Equal for the same case."""
        return "train, resumed", id(self.case)

    def send(self, process: StackProcess) -> Trained:
        """Sends both: the worker takes one after the other."""
        run, home = self.case.run, Path(tempfile.mkdtemp(dir=self.case.folder.name))
        about = {"stack": process.name, "packages": [], "device": process.device}
        values = {"contract": run.contract.model_dump(mode="json"), "about": about}
        whole, resumed = home / "whole", home / "resumed"
        checkpoint = str(_checkpoint(whole, self.case.after))
        return Trained(
            stack=process.name, total=run.steps.total, after=self.case.after, folders=(whole, resumed),
            pending=(
                process.submit("train", {**values, "folder": str(whole)}),
                process.submit("train", {**values, "folder": str(resumed), "resume": checkpoint}),
            ),
        )  # fmt: skip

    def require(self, stack: str, answered: Arrays) -> None:
        """Holds what the files held against what a state is.

        Raises:
            ProtocolBroken: a tensor is missing, extra, of the wrong shape or dtype.
        """
        left = self.case.run.steps.total - self.case.after
        own = expected_state(self.case.run) | {name: ((left,), dtype) for name, dtype in TELEMETRY.items()}
        wanted = {f"{which}{name}": tensor for which in (WHOLE, RESUMED) for name, tensor in own.items()}
        for name in sorted({*wanted, *answered}):
            got = (answered[name].shape, answered[name].dtype.name) if name in answered else None
            if got != wanted.get(name):
                raise ProtocolBroken(f"{stack}: broke the protocol: left {name} as {got}, must be {wanted.get(name)}")


@dataclass(frozen=True, kw_only=True)
class Trained:
    """Two runs on their way, and where they write."""

    stack: str
    total: int
    after: int
    folders: tuple[Path, Path]
    pending: tuple[Pending, Pending]

    def result(self) -> Answer:
        """Waits for both, and reads what they left.

        Raises:
            HarnessError, RequestFailed: a run failed.
            ProtocolBroken: it did not come to its end, or left files that are none.
        """
        answers = [pending.result() for pending in self.pending]
        tensors: dict[str, np.ndarray] = {}
        for which, folder, answer in zip((WHOLE, RESUMED), self.folders, answers, strict=True):
            if answer.values.get("end") != "done":
                said = f"{answer.values.get('end')!r}, {answer.values.get('message')!r}"
                raise ProtocolBroken(f"{self.stack}: broke the protocol: a run ended with {said}, must be 'done'")
            try:
                tensors |= {f"{which}{name}": tensor for name, tensor in self._left(folder).items()}
            except (ContractError, ContractErrors, OSError) as error:
                raise ProtocolBroken(f"{self.stack}: broke the protocol: what a run left can't be read: {error}") from None
        busy = [moment for answer in answers for moment in answer.busy_ns]
        return Answer({}, tensors, (min(busy), max(busy)))

    def _left(self, folder: Path) -> dict[str, np.ndarray]:
        """The last checkpoint's state, and the telemetry of the steps after the one that the second run goes on from."""
        last = training_checkpoint.read(_checkpoint(folder, self.total))
        parts = {"adapter": tensors_of(last.adapter), "m": last.m, "v": last.v}
        state = {f"{part}.{name}": matrix for part, matrices in parts.items() for name, matrix in matrices.items()}
        rows = [row for row in telemetry.read_telemetry(folder / telemetry.FILE).rows if row.step > self.after]
        told = {name: np.array([getattr(row, name) for row in rows], dtype) for name, dtype in TELEMETRY.items()}
        told["loss"] = np.where(np.isnan(told["loss"]), -1.0, told["loss"])
        return state | told | {"updates": np.array(last.updates, np.int64)}


def _checkpoint(folder: Path, step: int) -> Path:
    return folder / FOLDER / f"step-{step:08}"


def judge(case: Case, answered: Sequence[Answered], false_alarm: float) -> list[Comparison]:
    """The same state and the same telemetry, bit for bit; and the learning rates that the schedule has."""
    assert isinstance(case, ResumedCase)
    (answer,) = answered[0].answers
    resumed, whole = (
        {name.removeprefix(which): tensor for name, tensor in answer.items() if name.startswith(which)} for which in (RESUMED, WHOLE)
    )
    ledgers = (*TELEMETRY, "updates")
    source = "what the run that was never stopped has"
    told = [trajectory_judges.ledger(name, resumed[name], whole[name], source) for name in ledgers]
    told.append(_rates(case, whole["lr"]))
    return told + [trajectory_judges.same(part, resumed, whole, f"{part}.", source) for part in ("m", "v", "adapter")]


def _rates(case: ResumedCase, told: np.ndarray) -> Comparison:
    """What the run says that its steps took, against the formula: both runs share the contract's table, and the loop that reads it."""
    exec_ = case.run.contract.exec
    rates, limit = policy.learning_rates(exec_.learning_rate, exec_.warmup_steps, case.run.steps.total)
    return verdict.within("lr by the formula", told, rates[case.after :], Bound(limit=limit[case.after :], source=ROUNDING))
