"""Every check, in the order in which a run shows them."""

from __future__ import annotations

from parity.checks import cross_entropy, elementary, nf4, nf4_linear, products
from parity.checks.check import Check

CHECKS: tuple[Check, ...] = (*products.CHECKS, *cross_entropy.CHECKS, *elementary.CHECKS, *nf4.CHECKS, *nf4_linear.CHECKS)

TIERS: tuple[str, ...] = tuple(sorted({check.tier for check in CHECKS}))
