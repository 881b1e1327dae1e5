"""How much a run draws."""

from __future__ import annotations

from dataclasses import dataclass

from parity.checks.check import Check


@dataclass(frozen=True, kw_only=True)
class Profile:
    """How many examples are drawn.

    examples:    of a check that is cheap
    alike:       of every check, whatever it costs; else a costly one draws fewer
    random_seed: the seed is another in each run, unless given
    """

    examples: int
    alike: bool = False
    random_seed: bool = False

    def drawn(self, check: Check) -> int:
        """How many examples of a check are drawn."""
        if check.cases is None:
            return 0
        count = self.examples if self.alike else max(1, self.examples // check.cost)
        return count if check.most is None else min(count, check.most)


PROFILES: dict[str, Profile] = {
    "quick": Profile(examples=12),
    "ci": Profile(examples=60),
    "nightly": Profile(examples=10_000, alike=True, random_seed=True),
}
FIXED_SEED = 20230523
"""Any number serves; this is the day on which the QLoRA paper appeared."""
