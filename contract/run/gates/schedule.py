"""The learning-rate schedule fits the run."""

from __future__ import annotations

from contract.run.facts import Facts, Refusal


def warmup(facts: Facts) -> Refusal | None:
    """The warm-up ends within the run."""
    steps = facts.contract.exec.warmup_steps
    if facts.steps is None or steps <= facts.steps:
        return None
    counted = "epochs * ceil(rows / (batch_size * grad_accum)), or max_steps"
    return Refusal(
        gate="warmup",
        got=f"exec.warmup_steps {steps:,}, with {facts.steps:,} optimiser steps in all ({counted})",
        allowed=f"{facts.steps:,} at most",
        remedy=f"set exec.warmup_steps to {facts.steps} or less, or train longer",
    )


GATES = (warmup,)
