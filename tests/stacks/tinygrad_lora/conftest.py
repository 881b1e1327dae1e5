"""One worker for all tests that only ask it to compute."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from contract.worker.process import StackProcess
from stacks.tinygrad_lora.ops import TinygradLora
from tests.stacks.tinygrad_lora.tinygrad_worker import start


@pytest.fixture(scope="session")
def stack() -> Iterator[StackProcess]:
    with start() as process:
        yield process


@pytest.fixture(scope="session")
def cpu() -> TinygradLora:
    """The stack in this process, its C compiler found."""
    return TinygradLora("CPU")
