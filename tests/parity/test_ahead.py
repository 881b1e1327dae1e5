"""What of judging needs no answer is made beside the stacks, and judged as if it were not."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Sequence

from contract.worker.capabilities import Elementary
from parity import ahead
from parity.busy import Meter
from parity.cells import Cell
from parity.checks.check import Case, Check
from parity.report.record import Status
from tests.parity.numpy_stack import CAPABILITIES
from tests.parity.test_engine import cells_of, check_of, run, two

MATMUL = check_of("a.matmul")
CASE = Case(name="a case", inputs={})


def with_ahead(check: Check, work: object) -> Check:
    return dataclasses.replace(check, plans=tuple(dataclasses.replace(plan, ahead=work) for plan in check.plans))


def begun(work: object) -> ahead.Wait | None:
    cells: list[Cell] = cells_of(with_ahead(MATMUL, work), ["one", "two"])
    return ahead.begin(CASE, cells, dict.fromkeys(("one", "two"), CAPABILITIES), Meter(busy={}))


def test_nothing_to_do_is_no_thread() -> None:
    assert begun(None) is None


def test_it_is_done_once_for_all_questions_with_what_every_stack_declares() -> None:
    called: list[tuple[str, Sequence[Elementary], str]] = []
    wait = begun(lambda case, declared: called.append((case.name, declared, threading.current_thread().name)))
    assert wait is not None
    wait()
    assert called == [("a case", [*CAPABILITIES.elementary_on("CPU")] * 2, "ahead")]


def test_what_goes_wrong_is_left_to_judging() -> None:
    def work(case: Case, declared: Sequence[Elementary]) -> None:
        raise ValueError("out of range")

    wait = begun(work)
    assert wait is not None
    wait()


def test_the_stacks_are_asked_meanwhile_and_every_example_is_judged() -> None:
    """Each example waits for a request to be under way: done before that, it would hang."""
    asked, made = threading.Event(), []

    def work(case: Case, declared: Sequence[Elementary]) -> None:
        assert asked.wait(60)
        made.append(case)

    def told(plan_requests: object) -> object:
        def requests(case: Case) -> object:
            asked.set()
            return plan_requests(case)  # type: ignore[operator]

        return requests

    check = with_ahead(MATMUL, work)
    check = dataclasses.replace(check, plans=tuple(dataclasses.replace(plan, requests=told(plan.requests)) for plan in check.plans))
    results = run(two("CPU"), check, examples=3)
    assert len(made) == 3 + MATMUL.fixed_count
    assert {(result.status, result.examples) for result in results} == {(Status.PASS, len(made))}


def test_a_value_is_made_once_though_two_threads_ask() -> None:
    made, waiting = [], threading.Event()

    def make() -> object:
        waiting.set()
        made.append(object())
        return made[-1]

    def slow() -> object:
        assert waiting.wait(60)
        return make()

    case = Case(name="a case", inputs={})
    first: list[object] = []
    thread = threading.Thread(target=lambda: first.append(case.once("x", make)))
    thread.start()
    second = case.once("x", slow)
    thread.join()
    assert len(made) == 1
    assert first == [second]
