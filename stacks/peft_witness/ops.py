"""The requests that the witness answers: `probe` and `score`."""

from __future__ import annotations

import platform
from importlib.metadata import version
from typing import Any

import torch

from contract.worker.serve import Channel
from contract.worker.stack import Reply, Tensors
from stacks.peft_witness.score import respond


class PeftWitness:
    """The witness, on the CPU.

    Args:
        device: CPU; what a file means does not depend on a device.

    Raises:
        ValueError: another device.
    """

    def __init__(self, device: str, channel: Channel | None = None) -> None:
        if device != "CPU":
            raise ValueError(f"peft_witness has no device {device!r}; allowed: CPU")
        torch.set_num_threads(1)  # its models are tiny, and the stacks are at work on the same cores

    def probe(self) -> Reply:
        """What is here."""
        versions = {package: version(package) for package in ("transformers", "peft", "torch")}
        return Reply(
            values={
                "device": "CPU", "name": platform.processor() or platform.machine(), "dtypes": ["float32"],
                "versions": versions | {"python": platform.python_version()}, "threads": 1, "notes": [], "defects": {},
            }
        )  # fmt: skip

    def score(self, tensors: Tensors | None = None, **values: Any) -> Reply:
        """See `stacks.peft_witness.score.respond`."""
        return respond(values, tensors or {})
