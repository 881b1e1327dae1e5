"""Writes a failing cell's file (parity/find/stored.py), and shows that what is in it fails.

A case that is too large is cut down first: answers to the tensor that failed, then the case itself where its kind knows how. What was
written is read again and asked again of the running workers; a file that does not fail in the same kind is not offered.
"""

from __future__ import annotations

import importlib.metadata
import platform
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from contract.model import zoo
from contract.worker.answers import HarnessError, RequestFailed
from contract.worker.capabilities import Capabilities
from contract.worker.files import FileNeeded, FileReference
from contract.worker.process import StackProcess
from parity.checks import (
    graph_packed,
    primitive_packed,  # noqa: F401  (registers how cases of single operations travel)
    registry,
)
from parity.checks import packed as packing
from parity.checks.check import Arrays, Case, Check, Plan, Question
from parity.checks.graph_case import GraphCase
from parity.checks.packed import CanNotTravel
from parity.find import judging, reproducer, stored
from parity.find.judging import NOT_A_CASE, Asked
from parity.find.stored import Failure, Kind, Record, StackThen, TooLarge
from parity.judge.verdict import Comparison
from parity.mutants import catalogue
from parity.tally import Tally

MOST_FILES = 20
"""In one run: a stack that is wrong everywhere would spend minutes on files that all say so."""

CUTTING_SECONDS = 20.0
NEIGHBOURS_TRIED = 3

NONE_PASSES, NONE_FITS = "no input that was tried passes", "the inputs that pass do not fit into the file"


class NotKept(Exception):
    """No file holds this failure; the message says why."""


@dataclass(frozen=True, kw_only=True)
class Of:
    """The run that a failure is of.

    versions: stack -> package -> version
    rerun:    the flags of `parity run` that draw the same inputs again
    """

    versions: Mapping[str, Mapping[str, str]]
    rerun: str
    profile: str
    seed: int
    mutants: Sequence[str]
    model: str


class Keeper:
    """Writes a run's failures into a folder."""

    def __init__(self, folder: Path, of: Of) -> None:
        self._folder, self._of, self._written = folder, of, 0

    def keep(
        self, tally: Tally, processes: Mapping[str, StackProcess], capabilities: Mapping[str, Capabilities], false_alarm: float
    ) -> None:  # fmt: skip
        """Writes the file of a failing cell, and notes in its tally where it lies, or why there is none."""
        if tally.failure is None:
            return
        again = reproducer.command(tally.cell, rerun=self._of.rerun, mutants=self._of.mutants)
        try:
            tally.reproducer = str(self._write(_One(tally, processes, capabilities, false_alarm, again, self._of), again))
        except (NotKept, HarnessError, RequestFailed, CanNotTravel) as error:
            tally.no_reproducer = str(error)
        except OSError as error:
            tally.no_reproducer = f"{self._folder} can't be written ({error.strerror or error}); give another with --reproducers"

    def _write(self, one: _One, again: str) -> Path:
        if self._written >= MOST_FILES:
            raise NotKept(f"this run has written {MOST_FILES} others; to have one of this cell, run: {again}")
        path = one.write(self._folder)
        self._written += 1
        return path


class _One:
    """One cell's failure on its way into a file."""

    def __init__(
        self, tally: Tally, processes: Mapping[str, StackProcess], capabilities: Mapping[str, Capabilities], false_alarm: float, again: str,
        of: Of,
    ) -> None:  # fmt: skip
        cell = tally.cell
        assert cell.plan is not None
        assert tally.failure is not None
        self._cell, self._plan, (self._comparison, self._case), self._passed = cell, cell.plan, tally.failure, tuple(tally.passed)
        self._asked = [
            Asked(stack=stack, device=device, capabilities=capabilities[stack])
            for stack, device in zip(cell.stacks, cell.devices, strict=True)
        ]
        self._processes, self._false_alarm, self._again, self._of = processes, false_alarm, again, of

    def write(self, folder: Path) -> Path:
        """The file, once what it holds has failed again.

        Raises:
            NotKept, HarnessError, RequestFailed, CanNotTravel, OSError: there is none.
        """
        if find_plan(self._cell.check.id, self._cell.question, self._cell.dtype, self._of.model) is None:
            raise NotKept(f"{self._cell.check.id} is of this run's own contract, which a file can't hold; run: {self._again}")
        why = ""
        for one in self._cases():
            answers = self._answers(one)
            for narrow in (False, True):
                try:
                    failure = self._failure(one, answers, narrow)
                    stored.encode(failure)
                except (TooLarge, *NOT_A_CASE) as error:
                    why = why or (f"it is too large: {error}" if isinstance(error, TooLarge) else f"it can't be stored: {error}")
                    continue
                except NotKept as error:  # a smaller case may pass, and one that is narrowed be no case
                    why = why or str(error)
                    continue
                finally:
                    one.forget()
                failure = self._with_neighbour(failure, one)
                self._confirm(failure, _paths(one))
                return stored.write(folder, failure)
        raise NotKept(why)

    def _cases(self) -> Iterator[Case]:
        """The case, and where it knows how to be smaller ever smaller ones, as long as there is time."""
        case = self._case
        if case.real is None or not isinstance(case, GraphCase):  # all that a checkpoint shows of itself never fits
            yield case
        until = time.monotonic() + CUTTING_SECONDS
        if isinstance(case, GraphCase):
            for one in graph_packed.smaller(case, self._comparison.where or ()):
                if time.monotonic() > until:
                    return
                yield one

    def _answers(self, case: Case) -> dict[str, list[Arrays]]:
        return {one.stack: judging.answers_of(self._plan, case, self._processes[one.stack]) for one in self._asked}

    def _failure(self, case: Case, answers: Mapping[str, Sequence[Arrays]], narrow: bool) -> Failure:
        """The failure without a neighbour.

        Raises:
            NotKept: this case does not fail in that kind.
            ValueError and the like: answers that were narrowed can't be judged.
        """
        kind = self._comparison
        kept = judging.names_of(kind, next(iter(answers.values()))) if narrow else None
        own = {stack: judging.narrowed(answer, kept) for stack, answer in answers.items()}
        packed = case.pack()
        stored.require_size(packed, own)  # before the reference computes for nothing
        judged = own if len(self._asked) > 1 else answers  # of one stack all are there again, wherever it is replayed
        found = judging.failed(judging.judge(self._plan, case, self._asked, judged, self._false_alarm), kind.tensor, kind.unit)
        if found is None:
            raise NotKept(f"asked again alone, {kind.tensor} is within its bound: the failure is of what was asked before it, or of chance")
        return Failure(record=self._record(case, packed, found, kept, self._suspects(case, answers)), case=packed, answers=own)

    def _record(self, case: Case, packed: packing.Packed, found: Comparison, kept: Sequence[str] | None, suspects: set[str]) -> Record:
        cell, of = self._cell, self._of
        named = {tensor.sha256 for tensor in packed.tensors.values() if isinstance(tensor, FileReference)}
        return Record(
            twostack=importlib.metadata.version("twostack"), machine=machine(), check=cell.check.id, question=str(cell.question),
            dtype=cell.dtype,
            stacks=tuple(
                StackThen(name=one.stack, device=one.device, versions=dict(of.versions[one.stack]), suspect=one.stack in suspects)
                for one in self._asked
            ),
            failed=Kind(tensor=found.tensor, unit=found.unit), place=found.place or found.tensor, where=found.where, got=found.got,
            wanted=found.wanted, observed=found.observed, bound=found.bound, bound_source=found.bound_source,
            false_alarm=self._false_alarm, asked=judging.digest(self._plan.requests(case)), kept=None if kept is None else tuple(kept),
            profile=of.profile, seed=of.seed, mutants=catalogue.changing(of.mutants, cell.stacks),
            model=_model_of(named, of.model), again=self._again, case=stored.describe(packed), neighbour=None,
            no_neighbour=NONE_FITS,  # the longer one, so that what fits without a neighbour fits with the reason
        )  # fmt: skip

    def _suspects(self, case: Case, answers: Mapping[str, Sequence[Arrays]]) -> set[str]:
        """The stacks that the reference finds wrong, of two that differ; both, where it finds neither or is not asked."""
        every = set(self._cell.stacks)
        alone = [plan for plan in self._cell.check.plans if (plan.question, plan.dtype) == (Question.PRECISION, self._plan.dtype)]
        if len(every) == 1 or not alone or judging.digest(alone[0].requests(case)) != judging.digest(self._plan.requests(case)):
            return every
        wrong = set()
        for one in self._asked:
            try:
                comparisons = judging.judge(alone[0], case, [one], answers, self._false_alarm)
            except NOT_A_CASE:
                return every
            wrong |= set() if all(comparison.passed for comparison in comparisons) else {one.stack}
        return wrong or every

    def _with_neighbour(self, failure: Failure, case: Case) -> Failure:
        """With a passing input beside it, of those that fit and still pass."""
        why = NONE_PASSES
        for near in self._near(case):
            try:
                packed, answers = near.pack(), {}
                if len(self._asked) > 1:  # of one stack, it is asked again wherever the file is replayed
                    answers = {name: judging.narrowed(all_, failure.record.kept) for name, all_ in self._answers(near).items()}
                record = failure.record.model_copy(update={"neighbour": stored.describe(packed), "no_neighbour": ""})
                whole = replace(failure, record=record, neighbour=packed, neighbour_answers=answers)
                stored.encode(whole)
            except TooLarge:
                why = NONE_FITS
                continue
            except NOT_A_CASE:
                continue
            if self._passes(whole, _paths(near)):
                return whole
        return replace(failure, record=failure.record.model_copy(update={"no_neighbour": why}))

    def _near(self, case: Case) -> list[Case]:
        """The inputs that passed and are closest in size; of equals those that were tried last, when the failure was being shrunk."""
        latest = list(self._passed)
        latest.reverse()
        return sorted(latest, key=lambda one: abs(one.nbytes - case.nbytes))[:NEIGHBOURS_TRIED]

    def _passes(self, failure: Failure, paths: Mapping[str, str]) -> bool:
        """Whether the neighbour, made again from what would be stored, passes."""
        assert failure.neighbour is not None
        try:
            comparisons = self._again_judged(failure.neighbour, failure.record.kept, paths)
        except (*NOT_A_CASE, FileNeeded):
            return False
        return all(one.passed for one in comparisons)

    def _confirm(self, failure: Failure, paths: Mapping[str, str]) -> None:
        """Writes the file aside, reads it, asks the running workers again.

        Raises:
            NotKept: it does not fail in the same kind.
        """
        with tempfile.TemporaryDirectory(prefix="twostack-failure-") as folder:
            read = stored.read(stored.write(Path(folder), failure))
        kind = read.record.failed
        try:
            comparisons = self._again_judged(read.case, read.record.kept, paths)
        except (*NOT_A_CASE, FileNeeded) as error:
            raise NotKept(f"read again from its file, the case can't be judged: {error}") from None
        if judging.failed(comparisons, kind.tensor, kind.unit) is None:
            raise NotKept(f"asked again from its file, {kind.tensor} is within its bound: what made it fail is not in the case")

    def _again_judged(self, packed: packing.Packed, kept: Sequence[str] | None, paths: Mapping[str, str]) -> list[Comparison]:
        case = packing.unpack(stored.resolved(packed, paths))
        answers = {stack: judging.narrowed(answer, kept if len(self._asked) > 1 else None) for stack, answer in self._answers(case).items()}
        return judging.judge(self._plan, case, self._asked, answers, self._false_alarm)


def find_plan(check: str, question: str, dtype: str, model: str) -> tuple[Check, Plan] | None:
    """The check and the plan that a cell asks, where this version has such a cell."""
    checks = registry.checks(model) if model else registry.CHECKS
    plans = ((one, plan) for one in checks if one.id == check for plan in one.plans)
    return next(((one, plan) for one, plan in plans if (plan.question, plan.dtype) == (question, dtype)), None)


def _model_of(files: set[str], model: str) -> str:
    """The name of the checkpoint that has these files: a known one, which tier B takes whatever is asked of tier C, or the run's."""
    known = {one.weights_sha256: name for name, one in zoo.KNOWN.items()}
    return next((known[sha256] for sha256 in files if sha256 in known), model) if files else ""


def machine() -> dict[str, str]:
    """What a record says of where it was made."""
    return {"system": platform.platform(), "processor": platform.machine(), "python": platform.python_version()}


def _paths(case: Case) -> dict[str, str]:
    """Where the checkpoint's files lie, by their SHA-256."""
    weights = list(case.weights.values()) if isinstance(case, GraphCase) else []
    return {one.sha256: one.path for one in (*weights, case.real) if isinstance(one, FileReference)}
