"""Ctrl-C once asks, twice ends."""

from __future__ import annotations

import signal
from collections.abc import Callable
from types import FrameType, TracebackType

Handler = Callable[[int, FrameType | None], object] | int | None

_MINDED = (signal.SIGINT, signal.SIGTERM)


class TwoInterrupts:
    """While it's entered, Ctrl-C and SIGTERM are noted and raise nothing, wherever they come. A signal that is ignored (nohup) stays so.

    asked: Ctrl-C or SIGTERM came. twice: Ctrl-C came a second time.
    """

    def __init__(self) -> None:
        self.asked = self.twice = False
        self._before: dict[signal.Signals, Handler] = {}

    def __enter__(self) -> TwoInterrupts:
        for number in _MINDED:
            before = signal.getsignal(number)
            if before != signal.SIG_IGN:
                self._before[number] = before
                signal.signal(number, self._note)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for number, before in self._before.items():
            signal.signal(number, before)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.twice = self.asked and number == signal.SIGINT
        self.asked = True
