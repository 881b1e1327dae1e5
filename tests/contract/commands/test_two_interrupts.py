"""Ctrl-C once asks, twice ends: what is noted of which signals, and what a worker is told."""

from __future__ import annotations

import signal
from typing import Any, cast

import pytest

from contract.commands.two_interrupts import TwoInterrupts, Watch

INT, TERM = signal.SIGINT, signal.SIGTERM


@pytest.mark.parametrize(
    ("came", "twice"),
    [([INT], False), ([TERM], False), ([TERM, TERM], False), ([INT, INT], True), ([TERM, INT], True), ([INT, INT, TERM], True)],
)
def test_a_second_ctrl_c_is_not_forgotten(came: list[signal.Signals], twice: bool) -> None:
    """Also where SIGTERM follows, as from a system that ends a group of processes."""
    with TwoInterrupts() as interrupts:
        for number in came:
            signal.raise_signal(number)
        assert (interrupts.asked, interrupts.twice) == (True, twice)


def test_what_is_ignored_stays_so_and_all_is_put_back() -> None:
    before = signal.signal(TERM, signal.SIG_IGN)
    try:
        with TwoInterrupts() as interrupts:
            signal.raise_signal(TERM)
            assert not interrupts.asked
        assert signal.getsignal(TERM) == signal.SIG_IGN
        assert signal.getsignal(INT) == signal.default_int_handler
    finally:
        signal.signal(TERM, before)


def test_the_worker_is_asked_once_and_each_frame_is_shown() -> None:
    sent: list[Any] = []

    class Process:
        def submit(self, request: str) -> None:
            sent.append(request)

    with TwoInterrupts() as interrupts:
        watch = Watch(cast(Any, Process()), interrupts, show=sent.append, asked=lambda: sent.append("asked"))
        watch({"step": 1})
        watch(None)
        assert not watch.cancelled
        signal.raise_signal(INT)
        watch({"step": 2})
        watch(None)
        signal.raise_signal(INT)
        with pytest.raises(KeyboardInterrupt):
            watch({"step": 3})
    assert sent == [{"step": 1}, {"step": 2}, "cancel", "asked", {"step": 3}]
    assert watch.cancelled
