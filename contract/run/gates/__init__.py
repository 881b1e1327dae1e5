"""May a run be? One pure function a gate: facts in, a refusal or None out.

A gate that lacks a fact says nothing: what the fact would have come from is refused by itself. No gate names a stack: what a
stack takes is in its static capabilities (contract/worker/capabilities.py).
"""

from __future__ import annotations

from collections.abc import Callable

from contract.run.facts import Facts, Refusal
from contract.run.gates import choice, device, method, mobile_edge, model, proxy, schedule, text

Gate = Callable[[Facts], Refusal | None]

FILE_GATES: tuple[Gate, ...] = (*proxy.GATES, *model.GATES, *text.GATES)
"""Those that judge the contract against its files, with no stack known."""

GATES: tuple[Gate, ...] = (*choice.GATES, *method.GATES, *FILE_GATES, *schedule.GATES, *mobile_edge.GATES, *device.GATES)
"""Every gate, in the order in which refusals are shown."""


def refusals(facts: Facts) -> tuple[Refusal, ...]:
    """What every gate says: all of it at once."""
    return tuple(refusal for gate in GATES if (refusal := gate(facts)) is not None)
