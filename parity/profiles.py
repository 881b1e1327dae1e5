"""How much a run draws."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Profile:
    """Drawn examples a check, and whether the seed is fixed unless given."""

    examples: int
    random_seed: bool = False


PROFILES: dict[str, Profile] = {
    "quick": Profile(examples=12),
    "ci": Profile(examples=60),
    "nightly": Profile(examples=10_000, random_seed=True),
}
FIXED_SEED = 20230523
"""Any number serves; this is the day on which the QLoRA paper appeared."""
