"""The torch stack's worker, which may end itself with SIGKILL at a file operation of its run, and its launcher before.

Run: python torch_killed_worker.py PLACE OPERATION WHOM --device CPU. It leaves its process id at PLACE.pid and, once the run has come to
its end, the number of the run's file operations at PLACE.count. OPERATION: at which it ends, from 0, or `none`. WHOM: `worker` or `both`.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any

from contract.worker.serve import serve
from contract.worker.stack import Reply
from stacks.torch_qlora.ops import TorchQlora
from tests.contract.training.killed import Counter, killed_self

if __name__ == "__main__":
    place, operation, whom = Path(sys.argv.pop(1)), sys.argv.pop(1), sys.argv.pop(1)


def both() -> None:
    os.kill(os.getppid(), signal.SIGKILL)
    killed_self()


class Killed(TorchQlora):
    """The stack; the file operations of `train` are counted."""

    def train(self, **values: Any) -> Reply:
        counter = Counter(None if operation == "none" else int(operation), both if whom == "both" else killed_self)
        counter.plant()
        reply = super().train(**values)
        seen = counter.seen
        place.with_suffix(".count").write_text(str(seen))
        return reply


if __name__ == "__main__":
    place.with_suffix(".pid").write_text(str(os.getpid()))
    serve("__main__:Killed")
