"""Training checkpoints: a stack goes on from its own, and refuses another's in words (docs/artifacts.md, Training checkpoint)."""

from __future__ import annotations

import itertools
import json
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from contract.artifacts.training_checkpoint import STATE, Progress
from contract.training import checkpoints
from contract.training.inputs import Run, prepare
from contract.training.trainer import TrainerState
from contract.worker.answers import Answer, RequestFailed
from contract.worker.process import Pending, StackProcess
from parity.checks import artifact_judges, trajectory_files
from parity.checks.artifact_case import read_files
from parity.checks.check import Answered, Arrays, Ask, Case, Check, GraphNeeds, Plan, Question
from parity.checks.graph_case import require_answer
from parity.checks.several import Several
from parity.checks.trajectory_run import LLAMA
from parity.judge import verdict
from parity.judge.verdict import Comparison

STACKS = ("torch_qlora", "tinygrad_lora")
"""Those whose checkpoints are offered."""

RUN = replace(
    LLAMA.changed("checkpoint", 2, grad_accum=1, epochs=1, warmup_steps=1, checkpoint_every=1), rows=6, asked=(), decays_at=None
)  # fmt: skip
"""Two steps, and a checkpoint after each, on micro-batches that tier D has too."""

LAW = "a law: docs/artifacts.md, Training checkpoint"
WHOLE, RESUMED, CLASS, SAID, DONE = "whole/", "resumed/", "class", "said", "done"
REFUSAL = b"ContractError"
_STATE_OF_STACK = ("stack", "packages", "tensors_sha256", "fields_sha256")
"""Fields of a checkpoint that may differ between two stacks'; m and v do, and with them the tensors."""
_NUMBERS = itertools.count()


@dataclass(frozen=True, kw_only=True, eq=False)
class CheckpointCase(Case):
    """A run, and for each of STACKS a checkpoint of its first step, as that stack would have left it."""

    home: tempfile.TemporaryDirectory[str]
    run: Run

    def offered(self, stack: str) -> Path:
        """That stack's checkpoint."""
        return checkpoints.of_run(Path(self.home.name) / stack)[0]

    def state(self) -> bytes:
        """What a checkpoint of the first step says of itself."""
        return self.anywhere((self.offered(STACKS[0]) / STATE).read_bytes())

    def anywhere(self, content: bytes) -> bytes:
        """A JSON file of the run as it is wherever the run's files lie: the folder, and the contract's digest, which it is part of."""
        return content.replace(self.home.name.encode(), b"FOLDER").replace(self.run.digest.encode(), b"DIGEST")


def cases() -> Iterator[CheckpointCase]:
    """The one run."""
    home = tempfile.TemporaryDirectory(prefix="twostack-checkpoints-")
    folder = Path(home.name)
    contract = trajectory_files.write(RUN, folder)
    run = prepare(contract, cache=folder / "cache")
    zeros = {name: np.zeros_like(matrix) for name, matrix in run.initial.items()}
    state = TrainerState(adapter=run.initial, m=zeros, v=zeros, updates=1)
    at = Progress(step=1, epoch=0, step_of_epoch=1, skipped=0, rows_of_epoch=3, skipped_of_epoch=0)
    for stack in STACKS:
        checkpoints.save(folder / stack, run, state, at, stack=stack, packages={"numpy": np.__version__})
    yield CheckpointCase(name=f"{run.steps.total} steps of a Llama", inputs={}, home=home, run=run)


@dataclass(frozen=True, kw_only=True, eq=False)
class OwnAsk:
    """The whole run, then its second step from its own first checkpoint, in another folder (an Ask)."""

    case: CheckpointCase

    def key(self) -> tuple[object, ...]:
        """Equal for the same case."""
        return "own", id(self.case)

    def send(self, process: StackProcess) -> Several:
        """Asks for both: the worker takes one after the other."""
        whole, resumed = (_folder(self.case) for _ in range(2))
        first = checkpoints.FOLDER + "/step-00000001"
        return Several(
            parts=(
                (WHOLE, Trained(case=self.case, pending=_train(process, self.case, whole, None), folder=whole)),
                (RESUMED, Trained(case=self.case, pending=_train(process, self.case, resumed, whole / first), folder=resumed)),
            )
        )

    def require(self, stack: str, answered: Arrays) -> None:
        """Whatever a run leaves are bytes."""
        require_answer(stack, {name: (array.shape, "uint8") for name, array in answered.items()}, answered)


@dataclass(frozen=True, kw_only=True, eq=False)
class OfferAsk:
    """The run from a checkpoint that says that it is of a stack (an Ask)."""

    case: CheckpointCase
    stack: str

    def key(self) -> tuple[object, ...]:
        """Equal for the same case and stack."""
        return "offer", id(self.case), self.stack

    def send(self, process: StackProcess) -> Trained:
        """Asks for it, and waits for nothing."""
        folder = _folder(self.case)
        return Trained(case=self.case, pending=_train(process, self.case, folder, self.case.offered(self.stack)), folder=folder)

    def require(self, stack: str, answered: Arrays) -> None:
        """As OwnAsk.require."""
        require_answer(stack, {name: (array.shape, "uint8") for name, array in answered.items()}, answered)


@dataclass(frozen=True, kw_only=True)
class Trained:
    """A run on its way. A refusal is an answer too: `class` and `said`, its error's; else `done`, how it ended, and the run's files."""

    case: CheckpointCase
    pending: Pending
    folder: Path

    def result(self) -> Answer:
        """Waits for it.

        Raises:
            HarnessError: the worker failed.
        """
        try:
            answer = self.pending.result()
        except RequestFailed as error:
            return Answer({}, {CLASS: _bytes(error.error_class), SAID: _bytes(error.message)})
        found = {name: content for name, content in read_files(self.folder).items() if not name.endswith(".jsonl")}  # telemetry has times
        files = {name: self._anywhere(content) if name.endswith(".json") else content for name, content in found.items()}
        return Answer(answer.values, {DONE: _bytes(str(answer.values["end"])), **files}, answer.busy_ns)

    def _anywhere(self, content: np.ndarray) -> np.ndarray:
        return np.frombuffer(self.case.anywhere(content.tobytes()), np.uint8)


def _train(process: StackProcess, case: CheckpointCase, folder: Path, resume: Path | None) -> Pending:
    values = {
        "contract": case.run.contract.model_dump(mode="json"), "folder": str(folder), "resume": None if resume is None else str(resume),
        "about": {"stack": process.name, "packages": [], "device": process.device},
    }  # fmt: skip
    return process.submit("train", values)


def _folder(case: CheckpointCase) -> Path:
    return Path(case.home.name) / f"run-{next(_NUMBERS)}"


def _bytes(text: str) -> np.ndarray:
    return np.frombuffer(text.encode(), np.uint8)


# The verdict


def judge(case: Case, answered: Sequence[Answered], false_alarm: float) -> list[Comparison]:
    """Its own: accepted, with the bits of the run that was not interrupted. Another's: refused in words. All say the same of the run."""
    assert isinstance(case, CheckpointCase)
    (stack,) = answered
    own, *offered = stack.answers
    found = [_never(f"own checkpoint refused{_why(own, RESUMED)}", f"{RESUMED}{DONE}" not in own)]
    if f"{RESUMED}{DONE}" in own:
        found += _resumed(own)
        found.append(_same_state(own, case.state()))
    for name, answer in zip(STACKS, offered, strict=True):
        if name == stack.stack:
            found.append(_never(f"checkpoint of {name}, its own name, refused{_why(answer)}", DONE not in answer))
        else:
            found.append(_never(f"checkpoint of {name} accepted", DONE in answer))
            found.append(_never(f"checkpoint of {name} refused without a word of both stacks", not _in_words(answer, name, stack.stack)))
    return found


def _resumed(own: Arrays) -> list[Comparison]:
    """The adapters and the last checkpoint of both runs."""
    whole, resumed = ({name.removeprefix(run): array for name, array in own.items() if name.startswith(run)} for run in (WHOLE, RESUMED))
    names = sorted(name for name in whole if name.endswith(".safetensors") and "step-00000001" not in name)
    empty = np.empty(0, np.uint8)
    return [artifact_judges.same_bytes(f"resumed: {name}", resumed.get(name, empty), whole[name], LAW) for name in names]


def _same_state(own: Arrays, expected: bytes) -> Comparison:
    """What its own first checkpoint says, beside what is the stack's alone, is what any stack's says."""
    name = f"{WHOLE}{checkpoints.FOLDER}/step-00000001/{STATE}"
    first, second = (_shared(content) for content in (own[name].tobytes() if name in own else b"{}", expected))
    return artifact_judges.same_bytes("fields of its own checkpoint", first, second, LAW)


def _shared(content: bytes) -> np.ndarray:
    fields = {name: value for name, value in json.loads(content).items() if name not in _STATE_OF_STACK}
    return _bytes(json.dumps(fields, sort_keys=True))


def _in_words(answer: Arrays, *names: str) -> bool:
    """Whether a refusal is one line of a ContractError that names both stacks."""
    said = answer[SAID].tobytes() if SAID in answer else b""
    return answer.get(CLASS, _bytes("")).tobytes() == REFUSAL and b"\n" not in said and all(name.encode() in said for name in names)


def _why(answer: Arrays, before: str = "") -> str:
    said = answer.get(f"{before}{SAID}")
    return "" if said is None else f": {said.tobytes().decode()}"


def _never(what: str, happened: bool) -> Comparison:
    return verdict.at_most(what, float(happened), 0.0, "times", LAW)


def _asks(case: Case) -> tuple[Ask, ...]:
    assert isinstance(case, CheckpointCase)
    return OwnAsk(case=case), *(OfferAsk(case=case, stack=stack) for stack in STACKS)


def check() -> Check:
    """e.checkpoint."""
    plan = Plan(
        question=Question.PRECISION, dtype="float32", requests=_asks, judge=judge,
        graph=GraphNeeds(model_types=(RUN.layout.model_type,), session=True, requests=("train",)),
    )  # fmt: skip
    return Check(
        id="e.checkpoint", tier="E", title="a stack goes on from its own training checkpoint, and refuses another's", operations=(),
        plans=(plan,),
        not_applicable=dict.fromkeys((Question.SAME_FUNCTION, Question.FAST_PATH), "a law is asked of each stack alone"),
        cases=None, fixed_cases=cases, fixed_count=1,
    )  # fmt: skip
