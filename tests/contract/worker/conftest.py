"""Starts fake stacks, and closes them."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import pytest

from contract.worker.process import StackProcess
from tests.contract.worker.launching import FAKE_STACK, Launch


@pytest.fixture
def launch() -> Iterator[Launch]:
    made: list[StackProcess] = []

    def start(device: str = "CPU", *, request_seconds: float = 20.0, start_seconds: float = 20.0) -> StackProcess:
        command = (sys.executable, str(FAKE_STACK))
        made.append(StackProcess("fake", command, device, request_seconds=request_seconds, start_seconds=start_seconds))
        return made[-1]

    yield start
    for process in made:
        process.close()
