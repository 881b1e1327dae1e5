"""How a run goes, on standard error: lines now and then where that is no terminal, a bar where it's one."""

from __future__ import annotations

import io
import sys
from typing import Any

import pytest

from contract.commands.train_view import EVERY_SECONDS, View, view


def frame(step: int, **changed: Any) -> dict[str, Any]:
    told = {"stage": "train", "step": step, "total": 60, "loss": 2.5, "lr": 1e-4, "tokens_per_second": 245.4, "memory_bytes": 3 * 2**30}
    return told | changed


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_a_line_every_ten_seconds_and_one_at_the_end(capsys: pytest.CaptureFixture[str]) -> None:
    clock = Clock()
    shown = View(clock=clock)
    shown.show({"stage": "begin", "step": 40, "total": 60, "notes": ["a choice"]})
    for step in range(41, 61):
        clock.now += 3.0
        shown.show(frame(step, **({"validation_loss": 2.25} if step == 50 else {})))
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "finetune: note: a choice"
    assert lines[1] == "finetune: step 44 of 60: loss 2.5000, 245 tokens/s, 3.00 GiB, 0:48 left"
    assert lines[-1] == "finetune: step 60 of 60: loss 2.5000, validation 2.2500, 245 tokens/s, 3.00 GiB, 0:00 left"
    assert [line.split()[2] for line in lines[1:]] == ["44", "48", "52", "56", "60"]
    assert EVERY_SECONDS == 10


def test_stages_that_take_long_are_told(capsys: pytest.CaptureFixture[str]) -> None:
    clock = Clock()
    shown = View(clock=clock)
    for stage in ("load", "validate", "hash"):
        clock.now += 11
        shown.show({"stage": stage, "done": 1, "of": 3} if stage != "load" else {"stage": stage})
    assert capsys.readouterr().err.splitlines() == [
        "finetune: loading the model", "finetune: validating: 33 %", "finetune: hashing the files: 33 %",
    ]  # fmt: skip


def test_what_is_compiled_is_told_once_a_shape_and_at_once(capsys: pytest.CaptureFixture[str]) -> None:
    shown = View(clock=Clock())
    for what in ("a step of 4 x 128 tokens", "a step of 4 x 256 tokens"):
        for calls in range(3):
            shown.show({"stage": "compile", "what": what, "calls": calls, "of": 2, "seconds": 20.0 * calls})
    assert capsys.readouterr().err.splitlines() == [
        "finetune: compiling a step of 4 x 128 tokens: the first 2 calls are slow",
        "finetune: compiling a step of 4 x 256 tokens: the first 2 calls are slow",
    ]


def test_steps_that_compiled_have_no_speed_and_tell_no_time_left() -> None:
    clock = Clock()
    shown = View(clock=clock)
    shown.show({"stage": "begin", "step": 0, "total": 60, "notes": []})
    lines = []
    for step, (seconds, compiled) in enumerate([(110, 100.0), (60, 50.0), (10, 0.0), (10, 0.0), (40, 30.0), (10, 0.0)], start=1):
        clock.now += seconds
        shown.show(frame(step, compile_seconds=compiled))
        lines.append(shown.line())
    # what was not compiling, 60 s, over the steps that did not compile: at first it is too much, by the computing of those that did
    assert lines == [
        "loss 2.5000, compiled for 1:40, 3.00 GiB",
        "loss 2.5000, compiled for 2:30, 3.00 GiB",
        "loss 2.5000, 245 tokens/s, 3.00 GiB, 28:30 left",
        "loss 2.5000, 245 tokens/s, 3.00 GiB, 18:40 left",
        "loss 2.5000, compiled for 3:00, 3.00 GiB, 22:55 left",
        "loss 2.5000, 245 tokens/s, 3.00 GiB, 18:00 left",
    ]


def test_a_loss_that_is_none_and_memory_that_is_not_known_are_told_so() -> None:
    shown = View(clock=Clock())
    shown.show(frame(1, loss=None, memory_bytes=None))
    assert shown.line() == "no loss, 245 tokens/s, 0:00 left"


def test_the_time_left_is_that_of_this_session_s_steps() -> None:
    clock = Clock()
    shown = View(clock=clock)
    shown.show({"stage": "begin", "step": 50, "total": 60, "notes": []})
    assert shown.seconds_left() is None
    clock.now += 3600
    shown.show(frame(51))
    assert shown.seconds_left() == 9 * 3600
    assert shown.line().endswith("9:00:00 left")


def test_a_bar_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("TERM", "xterm")
    with view() as shown:
        shown.show({"stage": "load"})
        shown.show({"stage": "compile", "what": "a validation batch", "calls": 1, "of": 2, "seconds": 3.0})
        shown.bars.refresh()
        shown.show({"stage": "begin", "step": 0, "total": 60, "notes": ["[red]a choice"]})
        shown.show(frame(7))
        shown.show({"stage": "save", "step": 7, "total": 60})
        shown.bars.refresh()
        shown.show({"stage": "compile", "what": "a step", "calls": 0, "of": 2, "seconds": 0.0})
    text = terminal.getvalue()
    assert "7/60" in text
    assert "loss 2.5000, 245 tokens/s, 3.00 GiB" in text
    assert "(saving)" in text
    assert "compiling a validation batch, call 2 of 2" in text
    assert "(compiling a step, call 1 of 2)" in text
    assert "finetune: note: [red]a choice" in text
