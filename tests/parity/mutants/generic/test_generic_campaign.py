"""Campaigns over drawn mutants, with processes that answer at once: who is asked what, the verdicts, and how one goes on."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from contract.errors import Interrupted, UserError
from parity.checks import registry
from parity.mutants import asking
from parity.mutants.asking import Child
from parity.mutants.facts import Cell
from parity.mutants.generic import campaign, drawing, operators, reach, record
from parity.mutants.generic.asked import Request, Said
from parity.mutants.generic.campaign import Settings, Verdict
from parity.mutants.generic.place import Place
from parity.mutants.generic.reach import CheckReach, Reach
from parity.mutants.generic.record import Explained, Kind
from parity.options import Progress
from parity.report.record import Status

MODULE = "stacks.torch_qlora.made"
SOURCE = """
EPS = 0.5
FACTOR = EPS + 1.5


def norm(x, y, limit=3):
    if x < limit:
        return x + y
    return x - EPS


def unused(x):
    return x * 2.5
"""
NORM, LINEAR = "a.rms_norm", "a.linear"
RAN = {NORM: {MODULE: {7, 8, 9}}, LINEAR: {MODULE: {7}}}
SECONDS = {NORM: 5.0, LINEAR: 2.0}


def mutant(line: int, operator: str) -> Place:
    return next(place for place in operators.places(MODULE, SOURCE) if (place.line, place.operator) == (line, operator))


def said(check: str, status: Status, reason: str = "") -> Said:
    cell = Cell(check=check, question="precision", dtype="float32", stacks=("torch_qlora",), status=status, reason=reason)
    return Said(check=check, seconds=SECONDS[check], cells=(cell,))


def green(request: Request) -> list[Said]:
    return [said(check, Status.PASS) for check in request.checks]


class Processes:
    """Stands for asking.run: answers at once, and writes down what it was asked."""

    def __init__(self) -> None:
        self.answer: Callable[[Request], list[Said]] = green
        self.clean: Callable[[Request], list[Said]] = green
        self.child = Child(in_time=True, code=0, seconds=1.0, last_line="")
        self.requests: list[Request] = []

    def __call__(self, module: str, file: Path, folder: Path, *, deadline: float, stop: threading.Event) -> Child:
        assert module == "parity.mutants.generic.asked"
        request = Request.model_validate_json(file.read_bytes())
        self.requests.append(request)
        lines = (self.clean if request.planted is None else self.answer)(request)
        request.said.write_text("".join(one.model_dump_json() + "\n" for one in lines), encoding="utf-8")
        if request.traced is not None:
            for name, ran in RAN[request.checks[0]].items():
                (request.traced / "1.ran").write_text("".join(f"{name}:{line}\n" for line in ran), encoding="utf-8")
            return Child(in_time=True, code=0, seconds=1.0, last_line="")
        return self.child

    @property
    def planted(self) -> list[Request]:
        return [request for request in self.requests if request.planted is not None]


@pytest.fixture
def processes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Processes:
    processes = Processes()
    monkeypatch.setattr(asking, "run", processes)
    monkeypatch.setattr(drawing, "sources", lambda: {MODULE: SOURCE})
    monkeypatch.setattr(reach, "cache_folder", lambda: tmp_path)
    monkeypatch.setattr(registry, "CHECKS", tuple(check for check in registry.CHECKS if check.id in RAN))
    return processes


def outcome(place: Place, tmp_path: Path) -> campaign.Outcome:
    _, outcomes = campaign.ask([place], Settings(state=tmp_path / "state.jsonl"), Progress())
    return outcomes[0]


def test_a_mutant_is_asked_of_the_checks_that_run_its_statement_the_cheapest_first(processes: Processes, tmp_path: Path) -> None:
    assert outcome(mutant(7, "comparison"), tmp_path).verdict is Verdict.SURVIVED
    assert outcome(mutant(8, "arithmetic"), tmp_path).verdict is Verdict.SURVIVED
    assert [request.checks for request in processes.planted] == [(LINEAR, NORM), (NORM,)]
    assert processes.planted[0].planted is not None
    assert processes.planted[0].planted.stack == "torch_qlora"


@pytest.mark.parametrize(
    ("line", "operator", "reached"),
    [
        (2, "nudge", (NORM,)),  # EPS, by the line that names it, and FACTOR, which no line names
        (6, "off-by-one", (LINEAR, NORM)),  # a default, by the function's body
        (13, "nudge", ()),
    ],
)
def test_what_runs_at_import_is_reached_by_what_uses_it(processes: Processes, line: int, operator: str, reached: tuple[str, ...]) -> None:
    checks = [
        CheckReach(check=check, seconds=SECONDS[check], red="", ran={m: frozenset(at) for m, at in RAN[check].items()}) for check in RAN
    ]
    assert Reach(checks, {MODULE: SOURCE}).of(mutant(line, operator)) == reached


def test_a_constant_made_of_another_is_followed() -> None:
    source = SOURCE.replace("x - EPS", "x - FACTOR")
    one = CheckReach(check=NORM, seconds=1.0, red="", ran={MODULE: frozenset({9})})
    assert Reach([one], {MODULE: source}).of(mutant(2, "nudge")) == (NORM,)


def test_a_statement_that_no_check_runs_is_not_reached_and_nothing_is_asked(processes: Processes, tmp_path: Path) -> None:
    assert outcome(mutant(13, "nudge"), tmp_path).verdict is Verdict.NOT_REACHED
    assert not processes.planted


@pytest.mark.parametrize(
    ("status", "reason", "verdict"),
    [
        (Status.FAIL, "y: ulp 3", Verdict.KILLED),
        (Status.ERROR, "torch_qlora: RuntimeError: shapes", Verdict.CRASHED),
        (Status.ERROR, "torch_qlora: took over 120 s to answer compute, and was killed", Verdict.HUNG),
    ],
)
def test_verdicts(processes: Processes, tmp_path: Path, status: Status, reason: str, verdict: Verdict) -> None:
    processes.answer = lambda request: [said(LINEAR, Status.PASS), said(NORM, status, reason)]
    found = outcome(mutant(7, "comparison"), tmp_path)
    assert (found.verdict, found.by, found.reason) == (verdict, NORM, reason)


def test_a_stack_that_no_longer_starts_has_crashed(processes: Processes, tmp_path: Path) -> None:
    processes.answer = lambda request: [Said(check="", crash="RequestFailed: TypeError")]
    assert outcome(mutant(7, "comparison"), tmp_path).verdict is Verdict.CRASHED


def test_a_process_over_its_deadline_hangs_and_one_that_dies_has_crashed(processes: Processes, tmp_path: Path) -> None:
    processes.child = Child(in_time=False, code=-9, seconds=300.0, last_line="")
    assert outcome(mutant(7, "comparison"), tmp_path).verdict is Verdict.HUNG
    processes.child = Child(in_time=True, code=-11, seconds=1.0, last_line="Segmentation fault")
    found = outcome(mutant(8, "arithmetic"), tmp_path)
    assert (found.verdict, found.reason) == (Verdict.CRASHED, "its process ended with exit code -11: Segmentation fault")


def test_a_check_that_is_red_without_a_mutant_is_not_asked_and_is_told(processes: Processes, tmp_path: Path) -> None:
    processes.clean = lambda request: [said(request.checks[0], Status.FAIL if NORM in request.checks else Status.PASS, "broken")]
    found, outcomes = campaign.ask([mutant(7, "comparison")], Settings(state=tmp_path / "state.jsonl"), Progress())
    assert [request.checks for request in processes.planted] == [(LINEAR,)]
    told = record.of(outcomes, found, Settings(), 0)
    assert told.red == {NORM: "fail: broken"}
    assert any(NORM in line for line in record.lines(told))


def test_what_was_asked_is_not_asked_again(processes: Processes, tmp_path: Path) -> None:
    first = outcome(mutant(7, "comparison"), tmp_path)
    before = len(processes.requests)
    assert outcome(mutant(7, "comparison"), tmp_path) == first
    assert len(processes.requests) == before


def test_ctrl_c_keeps_what_is_known_and_says_how_to_go_on(processes: Processes, tmp_path: Path) -> None:
    def interrupted(request: Request) -> list[Said]:
        if request.planted is not None and "<=" in request.planted.replace:
            raise KeyboardInterrupt
        return green(request)

    processes.answer = interrupted
    places = [mutant(8, "arithmetic"), mutant(7, "comparison")]
    with pytest.raises(Interrupted, match="goes on from there"):
        campaign.ask(places, Settings(state=tmp_path / "state.jsonl"), Progress())
    processes.answer, before = green, len(processes.planted)
    campaign.ask(places, Settings(state=tmp_path / "state.jsonl"), Progress())
    assert len(processes.planted) == before + 1, "the one that had been asked was asked again"


def test_an_unknown_check_is_refused() -> None:
    with pytest.raises(UserError, match=r"begins with 'z\.'"):
        reach.checks_of("quick", ("z.",))


def test_the_record_counts_and_explains(processes: Processes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    explained, open_ = mutant(8, "arithmetic"), mutant(7, "comparison")
    monkeypatch.setattr(record, "survivors", lambda: {explained.name: Explained(kind=Kind.EQUIVALENT, why="y is 0")})
    processes.answer = lambda request: [
        said(NORM, Status.FAIL if request.planted is not None and "EPS" in request.planted.find else Status.PASS)
    ]
    places = [mutant(9, "arithmetic"), explained, open_, mutant(13, "nudge")]
    found, outcomes = campaign.ask(places, Settings(state=tmp_path / "state.jsonl"), Progress())
    told = record.of(outcomes, found, Settings(), 0)
    assert told.totals == {
        Verdict.KILLED: 1, Verdict.SURVIVED: 2, Verdict.CRASHED: 0, Verdict.HUNG: 0, Verdict.NOT_REACHED: 1,
    }  # fmt: skip
    assert told.kill_rate == 1 / 3
    assert told.survivors == {"equivalent": 1, "unexplained": 1}
    assert told.exit_code == 1
    assert sum(count for counts in told.files.values() for count in counts.values()) == 4
    shown = "\n".join(record.lines(told))
    assert open_.name in shown
    assert explained.name not in shown
    record.write(told, tmp_path / "out.json")
    assert record.GenericRecord.model_validate_json((tmp_path / "out.json").read_bytes()) == told


def test_every_explained_survivor_is_well_formed() -> None:
    for name, one in record.survivors().items():
        assert name.count(":") == 2
        assert len(one.why) > 20
