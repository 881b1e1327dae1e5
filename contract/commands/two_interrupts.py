"""Ctrl-C once asks, twice ends."""

from __future__ import annotations

import signal
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from contract.worker.process import StackProcess

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
        self.twice = self.twice or (self.asked and number == signal.SIGINT)
        self.asked = True


class Watch:
    """Shows each progress frame of a request, and hands Ctrl-C on: `cancel` for the first one, KeyboardInterrupt for the second.

    Args:
        show: told a frame's values. asked: called when `cancel` was sent.

    Attributes:
        cancelled: `cancel` was sent.
    """

    def __init__(
        self,
        process: StackProcess,
        interrupts: TwoInterrupts,
        *,
        show: Callable[[dict[str, Any]], None],
        asked: Callable[[], None] = lambda: None,
    ) -> None:
        self._process, self._interrupts, self._show, self._asked = process, interrupts, show, asked
        self.cancelled = False

    def __call__(self, values: dict[str, Any] | None) -> None:
        if values is not None:
            self._show(values)
        if self._interrupts.twice:
            raise KeyboardInterrupt
        if self._interrupts.asked and not self.cancelled:
            self.cancelled = True
            self._process.submit("cancel")
            self._asked()
