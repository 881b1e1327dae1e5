"""Several requests whose answers are one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from contract.worker.answers import Answer, HarnessError, RequestFailed
from parity.checks.check import Awaited


@dataclass(frozen=True, kw_only=True)
class Several:
    """Requests on their way; each with what goes before its tensors' names."""

    parts: Sequence[tuple[str, Awaited]]

    def result(self) -> Answer:
        """Waits for all of them: one that nobody collects would keep its answer in memory.

        Raises:
            HarnessError, RequestFailed: the first that failed.
        """
        tensors: dict[str, np.ndarray] = {}
        busy: list[int] = []
        failed: list[HarnessError | RequestFailed] = []
        for before, pending in self.parts:
            try:
                answer = pending.result()
            except (HarnessError, RequestFailed) as error:
                failed.append(error)
                continue
            tensors |= {f"{before}{name}": tensor for name, tensor in answer.tensors.items()}
            busy += answer.busy_ns
        if failed:
            raise failed[0]
        return Answer({}, tensors, (min(busy), max(busy)))
