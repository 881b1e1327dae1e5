"""A request that a worker has not answered yet."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from contract.worker.answers import Answer

if TYPE_CHECKING:
    from contract.worker.process import StackProcess

Watch = Callable[[dict[str, Any] | None], None]
"""Told a progress frame's values, or None where nothing came for a while."""


@dataclass(frozen=True)
class Pending:
    """A request on its way; `result` waits for the answer."""

    stack: StackProcess
    request_id: int
    header: dict[str, Any]
    tensors: dict[str, np.ndarray]
    seconds: float
    start: int

    def result(self, watch: Watch | None = None) -> Answer:
        """Waits for the answer.

        Args:
            watch: told of each progress frame meanwhile, and called with None where none came for TICK_SECONDS. It may send requests,
                such as `cancel`; what it raises ends the wait.

        Raises:
            HarnessError: the worker died, hung, or broke the protocol.
            RequestFailed: the stack answered with an error.
        """
        return self.stack.collect(self, watch)
