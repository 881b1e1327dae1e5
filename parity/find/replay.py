"""A stored failure, asked again of the stacks that are here; answers of a stack that is not come from the file."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

from contract.errors import MissingError, UserError, printable
from contract.model import checkpoint
from contract.worker import discover
from contract.worker.answers import HarnessError, RequestFailed
from contract.worker.discover import StackInfo
from contract.worker.files import FileReference, sha256_of
from contract.worker.process import StackProcess
from parity import selection, workers
from parity.checks import graph_packed, primitive_packed  # noqa: F401  (register how their cases travel)
from parity.checks import packed as packing
from parity.checks.check import Arrays, Case, Plan
from parity.checks.packed import CanNotTravel, Packed
from parity.find import judging, stored
from parity.find.judging import NOT_A_CASE, Asked
from parity.find.preserve import find_plan
from parity.find.stored import Answers, Failure, Record
from parity.judge.verdict import Comparison
from parity.mutants import catalogue


class Outcome(StrEnum):
    """What became of a stored failure."""

    SAME = "fails as stored"
    OTHER = "fails otherwise"
    PASSES = "passes now"


@dataclass(frozen=True, kw_only=True)
class Options:
    """How to replay; empty selections mean what the file says, as far as it is here.

    stacks:  the ones to ask
    devices: others than those of the file, by stack
    model:   the checkpoint that the file's weights are of, where it lies elsewhere
    planted: with the mutants of the run that wrote the file
    """

    stacks: tuple[str, ...] = ()
    devices: Mapping[str, str] = field(default_factory=dict)
    model: str = ""
    planted: bool = True


@dataclass(frozen=True, kw_only=True)
class Replayed:
    """One file, replayed.

    found:     the comparison that failed then, as it comes out now; None where a stack gave no answer
    others:    what else fails now
    as_then:   stack that was asked -> whether it answers bit for bit as it did then; not of one that was asked on another device
    versions:  stack that was asked -> package -> version now
    neighbour: why the input that passed then does not pass now; empty where it does; None where there is none, or it can't be asked
    trouble:   a worker's failure in place of an answer
    """

    path: Path
    record: Record
    title: str
    case: str
    outcome: Outcome
    found: Comparison | None
    others: tuple[Comparison, ...]
    as_then: Mapping[str, bool]
    devices: Mapping[str, str]
    versions: Mapping[str, Mapping[str, str]]
    neighbour: str | None
    mutants: tuple[str, ...]
    trouble: str = ""

    @property
    def exit_code(self) -> int:
        """1 it fails as stored, 0 it passes and so does its neighbour, 3 anything else."""
        if self.outcome is Outcome.SAME:
            return 1
        return 0 if self.outcome is Outcome.PASSES and not self.neighbour else 3


class Workers:
    """Workers that several files share; ended together."""

    def __init__(self) -> None:
        self._started: dict[tuple[str, str, tuple[str, ...]], StackProcess] = {}
        self._stack = ExitStack()

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, *raised: object) -> None:
        self._stack.close()

    def get(self, info: StackInfo, device: str, mutants: Sequence[str]) -> StackProcess:
        """A running stack with these bugs planted. Raises: as workers.started."""
        own = catalogue.changing(mutants, (info.name,))
        key = info.name, device, own
        if key not in self._started:
            self._started[key] = self._stack.enter_context(workers.started({info.name: (info, device)}, own))[info.name]
        return self._started[key]


def replay(path: Path, options: Options, running: Workers, tell: Callable[[str], None] = lambda text: None) -> Replayed:
    """Asks a stored failure again, and the input beside it that passed.

    Raises:
        UserError: no such file, or one that this version can't ask as it was asked.
        MissingError: a stack, a device or a checkpoint that it needs is not here.
        EnvironmentUnfit, HarnessError: a worker did not come up.
    """
    failure = stored.read(path)
    record = failure.record
    paths = _checkpoint(failure, options.model or record.model)
    plan, title = _plan(path, record, options.model or record.model)
    case = _case(path, plan, failure.case, paths)
    if judging.digest(plan.requests(case)) != record.asked:
        raise UserError(f"{path}: {record.check} asks otherwise in this version; {_versions_of(record)}")
    known = discover.discover()
    chosen = _chosen(path, record, known, options)
    mutants = record.mutants if options.planted else ()
    asked = [
        Asked(stack=one.name, device=chosen.get(one.name, (None, one.device))[1], capabilities=_known(known, one.name, path).capabilities)
        for one in record.stacks
    ]
    tell(f"starting {' and '.join(chosen)}")
    live = {name: running.get(info, device, mutants) for name, (info, device) in chosen.items()}
    one = _One(record, plan, asked, live, tell)
    found, others, as_then, trouble = one.failing(path, case, failure.answers)
    outcome = Outcome.OTHER if trouble or (others and not found) else Outcome.PASSES
    shown = found or next((each for each in one.compared if each.tensor == record.failed.tensor), None)
    return Replayed(
        path=path, record=record, title=title, case=case.name, outcome=Outcome.SAME if found else outcome, found=shown,
        others=tuple(others), as_then={name: same for name, same in as_then.items() if asked_as_then(record, name, chosen[name][1])},
        devices={name: device for name, (_, device) in chosen.items()},
        versions={name: info.told_versions() for name, (info, _) in chosen.items()},
        neighbour=None if trouble else one.neighbour(path, failure, paths), mutants=tuple(mutants), trouble=trouble,
    )  # fmt: skip


class _One:
    """The cell of one file."""

    def __init__(
        self, record: Record, plan: Plan, asked: Sequence[Asked], live: Mapping[str, StackProcess], tell: Callable[[str], None]
    ) -> None:  # fmt: skip
        self._record, self._plan, self._asked, self._live, self._tell = record, plan, asked, live, tell
        self.compared: list[Comparison] = []

    def failing(
        self, path: Path, case: Case, then: Answers
    ) -> tuple[Comparison | None, list[Comparison], dict[str, bool], str]:  # fmt: skip
        """The comparison that fails as then, the others that fail, which stacks answer as then, and a worker's trouble in their place."""
        self._tell(f"asking {' and '.join(self._live)}")
        try:
            now = self._answers(case, then)
        except (HarnessError, RequestFailed) as error:
            return None, [], {}, str(error)
        self._tell("judging the answers")
        self.compared = self._judged(path, case, now)
        kind = self._record.failed
        found = judging.failed(self.compared, kind.tensor, kind.unit)
        same = {name: _equal(judging.narrowed(now[name], self._record.kept), then[name]) for name in self._live}
        return found, [one for one in self.compared if not one.passed and one is not found], same, ""

    def neighbour(self, path: Path, failure: Failure, paths: Mapping[str, str]) -> str | None:
        """Why the input that passed then does not now; None where there is none, or a stack's answers to it are not stored."""
        then = failure.neighbour_answers or {}
        if failure.neighbour is None or any(one.stack not in self._live and not then.get(one.stack) for one in self._asked):
            return None
        self._tell("asking for the input beside it, which passed")
        case = _case(path, self._plan, failure.neighbour, paths)
        try:
            now = self._answers(case, then)
        except (HarnessError, RequestFailed) as error:
            return str(error)
        wrong = [one for one in self._judged(path, case, now) if not one.passed]
        if not wrong:
            return ""
        return f"{wrong[0].place or wrong[0].tensor}: {wrong[0].unit} {wrong[0].observed:.4g}, allowed {wrong[0].bound:.4g}"

    def _answers(self, case: Case, then: Answers) -> dict[str, list[Arrays]]:
        """What the stacks that run answer now, and the others answered then."""
        count, found = len(self._plan.requests(case)), {}
        kept = None if len(self._live) == len(self._asked) else self._record.kept
        for one in self._asked:
            if one.stack in self._live:
                found[one.stack] = judging.narrowed(judging.answers_of(self._plan, case, self._live[one.stack]), kept)
            else:
                found[one.stack] = [*then[one.stack], *({} for _ in range(count - len(then[one.stack])))]
        return found

    def _judged(self, path: Path, case: Case, answers: Answers) -> list[Comparison]:
        try:
            return judging.judge(self._plan, case, self._asked, answers, self._record.false_alarm)
        except NOT_A_CASE as error:
            why = f"{self._record.check} can't judge what is in it ({_words(error)})"
            raise UserError(f"{path}: {why}; {_versions_of(self._record)}") from None


def asked_as_then(record: Record, stack: str, device: str) -> bool:
    """Whether a stack is asked on the device of then."""
    return any((one.name, one.device) == (stack, device) for one in record.stacks)


def _plan(path: Path, record: Record, model: str) -> tuple[Plan, str]:
    found = find_plan(record.check, record.question, record.dtype, model)
    if found is None:
        asked = f"{record.check} {record.question} in {record.dtype}"
        raise UserError(f"{path}: asks {printable(asked)}, which this version does not ask; {_versions_of(record)}")
    check, plan = found
    return plan, check.title


def _versions_of(record: Record) -> str:
    here = importlib.metadata.version("twostack")
    return f"it was written by twostack {printable(record.twostack)}, and this is {here}: replay it with that one, or run the check anew"


def _case(path: Path, plan: Plan, packed: Packed, paths: Mapping[str, str]) -> Case:
    """Raises UserError where there is no case of this kind in what was packed, or one that the plan does not ask of."""
    try:
        case = packing.unpack(stored.resolved(packed, paths))
        plan.requests(case)  # which asserts the kind of its own cases
    except (*NOT_A_CASE, AssertionError, CanNotTravel) as error:
        raise UserError(f"{path}: holds no case that can be asked ({_words(error)}); give a file that parity run wrote") from None
    return case


def _words(error: BaseException) -> str:
    return printable(f"{type(error).__name__}: {error}")[:200]


def _chosen(path: Path, record: Record, known: Mapping[str, StackInfo], options: Options) -> dict[str, tuple[StackInfo, str]]:
    """The stacks to ask: those that are named, else those of the file that are here, as long as a suspect is among them."""
    names = [one.name for one in record.stacks]
    for name in (*options.stacks, *options.devices):
        if name not in names:
            raise UserError(f"{path}: is of {' and '.join(names)}, and not of {name}; name one of these, or none")
    here = [name for name in names if not _known(known, name, path).missing_packages()]
    suspects = [one.name for one in record.stacks if one.suspect]
    wanted = list(options.stacks) or here
    if not options.stacks and not set(suspects) & set(here):
        (first, *_) = suspects
        lacking = ", ".join(known[first].missing_packages())
        others = f"; --stacks {','.join(here)} asks the other one, whose answers were right" if here else ""
        raise MissingError(
            f"{path}: needs the stack {first}, and {lacking} is not installed here; run: "
            f"pip install 'twostack[{known[first].capabilities.extra}]'{others}"
        )
    devices = {one.name: one.device for one in record.stacks if one.name in wanted} | dict(options.devices)
    return selection.select_stacks(known, wanted, devices)


def _known(known: Mapping[str, StackInfo], name: str, path: Path) -> StackInfo:
    if name not in known:
        raise MissingError(f"{path}: needs the stack {printable(name)}, which is not here; run in the folder whose parity.toml names it")
    return known[name]


def _checkpoint(failure: Failure, model: str) -> dict[str, str]:
    """Where the weights lie that the file names, by the SHA-256 of their files.

    Raises:
        MissingError: the checkpoint is not here, or has other bits.
        UserError: it is no sound checkpoint.
    """
    packed = [failure.case, *([failure.neighbour] if failure.neighbour else [])]
    needed = {tensor.sha256 for one in packed for tensor in one.tensors.values() if isinstance(tensor, FileReference)}
    if not needed:
        return {}
    if not model:
        raise UserError("the file names weights of a checkpoint, and no checkpoint; say which: --model NAME or FOLDER")
    paths = {sha256_of(file): str(file) for file in checkpoint.locate(model).identities}
    if needed - set(paths):
        raise MissingError(
            f"the failure needs weights with SHA-256 {sorted(needed - set(paths))[0]}, and {printable(model)} here has others; "
            "name the checkpoint that has them: --model FOLDER"
        )
    return paths


def _equal(now: Sequence[Arrays], then: Sequence[Arrays]) -> bool:
    """Bit for bit; an answer without tensors is none that was stored."""
    first, second = ({(index, name): array for index, answer in enumerate(one) for name, array in answer.items()} for one in (now, then))
    return first.keys() == second.keys() and all(
        array.dtype == second[key].dtype and array.shape == second[key].shape and array.tobytes() == second[key].tobytes()
        for key, array in first.items()
    )
