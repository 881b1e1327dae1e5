"""Every check, in the order in which a run shows them."""

from __future__ import annotations

from parity.checks import (
    activations,
    artifacts,
    attention,
    cross_entropy,
    elementary,
    embedding,
    graph,
    laws_attention,
    laws_layers,
    laws_training,
    lora_linear,
    nf4,
    nf4_laws,
    nf4_linear,
    norms,
    optimizer,
    optimizer_8bit,
    own_run,
    policy,
    products,
    rope,
    softmax,
    trajectory,
)
from parity.checks.check import Check
from parity.checks.own_run import OwnRun


def checks(model: str = graph.MODEL, own: OwnRun | None = None) -> tuple[Check, ...]:
    """Every check; `model` is the checkpoint of tier C, `own` a user's run, whose checks come first."""
    after = (cross_entropy, optimizer, optimizer_8bit, elementary)
    primitives = (products, embedding, norms, rope, softmax, attention, activations, lora_linear, *after)
    laws = (laws_layers, laws_attention, laws_training)
    small = (check for group in (*primitives, *laws, nf4, nf4_linear, nf4_laws) for check in group.CHECKS)
    of_run = () if own is None else own_run.checks(own)
    return (*of_run, *small, *graph.checks(model), *policy.CHECKS, *trajectory.CHECKS, *artifacts.CHECKS)


CHECKS: tuple[Check, ...] = checks()

TIERS: tuple[str, ...] = tuple(sorted({check.tier for check in CHECKS}))
