"""Campaigns, with askings that answer at once: what is asked in which order, what is kept, and how one ends and goes on."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from contract.errors import Interrupted, UserError
from parity.checks import registry
from parity.mutants import asking, campaign, keys
from parity.mutants.asked import Request
from parity.mutants.campaign import Outcome, Settings
from parity.mutants.catalogue import CONTRACT, Mutant
from parity.mutants.facts import Ended, Facts
from parity.mutants.verdicts import Verdict
from parity.options import Progress
from parity.report.record import Status
from tests.parity.mutants.askables import CRASHED, HUNG, cell, done, mutant
from tests.parity.numpy_stack import configure

Answer = Callable[[Request], Facts]


def all_of(request: Request, status: Status) -> Facts:
    stacks = request.stacks or ("one", "two")
    return done(*(cell(status, check=check, stacks=(stack,)) for check in request.checks for stack in stacks))


def sees(*checks: str) -> Answer:
    """The gate in which these checks see every mutant."""

    def answer(request: Request) -> Facts:
        red = request.mutants and set(checks) & set(request.checks)
        return all_of(request, Status.FAIL if red else Status.PASS)

    return answer


class Asked:
    """Stands for asking.ask, and writes down what it was asked."""

    def __init__(self) -> None:
        self.answer: Answer = sees("a.matmul")
        self.requests: list[Request] = []
        self.deadlines: list[float] = []

    def __call__(self, request: Request, folder: Path, *, deadline: float, stop: threading.Event) -> Facts:
        self.requests.append(request)
        self.deadlines.append(deadline)
        return self.answer(request)

    @property
    def planted(self) -> list[Request]:
        return [request for request in self.requests if request.mutants]


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Asked:
    configure(tmp_path, one=[], two=[])
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(keys, "sources", lambda folders: "")  # test_keys.py asks of real ones
    monkeypatch.setattr(keys, "of_stacks", lambda known, stacks: {})
    fake = Asked()
    monkeypatch.setattr(asking, "ask", fake)
    return fake


def go(*mutants: Mutant, until: str = "own", jobs: int = 1, fresh: bool = False, progress: Progress | None = None) -> dict[str, Outcome]:
    settings = Settings(state=Path("asked.jsonl"), until=until, jobs=jobs, fresh=fresh)
    return {one.mutant.name: one for one in campaign.ask(mutants, settings, progress)}


def test_its_own_check_is_asked_of_the_stack_that_it_changes_without_it_and_with_it(asked: Asked) -> None:
    outcome = go(mutant())["m"]
    assert outcome.verdict is Verdict.KILLED
    assert outcome.killed_by is not None
    assert outcome.killed_by.check == "a.matmul"
    assert [(one.checks, one.stacks, one.mutants) for one in asked.requests] == [
        (("a.matmul",), ("one",), ()), (("a.matmul",), ("one",), ("m",)),
    ]  # fmt: skip


def test_the_same_checks_are_asked_without_a_mutant_once(asked: Asked) -> None:
    go(mutant("m"), mutant("n", replace="return b"), mutant("o", check="a.exp", replace="return a"), jobs=3)
    assert [one.checks for one in asked.requests if not one.mutants] == [("a.exp", "a.matmul")]
    assert len(asked.planted) == 3


def test_a_survivor_of_its_own_check_is_asked_the_others_cheapest_tier_first(asked: Asked) -> None:
    asked.answer = sees("c.llama")
    outcome = go(mutant(), until="killed")["m"]
    assert outcome.verdict is Verdict.KILLED
    assert [{check[0] for check in one.checks} for one in asked.planted] == [{"a"}, {"a"}, {"b"}, {"c"}]
    assert all("a.matmul" not in one.checks for one in asked.planted[1:])
    assert {one.stacks for one in asked.planted} == {("one",)}


def test_one_that_no_check_sees_alone_is_held_against_the_other_stack(asked: Asked) -> None:
    asked.answer = sees()
    outcome = go(mutant(), until="killed")["m"]
    assert outcome.verdict is Verdict.SURVIVED
    every = {check.id for check in registry.CHECKS}
    for stacks in (("one",), ()):
        assert {check for one in asked.planted if one.stacks == stacks for check in one.checks} == every


def test_until_every_asks_all_even_of_one_that_was_killed(asked: Asked) -> None:
    outcome = go(mutant(), until="every")["m"]
    assert outcome.verdict is Verdict.KILLED
    assert {one.check for one in outcome.asked} == {check.id for check in registry.CHECKS}


def test_one_of_the_contract_is_asked_of_all_stacks(asked: Asked) -> None:
    assert go(mutant(stacks=(CONTRACT,)))["m"].verdict is Verdict.KILLED
    assert {one.stacks for one in asked.requests} == {()}


def test_one_of_both_stacks_is_asked_of_both(asked: Asked) -> None:
    assert go(mutant(stacks=("one", "two")))["m"].verdict is Verdict.KILLED
    assert {one.stacks for one in asked.requests} == {("one", "two")}


def test_a_stale_one_is_not_asked(asked: Asked) -> None:
    outcomes = go(mutant("gone", replace="return a @"), mutant("m"))
    assert outcomes["gone"].verdict is Verdict.STALE
    assert "does not compile" in outcomes["gone"].reason
    assert [one.mutants for one in asked.planted] == [("m",)]


@pytest.mark.parametrize(("facts", "verdict"), [(CRASHED, Verdict.CRASHED), (HUNG, Verdict.HUNG)])
def test_a_crash_or_a_hang_ends_its_asking_and_kills_nothing(asked: Asked, facts: Facts, verdict: Verdict) -> None:
    asked.answer = lambda request: facts if request.mutants else all_of(request, Status.PASS)
    outcome = go(mutant(), until="killed")["m"]
    assert outcome.verdict is verdict
    assert len(asked.planted) == 1


@pytest.mark.parametrize("without", [Status.FAIL, Status.ERROR, Status.NOT_COVERED])
def test_nothing_is_killed_by_a_check_that_is_red_without_a_mutant(asked: Asked, without: Status) -> None:
    asked.answer = lambda request: all_of(request, Status.FAIL if request.mutants else without)
    outcome = go(mutant())["m"]
    assert outcome.verdict is Verdict.SURVIVED
    assert outcome.asked[0].verdict is Verdict.RED_WITHOUT


def test_a_deadline_is_of_what_the_checks_take_without_the_mutant(asked: Asked) -> None:
    go(mutant())
    assert asked.deadlines == [campaign.CLEAN_SECONDS, campaign.LEAST_SECONDS + campaign.MOST_TIMES * 1.0]


def test_what_is_known_is_not_asked_again_and_what_is_new_is(asked: Asked) -> None:
    go(mutant())
    before = len(asked.requests)
    assert go(mutant(), mutant("n", replace="return b"))["m"].verdict is Verdict.KILLED
    assert [one.mutants for one in asked.requests[before:]] == [("n",)]
    go(mutant(), fresh=True)
    assert len(asked.requests) == before + 3


def test_what_was_asked_while_the_source_changed_is_asked_again(asked: Asked, monkeypatch: pytest.MonkeyPatch) -> None:
    state = ["before"]
    monkeypatch.setattr(keys, "sources", lambda folders: state[0])

    def changing(request: Request) -> Facts:
        state[0] = "after"
        return all_of(request, Status.FAIL if request.mutants else Status.PASS)

    asked.answer = changing
    go(mutant())
    first = len(asked.requests)
    go(mutant())
    assert [one.mutants for one in asked.requests[first:]] == [()], "the run without a mutant had begun with the old source"


def test_jobs_ask_at_once(asked: Asked) -> None:
    """Each of two askings waits for the other one; alone it would wait in vain."""
    meeting = threading.Barrier(2, timeout=60)

    def meet(request: Request) -> Facts:
        if request.mutants:
            meeting.wait()
        return all_of(request, Status.FAIL if request.mutants else Status.PASS)

    asked.answer = meet
    assert {one.verdict for one in go(mutant("m"), mutant("n", replace="return b"), jobs=2).values()} == {Verdict.KILLED}


def test_no_more_than_so_many_jobs_ask_at_once(asked: Asked) -> None:
    running, most, counting = [0], [0], threading.Lock()

    def count(request: Request) -> Facts:
        with counting:
            running[0] += 1
            most[0] = max(most[0], running[0])
        with counting:
            running[0] -= 1
        return all_of(request, Status.FAIL if request.mutants else Status.PASS)

    asked.answer = count
    go(*(mutant(f"m{number}", replace=f"return a * {number}") for number in range(8)), jobs=1)
    assert most == [1]


def test_ctrl_c_leaves_what_was_asked_and_tells_how_to_go_on(asked: Asked) -> None:
    mutants = [mutant(f"m{number}", replace=f"return a * {number}") for number in range(4)]
    settings = Settings(state=Path("asked.jsonl"), until="own")
    outcomes = campaign.ask(mutants, settings)
    next(outcomes)
    with pytest.raises(Interrupted, match=r"interrupted; .* kept in asked\.jsonl, and the same command goes on"):
        outcomes.throw(KeyboardInterrupt)
    known = {one.mutants for one in asked.requests}
    assert ("m0",) in known
    asked.requests.clear()
    assert {one.verdict for one in go(*mutants).values()} == {Verdict.KILLED}
    assert not known & {one.mutants for one in asked.requests}


def test_a_campaign_that_ends_stops_what_it_asks(asked: Asked) -> None:
    """An asking that would never end is told to stop, and the campaign waits for it."""
    stopped: list[str] = []

    def forever(request: Request, folder: Path, *, deadline: float, stop: threading.Event) -> Facts:
        if request.mutants == ("hangs",):
            assert stop.wait(60)
            stopped.append("hangs")
            raise asking.Stopped
        return all_of(request, Status.FAIL if request.mutants else Status.PASS)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(asking, "ask", forever)
        outcomes = campaign.ask(
            [mutant("hangs", replace="return b"), mutant("m")], Settings(state=Path("asked.jsonl"), until="own", jobs=2)
        )
        assert next(outcomes).mutant.name == "m"
        with pytest.raises(Interrupted):
            outcomes.throw(KeyboardInterrupt)
    assert stopped == ["hangs"]


def test_progress_counts_the_runs_without_mutants_too(asked: Asked) -> None:
    told: list[object] = []
    progress = Progress(doing=lambda text: told.append(text), total=told.append, step=lambda: told.append("step"))
    go(mutant(), mutant("gone", replace="return a @"), progress=progress)
    assert told.count("step") == told[0] == 3
    assert "a.matmul m" in told


@pytest.mark.parametrize(
    ("one", "message"),
    [
        (mutant(check="a.none"), r"mutant m names the check 'a\.none', which there is none of"),
        (mutant(stacks=("three",)), "mutant m changes three; allowed: contract, one"),
    ],
)
def test_an_unknown_check_or_stack_is_refused_before_anything_is_asked(asked: Asked, one: Mutant, message: str) -> None:
    with pytest.raises(UserError, match=message):
        go(one)
    assert not asked.requests


def test_a_run_without_a_mutant_that_does_not_end_is_asked_once(asked: Asked) -> None:
    asked.answer = lambda request: all_of(request, Status.FAIL) if request.mutants else HUNG
    outcomes = go(mutant("m"), mutant("n", replace="return b"))
    assert {one.verdict for one in outcomes.values()} == {Verdict.SURVIVED}
    assert all("without the mutant it hung" in one.asked[0].reason for one in outcomes.values())
    assert sum(not one.mutants for one in asked.requests) == 1
    assert HUNG.ended is Ended.HUNG
