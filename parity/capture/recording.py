"""Sources of a capture: one that asks a stack and writes down what it answers, one that reads it again."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from contract.worker.answers import Answer, HarnessError, RequestFailed
from contract.worker.process import StackProcess
from parity.capture import store
from parity.capture.digest import digest
from parity.capture.store import Index, Outcome, Recorded
from parity.checks.check import Ask, Awaited
from parity.sources import Example, Given, NotRecorded


@dataclass(frozen=True)
class _Noted:
    """A request on its way, whose outcome is written down."""

    awaited: Awaited
    outcomes: dict[int, Outcome]
    ordinal: int

    def result(self) -> Answer:
        """As the awaited one's."""
        try:
            answer = self.awaited.result()
        except (HarnessError, RequestFailed) as error:
            self.outcomes[self.ordinal] = error
            raise
        self.outcomes[self.ordinal] = answer
        return answer


class RecordingSource:
    """A stack that runs, each example written when it is done; what an interrupted capture has already is not asked again.

    Args:
        folder: of the capture.
    """

    def __init__(self, folder: Path, process: StackProcess) -> None:
        self._folder, self._process = folder, process
        self._kept: dict[str, Recorded | None] = {}
        self._digests: dict[str, str] = {}
        self._outcomes: dict[str, dict[int, Outcome]] = {}
        self.asked = self.kept = self.failed = 0

    def ask(self, example: Example, ordinal: int, request: Ask) -> Awaited:
        """Sends the request, unless its answer lies there."""
        kept = self._before(example)
        if kept is not None and ordinal in kept.outcomes:
            self.kept += 1
            return Given(kept.outcomes[ordinal])
        outcomes = self._outcomes.setdefault(_name(example), {})
        self.asked += 1
        try:
            return _Noted(request.send(self._process), outcomes, ordinal)
        except (HarnessError, RequestFailed) as error:
            outcomes[ordinal] = error
            raise

    def done(self, example: Example) -> None:
        """Writes the example."""
        kept, number = self._before(example), self._digests.pop(_name(example))
        outcomes = {**(kept.outcomes if kept else {}), **self._outcomes.pop(_name(example), {})}
        self.failed += sum(isinstance(outcome, Exception) for outcome in outcomes.values())
        if kept is None or len(outcomes) > len(kept.outcomes):
            recorded = Recorded(case=example.case.name, digest=number, outcomes=outcomes)
            store.write_example(_path(self._folder, example), recorded, self._process.name)
        del self._kept[_name(example)]

    def _before(self, example: Example) -> Recorded | None:
        """What an interrupted capture has of this example, if it was the same one."""
        name = _name(example)
        if name not in self._kept:
            self._digests[name] = digest(example.case)
            found = store.read_example(_path(self._folder, example), self._process.name)
            self._kept[name] = found if found is not None and found.digest == self._digests[name] else None
        return self._kept[name]


class RecordedSource:
    """A capture in a stack's place."""

    def __init__(self, folder: Path, index: Index) -> None:
        self._folder, self._index = folder, index
        self._open: dict[str, Recorded | None] = {}

    def ask(self, example: Example, ordinal: int, request: Ask) -> Awaited:
        """What the stack answered.

        Raises:
            NotRecorded: the example, or the request, was not asked; or it was asked on other inputs.
            UserError: the example's file is not sound.
        """
        name = _name(example)
        if name not in self._open:
            self._open[name] = store.read_example(_path(self._folder, example), self._index.stack)
        recorded = self._open[name]
        if recorded is None:
            raise NotRecorded(self._why_absent(example))
        if recorded.digest != digest(example.case):
            raise NotRecorded(self._why_other(example, recorded))
        if ordinal not in recorded.outcomes:
            raise NotRecorded(f"{self._folder} holds no answer of {self._index.stack} to this question; {self._again}")
        return Given(recorded.outcomes[ordinal])

    def done(self, example: Example) -> None:
        """Forgets it."""
        self._open.pop(_name(example), None)

    @property
    def _again(self) -> str:
        return f"capture it: parity capture --stack {self._index.stack} --only CHECK --out ANOTHER_DIR"

    def _why_absent(self, example: Example) -> str:
        known = self._index.checks.get(example.check_id)
        if known is None and not self._index.complete:
            return f"{self._folder} was interrupted before it had all of {example.check_id}; go on with the command that made it"
        if known is None:
            return f"{self._folder} does not have {example.check_id}; {self._again}"
        return f"{self._folder} has no example {example.number} of {example.check_id}: {known.missing or 'its file is gone; copy it again'}"

    def _why_other(self, example: Example, recorded: Recorded) -> str:
        own = store.draws()
        there = ", ".join(f"{name} {version}" for name, version in self._index.draws.items())
        here = ", ".join(f"{name} {own[name]}" for name in own)
        return (
            f"example {example.number} of {example.check_id} is another input here than in {self._folder} ({example.case.name!r} here, "
            f"{recorded.case!r} there; drawn with {there} there, {here} here): compare where the versions are those of the capture"
        )


def _name(example: Example) -> str:
    return f"{example.check_id} {example.number}"


def _path(folder: Path, example: Example) -> Path:
    return store.path_of(folder, example.check_id, example.number)
