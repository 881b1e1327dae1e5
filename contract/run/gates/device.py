"""The device: the stack has it, and the run fits on it."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from contract.run.device_memory import format_size
from contract.run.facts import Facts, Refusal


def device(facts: Facts) -> Refusal | None:
    """The stack runs on this device."""
    wanted = facts.contract.exec.device
    if facts.capabilities is None or wanted in facts.capabilities.devices:
        return None
    return Refusal(
        gate="device",
        got=f"exec.device {wanted}",
        allowed=f"stack {facts.stack}: {', '.join(facts.capabilities.devices)}",
        remedy="set exec.device to one of them, or take another stack",
    )


def memory(facts: Facts) -> Refusal | None:
    """The estimate is within the share of the device's memory that the run may take."""
    if facts.estimate is None or facts.device_memory is None:
        return None
    fraction = facts.contract.exec.max_vram_fraction
    needed, allowed = facts.estimate.total, fraction * facts.device_memory.total
    if needed <= allowed:
        return None
    largest, size = max(facts.estimate.shares().items(), key=lambda share: share[1])
    return Refusal(
        gate="memory",
        got=f"a run of about {format_size(needed)}, most of it {largest} ({format_size(size)})",
        allowed=f"{format_size(int(allowed))}: {fraction:g} (exec.max_vram_fraction) of {format_size(facts.device_memory.total)} "
        f"({facts.device_memory.source})",
        remedy=REMEDIES.get(largest, "take a device with more memory, or a smaller model"),
    )


REMEDIES: Mapping[str, str] = MappingProxyType(
    {
        "activations": "lower exec.batch_size (and raise grad_accum), or exec.seq_len",
        "logits": "lower exec.batch_size (and raise grad_accum), or exec.seq_len",
        "adapter": "lower adapter.rank, or name fewer target_modules",
        "gradients": "lower adapter.rank, or name fewer target_modules",
        "optimizer": "lower adapter.rank, or name fewer target_modules",
        "weights": "set quant.base to nf4 where the stack takes it, or take a smaller model",
    }
)
"""Which fields make a share of the memory smaller."""

GATES = (device, memory)
