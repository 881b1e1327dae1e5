"""The table on the terminal: what is red is said with its reason, its bound and its snippet."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from parity.report import table
from parity.report.record import Result, Status
from tests.parity.report.test_record import result, run


def shown(*results: Result, problems: tuple[str, ...] = (), width: int = 160) -> str:
    console = Console(file=io.StringIO(), width=width)
    table.show(run(*results, problems=problems), console)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_a_pass_is_a_line() -> None:
    text = shown(result(Status.PASS, examples=12, observed=1e-8, bound=3e-8, headroom=3.0))
    (line,) = [line for line in text.splitlines() if line.startswith("pass")]
    assert line.split() == ["pass", "a.exp", "precision", "one", "f32", "12", "3x"]
    assert "PASS" in text
    assert "exit 0" in text


@pytest.mark.parametrize("status", [Status.FAIL, Status.ERROR, Status.NOT_COVERED, Status.WAIVED])
def test_what_is_not_a_pass_says_why(status: Status) -> None:
    text = shown(result(Status.PASS), result(status, id="a.log", reason="it is [wrong] by 3"))
    assert "it is [wrong] by 3" in text
    assert status.replace("_", " ") in text
    assert "RED" in text or status is Status.WAIVED


def test_not_applicable_is_counted_and_not_listed() -> None:
    text = shown(result(Status.PASS), result(Status.NOT_APPLICABLE, id="a.log", reason="one path"))
    assert "a.log" not in text
    assert "1 not applicable" in text


def test_what_is_left_to_nightly_is_listed_and_neither_passed_nor_red() -> None:
    text = shown(result(Status.PASS), result(Status.LEFT_TO_NIGHTLY, id="a.log", reason="asked by: parity run --profile nightly"))
    (line,) = [line for line in text.splitlines() if "a.log" in line]
    assert line.split()[:2] == ["nightly", "a.log"]
    assert "1 pass, 1 left to nightly" in text
    assert "exit 0" in text
    alone = shown(result(Status.LEFT_TO_NIGHTLY))
    assert "nothing was asked" in alone
    assert "exit 4" in alone


def test_a_snippet_can_be_copied_whole_from_a_narrow_terminal() -> None:
    snippet = "import numpy as np\nx = np.array([" + ", ".join(["0.123456789"] * 40) + "])"
    assert snippet in shown(result(Status.FAIL, reason="wrong", snippet=snippet), width=60)


@pytest.mark.parametrize(
    ("observed", "bound", "headroom", "spelt"),
    [(0.0, 0.0, None, "exact"), (3.0, 0.0, 0.0, "3 off"), (0.0, 1.0, None, "equal"), (2.0, 1.0, 0.5, "2e+00 over")],
)
def test_headroom(observed: float, bound: float, headroom: float | None, spelt: str) -> None:
    assert spelt in shown(result(Status.FAIL, observed=observed, bound=bound, headroom=headroom, reason="r"))


def test_an_answer_that_is_no_number_is_shown() -> None:
    nan = float("nan")
    assert "nan" in shown(result(Status.FAIL, observed=nan, bound=1.0, headroom=nan, reason="y[0]: got nan, wanted 1"))


def test_a_device_that_is_not_the_cpu_is_named() -> None:
    assert "one@WEBGPU" in shown(result(Status.PASS, device=("WEBGPU",)))


def test_a_stale_waiver_is_said() -> None:
    assert "the waiver expired" in shown(result(Status.PASS), problems=("the waiver expired",))


def test_nothing_asked_is_red() -> None:
    assert "RED" in shown()
    assert "exit 4" in shown()
