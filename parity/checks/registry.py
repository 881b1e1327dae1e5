"""Every check, in the order in which a run shows them."""

from __future__ import annotations

from parity.checks import cross_entropy, elementary, graph, nf4, nf4_linear, products
from parity.checks.check import Check


def checks(model: str = graph.MODEL) -> tuple[Check, ...]:
    """Every check; `model` is the checkpoint of tier C."""
    return (*products.CHECKS, *cross_entropy.CHECKS, *elementary.CHECKS, *nf4.CHECKS, *nf4_linear.CHECKS, *graph.checks(model))


CHECKS: tuple[Check, ...] = checks()

TIERS: tuple[str, ...] = tuple(sorted({check.tier for check in CHECKS}))
