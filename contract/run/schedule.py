"""The learning rate of each optimiser step: linear warm-up, then a cosine (transformers' get_cosine_schedule_with_warmup)."""

from __future__ import annotations

import math

import numpy as np

from contract.errors import ContractError


def optimizer_steps(rows: int, batch_size: int, grad_accum: int, epochs: int) -> int:
    """Optimiser steps of a run: epochs * ceil(rows / (batch_size * grad_accum)).

    An epoch's trailing micro-batches form a step of their own; none is carried into the next epoch. With packing, `rows` are an epoch's
    sequences.
    """
    return epochs * -(-rows // (batch_size * grad_accum))


def learning_rate(step: int, base: float, warmup: int, total: int) -> float:
    """The learning rate of one optimiser step, counted from 0.

        base * step / max(1, warmup)              while step < warmup, so that the first step of a warm-up has learning rate 0
        base * 0.5 (1 + cos(pi progress))         from then on; progress = (step - warmup) / max(1, total - warmup), clamped to 0..1

    In float64, in the order of operations of transformers' `_get_cosine_schedule_with_warmup_lr_lambda`.
    """
    if step < warmup:
        return base * (step / max(1, warmup))
    progress = min(1.0, (step - warmup) / max(1, total - warmup))
    return base * max(0.0, 0.5 * (1.0 + math.cos(math.pi * progress)))


def learning_rates(base: float, warmup: int, total: int) -> np.ndarray:
    """The learning rate of every optimiser step of a run, float64 [total].

    Raises:
        ContractError: as `check_warmup`.
    """
    check_warmup(warmup, total)
    return np.fromiter((learning_rate(step, base, warmup, total) for step in range(total)), np.float64, total)


def check_warmup(warmup: int, total: int) -> None:
    """Refuses a warm-up that does not end within the run.

    Raises:
        ContractError: there is no step, or the warm-up takes more of them than there are.
    """
    if total < 1:
        raise ContractError(
            "exec.epochs", got="a run of no optimiser step", allowed="one step at least", remedy="give it rows to learn from"
        )
    if warmup > total:
        raise ContractError(
            "exec.warmup_steps",
            got=f"{warmup:,}, with {total:,} optimiser steps in all (epochs * ceil(rows / (batch_size * grad_accum)))",
            allowed=f"{total:,} at most",
            remedy="lower it, or train longer",
        )
