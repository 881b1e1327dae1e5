"""Every check, in the order in which a run shows them."""

from __future__ import annotations

from parity.checks import (
    activations,
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
    products,
    rope,
    softmax,
    trajectory,
)
from parity.checks.check import Check


def checks(model: str = graph.MODEL) -> tuple[Check, ...]:
    """Every check; `model` is the checkpoint of tier C."""
    primitives = (products, embedding, norms, rope, softmax, attention, activations, lora_linear, cross_entropy, optimizer, elementary)
    laws = (laws_layers, laws_attention, laws_training)
    small = (check for group in (*primitives, *laws, nf4, nf4_linear, nf4_laws) for check in group.CHECKS)
    return (*small, *graph.checks(model), *trajectory.CHECKS)


CHECKS: tuple[Check, ...] = checks()

TIERS: tuple[str, ...] = tuple(sorted({check.tier for check in CHECKS}))
