"""A process that a campaign starts: it ends, with its workers, when its standard input closes or it is told to (SIGTERM).

So a campaign that was killed leaves nothing behind. Imports nothing of the project: a mutant is planted before what it changes is imported.
"""

from __future__ import annotations

import os
import signal
import threading
from types import FrameType


def end_with_the_campaign() -> None:
    """Watches standard input from now on; called from the main thread."""
    signal.signal(signal.SIGTERM, _leave)
    threading.Thread(target=_watch, daemon=True).start()


def _watch() -> None:
    os.read(0, 1)
    os.kill(os.getpid(), signal.SIGTERM)


def _leave(number: int, frame: FrameType | None) -> None:
    """As an exception, so that workers are ended too."""
    raise SystemExit(128 + number)
